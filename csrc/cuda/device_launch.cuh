// Launching kernels, what the host must know of the GPU, and shared memory. nvcc's half of device.cuh.
#pragma once

#include <cstddef>
#include <cstdint>

// A shared array of fixed size, or one value: STATIC_SHARED(float, partial, [8][33]); STATIC_SHARED(int, last);
// It holds garbage at first. At most 48 KB a kernel.
#define STATIC_SHARED(type, name, ...) __shared__ __align__(16) type name __VA_ARGS__

// The shared memory that the launch asked for, as a pointer. It is aligned to 128 bytes and no more: a tile with a 128-byte swizzle
// must round up to 1024 by itself.
#define DYNAMIC_SHARED(type, name)                                              \
  extern __shared__ __align__(128) unsigned char fastdl_dynamic_shared_bytes[]; \
  type* name = reinterpret_cast<type*>(fastdl_dynamic_shared_bytes)

namespace fastdl::device {

using Stream = cudaStream_t;

// 0 is success, as in CUDA.
using Status = int;

inline const char* status_text(Status status) { return cudaGetErrorString(cudaError_t(status)); }

struct Machine {
  int multiprocessors;
  int shared_bytes;  // the most that one block may ask for
  int capability;    // 80, 90, 100, ...
};

// The facts of the current device; zeros where they cannot be had.
inline Machine machine() {
  int device = 0, major = 0, minor = 0;
  Machine facts{0, 0, 0};
  if (cudaGetDevice(&device) != cudaSuccess) return facts;
  cudaDeviceGetAttribute(&facts.multiprocessors, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&facts.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  facts.capability = 10 * major + minor;
  return facts;
}

template <class T>
struct SameType {
  using type = T;
};

// Runs kernel<<<grid, block, shared_bytes, stream>>>(arguments...) in clusters of `cluster_size` blocks along x, of which grid.x is
// a multiple. More than 8 blocks a cluster is not portable, but allowed on sm_90. Returns the launch's error.
template <class... Parameters>
Status launch_cluster(void (*kernel)(Parameters...), dim3 grid, dim3 block, unsigned cluster_size, size_t shared_bytes,
                      Stream stream, typename SameType<Parameters>::type... arguments) {
  constexpr size_t limit_without_asking = 48 * 1024;
  if (shared_bytes > limit_without_asking) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
    if (error != cudaSuccess) return Status(error);
  }
  if (cluster_size > 8) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    if (error != cudaSuccess) return Status(error);
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = cluster_size;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  config.attrs = &attribute;
  config.numAttrs = cluster_size > 1 ? 1 : 0;
  return Status(cudaLaunchKernelEx(&config, kernel, arguments...));
}

template <class... Parameters>
Status launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream,
              typename SameType<Parameters>::type... arguments) {
  return launch_cluster(kernel, grid, block, 1, shared_bytes, stream, arguments...);
}

// Sets `bytes` bytes to `value`, in the stream's order.
inline Status fill_bytes(void* pointer, int value, size_t bytes, Stream stream) {
  return Status(cudaMemsetAsync(pointer, value, bytes, stream));
}

}  // namespace fastdl::device
