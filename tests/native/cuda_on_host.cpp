// csrc/cuda/bindings*.cpp as they are, registered for tensors on the CPU, over kernels that run as fibres
// (tests/simt): what a GPU would do with torch's tensors, from the schema to the kernels' pointers. Loaded into a Python process of
// its own.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdlib>
#include <tuple>

#include "arena.h"
#include "race.h"
#include "simt/runtime.h"

// What stands for the device: its guard, its stream, its facts.
namespace {
int guards = 0, streams = 0;
int stream_of_the_device;
}  // namespace

extern "C" {
AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  *guard = reinterpret_cast<DeviceGuardHandle>(&guards);
  ++guards;
  return 0;
}
AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) {
  --guards;
  return 0;
}
AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  // Within the guard, or it would be another device's.
  if (guards != 1) return 1;
  ++streams;
  *stream = &stream_of_the_device;
  return 0;
}
}

namespace simt::arena {

// arena.cpp's own answer, under the name that it is compiled with here. Tensors are torch's and lie outside of the arena.
bool is_usable_in_arena(const void* pointer, size_t bytes);
bool is_usable(const void* pointer, size_t bytes) { return !contains(pointer) || is_usable_in_arena(pointer, bytes); }

}  // namespace simt::arena

namespace {

struct Start {
  Start() {
    simt::arena::reserve();
    simt::race::reserve();
    const char* capability = std::getenv("SIMT_CAPABILITY");
    simt::facts() = {4, 227 * 1024, capability ? std::atoi(capability) : 90};
  }
} start;

}  // namespace

// The dispatch key, which is all that ties the registration to a GPU.
#define CUDA CPU
#include "cuda/bindings.cpp"
//
#include "cuda/bindings_attention.cpp"
//
#include "cuda/bindings_dropout.cpp"
//
#include "cuda/bindings_norm_act_conv.cpp"
//
#include "cuda/bindings_row_norms.cpp"

// Whether every guard was given back, and how often the stream was asked for.
static std::tuple<int64_t, int64_t> guards_and_streams(torch::stable::Tensor) { return {guards, streams}; }
STABLE_TORCH_LIBRARY(fastdl_cuda_on_host, library) { library.def("guards_and_streams(Tensor any) -> (int, int)"); }
STABLE_TORCH_LIBRARY_IMPL(fastdl_cuda_on_host, CPU, library) { library.impl("guards_and_streams", TORCH_BOX(&guards_and_streams)); }
