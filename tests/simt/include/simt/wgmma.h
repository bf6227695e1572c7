// The host's half of device_wgmma.cuh.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "runtime.h"

namespace fastdl::device {

inline uint64_t matrix_descriptor(const void* shared, unsigned leading_bytes, unsigned stride_bytes, Swizzle swizzle,
                                  simt::Site site = simt::here()) {
  const uint64_t code = swizzle == Swizzle::none ? 0 : 4 - uint64_t(swizzle);
  const auto field = [](uint64_t bytes) { return (bytes & 0x3ffff) >> 4; };
  return field(simt::shared_address(shared, site)) | field(leading_bytes) << 16 | field(stride_bytes) << 32 | code << 62;
}

inline void wgmma_fence(simt::Site site = simt::here()) { simt::wgmma_fence(site); }
inline void wgmma_commit(simt::Site site = simt::here()) { simt::wgmma_commit(site); }
template <int pending>
void wgmma_wait(simt::Site site = simt::here()) {
  simt::wgmma_wait(pending, site);
}

template <class T, bool a_transposed = false, bool b_transposed = false, int count>
void wgmma(float (&d)[count], uint64_t a, uint64_t b, bool accumulate, simt::Site site = simt::here()) {
  static_assert(count % 4 == 0 && count >= 4 && count <= 128);
  static_assert(std::is_same_v<T, half_bits> || std::is_same_v<T, bfloat16_bits>);
  simt::wgmma({d, count, {}, false, accumulate, a_transposed, b_transposed, std::is_same_v<T, half_bits>, a, b, site});
}
template <class T, bool b_transposed = false, int count>
void wgmma(float (&d)[count], const uint32_t (&a)[4], uint64_t b, bool accumulate, simt::Site site = simt::here()) {
  static_assert(count % 4 == 0 && count >= 4 && count <= 128);
  static_assert(std::is_same_v<T, half_bits> || std::is_same_v<T, bfloat16_bits>);
  simt::wgmma(
      {d, count, {a[0], a[1], a[2], a[3]}, true, accumulate, false, b_transposed, std::is_same_v<T, half_bits>, 0, b, site});
}

}  // namespace fastdl::device
