// Loads and stores of up to 16 bytes with a cache policy, prefetches, and asynchronous copies into shared memory (cp.async). nvcc's
// half of device.cuh.
#pragma once

#include <cstdint>

#include "device_types.cuh"

namespace fastdl::device {

// normal: the compiler's own load or store, of shared or global memory, which nvcc may take apart (16 bytes became four stores of 4
// where the value was made of floats). The others are of global memory alone, and keep their width.
// read_only: nothing writes it while the kernel runs. streaming: used once, first to leave the caches. read_only_streaming: both.
// evict_first, evict_last: the order of leaving the first-level cache.
enum class Cache { normal, read_only, streaming, read_only_streaming, evict_first, evict_last };

template <int bytes>
struct Words;
template <>
struct Words<1> {
  using type = uint8_t;
};
template <>
struct Words<2> {
  using type = uint16_t;
};
template <>
struct Words<4> {
  using type = uint32_t;
};
template <>
struct Words<8> {
  using type = uint2;
};
template <>
struct Words<16> {
  using type = uint4;
};

// Volatile, as what is loaded may have been written by this kernel; the read-only loads may be moved freely.
#define FASTDL_LOAD(volatile_or_not, suffix)                                                                                \
  if constexpr (sizeof(V) == 16)                                                                                            \
    asm volatile_or_not("ld.global" suffix ".v4.u32 {%0, %1, %2, %3}, [%4];"                                                \
                        : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)                                        \
                        : "l"(address));                                                                                    \
  else if constexpr (sizeof(V) == 8)                                                                                        \
    asm volatile_or_not("ld.global" suffix ".v2.u32 {%0, %1}, [%2];" : "=r"(words.x), "=r"(words.y) : "l"(address));        \
  else if constexpr (sizeof(V) == 4) asm volatile_or_not("ld.global" suffix ".u32 %0, [%1];" : "=r"(words) : "l"(address)); \
  else asm volatile_or_not("ld.global" suffix ".u16 %0, [%1];" : "=h"(words) : "l"(address))

#define FASTDL_STORE(suffix)                                                                                                    \
  if constexpr (sizeof(V) == 16)                                                                                                \
    asm volatile("st.global" suffix ".v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(words.x), "r"(words.y), "r"(words.z), \
                 "r"(words.w)                                                                                                   \
                 : "memory");                                                                                                   \
  else if constexpr (sizeof(V) == 8)                                                                                            \
    asm volatile("st.global" suffix ".v2.u32 [%0], {%1, %2};" ::"l"(address), "r"(words.x), "r"(words.y) : "memory");           \
  else if constexpr (sizeof(V) == 4) asm volatile("st.global" suffix ".u32 [%0], %1;" ::"l"(address), "r"(words) : "memory");   \
  else asm volatile("st.global" suffix ".u16 [%0], %1;" ::"l"(address), "h"(words) : "memory")

// One load of a V: trivially copyable, of 2, 4, 8 or 16 bytes, at an address that is a multiple of its size.
template <class V, Cache cache = Cache::normal>
FASTDL_DEVICE V load_vector(const void* pointer) {
  typename Words<sizeof(V)>::type words;
  if constexpr (cache == Cache::normal) {
    words = *static_cast<const decltype(words)*>(pointer);
  } else {
    const uint64_t address = __cvta_generic_to_global(pointer);
    if constexpr (cache == Cache::read_only) {
      FASTDL_LOAD(, ".nc");
    } else if constexpr (cache == Cache::streaming) {
      FASTDL_LOAD(volatile, ".cs");
    } else if constexpr (cache == Cache::read_only_streaming) {
      FASTDL_LOAD(, ".nc.L1::no_allocate");
    } else if constexpr (cache == Cache::evict_first) {
      FASTDL_LOAD(volatile, ".L1::evict_first");
    } else {
      FASTDL_LOAD(volatile, ".L1::evict_last");
    }
  }
  return reinterpret<V>(words);
}

template <Cache cache = Cache::normal, class V>
FASTDL_DEVICE void store_vector(void* pointer, const V& value) {
  static_assert(cache != Cache::read_only && cache != Cache::read_only_streaming);
  const auto words = reinterpret<typename Words<sizeof(V)>::type>(value);
  if constexpr (cache == Cache::normal) {
    *static_cast<typename Words<sizeof(V)>::type*>(pointer) = words;
  } else {
    const uint64_t address = __cvta_generic_to_global(pointer);
    if constexpr (cache == Cache::streaming) {
      FASTDL_STORE(".cs");
    } else if constexpr (cache == Cache::evict_first) {
      FASTDL_STORE(".L1::evict_first");
    } else {
      FASTDL_STORE(".L1::evict_last");
    }
  }
}

#undef FASTDL_LOAD
#undef FASTDL_STORE

// Brings the line at `pointer` into the second-level cache; harmless at any address.
FASTDL_DEVICE void prefetch(const void* pointer) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(pointer)));
}

// The 32-bit address of shared memory that the instructions below take.
FASTDL_DEVICE uint32_t shared_address(const void* pointer) { return uint32_t(__cvta_generic_to_shared(pointer)); }

// Copies `bytes` (4, 8 or 16) to shared memory without passing through registers; what lies beyond `source_bytes` becomes zero, and
// with 0 nothing is read. Both addresses are multiples of `bytes`. Nothing is there before cp_async_wait, and for other threads
// before a barrier after it.
template <int bytes>
FASTDL_DEVICE void cp_async(void* shared, const void* global, int source_bytes = bytes) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16);
  const uint32_t to = shared_address(shared);
  const uint64_t from = __cvta_generic_to_global(global);
  if constexpr (bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(source_bytes) : "memory");
  else asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(bytes), "r"(source_bytes) : "memory");
}

// Closes a group of this thread's copies. cp_async_wait waits until at most `pending` of the latest groups are still under way.
FASTDL_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int pending>
FASTDL_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

}  // namespace fastdl::device
