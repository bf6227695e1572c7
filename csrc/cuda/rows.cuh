// How a block walks over its tile of a slab that lies in rows of contiguous channels, and joins what its threads found; see Rows in
// norm_call.h. Thread t has vector t % vectors of rows t / vectors, t / vectors + row_lanes, ...
#pragma once

#include "elements.cuh"
#include "moments.cuh"
#include "norm_call.h"

namespace fastdl::cuda {

struct Tile {
  int64_t outer;  // the sample of group norm; 0
  int64_t first_group;
  int64_t first_column;
  int groups, columns;  // of this tile; the last may have fewer
  int rank;
  int64_t row_rank;  // the rank among those of the same columns
  int64_t first_row, rows;
};

__device__ __forceinline__ Tile tile_of_block(const Call& call, const Rows& rows) {
  int64_t block = call.first_block + blockIdx.x;
  // What is read last by the first kernel is read first by the second, while it is still in the second-level cache.
  if (call.step == Step::apply) block = call.blocks - 1 - block;
  Tile tile;
  if (call.clustered) {  // the ranks of a tile are neighbours
    tile.rank = int(block % call.ranks);
    block /= call.ranks;
    tile.outer = block / rows.tiles;
  } else {  // the tiles of a row are, so that blocks that run together read whole rows
    tile.rank = int(block / rows.tiles % call.ranks);
    tile.outer = block / rows.tiles / call.ranks;
  }
  tile.first_group = block % rows.tiles * rows.tile_groups;
  tile.groups = int(rows.groups - tile.first_group < rows.tile_groups ? rows.groups - tile.first_group : rows.tile_groups);
  tile.row_rank = tile.rank / rows.parts;
  tile.first_column = tile.first_group * rows.group_channels + int64_t(tile.rank % rows.parts) * rows.tile_columns;
  const int64_t columns = (tile.first_group + tile.groups) * rows.group_channels - tile.first_column;
  tile.columns = int(columns < rows.tile_columns ? columns : rows.tile_columns);
  tile.first_row = tile.row_rank * rows.rows_per_rank;
  const int64_t left = rows.rows - tile.first_row;
  tile.rows = left < rows.rows_per_rank ? left : rows.rows_per_rank;
  return tile;
}

// What this thread does of a tile.
struct RowThread {
  int vector, lane;  // its columns and its first row
  int64_t column;    // the first one's channel
  bool active;
  int64_t sample, position;  // of its first row
};

template <int V>
__device__ __forceinline__ RowThread row_thread(const Rows& rows, const Tile& tile) {
  RowThread thread;
  thread.vector = int(threadIdx.x) % rows.vectors;
  thread.lane = int(threadIdx.x) / rows.vectors;
  thread.column = tile.first_column + thread.vector * V;
  thread.active = thread.lane < rows.row_lanes && thread.vector * V < tile.columns;
  const int64_t row = tile.first_row + thread.lane;
  thread.sample = row / rows.positions;
  thread.position = row - thread.sample * rows.positions;
  return thread;
}

// A pointer that goes from row to row.
template <class T>
struct RowPointer {
  T* at;
  RowStep step;

  __device__ __forceinline__ RowPointer(T* first, const Strides& strides, const RowStep& step, const Tile& tile,
                                        const RowThread& thread)
      : at(first ? first + (tile.outer + thread.sample) * strides.sample + thread.position * strides.position + thread.column
                 : nullptr),
        step(step) {}
  __device__ __forceinline__ void next(bool wrapped) {
    if (at) at += step.advance + (wrapped ? step.wrap : 0);
  }
};

// each(slot) for every row of this thread, the pointers moved along between.
template <class Each, class... Pointers>
__device__ __forceinline__ void walk(const Rows& rows, const Tile& tile, const RowThread& thread, Each each,
                                     Pointers&... pointers) {
  if (!thread.active) return;
  int64_t position = thread.position;
  int64_t left = tile.rows - thread.lane;
#pragma unroll 1
  for (int slot = 0; slot < rows.slots && left > 0; ++slot, left -= rows.row_lanes) {
    each(slot);
    position += rows.position_step;
    const bool wrapped = position >= rows.positions;
    if (wrapped) position -= rows.positions;
    (pointers.next(wrapped), ...);
  }
}

// Adds up what the threads of a column hold, as a tree over the row lanes; lane 0 has the result. The values lie one array a field,
// a thread each, so that neighbouring threads use neighbouring banks. scratch: row_lanes x vectors / 2 values a field, rounded up.
template <int fields, class Join>
__device__ __forceinline__ void join_row_lanes(const Rows& rows, const RowThread& thread, float (&values)[fields], float* scratch,
                                               Join join) {
  int half = 1;
  while (half < rows.row_lanes) half *= 2;
  const int stride = half / 2 * rows.vectors;
  for (half /= 2; half > 0; half /= 2) {
    if (thread.lane >= half && thread.lane < rows.row_lanes && thread.lane < 2 * half) {
      float* const to = scratch + (thread.lane - half) * rows.vectors + thread.vector;
#pragma unroll
      for (int i = 0; i < fields; ++i) to[i * stride] = values[i];
    }
    device::block_barrier();
    if (thread.lane < half && thread.lane + half < rows.row_lanes) {
      const float* const from = scratch + thread.lane * rows.vectors + thread.vector;
      float others[fields];
#pragma unroll
      for (int i = 0; i < fields; ++i) others[i] = from[i * stride];
      join(values, others);
    }
    device::block_barrier();
  }
}

// What join_row_lanes needs, in floats.
inline size_t tree_floats(const Rows& rows, int fields) {
  size_t half = 1;
  while (half < size_t(rows.row_lanes)) half *= 2;
  return half / 2 * size_t(rows.vectors) * size_t(fields);
}

inline size_t round_up(size_t bytes) { return (bytes + 15) / 16 * 16; }

// Where a group's columns are in the tile: all of a part, or group_channels of them.
struct Range {
  int begin, end;
};
__device__ __forceinline__ Range columns_of_group(const Rows& rows, const Tile& tile, int group) {
  if (rows.parts > 1) return {0, tile.columns};
  const int width = int(rows.group_channels);
  return {group * width, (group + 1) * width};
}

// The groups that the V columns of a thread belong to, of the tile's; groups may be narrower than a vector.
template <int V>
__device__ __forceinline__ void groups_of_columns(const Rows& rows, const RowThread& thread, int (&groups)[V]) {
  const unsigned width = unsigned(rows.group_channels), first = unsigned(thread.vector) * V;
  int group = rows.parts > 1 ? 0 : int(first / width);
  unsigned column = rows.parts > 1 ? 0 : first % width;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    groups[i] = group;
    if (++column == width) column = 0, ++group;
  }
}

// join(group, lane, lanes) for every group of the tile: by one thread where groups are narrow, else by a warp, all of whose lanes
// come.
template <class F>
__device__ __forceinline__ void for_groups(const Rows& rows, const Tile& tile, F join) {
  if (rows.group_channels <= 8) {
    for (int group = threadIdx.x; group < tile.groups; group += blockDim.x) join(group, 0, 1);
  } else {
    for (int group = threadIdx.x / 32; group < tile.groups; group += blockDim.x / 32) join(group, int(threadIdx.x % 32), 32);
  }
}

}  // namespace fastdl::cuda
