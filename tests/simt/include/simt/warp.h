// The host's half of device_warp.cuh.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "runtime.h"

namespace simt {

struct Shuffle {
  uint64_t value, result;
  int source;  // the lane that is read
};
struct Vote {
  uint64_t value, result;
};
void compute_shuffle(Lanes& lanes);
void compute_ballot(Lanes& lanes);
void compute_match(Lanes& lanes);
void compute_elect(Lanes& lanes);

template <class T>
T shuffle_from(T value, int source, unsigned mask, Site site) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a shuffle moves 4 or 8 bytes");
  Shuffle operand{0, 0, source};
  std::memcpy(&operand.value, &value, sizeof(T));
  collective(Collective::shuffle, mask, site, &operand, compute_shuffle);
  std::memcpy(&value, &operand.result, sizeof(T));
  return value;
}
inline unsigned vote(bool predicate, unsigned mask, Site site) {
  Vote operand{predicate, 0};
  collective(Collective::vote, mask, site, &operand, compute_ballot);
  return unsigned(operand.result);
}

}  // namespace simt

namespace fastdl::device {

inline void block_barrier(simt::Site site = simt::here()) { simt::block_barrier(site); }
inline void named_barrier(int id, int threads, simt::Site site = simt::here()) { simt::named_barrier(id, threads, true, site); }
inline void named_barrier_arrive(int id, int threads, simt::Site site = simt::here()) {
  simt::named_barrier(id, threads, false, site);
}
inline void warp_barrier(unsigned mask = full_mask, simt::Site site = simt::here()) {
  simt::collective(simt::Collective::warp_barrier, mask, site, nullptr, nullptr);
}

template <class T>
T shuffle(T value, int lane, unsigned mask = full_mask, simt::Site site = simt::here()) {
  return simt::shuffle_from(value, lane & 31, mask, site);
}
template <class T>
T shuffle_xor(T value, int lane_mask, unsigned mask = full_mask, simt::Site site = simt::here()) {
  const int source = int(simt::lane_index()) ^ lane_mask;
  return simt::shuffle_from(value, source > 31 ? int(simt::lane_index()) : source, mask, site);
}
// Beyond the ends of the warp a lane keeps its own value.
template <class T>
T shuffle_down(T value, unsigned distance, unsigned mask = full_mask, simt::Site site = simt::here()) {
  const unsigned source = simt::lane_index() + distance;
  return simt::shuffle_from(value, int(source > 31 ? simt::lane_index() : source), mask, site);
}
template <class T>
T shuffle_up(T value, unsigned distance, unsigned mask = full_mask, simt::Site site = simt::here()) {
  const unsigned lane = simt::lane_index();
  return simt::shuffle_from(value, int(distance > lane ? lane : lane - distance), mask, site);
}

inline unsigned ballot_lanes(bool predicate, unsigned mask = full_mask, simt::Site site = simt::here()) {
  return simt::vote(predicate, mask, site);
}
inline bool any_lane(bool predicate, unsigned mask = full_mask, simt::Site site = simt::here()) {
  return simt::vote(predicate, mask, site) != 0;
}
inline bool all_lanes(bool predicate, unsigned mask = full_mask, simt::Site site = simt::here()) {
  return simt::vote(!predicate, mask, site) == 0;
}
template <class T>
unsigned match_any(T value, unsigned mask = full_mask, simt::Site site = simt::here()) {
  simt::Vote operand{0, 0};
  std::memcpy(&operand.value, &value, sizeof(T));
  simt::collective(simt::Collective::match, mask, site, &operand, simt::compute_match);
  return unsigned(operand.result);
}
inline unsigned active_mask() { return simt::active_mask(); }
inline unsigned lane_index() { return simt::lane_index(); }
inline bool elect_one(unsigned mask = full_mask, simt::Site site = simt::here()) {
  simt::Vote operand{0, 0};
  simt::collective(simt::Collective::elect, mask, site, &operand, simt::compute_elect);
  return operand.result != 0;
}

template <int count>
void registers_increase() {}
template <int count>
void registers_decrease() {}

// Results as the GPU's: subnormals as zero, and tanh with the 2^-11 of relative error that it may have there.
inline float flush(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }
inline float reciprocal_sqrt(float x) { return rsqrtf(x); }
inline double reciprocal_sqrt(double x) { return rsqrt(x); }
inline float exp2_approx(float x) { return flush(std::exp2(flush(x))); }
inline float exp_approx(float x) { return exp2_approx(x * 1.44269504088896341f); }
inline float log2_approx(float x) { return std::log2(flush(x)); }
inline float reciprocal_approx(float x) { return flush(1 / flush(x)); }
inline float divide_approx(float x, float y) {
  return std::fabs(y) > 0x1p126f && std::fabs(y) < INFINITY ? (std::isfinite(x) ? std::copysign(0.0f, x) : NAN) : x / y;
}
inline float tanh_approx(float x) {
  const float y = std::tanh(x);
  uint32_t bits;
  std::memcpy(&bits, &y, 4);
  if (std::isfinite(y)) bits = (bits + 0x1000u) & ~0x1fffu;
  float rounded;
  std::memcpy(&rounded, &bits, 4);
  return rounded;
}

}  // namespace fastdl::device
