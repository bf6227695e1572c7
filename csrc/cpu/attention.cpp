// Which type's attention a call takes.
#include "attention.h"

#include "attention_types.h"

namespace fastdl {

namespace {

template <class Function>
void with_type(Dtype dtype, Function&& function) {
  switch (dtype) {
    case Dtype::float32: return function(AttentionOf<float>{});
    case Dtype::float64: return function(AttentionOf<double>{});
    case Dtype::bfloat16: return function(AttentionOf<BFloat16>{});
    case Dtype::float16: return function(AttentionOf<Float16>{});
  }
}

}  // namespace

void attention_forward(const Attention& call, const Operand4& output, const RowNumbers& log_sum) {
  with_type(call.dtype, [&](auto kernels) { kernels.forward(call, output, log_sum); });
}

void attention_backward(const Attention& call, const AttentionGradients& gradients) {
  with_type(call.dtype, [&](auto kernels) { kernels.backward(call, gradients); });
}

}  // namespace fastdl
