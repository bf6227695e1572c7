// What would be launched for a shape, without any tensor; and kernels on tensors with steps of more than 2^31 values.
#include <sys/mman.h>

#include <cstring>
#include <vector>

#include "batch_norm.h"
#include "group_norm.h"
#include "norm_case.h"

using namespace fastdl::cuda;
using fastdl::Dtype;
using fastdl::Strides;

SIMT_CASE(norm_plan) {
  Norm norm{};
  norm.dtype = Dtype(c.integer("dtype"));
  norm.samples = c.integer("samples");
  norm.channels = c.integer("channels");
  norm.positions = c.integer("positions");
  norm.channels_last = c.integer("channels_last") != 0;
  void* const somewhere = reinterpret_cast<void*>(uintptr_t(c.integer("address")));  // never read
  norm.input = somewhere;
  norm.residual = c.integer("residual") ? somewhere : nullptr;
  const int64_t sample = norm.channels * norm.positions;
  const Strides dense = norm.channels_last ? Strides{sample, 1, norm.channels} : Strides{sample, norm.positions, 1};
  norm.input_strides = norm.residual_strides = norm.output_strides = dense;
  const int64_t groups = c.integer("groups");
  const Task task{norm, groups > 0 ? groups : norm.channels, groups == 0, false};
  const Target target = target_of(c);
  const NormGradients gradients{somewhere, dense, somewhere, nullptr, {somewhere, norm.dtype}, {somewhere, norm.dtype}};
  const bool backward = c.integer("backward") != 0;
  const Plan plan = backward ? backward_plan(task, gradients, target) : forward_plan(task, somewhere, target);
  report(c, "plan", plan);
  c.report("threads", plan.launch.threads);
  c.report("cluster", plan.launch.cluster);
  c.report("shared_bytes", int64_t(plan.launch.shared_bytes));
  c.report("slots", plan.by_rows ? plan.rows.slots : plan.strips.slots);
  c.report("workspace", int64_t(backward ? backward_workspace(task, gradients, target) : forward_workspace(task, target)));
}

namespace {

// Address space of its full size, memory only where it is touched.
struct Sparse {
  size_t bytes;
  float* values;

  explicit Sparse(int64_t count) : bytes(size_t(count) * sizeof(float)) {
    void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    values = memory == MAP_FAILED ? nullptr : static_cast<float*>(memory);
  }
  ~Sparse() {
    if (values) munmap(values, bytes);
  }
};

struct Layout {
  int64_t samples, channels, positions;
  Strides strides;

  template <class F>
  void each(F f) const {
    for (int64_t n = 0, i = 0; n < samples; ++n)
      for (int64_t k = 0; k < channels; ++k)
        for (int64_t p = 0; p < positions; ++p, ++i) f(i, n * strides.sample + k * strides.channel + p * strides.position);
  }
  int64_t count() const { return samples * channels * positions; }
  int64_t extent() const {
    return (samples - 1) * strides.sample + (channels - 1) * strides.channel + (positions - 1) * strides.position + 1;
  }
};

// Output and the input's gradient of values that are the same for every layout, in the order of (sample, channel, position).
std::vector<float> solve(simt::Case& c, const Layout& layout, bool rows, int64_t groups) {
  Sparse x(layout.extent()), g(layout.extent()), y(layout.extent()), gx(layout.extent());
  std::vector<float> results;
  if (!x.values || !g.values || !y.values || !gx.values) return results;
  layout.each([&](int64_t i, int64_t at) { x.values[at] = float(i * 37 % 101) / 17, g.values[at] = float(i * 53 % 89) / 23 - 2; });
  Norm norm{};
  norm.dtype = Dtype::float32;
  norm.samples = layout.samples, norm.channels = layout.channels, norm.positions = layout.positions;
  norm.channels_last = rows;
  norm.input = x.values;
  norm.input_strides = norm.output_strides = layout.strides;
  norm.eps = 1e-5;
  norm.activation = fastdl::Activation::silu;
  const Target target = target_of(c);
  std::vector<double> statistics(size_t(2 * layout.samples * layout.channels));
  const NormGradients gradients{g.values, layout.strides, gx.values, nullptr, {}, {}};
  if (groups > 0) {
    void* const room = c.workspace(group_norm_forward_workspace(norm, groups, target), "forward");
    c.check(group_norm_forward(norm, groups, y.values, statistics.data(), room, target, nullptr));
    void* const more = c.workspace(group_norm_backward_workspace(norm, groups, gradients, target), "backward");
    c.check(group_norm_backward(norm, groups, statistics.data(), gradients, more, target, nullptr));
  } else {
    void* const room = c.workspace(batch_norm_forward_workspace(norm, false, target), "forward");
    c.check(batch_norm_forward(norm, {}, {}, y.values, statistics.data(), room, target, nullptr));
    void* const more = c.workspace(batch_norm_backward_workspace(norm, false, gradients, target), "backward");
    c.check(batch_norm_backward(norm, false, statistics.data(), gradients, more, target, nullptr));
  }
  layout.each([&](int64_t, int64_t at) { results.push_back(y.values[at]), results.push_back(gx.values[at]); });
  return results;
}

}  // namespace

SIMT_CASE(far_apart) {
  const bool rows = c.integer("channels_last") != 0;
  Layout near{c.integer("samples"), c.integer("channels"), c.integer("positions"), {}};
  const int64_t sample = near.channels * near.positions;
  near.strides = rows ? Strides{sample, 1, near.channels} : Strides{sample, near.positions, 1};
  Layout far = near;
  far.strides = {c.integer("sample"), c.integer("channel"), c.integer("position")};
  const std::vector<float> expected = solve(c, near, rows, c.integer("groups")), found = solve(c, far, rows, c.integer("groups"));
  c.report("extent", far.extent());
  c.report("count", int64_t(found.size()));
  c.report("equal", !found.empty() && found.size() == expected.size() &&
                        memcmp(found.data(), expected.data(), found.size() * sizeof(float)) == 0);
}
