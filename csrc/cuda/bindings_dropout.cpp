// The CUDA kernels of dropout as an op of torch, in the LibTorch stable ABI: reads input and residual where they lie if they are
// dense in the layout of the output, and queues the work on the device's current stream.
#include "../dropout_tensors.h"
#include "cuda_tensors.h"
#include "dropout.h"

namespace fastdl::cuda {
namespace dropout_ops {
namespace {

Tensor forward(const Tensor& input, const MaybeTensor& residual, const Tensor& seed, double dropout_p) {
  const CurrentDevice place(input);
  const DropoutGeometry geometry(input);
  DropoutCall call{};
  call.dtype = dtype_of(input);
  STD_TORCH_CHECK(call.dtype != Dtype::float64, "fastdl: the CUDA kernels take float32, float16 and bfloat16");
  Tensor output = empty_strided(geometry.sizes, geometry.strides, input.scalar_type(), input);
  if (geometry.count == 0) return output;
  const auto dense = [&](const Tensor& given) {
    if (geometry.in_place(given)) return given;
    Tensor copy = empty_strided(geometry.sizes, geometry.strides, given.scalar_type(), given);
    torch::stable::copy_(copy, given);
    return copy;
  };
  // Copies are freed when the call returns: torch gives their memory only to work that the same stream does later.
  const Tensor x = dense(input);
  Tensor r;
  if (residual) r = dense(*residual);
  call.samples = geometry.samples;
  call.channels = geometry.channels;
  call.lines = geometry.lines;
  call.width = geometry.width;
  call.input = x.const_data_ptr();
  call.residual = residual ? r.const_data_ptr() : nullptr;
  call.output = address(output);
  call.dropped = dropped_levels(dropout_p);
  // One that is on the device is read there, and by then: a graph that is captured draws other choices at each replay.
  const auto* const given_seed = static_cast<const int64_t*>(seed.const_data_ptr());
  if (is_on_host(seed)) call.seed = uint64_t(*given_seed);
  else call.seed_on_device = given_seed;
  check(dropout_forward(call, place.stream), "dropout's forward");
  return output;
}

}  // namespace
}  // namespace dropout_ops
}  // namespace fastdl::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(fastdl_cuda, library) { library.def(fastdl::dropout_forward_schema); }

STABLE_TORCH_LIBRARY_IMPL(fastdl_cuda, CUDA, library) {
  library.impl("dropout_forward", TORCH_BOX(&fastdl::cuda::dropout_ops::forward));
}
