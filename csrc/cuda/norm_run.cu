// Forward is one launch where a slab is held by a block or a cluster, or given statistics make it a map; else gather, merge, apply.
// Backward likewise, and one small launch more where the parameters' gradients are sums over samples.
#include <algorithm>

#include "device.cuh"
#include "norm_run.h"

namespace fastdl::cuda {
namespace {

constexpr int no_plan = 1;  // cudaErrorInvalidValue

Call make_call(const Task& task, const Plan& plan) {
  const Norm& norm = task.norm;
  Call call{};
  call.input = norm.input;
  call.residual = norm.residual;
  call.input_strides = norm.input_strides;
  call.residual_strides = norm.residual_strides;
  call.output_strides = norm.output_strides;
  call.weight = norm.weight;
  call.bias = norm.bias;
  call.eps = float(norm.eps);
  call.parameter = float(norm.parameter);
  call.activation = norm.activation;
  call.activation_first = norm.activation_first;
  call.clustered = plan.path == Path::cluster;
  call.constant = task.constant;
  call.slab_is_channel = task.across_samples;
  call.step = Step::all;
  call.ranks = plan.ranks;
  call.slabs = plan.slabs;
  call.channels = norm.channels;
  call.count = plan.count;
  return call;
}

// mean and variance from the statistics of a forward.
void take_statistics(Call& call, const double* statistics) {
  call.mean = {statistics, Dtype::float64, 1};
  call.variance = {statistics + call.slabs, Dtype::float64, 1};
}

// Pieces of the workspace, one after another.
struct Pieces {
  char* at;
  size_t used = 0;

  explicit Pieces(void* workspace) : at(static_cast<char*>(workspace)) {}
  template <class T>
  T* take(int64_t count) {
    T* const piece = at ? reinterpret_cast<T*>(at + used) : nullptr;
    used += (size_t(count) * sizeof(T) + 15) / 16 * 16;
    return piece;
  }
};

// Rows of channel sums, and pieces of a channel in each.
struct ChannelSumShape {
  int64_t outer, pieces;

