// How rows lie in memory, free of torch and of any device: what the bindings tell the kernels of layer_norm and rms_norm.
#pragma once

#include <cstdint>

namespace fastdl {

// Row r of a tensor starts at (r / n) * outer + (r % n) * inner, in values, where n is RowGeometry::inner, one for all tensors of a
// call. A row's own values are contiguous.
struct RowStrides {
  int64_t outer, inner;
};

}  // namespace fastdl
