// Bulk copies and tensor tiles (TMA), sm_90 and later. nvcc's half of device.cuh.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "device_cluster.cuh"
#include "device_launch.cuh"

namespace fastdl::device {

// A tensor in global memory and the box that one copy moves. A kernel takes it as `const __grid_constant__ TileMap map`.
struct TileMap {
  CUtensorMap map;
};

enum class TileType { uint8, float32, float16, bfloat16 };

// Describes a tensor of `rank` (1 to 5) dimensions, the innermost first: sizes in elements; strides in bytes, of dimensions 1 to
// rank - 1, multiples of 16; box in elements, at most 256 a dimension, a multiple of 16 bytes wide, and with a swizzle no wider
// than its name says. `base` is a multiple of 16. What lies outside the tensor is loaded as zero and not stored. Returns the error.
inline Status make_tile_map(TileMap& out, TileType type, int rank, const void* base, const uint64_t* sizes, const uint64_t* strides,
                            const uint32_t* box, Swizzle swizzle) {
  using Encode =
      CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*, const cuuint32_t*,
                   const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
  // Asked of the driver at run time, so that nothing links against it.
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found;
#if CUDART_VERSION >= 12050
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found);
#else
  const cudaError_t error = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &entry, cudaEnableDefault, &found);
#endif
  if (error != cudaSuccess) return Status(error);
  if (found != cudaDriverEntryPointSuccess || rank < 1 || rank > 5) return Status(cudaErrorNotSupported);
  constexpr CUtensorMapDataType types[] = {CU_TENSOR_MAP_DATA_TYPE_UINT8, CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
                                           CU_TENSOR_MAP_DATA_TYPE_FLOAT16, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16};
  constexpr CUtensorMapSwizzle swizzles[] = {CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_SWIZZLE_32B, CU_TENSOR_MAP_SWIZZLE_64B,
                                             CU_TENSOR_MAP_SWIZZLE_128B};
  const cuuint32_t steps[5] = {1, 1, 1, 1, 1};
  const CUresult result = reinterpret_cast<Encode>(entry)(
      &out.map, types[int(type)], cuuint32_t(rank), const_cast<void*>(base), reinterpret_cast<const cuuint64_t*>(sizes),
      reinterpret_cast<const cuuint64_t*>(strides), box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzles[int(swizzle)],
      CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? 0 : Status(cudaErrorInvalidValue);
}

// Makes this thread's earlier writes to shared memory seen by the bulk copies and wgmma that it, or whoever it meets, starts later.
FASTDL_DEVICE void fence_proxy_async() {
#if FASTDL_HAS_SM90
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// By one thread: starts a copy of `bytes`, a multiple of 16 at addresses that are multiples of 16. A load takes its bytes off what
// `barrier` waits for; stores are closed into groups by bulk_commit.
FASTDL_DEVICE void bulk_load(void* shared, const void* global, unsigned bytes, Mbarrier* barrier) {
#if FASTDL_HAS_SM90
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(shared)),
      "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
#else
  __trap();
#endif
}
FASTDL_DEVICE void bulk_store(void* global, const void* shared, unsigned bytes) {
#if FASTDL_HAS_SM90
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(__cvta_generic_to_global(global)),
               "r"(shared_address(shared)), "r"(bytes)
               : "memory");
#else
  __trap();
#endif
}
FASTDL_DEVICE void bulk_commit() {
#if FASTDL_HAS_SM90
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#endif
}
// Until at most `pending` of this thread's latest groups of stores are under way; with `read_only` until they have read shared
// memory.
template <int pending, bool read_only = false>
FASTDL_DEVICE void bulk_wait() {
#if FASTDL_HAS_SM90
  if constexpr (read_only) asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(pending) : "memory");
  else asm volatile("cp.async.bulk.wait_group %0;" ::"n"(pending) : "memory");
#endif
}

#define FASTDL_TILE_LOAD(rank, list)                                                                                       \
  asm volatile("cp.async.bulk.tensor." rank "d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {" list \
               "}], [%2];" ::"r"(to),                                                                                     \
               "l"(from), "r"(arrival)
#define FASTDL_TILE_STORE(rank, list) \
  asm volatile("cp.async.bulk.tensor." rank "d.global.shared::cta.tile.bulk_group [%0, {" list "}], [%1];" ::"l"(to), "r"(from)

// One box whose first element has these coordinates, the innermost first; in elements, negative ones allowed.
template <int rank>
FASTDL_DEVICE void tile_load(void* shared, const TileMap& map, const int (&at)[rank], Mbarrier* barrier) {
#if FASTDL_HAS_SM90
  static_assert(rank >= 1 && rank <= 5);
  const uint32_t to = shared_address(shared), arrival = shared_address(barrier);
  const uint64_t from = reinterpret_cast<uint64_t>(&map);
  if constexpr (rank == 1) FASTDL_TILE_LOAD("1", "%3"), "r"(at[0]) : "memory");
  else if constexpr (rank == 2) FASTDL_TILE_LOAD("2", "%3, %4"), "r"(at[0]), "r"(at[1]) : "memory");
  else if constexpr (rank == 3) FASTDL_TILE_LOAD("3", "%3, %4, %5"), "r"(at[0]), "r"(at[1]), "r"(at[2]) : "memory");
  else if constexpr (rank == 4)
    FASTDL_TILE_LOAD("4", "%3, %4, %5, %6"), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]) : "memory");
  else FASTDL_TILE_LOAD("5", "%3, %4, %5, %6, %7"), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4]) : "memory");
#else
  __trap();
#endif
}
template <int rank>
FASTDL_DEVICE void tile_store(const TileMap& map, const int (&at)[rank], const void* shared) {
#if FASTDL_HAS_SM90
  static_assert(rank >= 1 && rank <= 5);
  const uint32_t from = shared_address(shared);
  const uint64_t to = reinterpret_cast<uint64_t>(&map);
  if constexpr (rank == 1) FASTDL_TILE_STORE("1", "%2"), "r"(at[0]) : "memory");
  else if constexpr (rank == 2) FASTDL_TILE_STORE("2", "%2, %3"), "r"(at[0]), "r"(at[1]) : "memory");
  else if constexpr (rank == 3) FASTDL_TILE_STORE("3", "%2, %3, %4"), "r"(at[0]), "r"(at[1]), "r"(at[2]) : "memory");
  else if constexpr (rank == 4)
    FASTDL_TILE_STORE("4", "%2, %3, %4, %5"), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]) : "memory");
  else FASTDL_TILE_STORE("5", "%2, %3, %4, %5, %6"), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4]) : "memory");
#else
  __trap();
#endif
}
#undef FASTDL_TILE_LOAD
#undef FASTDL_TILE_STORE

FASTDL_DEVICE void tile_prefetch_map(const TileMap& map) {
#if FASTDL_HAS_SM90
  asm volatile("prefetch.tensormap [%0];" ::"l"(reinterpret_cast<uint64_t>(&map)) : "memory");
#endif
}

}  // namespace fastdl::device
