// Dropout on the CPU as an op of torch, in the LibTorch stable ABI.
#include "cpu/dropout.h"
#include "cpu_tensors.h"
#include "dropout_tensors.h"

namespace fastdl {
namespace {

Tensor dropout_forward_op(const Tensor& input, const MaybeTensor& residual, const Tensor& seed, double dropout_p) {
  const DropoutGeometry geometry(input);
  Tensor output = make(geometry.sizes, geometry.strides, input, geometry.count);
  if (geometry.count == 0) return output;
  const auto dense = [&](const Tensor& given) {
    if (geometry.in_place(given)) return given;
    Tensor copy = make(geometry.sizes, geometry.strides, given, geometry.count);
    torch::stable::copy_(copy, given);
    return copy;
  };
  const Tensor x = dense(input);
  Tensor r;
  if (residual) r = dense(*residual);
  dropout_forward({dtype_of(input), geometry.samples, geometry.channels, geometry.lines, geometry.width, x.const_data_ptr(),
                   residual ? r.const_data_ptr() : nullptr, output.mutable_data_ptr(),
                   uint64_t(*static_cast<const int64_t*>(seed.const_data_ptr())), dropped_levels(dropout_p)});
  return output;
}

}  // namespace
}  // namespace fastdl

STABLE_TORCH_LIBRARY_FRAGMENT(fastdl_cpu, library) { library.def(fastdl::dropout_forward_schema); }

STABLE_TORCH_LIBRARY_IMPL(fastdl_cpu, CPU, library) { library.impl("dropout_forward", TORCH_BOX(&fastdl::dropout_forward_op)); }
