// Attention's plans: how a call is cut into blocks, what memory it needs on the way, and its kernels in their order.
#include "attention.h"
#include "attention_backward.h"
#include "attention_forward.h"
#include "attention_sizes.h"
#include "device.cuh"

namespace fastdl::cuda {
namespace {

int features_of(const Attention& call) { return call.features > call.value_features ? call.features : call.value_features; }

int width_of(const Attention& call) { return attention_width(call.dtype, features_of(call)); }

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

AttentionSizes forward_sizes(const Attention& call) {
  return attention_forward_sizes(call.dtype == Dtype::float32, width_of(call));
}

AttentionSizes backward_sizes_of(const Attention& call) {
  return attention_backward_sizes(call.dtype == Dtype::float32, width_of(call));
}

int64_t rows_of(const Attention& call) { return call.samples * call.heads * call.length; }

// The longest range of keys that a block of queries looks at.
int64_t longest_range(const Attention& call, int64_t queries) {
  if (call.window_left < 0 || call.window_right < 0) return call.longest_key;
  const int64_t range = call.window_left + call.window_right + queries;
  return range < call.longest_key ? range : call.longest_key;
}

void find_vectors(Attention& call) {
  for (AttentionTensor* tensor : {&call.query, &call.key, &call.value})
    tensor->vector = attention_rows_in_vectors(*tensor, call.dtype);
}

// Whether tensor copies reach all rows, and the tiles of 128 queries are worth their while.
bool fits_wgmma(const Attention& call, const device::Machine& machine) {
#ifdef FASTDL_WITHOUT_WGMMA
  return false;
#endif
  constexpr int64_t farthest = int64_t(1) << 39;  // strides are below 2^40 bytes
  if (machine.capability != 90 || machine.shared_bytes < attention_wgmma_shared_bytes) return false;
  if (call.dtype == Dtype::float32 || features_of(call) <= 32 || features_of(call) > 128) return false;
  if (call.starts_q.values || call.longest_query <= 64 || call.keys == 0) return false;
  for (const AttentionTensor* tensor : {&call.query, &call.key, &call.value}) {
    if (!tensor->vector || tensor->row >= farthest || tensor->head >= farthest || tensor->sample >= farthest) return false;
    if (tensor->row == 0 && call.keys > 1) return false;
  }
  return true;
}

AttentionForward plan_forward(const Attention& call) {
  AttentionForward plan{};
  plan.attention = call;
  find_vectors(plan.attention);
  const device::Machine machine = device::machine();
  const AttentionSizes sizes = forward_sizes(call);
  const int64_t group = call.heads / call.key_heads;
  plan.packed = group > 1 && call.longest_query < sizes.rows ? int(group) : 1;
  plan.tiles = ceil_div(call.longest_query * plan.packed, sizes.rows);
  plan.splits = 1;
  if (call.starts_q.values) return plan;
  // Too few blocks for the machine, and long rows of keys: decoding. Each part has four steps at least, since what it leaves must
  // be read again.
  const int64_t blocks = plan.tiles * (call.heads / plan.packed) * call.sequences;
  const int64_t steps = ceil_div(longest_range(call, call.longest_query), sizes.columns);
  const int64_t wanted = 2 * int64_t(machine.multiprocessors) / (blocks > 0 ? blocks : 1);
  const int64_t splits = wanted < steps / 4 ? wanted : steps / 4;
  plan.splits = int(splits < 1 ? 1 : splits > 128 ? 128 : splits);
  plan.by_wgmma = plan.splits == 1 && fits_wgmma(plan.attention, machine);
  if (plan.by_wgmma) {
    plan.packed = 1;
    plan.tiles = ceil_div(call.longest_query, attention_wgmma_rows);
  }
  return plan;
}

// A grid holds 2^31 - 1 blocks at most.
template <class Call, class F>
int launch_all(Call& call, int64_t blocks, F launch) {
  const int64_t most = int64_t(1) << 30;
  for (call.first_block = 0; call.first_block < blocks; call.first_block += most) {
    const int64_t rest = blocks - call.first_block;
    const int status = launch(call, unsigned(rest < most ? rest : most));
    if (status != 0) return status;
  }
  return 0;
}

template <class Call, class F>
int launch_by_dtype(Call& call, int64_t blocks, void* stream, F on_float, F on_bfloat16, F on_float16) {
  const F launch = call.attention.dtype == Dtype::float32    ? on_float
                   : call.attention.dtype == Dtype::bfloat16 ? on_bfloat16
                                                             : on_float16;
  return launch_all(call, blocks, [&](const Call& each, unsigned count) { return launch(each, count, stream); });
}

}  // namespace

bool attention_rows_in_vectors(const AttentionTensor& tensor, Dtype dtype) {
  const int64_t size = dtype == Dtype::float32 ? 4 : 2;
  const auto fits = [&](int64_t stride) { return stride * size % 16 == 0; };
  return tensor.column == 1 && reinterpret_cast<uintptr_t>(tensor.values) % 16 == 0 && fits(tensor.sample) && fits(tensor.head) &&
         fits(tensor.row);
}

size_t attention_forward_workspace(const Attention& call) {
  if (rows_of(call) == 0) return 0;
  const AttentionForward plan = plan_forward(call);
  return plan.splits == 1 ? 0 : size_t(plan.splits) * size_t(rows_of(call)) * (call.value_features + 1) * sizeof(float);
}

int attention_forward(const Attention& given, const AttentionTensor& output, const AttentionRowNumbers& log_sum, void* workspace,
                      void* stream) {
  if (rows_of(given) == 0 || given.longest_query == 0 || given.sequences == 0) return 0;
  AttentionForward call = plan_forward(given);
  call.output = output;
  call.output.vector = attention_rows_in_vectors(output, given.dtype);
  call.log_sum = log_sum;
  if (call.splits > 1) {
    call.partial_log_sum = static_cast<float*>(workspace);
    call.partial_output = call.partial_log_sum + call.splits * rows_of(given);
  }
  const int64_t blocks = call.tiles * call.splits * (given.heads / call.packed) * given.sequences;
  if (call.by_wgmma)
    return launch_by_dtype(call, blocks, stream, launch_attention_forward_float, launch_attention_forward_wgmma_bfloat16,
                           launch_attention_forward_wgmma_float16);
  const int status = launch_by_dtype(call, blocks, stream, launch_attention_forward_float, launch_attention_forward_bfloat16,
                                     launch_attention_forward_float16);
  return status == 0 && call.splits > 1 ? launch_attention_merge(call, stream) : status;
}

size_t attention_backward_workspace(const Attention& call, const AttentionGradients&) {
  return 2 * size_t(rows_of(call)) * sizeof(float);
}

int attention_backward(const Attention& given, const AttentionGradients& gradients, void* workspace, void* stream) {
  if (rows_of(given) == 0 || given.sequences == 0) return 0;
  AttentionBackward call{};
  call.attention = given;
  find_vectors(call.attention);
  call.gradients = gradients;
  for (AttentionTensor* tensor :
       {&call.gradients.grad_output, &call.gradients.output, &call.gradients.query, &call.gradients.key, &call.gradients.value})
    tensor->vector = attention_rows_in_vectors(*tensor, given.dtype);
  call.log_sum = static_cast<float*>(workspace);
  call.delta = call.log_sum + rows_of(given);
  int status = launch_attention_delta(call, stream);
  const AttentionSizes sizes = backward_sizes_of(given);
  const int64_t query_tiles = ceil_div(given.longest_query, sizes.rows), key_tiles = ceil_div(given.longest_key, sizes.rows);
  if (status == 0 && (gradients.key.values || gradients.value.values)) {
    call.tiles = key_tiles;
    status = launch_by_dtype(call, key_tiles * given.key_heads * given.sequences, stream, launch_attention_backward_key_float,
                             launch_attention_backward_key_bfloat16, launch_attention_backward_key_float16);
  }
  if (status == 0 && gradients.query.values) {
    call.tiles = query_tiles;
    status = launch_by_dtype(call, query_tiles * given.heads * given.sequences, stream, launch_attention_backward_query_float,
                             launch_attention_backward_query_bfloat16, launch_attention_backward_query_float16);
  }
  if (status == 0 && gradients.mask.values) {
    const int64_t* size = given.mask_sizes;
    const int64_t blocks = size[0] * size[1] * (size[2] == 1 ? 1 : ceil_div(given.length, sizes.rows)) *
                           (size[3] == 1 ? 1 : ceil_div(given.keys, sizes.columns));
    status = launch_by_dtype(call, blocks, stream, launch_attention_backward_mask_float, launch_attention_backward_mask_bfloat16,
                             launch_attention_backward_mask_float16);
  }
  return status;
}

}  // namespace fastdl::cuda
