// Attention by storage type, each compiled in a file of its own, attention_<type>.cpp, so that they compile side by side.
#pragma once

#include "attention.h"
#include "storage.h"

namespace fastdl {

template <class T>
struct AttentionOf {
  static void forward(const Attention& call, const Operand4& output, const RowNumbers& log_sum);
  static void backward(const Attention& call, const AttentionGradients& gradients);
};

#define FASTDL_ATTENTION(T)                                                                                \
  template <>                                                                                              \
  void AttentionOf<T>::forward(const Attention& call, const Operand4& output, const RowNumbers& log_sum) { \
    AttentionForward<T>(call, output, log_sum).run();                                                      \
  }                                                                                                        \
  template <>                                                                                              \
  void AttentionOf<T>::backward(const Attention& call, const AttentionGradients& gradients) {              \
    AttentionBackward<T> backward(call, gradients);                                                        \
    backward.run();                                                                                        \
    if (gradients.mask.data && !backward.writes_mask()) AttentionMaskGradient<T>(call, gradients).run();   \
  }

}  // namespace fastdl
