// A producer warp copies four chunks through two stages to three consumer warps. Each way of getting it wrong is planted by its
// number.
#include "device.cuh"
#include "simt/case.h"

namespace pipeline_bugs {
using namespace fastdl::device;

enum Bug { none, no_wait_for_full, no_wait_for_empty, wrong_parity, wrong_first_parity, too_many_bytes, no_initialisation_barrier };

constexpr int stages = 2, chunks = 4, chunk = 32;

template <int bug>
__global__ void copy(float* out, const float* in) {
  STATIC_SHARED(float, staged, [stages][chunk]);
  STATIC_SHARED(Mbarrier, full, [stages]);
  STATIC_SHARED(Mbarrier, empty, [stages]);
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < stages; ++stage) {
      mbarrier_init(&full[stage], 1);
      mbarrier_init(&empty[stage], 3 * 32);
    }
    mbarrier_init_fence();
  }
  if constexpr (bug != no_initialisation_barrier) block_barrier();
  if (threadIdx.x / 32 == 3) {
    if (elect_one()) {
      for (int i = 0; i < chunks; ++i) {
        const int stage = i % stages;
        // The first round finds the stages empty: the phase before the first counts as ended.
        if constexpr (bug != no_wait_for_empty)
          mbarrier_wait(&empty[stage], unsigned(i / stages + (bug == wrong_first_parity ? 0 : 1)) & 1u);
        mbarrier_arrive_expect(&full[stage], chunk * sizeof(float) + (bug == too_many_bytes ? 16 : 0));
        bulk_load(staged[stage], in + i * chunk, chunk * sizeof(float), &full[stage]);
      }
    }
  } else {
    for (int i = 0; i < chunks; ++i) {
      const int stage = i % stages;
      const unsigned parity = unsigned(i / stages + (bug == wrong_parity ? 1 : 0)) & 1u;
      if constexpr (bug != no_wait_for_full) mbarrier_wait(&full[stage], parity);
      if (threadIdx.x < chunk) out[i * chunk + int(threadIdx.x)] = staged[stage][threadIdx.x];
      mbarrier_arrive(&empty[stage]);
    }
  }
}

template <int bug>
void run(simt::Case& c) {
  const auto kernel = c.integer("planted") != 0 ? copy<bug> : copy<none>;
  c.check(launch(kernel, 1, 128, 0, nullptr, c.array<float>("out"), c.array<const float>("in")));
}
}  // namespace pipeline_bugs

SIMT_CASE(missing_wait_for_full) { pipeline_bugs::run<pipeline_bugs::no_wait_for_full>(c); }
SIMT_CASE(missing_wait_for_empty) { pipeline_bugs::run<pipeline_bugs::no_wait_for_empty>(c); }
SIMT_CASE(wrong_parity) { pipeline_bugs::run<pipeline_bugs::wrong_parity>(c); }
SIMT_CASE(wrong_first_parity) { pipeline_bugs::run<pipeline_bugs::wrong_first_parity>(c); }
SIMT_CASE(too_many_bytes) { pipeline_bugs::run<pipeline_bugs::too_many_bytes>(c); }
SIMT_CASE(missing_initialisation_barrier) { pipeline_bugs::run<pipeline_bugs::no_initialisation_barrier>(c); }
