// The host's half of device_memory.cuh.
#pragma once

#include <cstdint>
#include <type_traits>

#include "runtime.h"

namespace fastdl::device {

enum class Cache { normal, read_only, streaming, read_only_streaming, evict_first, evict_last };

template <class V, Cache cache = Cache::normal>
V load_vector(const void* pointer, simt::Site site = simt::here()) {
  static_assert(std::is_trivially_copyable_v<V> && (sizeof(V) <= 16 && (sizeof(V) & (sizeof(V) - 1)) == 0));
  V value;
  simt::read(&value, pointer, sizeof(V), site);
  return value;
}
template <Cache cache = Cache::normal, class V>
void store_vector(void* pointer, const V& value, simt::Site site = simt::here()) {
  static_assert(std::is_trivially_copyable_v<V> && (sizeof(V) <= 16 && (sizeof(V) & (sizeof(V) - 1)) == 0));
  static_assert(cache != Cache::read_only && cache != Cache::read_only_streaming);
  simt::write(pointer, &value, sizeof(V), site);
}

inline void prefetch(const void*) {}

inline uint32_t shared_address(const void* pointer, simt::Site site = simt::here()) { return simt::shared_address(pointer, site); }

template <int bytes>
void cp_async(void* shared, const void* global, int source_bytes = bytes, simt::Site site = simt::here()) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16);
  simt::cp_async(shared, global, bytes, source_bytes, site);
}
inline void cp_async_commit() { simt::cp_async_commit(); }
template <int pending>
void cp_async_wait(simt::Site site = simt::here()) {
  simt::cp_async_wait(pending, site);
}

}  // namespace fastdl::device
