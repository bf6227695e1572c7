// What the CPU's bindings share: tensors whose memory comes from the pool.
#pragma once

#include "cpu/pool.h"
#include "tensors.h"

namespace fastdl {

// An uninitialised tensor, from the pool where it is large.
inline Tensor make(const Shape& sizes, const Shape& strides, const Tensor& like, int64_t count) {
  const ScalarType dtype = like.scalar_type();
  void* block = pool_allocate(size_t(count) * like.element_size());
  if (!block) return empty_strided(sizes, strides, dtype, like);
  void (*release)(void*) = pool_release;
  return torch::stable::from_blob(block, sizes, strides, torch::stable::Device(torch::headeronly::DeviceType::CPU), dtype, release);
}

}  // namespace fastdl
