// What the collectives of a warp compute.
#include <cstring>

#include "simt/cuda_names.h"
//
#include "arena.h"
#include "device_types.cuh"
#include "machine.h"
#include "report.h"
#include "simt/matrix.h"
#include "simt/warp.h"

namespace simt {

using fastdl::device::bfloat16_bits;
using fastdl::device::half_bits;
using fastdl::device::widen;

void compute_shuffle(Lanes& lanes) {
  for (int i = 0; i < 32; ++i) {
    auto* own = static_cast<Shuffle*>(lanes.lane[i]);
    if (own == nullptr) continue;
    const auto* source = static_cast<const Shuffle*>(lanes.lane[own->source]);
    if (source == nullptr) fail("wrong mask", lanes.site, "lane %d reads lane %d, which does not take part", i, own->source);
    own->result = source->value;
  }
}

void compute_ballot(Lanes& lanes) {
  unsigned votes = 0;
  for (int i = 0; i < 32; ++i)
    if (lanes.lane[i] != nullptr && static_cast<Vote*>(lanes.lane[i])->value != 0) votes |= 1u << i;
  for (void* lane : lanes.lane)
    if (lane != nullptr) static_cast<Vote*>(lane)->result = votes;
}

void compute_match(Lanes& lanes) {
  for (void* lane : lanes.lane) {
    if (lane == nullptr) continue;
    auto* own = static_cast<Vote*>(lane);
    for (int i = 0; i < 32; ++i)
      if (lanes.lane[i] != nullptr && static_cast<Vote*>(lanes.lane[i])->value == own->value) own->result |= uint64_t(1) << i;
  }
}

void compute_elect(Lanes& lanes) {
  for (void* lane : lanes.lane)
    if (lane != nullptr) {
      static_cast<Vote*>(lane)->result = 1;
      return;
    }
}

namespace {

// On behalf of lane i, which need not be the one that runs.
void row_access(const Lanes& lanes, void* row, int lane, bool write) {
  shared_address(row, lanes.site);
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0)
    fail("misaligned", lanes.site, "lane %d names a matrix row at %s, whose address is no multiple of 16", lane,
         arena::describe(row).c_str());
  if (!arena::is_usable(row, 16))
    fail("out of bounds", lanes.site, "lane %d names a matrix row at %s", lane, arena::describe(row).c_str());
  if (!race::enabled) return;
  const Thread& thread = *simulation().current->warp->lanes[size_t(lane)];
  race::access(row, 16, write, false, lanes.site, thread.identity, thread.clock);
}

void move_matrices(Lanes& lanes, bool store) {
  const auto* first = static_cast<const MatrixMove*>(lanes.lane[0]);
  for (int m = 0; m < first->count; ++m) {
    uint16_t matrix[8][8];
    for (int r = 0; r < 8; ++r) {
      void* row = static_cast<MatrixMove*>(lanes.lane[8 * m + r])->row;
      row_access(lanes, row, 8 * m + r, store);
      if (!store) std::memcpy(matrix[r], row, 16);
    }
    for (int l = 0; l < 32; ++l) {
      const auto* own = static_cast<const MatrixMove*>(lanes.lane[l]);
      for (int half = 0; half < 2; ++half) {
        uint16_t& element = own->transposed ? matrix[2 * (l % 4) + half][l / 4] : matrix[l / 4][2 * (l % 4) + half];
        uint32_t& word = own->fragment[m];
        if (store) element = uint16_t(word >> (16 * half));
        else word = half == 0 ? element : (word & 0xffffu) | uint32_t(element) << 16;
      }
    }
    for (int r = 0; store && r < 8; ++r) std::memcpy(static_cast<MatrixMove*>(lanes.lane[8 * m + r])->row, matrix[r], 16);
  }
}

float element_of(uint32_t word, int half, half_bits) { return widen(half_bits{uint16_t(word >> (16 * half))}); }
float element_of(uint32_t word, int half, bfloat16_bits) { return widen(bfloat16_bits{uint16_t(word >> (16 * half))}); }

// The fragments of all lanes make the matrices; inner is 16 or 8.
template <int inner>
void multiply(Lanes& lanes, const float (&a)[16][inner], const float (&b)[inner][8]) {
  for (int l = 0; l < 32; ++l) {
    float* d = static_cast<MatrixMultiply*>(lanes.lane[l])->d;
    for (int i = 0; i < 4; ++i) {
      const int row = l / 4 + 8 * (i / 2), column = 2 * (l % 4) + i % 2;
      float sum = d[i];
      for (int k = 0; k < inner; ++k) sum += a[row][k] * b[k][column];
      d[i] = sum;
    }
  }
}

template <class T>
void multiply_16_bit(Lanes& lanes) {
  float a[16][16], b[16][8];
  for (int l = 0; l < 32; ++l) {
    const auto* own = static_cast<const MatrixMultiply*>(lanes.lane[l]);
    const int g = l / 4, t = l % 4;
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < 4; ++i) a[g + 8 * (i % 2)][2 * t + half + 8 * (i / 2)] = element_of(own->a[i], half, T{});
      for (int i = 0; i < 2; ++i) b[2 * t + half + 8 * i][g] = element_of(own->b[i], half, T{});
    }
  }
  multiply<16>(lanes, a, b);
}

}  // namespace

void compute_ldmatrix(Lanes& lanes) { move_matrices(lanes, false); }
void compute_stmatrix(Lanes& lanes) { move_matrices(lanes, true); }
void compute_mma_half(Lanes& lanes) { multiply_16_bit<half_bits>(lanes); }
void compute_mma_bfloat16(Lanes& lanes) { multiply_16_bit<bfloat16_bits>(lanes); }

void compute_mma_tf32(Lanes& lanes) {
  float a[16][8], b[8][8];
  // The unit does not see the lower 13 bits.
  const auto seen = [](uint32_t word) { return fastdl::device::reinterpret<float>(word & ~0x1fffu); };
  for (int l = 0; l < 32; ++l) {
    const auto* own = static_cast<const MatrixMultiply*>(lanes.lane[l]);
    for (int i = 0; i < 4; ++i) a[l / 4 + 8 * (i % 2)][l % 4 + 4 * (i / 2)] = seen(own->a[i]);
    for (int i = 0; i < 2; ++i) b[l % 4 + 4 * i][l / 4] = seen(own->b[i]);
  }
  multiply<8>(lanes, a, b);
}

}  // namespace simt
