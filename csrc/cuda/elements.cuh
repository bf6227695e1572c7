// Vectors of a tensor's values on their way from global memory through shared memory to registers and back, and parameters.
#pragma once

#include "device.cuh"
#include "norm.h"

namespace fastdl::cuda {

using device::bfloat16_bits;
using device::half_bits;

// The values of a 16-byte access; where addresses do not allow it, kernels take one value at a time.
template <class T>
inline constexpr int full_vector = 16 / sizeof(T);

template <class T, int V>
using Pack = device::Vector<T, V>;

// Starts a copy of values [low, high) of the vector at `from` to shared memory; the rest becomes zero. Complete after
// cp_async_wait, for this thread alone: a thread reads back no more than it copied, so no barrier is needed.
template <class T, int V>
__device__ __forceinline__ void keep(Pack<T, V>* to, const T* from, int low, int high) {
  constexpr int bytes = V * sizeof(T);
  if constexpr (bytes == 16 || bytes == 4) {
    if (low == 0 && high == V) return device::cp_async<bytes>(to, from);
  }
#pragma unroll
  for (int i = 0; i < V; ++i)
    (*to)[i] = i >= low && i < high ? device::load_vector<T, device::Cache::read_only>(from + i) : device::narrow<T>(0.0f);
}

// What was kept; one access.
template <class T, int V>
__device__ __forceinline__ void widen(const Pack<T, V>& kept, float (&values)[V]) {
  const auto pack = device::load_vector<Pack<T, V>>(&kept);
#pragma unroll
  for (int i = 0; i < V; ++i) values[i] = device::widen(pack[i]);
}

template <class T, int V>
__device__ __forceinline__ void add(float (&values)[V], const Pack<T, V>& kept) {
  const auto pack = device::load_vector<Pack<T, V>>(&kept);
#pragma unroll
  for (int i = 0; i < V; ++i) values[i] += device::widen(pack[i]);
}

// Values [low, high) of the vector at `to`.
template <class T, int V>
__device__ __forceinline__ void store(T* to, const float (&values)[V], int low, int high) {
  Pack<T, V> pack;
#pragma unroll
  for (int i = 0; i < V; ++i) pack[i] = device::narrow<T>(values[i]);
  // With a policy the store is one instruction by construction; the compiler has split the plain one into words.
  if (low == 0 && high == V) return device::store_vector<device::Cache::evict_first>(to, pack);
#pragma unroll
  for (int i = 0; i < V; ++i)
    if (i >= low && i < high) to[i] = pack[i];
}

template <class A>
__device__ __forceinline__ A read(const Parameter& parameter, int64_t index) {
  const int64_t at = index * parameter.stride;
  switch (parameter.dtype) {
    case Dtype::float32: return A(static_cast<const float*>(parameter.values)[at]);
    case Dtype::float64: return A(static_cast<const double*>(parameter.values)[at]);
    case Dtype::bfloat16: return A(device::widen(static_cast<const bfloat16_bits*>(parameter.values)[at]));
    case Dtype::float16: return A(device::widen(static_cast<const half_bits*>(parameter.values)[at]));
  }
  return A(0);
}

__device__ __forceinline__ float weight_of(const Parameter& parameter, int64_t channel) {
  return parameter.values ? read<float>(parameter, channel) : 1.0f;
}
__device__ __forceinline__ float bias_of(const Parameter& parameter, int64_t channel) {
  return parameter.values ? read<float>(parameter, channel) : 0.0f;
}

__device__ __forceinline__ void write(void* values, Dtype dtype, int64_t index, double value) {
  switch (dtype) {
    case Dtype::float32: static_cast<float*>(values)[index] = float(value); return;
    case Dtype::float64: static_cast<double*>(values)[index] = value; return;
    case Dtype::bfloat16: static_cast<bfloat16_bits*>(values)[index] = device::narrow<bfloat16_bits>(float(value)); return;
    case Dtype::float16: static_cast<half_bits*>(values)[index] = device::narrow<half_bits>(float(value)); return;
  }
}

}  // namespace fastdl::cuda
