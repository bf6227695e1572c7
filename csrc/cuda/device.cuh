// The one header through which a .cu file speaks to the machine.
//
// A kernel uses what is declared here and nothing else that is not plain C++: no <<<>>>, no __shared__, no inline assembly. Then
// the same file compiles twice: with nvcc for a GPU, and with -DFASTDL_SIMT by the host's compiler, where tests/simt runs every
// thread as a fibre and checks what a GPU does not report. Everything is in namespace fastdl::device, but for the names that CUDA
// itself gives (threadIdx, blockIdx, blockDim, gridDim, dim3, float4 and its like, atomicAdd and its like, __threadfence,
// __launch_bounds__,
// __restrict__, __popc, __float_as_uint and its like, and the functions of <cmath>).
//
//   device_types.cuh    half_bits, bfloat16_bits, widen, narrow, Vector, full_mask, Swizzle
//   device_launch.cuh   launch, launch_cluster, Stream, Machine; STATIC_SHARED and DYNAMIC_SHARED
//   device_warp.cuh     barriers, shuffles, votes, fast mathematics
//   device_memory.cuh   vector loads and stores with a cache policy, cp.async
//   device_matrix.cuh   ldmatrix, stmatrix, mma
//   device_cluster.cuh  thread block clusters, distributed shared memory, mbarrier
//   device_tile.cuh     bulk and tensor copies (TMA)
//   device_wgmma.cuh    warp-group matrix instructions of sm_90a
//
// What an architecture lacks compiles to a trap there (a cluster is one block below sm_90), so that one file serves them all.
#pragma once

#if defined(FASTDL_SIMT)
#include "simt.h"
#elif defined(__CUDACC__)
#include <cuda_runtime.h>

// FASTDL_HAS_SM90: clusters, mbarrier transactions, TMA. FASTDL_HAS_WGMMA: only sm_90a has it; later architectures do not.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define FASTDL_HAS_SM90 1
#else
#define FASTDL_HAS_SM90 0
#endif
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define FASTDL_HAS_WGMMA 1
#else
#define FASTDL_HAS_WGMMA 0
#endif
#define FASTDL_DEVICE __device__ __forceinline__

#include "device_cluster.cuh"
#include "device_launch.cuh"
#include "device_matrix.cuh"
#include "device_memory.cuh"
#include "device_tile.cuh"
#include "device_types.cuh"
#include "device_warp.cuh"
#include "device_wgmma.cuh"
#else
#error "device.cuh needs nvcc, or -DFASTDL_SIMT and tests/simt/include"
#endif
