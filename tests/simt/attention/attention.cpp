// Attention's forward, and its backward from what that leaves, as one case.
#include "attention.h"

#include <string>

#include "simt/case.h"

using namespace fastdl;
using namespace fastdl::cuda;

namespace {

AttentionTensor tensor_of(simt::Case& c, const std::string& name) {
  AttentionTensor tensor;
  tensor.values = c.array<void>(name.c_str());
  if (!tensor.values) return tensor;
  const auto stride = [&](const char* axis) { return c.integer((name + "." + axis).c_str()); };
  tensor.sample = stride("sample");
  tensor.head = stride("head");
  tensor.row = stride("row");
  tensor.column = stride("column");
  return tensor;
}

AttentionIntegers integers_of(simt::Case& c, const char* name) {
  return {c.array<const void>(name), c.integer((std::string(name) + ".stride").c_str()),
          c.integer((std::string(name) + ".wide").c_str()) != 0};
}

}  // namespace

SIMT_CASE(attention) {
  Attention call{};
  call.dtype = Dtype(c.integer("dtype"));
  call.samples = c.integer("samples");
  call.heads = c.integer("heads");
  call.key_heads = c.integer("key_heads");
  call.length = c.integer("length");
  call.keys = c.integer("keys");
  call.features = int(c.integer("features"));
  call.value_features = int(c.integer("value_features"));
  call.query = tensor_of(c, "query");
  call.key = tensor_of(c, "key");
  call.value = tensor_of(c, "value");
  call.mask = tensor_of(c, "mask");
  call.mask_type = AttentionMask(c.integer("mask_type"));
  for (int i = 0; i < 4; ++i) call.mask_sizes[i] = c.integer(("mask_size." + std::to_string(i)).c_str());
  call.scale = float(c.real("scale"));
  call.softcap = float(c.real("softcap"));
  call.window_left = c.integer("window_left");
  call.window_right = c.integer("window_right");
  call.offset = c.integer("offset");
  call.query_offset = integers_of(c, "query_offset");
  call.starts_q = integers_of(c, "starts_q");
  call.starts_k = integers_of(c, "starts_k");
  call.sequences = c.integer("sequences");
  call.longest_query = c.integer("longest_query");
  call.longest_key = c.integer("longest_key");
  call.dropped = c.integer("dropped");
  call.seed = uint64_t(c.integer("seed"));
  call.seed_on_device = c.array<const int64_t>("seed_on_device");

  AttentionGradients gradients{};
  gradients.output = tensor_of(c, "output");
  const int64_t log_sum_strides[3] = {call.heads * call.length, call.length, 1};
  gradients.log_sum = {c.array<float>("log_sum"), log_sum_strides[0], log_sum_strides[1], log_sum_strides[2]};
  void* const room = c.workspace(attention_forward_workspace(call), "workspace of forward");
  c.check(attention_forward(call, gradients.output, gradients.log_sum, room, nullptr));
  if (!c.array<void>("grad_output")) return;

  gradients.grad_output = tensor_of(c, "grad_output");
  gradients.grad_log_sum = {c.array<float>("grad_log_sum"), log_sum_strides[0], log_sum_strides[1], log_sum_strides[2]};
  gradients.query = tensor_of(c, "grad_query");
  gradients.key = tensor_of(c, "grad_key");
  gradients.value = tensor_of(c, "grad_value");
  gradients.mask = tensor_of(c, "grad_mask");
  void* const more = c.workspace(attention_backward_workspace(call, gradients), "workspace of backward");
  c.check(attention_backward(call, gradients, more, nullptr));
}