  explicit ChannelSumShape(const Task& task, const Plan& plan)
      : outer(plan.by_rows ? plan.ranks / plan.rows.parts * plan.rows.outer : task.norm.samples),
        pieces(plan.by_rows ? 1 : plan.strips.pieces) {}
};

// Group norm adds its parameters' gradients up over samples; batch norm has them as the sums of a slab.
bool adds_over_samples(const Task& task, const NormGradients& gradients) {
  return !task.across_samples && (gradients.weight.values || gradients.bias.values);
}

// Given statistics send nothing back, so the sums serve the parameters alone.
bool needs_sums(const Task& task, const NormGradients& gradients) {
  return !task.constant || gradients.weight.values || gradients.bias.values;
}

void take_moments(Pieces& pieces, const Task& task, const Plan& plan, Call& call) {
  if (plan.path == Path::split && !task.constant) call.partial_moments = pieces.take<PartialMoments>(plan.ranks * plan.slabs);
}

PartialSums* take_sums(Pieces& pieces, const Task& task, const NormGradients& gradients, const Plan& plan, Call& call) {
  const ChannelSumShape shape(task, plan);
  if (adds_over_samples(task, gradients))
    call.channel_sums = pieces.take<ChannelSums>(shape.outer * task.norm.channels * shape.pieces);
  if (plan.path != Path::split || !needs_sums(task, gradients)) return nullptr;
  call.partial_sums = pieces.take<PartialSums>(plan.ranks * plan.slabs);
  return pieces.take<PartialSums>(plan.slabs);
}

int launch_forward(const Plan& plan, const Launch& launch, const Call& call) {
  return plan.by_rows ? launch_rows_forward(launch, call, plan.rows) : launch_strips_forward(launch, call, plan.strips);
}
int launch_backward(const Plan& plan, const Launch& launch, const Call& call) {
  return plan.by_rows ? launch_rows_backward(launch, call, plan.rows) : launch_strips_backward(launch, call, plan.strips);
}

bool is_empty(const Norm& norm) { return norm.samples == 0 || norm.channels == 0 || norm.positions == 0; }

int fill_zero(const ParameterGradient& gradient, int64_t channels, void* stream) {
  const size_t bytes = gradient.dtype == Dtype::float64 ? 8 : value_bytes(gradient.dtype);
  return gradient.values ? device::fill_bytes(gradient.values, 0, size_t(channels) * bytes, static_cast<device::Stream>(stream))
                         : 0;
}

// Rows of vectors are of whole ones.
bool is_possible(const Norm& norm, bool vector) {
  return !vector || !norm.channels_last || norm.channels % int64_t(16 / value_bytes(norm.dtype)) == 0;
}

}  // namespace

Plan forward_plan(const Task& task, const void* output, const Target& target) {
  const Norm& norm = task.norm;
  const Operand operands[] = {
      {norm.input, norm.input_strides}, {output, norm.output_strides}, {norm.residual, norm.residual_strides}};
  return make_plan(task, target, false, fits_vectors(task, operands, norm.residual ? 3 : 2), norm.residual ? 2 : 1);
}

Plan backward_plan(const Task& task, const NormGradients& gradients, const Target& target) {
  const Norm& norm = task.norm;
  Operand operands[5] = {{norm.input, norm.input_strides}, {gradients.output, gradients.output_strides}};
  int count = 2;
  if (norm.residual) operands[count++] = {norm.residual, norm.residual_strides};
  if (gradients.input) operands[count++] = {gradients.input, norm.output_strides};
  if (gradients.residual) operands[count++] = {gradients.residual, norm.output_strides};
  return make_plan(task, target, true, fits_vectors(task, operands, count), norm.residual ? 3 : 2);
}

// Whether vectors fit depends on where the outputs lie, which is not known here; so what either plan needs, if it can be at all.
size_t forward_workspace(const Task& task, const Target& target) {
  if (is_empty(task.norm)) return 0;
  size_t most = 0;
  for (bool vector : {false, true}) {
    if (!is_possible(task.norm, vector)) continue;
    const Plan plan = make_plan(task, target, false, vector, task.norm.residual ? 2 : 1);
    Call call = make_call(task, plan);
    Pieces pieces(nullptr);
    take_moments(pieces, task, plan, call);
    most = std::max(most, pieces.used);
  }
  return most;
}

size_t backward_workspace(const Task& task, const NormGradients& gradients, const Target& target) {
  if (is_empty(task.norm)) return 0;
  size_t most = 0;
  for (bool vector : {false, true}) {
    if (!is_possible(task.norm, vector)) continue;
    const Plan plan = make_plan(task, target, true, vector, task.norm.residual ? 3 : 2);
    Call call = make_call(task, plan);
    Pieces pieces(nullptr);
    take_sums(pieces, task, gradients, plan, call);
    most = std::max(most, pieces.used);
  }
  return most;
}

int run_forward(const Task& task, const Parameter& mean, const Parameter& variance, void* output, double* statistics,
                void* workspace, const Target& target, void* stream) {
  const Norm& norm = task.norm;
  // Of nothing at all the statistics are 0, or those that were given.
  if (is_empty(norm) && !task.constant) {
    const int64_t slabs = task.across_samples ? norm.channels : norm.samples * task.groups;
    return slabs ? device::fill_bytes(statistics, 0, size_t(2 * slabs) * sizeof(double), static_cast<device::Stream>(stream)) : 0;
  }
  if (is_empty(norm)) return launch_copy_statistics(mean, variance, statistics, norm.channels, stream);
  Plan plan = forward_plan(task, output, target);
  if (!plan.launch.blocks) return no_plan;
  plan.launch.stream = stream;
  Call call = make_call(task, plan);
  call.output = output;
  call.statistics = statistics;
  Pieces pieces(workspace);
  take_moments(pieces, task, plan, call);
  if (plan.by_rows) set_row_steps(call, plan.rows);
  if (task.constant) {
    call.mean = mean;
    call.variance = variance;
    call.step = Step::apply;
    // Nothing is exchanged; the blocks of a slab need not be a cluster.
    call.clustered = false;
    plan.launch.cluster = 1;
    return launch_forward(plan, plan.launch, call);
  }
  if (plan.path != Path::split) return launch_forward(plan, plan.launch, call);
  call.step = Step::gather;
  int status = launch_forward(plan, plan.launch, call);
  if (status == 0) status = launch_merge_moments(call, stream);
  if (status != 0) return status;
  take_statistics(call, statistics);
  call.statistics = nullptr;
  call.step = Step::apply;
  return launch_forward(plan, plan.launch, call);
}

int run_backward(const Task& task, const double* statistics, const NormGradients& gradients, void* workspace, const Target& target,
                 void* stream) {
  const Norm& norm = task.norm;
  if (is_empty(norm)) {
    const int status = fill_zero(gradients.weight, norm.channels, stream);
    return status != 0 ? status : fill_zero(gradients.bias, norm.channels, stream);
  }
  Plan plan = backward_plan(task, gradients, target);
  if (!plan.launch.blocks) return no_plan;
  plan.launch.stream = stream;
  Call call = make_call(task, plan);
  call.gradient = gradients.output;
  call.gradient_strides = gradients.output_strides;
  call.output = gradients.input;
  call.residual_gradient = gradients.residual;
  call.weight_gradient = gradients.weight;
  call.bias_gradient = gradients.bias;
  take_statistics(call, statistics);
  Pieces pieces(workspace);
  PartialSums* const means = take_sums(pieces, task, gradients, plan, call);
  if (plan.by_rows) set_row_steps(call, plan.rows);
  const bool wanted = gradients.input || gradients.residual;
  int status = 0;
  if (!needs_sums(task, gradients)) {
    if (!wanted) return 0;
    call.step = Step::apply;
    call.clustered = false;
    plan.launch.cluster = 1;
    return launch_backward(plan, plan.launch, call);
  }
  if (plan.path != Path::split) {
    status = launch_backward(plan, plan.launch, call);
  } else {
    call.step = Step::gather;
    status = launch_backward(plan, plan.launch, call);
    if (status == 0) status = launch_merge_sums(call, means, stream);
    call.means = means;
    call.step = Step::apply;
    if (status == 0 && wanted) status = launch_backward(plan, plan.launch, call);
  }
  if (status != 0 || !adds_over_samples(task, gradients)) return status;
  const ChannelSumShape shape(task, plan);
  return launch_parameter_gradients(call, shape.outer, shape.pieces, stream);
}

}  // namespace fastdl::cuda
