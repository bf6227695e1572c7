#include "spans_of.h"

namespace fastdl {

template <>
const Spans<double>& spans<double>(Activation activation) {
  return pick_spans<double>(activation, std::make_integer_sequence<int, activation_count>{});
}

}  // namespace fastdl
