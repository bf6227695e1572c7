// The host's half of device_tile.cuh.
#pragma once

#include <cstdint>

#include "cluster.h"
#include "launch.h"
#include "runtime.h"

namespace fastdl::device {

struct TileMap {
  simt::Tile tile;
};

enum class TileType { uint8, float32, float16, bfloat16 };

// Refuses what the driver refuses.
inline Status make_tile_map(TileMap& out, TileType type, int rank, const void* base, const uint64_t* sizes, const uint64_t* strides,
                            const uint32_t* box, Swizzle swizzle) {
  constexpr int widths[] = {1, 4, 2, 2};
  simt::Tile& tile = out.tile;
  tile = simt::Tile{base, rank, widths[int(type)], int(swizzle), {}, {}, {}};
  if (rank < 1 || rank > 5 || reinterpret_cast<uintptr_t>(base) % 16 != 0) return 1;
  for (int i = 0; i < rank; ++i) {
    tile.sizes[i] = sizes[i];
    tile.box[i] = box[i];
    tile.strides[i] = i == 0 ? uint64_t(tile.element_bytes) : strides[i - 1];
    if (sizes[i] == 0 || sizes[i] > (uint64_t(1) << 32) || box[i] == 0 || box[i] > 256) return 1;
    if (i > 0 && (strides[i - 1] % 16 != 0 || strides[i - 1] >= (uint64_t(1) << 40))) return 1;
  }
  const uint32_t width = box[0] * uint32_t(tile.element_bytes);
  if (width % 16 != 0 || (swizzle != Swizzle::none && width > 16u << int(swizzle))) return 1;
  return 0;
}

inline void fence_proxy_async() { simt::fence_proxy_async(); }

inline void bulk_load(void* shared, const void* global, unsigned bytes, Mbarrier* barrier, simt::Site site = simt::here()) {
  simt::bulk_load(shared, global, bytes, barrier, site);
}
inline void bulk_store(void* global, const void* shared, unsigned bytes, simt::Site site = simt::here()) {
  simt::bulk_store(global, shared, bytes, site);
}
inline void bulk_commit() { simt::bulk_commit(); }
template <int pending, bool read_only = false>
void bulk_wait(simt::Site site = simt::here()) {
  simt::bulk_wait(pending, site);
}

template <int rank>
void tile_load(void* shared, const TileMap& map, const int (&at)[rank], Mbarrier* barrier, simt::Site site = simt::here()) {
  simt::tile_load(shared, map.tile, rank, at, barrier, site);
}
template <int rank>
void tile_store(const TileMap& map, const int (&at)[rank], const void* shared, simt::Site site = simt::here()) {
  simt::tile_store(map.tile, rank, at, shared, site);
}
inline void tile_prefetch_map(const TileMap&) {}

}  // namespace fastdl::device
