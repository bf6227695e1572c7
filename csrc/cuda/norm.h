// What a normalisation on a GPU is asked to do: raw pointers, sizes and strides, free of torch and of CUDA, so that bindings.cpp
// needs no more than a C++ compiler. Pointers are of the device; all work is queued on a stream, and nothing waits for it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../types.h"

namespace fastdl::cuda {

// A vector by channel in any floating dtype. values may be null: there is none.
struct Parameter {
  const void* values;
  Dtype dtype;
  int64_t stride;  // in values
};

// Its gradient, dense; values may be null: it is not wanted.
struct ParameterGradient {
  void* values;
  Dtype dtype;
};

struct Norm {
  Dtype dtype;  // of input, residual and output: float32, float16 or bfloat16
  int64_t samples, channels, positions;
  bool channels_last;            // channels are contiguous; else positions are (see Strides). One position is channels last.
  const void *input, *residual;  // residual may be null
  Strides input_strides, residual_strides, output_strides;
  Parameter weight, bias;
  double eps, parameter;  // parameter: the activation's
  Activation activation;
  bool activation_first;
};

struct NormGradients {
  const void* output;  // given
  Strides output_strides;
  void *input, *residual;  // wanted, with Norm's output_strides; may be null
  ParameterGradient weight, bias;
};

// How the slab that statistics are taken over is held: by one block, by the blocks of a cluster (sm_90 and later), or in parts
// whose partial results pass through the workspace. The first two read and write each value once.
enum class Path { automatic, block, cluster, split };

// The machine that a plan is made for. A plan depends on nothing else, so the workspace's size and the launch agree.
struct Target {
  int multiprocessors;
  int shared_bytes;  // the most that one block may have
  int capability;    // 80, 90, 100, ...
  Path path;         // automatic, but in tests
};

// Of the current device.
Target current_target();

// What a launch that failed said. 0 is success.
const char* error_text(int status);

}  // namespace fastdl::cuda
