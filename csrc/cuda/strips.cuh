// How a block walks over its part of a slab that lies in strips of contiguous positions; see Strips in norm_call.h.
#pragma once

#include "elements.cuh"
#include "moments.cuh"
#include "norm_call.h"

namespace fastdl::cuda {

struct Item {
  int64_t sample, channel;
  unsigned piece;
};

__device__ __forceinline__ int64_t offset_of(const Strides& strides, const Item& item) {
  return item.sample * strides.sample + item.channel * strides.channel;
}

// The slab, and which of its ranks this block is. What is read last by the first kernel is read first by the second, while it is
// still in the second-level cache.
struct Place {
  int64_t slab;
  int rank;
};
__device__ __forceinline__ Place place_of_block(const Call& call) {
  int64_t block = call.first_block + blockIdx.x;
  if (call.step == Step::apply) block = call.blocks - 1 - block;
  return {block / call.ranks, int(block % call.ranks)};
}

// Values before `pointer` in its 16 bytes: a strip need not begin at a multiple of 16, its first vector is then only partly its
// own.
template <class T, int V>
__device__ __forceinline__ int values_before(const T* pointer) {
  return V == 1 ? 0 : int(reinterpret_cast<uintptr_t>(pointer) / sizeof(T) % V);
}

// For each item of this thread: shift = begin(item), each(slot, start, low, high) for its vectors, and end(item, active).
// A vector begins `start` values into the segment (before it, if negative), and values [low, high) of it are the segment's. All
// threads of a block run the same number of turns, so that end may hold warp collectives; an inactive one has no values.
template <int V, class Begin, class Each, class End>
__device__ __forceinline__ void walk(const Strips& strips, const Place& place, Begin begin, Each each, End end) {
  const int lane = threadIdx.x & ((1 << strips.lanes) - 1), team = threadIdx.x >> strips.lanes, teams = blockDim.x >> strips.lanes;
  int64_t first = place.rank * strips.items_per_rank;
  const int64_t rest = strips.items - first;
  const int count = int(rest < strips.items_per_rank ? rest : strips.items_per_rank);
  if (count <= 0) first = 0;  // the last ranks may be left with nothing; what begin reads for them must be there
  const int64_t first_segment = first / strips.pieces;
  const unsigned first_piece = unsigned(first % strips.pieces);
  const int64_t outer = place.slab / strips.slabs_a_sample, inner = place.slab % strips.slabs_a_sample;
  int slot = 0;
#pragma unroll 1
  for (int turn = 0; turn < strips.turns; ++turn) {
    const int index = team + turn * teams;
    const bool active = index < count;
    const unsigned at = first_piece + (active ? index : 0);
    const unsigned segments = strips.pieces == 1 ? at : at / strips.pieces;
    const int64_t segment = first_segment + segments;
    const Item item = strips.segments_are_samples ? Item{segment, inner, at - segments * strips.pieces}
                                                  : Item{outer, inner * strips.segments + segment, at - segments * strips.pieces};
    const int shift = begin(item);
    int64_t start = (((int64_t(item.piece) * strips.rounds) << strips.lanes) + lane) * V - shift;
#pragma unroll 1
    for (int round = 0; round < strips.rounds; ++round, ++slot, start += V << strips.lanes) {
      const int64_t left = strips.positions - start;
      each(slot, start, start < 0 ? int(-start) : 0, !active || left < 0 ? 0 : left < V ? int(left) : V);
    }
    end(item, active);
  }
}

}  // namespace fastdl::cuda
