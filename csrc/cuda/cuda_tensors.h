// What the CUDA bindings share: the device and stream of a call, and errors of launches.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "../tensors.h"

namespace fastdl::cuda {

const char* error_text(int status);

// The device of a call is current for as long as this lives. torch restores the one before.
struct CurrentDevice {
  int32_t device;
  torch::stable::accelerator::DeviceGuard guard;
  void* stream = nullptr;

  explicit CurrentDevice(const Tensor& input) : device(index_of(input)), guard(device) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  }

 private:
  static int32_t index_of(const Tensor& tensor) {
    int32_t index;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor.get(), &index));
    return index;
  }
};

inline void check(int status, const char* what) { STD_TORCH_CHECK(status == 0, "fastdl: ", what, " failed: ", error_text(status)); }

inline void* address(const Tensor& tensor) { return tensor.numel() ? tensor.mutable_data_ptr() : nullptr; }

inline bool is_on_host(const Tensor& tensor) {
  int32_t type;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &type));
  return type == aoti_torch_device_type_cpu();
}

}  // namespace fastdl::cuda
