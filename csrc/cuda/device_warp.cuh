// Barriers, the exchange of values within a warp, and fast mathematics. nvcc's half of device.cuh.
#pragma once

#include "device_types.cuh"

namespace fastdl::device {

// All threads of the block, none of which may have left the kernel. Shared and global writes before it are seen after it.
FASTDL_DEVICE void block_barrier() { __syncthreads(); }

// `threads` threads (a multiple of 32) meet at barrier `id`, 1 to 15: those that call named_barrier wait, those that call
// named_barrier_arrive go on. Barrier 0 is block_barrier's.
FASTDL_DEVICE void named_barrier(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
FASTDL_DEVICE void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// The lanes of `mask`; writes to memory before it are seen after it by them. The shuffles and votes order no memory.
FASTDL_DEVICE void warp_barrier(unsigned mask = full_mask) { __syncwarp(mask); }

// Of a value of 4 or 8 bytes. Every lane of `mask` must come to the same call, and only such lanes may be read.
template <class T>
FASTDL_DEVICE T shuffle(T value, int lane, unsigned mask = full_mask) {
  return __shfl_sync(mask, value, lane);
}
template <class T>
FASTDL_DEVICE T shuffle_xor(T value, int lane_mask, unsigned mask = full_mask) {
  return __shfl_xor_sync(mask, value, lane_mask);
}
template <class T>
FASTDL_DEVICE T shuffle_down(T value, unsigned distance, unsigned mask = full_mask) {
  return __shfl_down_sync(mask, value, distance);
}
template <class T>
FASTDL_DEVICE T shuffle_up(T value, unsigned distance, unsigned mask = full_mask) {
  return __shfl_up_sync(mask, value, distance);
}

// Not plain ballot, any and all: CUDA has functions of these names in the global namespace.
FASTDL_DEVICE unsigned ballot_lanes(bool predicate, unsigned mask = full_mask) { return __ballot_sync(mask, predicate); }
FASTDL_DEVICE bool any_lane(bool predicate, unsigned mask = full_mask) { return __any_sync(mask, predicate); }
FASTDL_DEVICE bool all_lanes(bool predicate, unsigned mask = full_mask) { return __all_sync(mask, predicate); }
// The lanes of `mask` that hold the same value (of 4 or 8 bytes) as this one.
template <class T>
FASTDL_DEVICE unsigned match_any(T value, unsigned mask = full_mask) {
  return __match_any_sync(mask, value);
}
// The lanes that happen to run together; says nothing on which lanes should.
FASTDL_DEVICE unsigned active_mask() { return __activemask(); }
FASTDL_DEVICE unsigned lane_index() {
  unsigned lane;
  asm("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}

// True in one lane of `mask`, the same for the same mask.
FASTDL_DEVICE bool elect_one(unsigned mask = full_mask) {
#if FASTDL_HAS_SM90
  unsigned elected;
  asm volatile("{\n.reg .pred p;\nelect.sync _|p, %1;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(elected) : "r"(mask));
  return elected != 0;
#else
  __syncwarp(mask);
  return lane_index() == unsigned(__ffs(int(mask)) - 1);
#endif
}

// How many registers the threads of a warp group need from here on (a multiple of 8, 24 to 256). Takes a kernel with
// __launch_bounds__(threads, 1); ptxas ignores it elsewhere.
template <int count>
FASTDL_DEVICE void registers_increase() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(__CUDA_ARCH_FEAT_SM100_ALL)
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
#endif
}
template <int count>
FASTDL_DEVICE void registers_decrease() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(__CUDA_ARCH_FEAT_SM100_ALL)
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
#endif
}

// 1 / sqrt(x), within 2 units in the last place.
FASTDL_DEVICE float reciprocal_sqrt(float x) { return rsqrtf(x); }
FASTDL_DEVICE double reciprocal_sqrt(double x) { return rsqrt(x); }
// 2^x within 2 units in the last place, subnormal results as zero.
FASTDL_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// e^x = 2^(x log2 e): the rounding of the product costs |x| 2^-23 of relative error.
FASTDL_DEVICE float exp_approx(float x) { return exp2_approx(x * 1.44269504088896341f); }
// log2 x with an absolute error of 2^-22 near 1, and a relative one elsewhere.
FASTDL_DEVICE float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// 1 / x within 1 unit in the last place, subnormals as zero.
FASTDL_DEVICE float reciprocal_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// x / y within 2 units in the last place; 0 where 2^126 < |y|.
FASTDL_DEVICE float divide_approx(float x, float y) { return __fdividef(x, y); }
// tanh x with a relative error of 2^-11: enough for 16-bit results only.
FASTDL_DEVICE float tanh_approx(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace fastdl::device
