#include "spans_of.h"

namespace fastdl {

template <>
const Spans<float>& spans<float>(Activation activation) {
  return pick_spans<float>(activation, std::make_integer_sequence<int, activation_count>{});
}

}  // namespace fastdl
