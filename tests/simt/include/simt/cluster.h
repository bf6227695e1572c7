// The host's half of device_cluster.cuh.
#pragma once

#include <cstdint>

#include "runtime.h"

namespace fastdl::device {

inline unsigned cluster_rank() { return simt::cluster_rank(); }
inline unsigned cluster_size() { return simt::cluster_size(); }
inline void cluster_arrive(simt::Site site = simt::here()) { simt::cluster_arrive(site); }
inline void cluster_wait(simt::Site site = simt::here()) { simt::cluster_wait(site); }
inline void cluster_barrier(simt::Site site = simt::here()) {
  simt::cluster_arrive(site);
  simt::cluster_wait(site);
}

template <class T>
T* map_shared(T* pointer, unsigned rank, simt::Site site = simt::here()) {
  return static_cast<T*>(simt::map_shared(pointer, rank, site));
}

struct Mbarrier {
  uint64_t state;
};
inline void mbarrier_init(Mbarrier* barrier, unsigned count, simt::Site site = simt::here()) {
  simt::mbarrier_init(barrier, count, site);
}
inline void mbarrier_init_fence() {}
inline void mbarrier_invalidate(Mbarrier* barrier, simt::Site site = simt::here()) { simt::mbarrier_invalidate(barrier, site); }
inline void mbarrier_arrive(Mbarrier* barrier, simt::Site site = simt::here()) { simt::mbarrier_arrive(barrier, 0, site); }
inline void mbarrier_arrive_expect(Mbarrier* barrier, unsigned bytes, simt::Site site = simt::here()) {
  simt::mbarrier_arrive(barrier, bytes, site);
}
inline void mbarrier_arrive_remote(Mbarrier* barrier, unsigned rank, simt::Site site = simt::here()) {
  simt::mbarrier_arrive(simt::map_shared(barrier, rank, site), 0, site);
}
inline void cp_async_arrive(Mbarrier* barrier, simt::Site site = simt::here()) { simt::cp_async_arrive(barrier, site); }
// Waits until the phase has ended: a kernel may not rely on being told that it has not.
inline bool mbarrier_try_wait(Mbarrier* barrier, unsigned parity, simt::Site site = simt::here()) {
  simt::mbarrier_wait(barrier, parity, site);
  return true;
}
inline void mbarrier_wait(Mbarrier* barrier, unsigned parity, simt::Site site = simt::here()) {
  simt::mbarrier_wait(barrier, parity, site);
}

}  // namespace fastdl::device
