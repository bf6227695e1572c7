#pragma once

#include <cstddef>
#include <cstdint>

namespace fastdl {

// A block of at least `bytes` from the pool, aligned to a page; null where the pool does not serve (switched off, too small, no
// memory), and the caller allocates as it would without one. Safe in any thread.
void* pool_allocate(size_t bytes);
void pool_release(void* block);

}  // namespace fastdl

extern "C" {

struct fastdl_pool_snapshot {
  int64_t enabled, limit, cached, in_use, hits, misses;
};
// A negative argument leaves that setting as it is.
void fastdl_pool_configure(int enabled, int64_t limit);
void fastdl_pool_clear();
void fastdl_pool_status(fastdl_pool_snapshot* out);
}
