// Clusters of thread blocks, their shared memory, and barriers in shared memory (mbarrier). nvcc's half of device.cuh.
#pragma once

#include <cstdint>

#include "device_memory.cuh"

namespace fastdl::device {

// Which block of its cluster this is, and how many there are; below sm_90 every block is a cluster of one.
FASTDL_DEVICE unsigned cluster_rank() {
#if FASTDL_HAS_SM90
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#else
  return 0;
#endif
}
FASTDL_DEVICE unsigned cluster_size() {
#if FASTDL_HAS_SM90
  unsigned size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
#else
  return 1;
#endif
}

// All threads of all blocks of the cluster. After the two halves, what was written to shared memory before the first is seen by
// all. A block whose shared memory others read must not leave before they have: end such a kernel with a cluster barrier.
FASTDL_DEVICE void cluster_arrive() {
#if FASTDL_HAS_SM90
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
FASTDL_DEVICE void cluster_wait() {
#if FASTDL_HAS_SM90
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __syncthreads();
#endif
}
FASTDL_DEVICE void cluster_barrier() {
  cluster_arrive();
  cluster_wait();
}

// Where `pointer`, which points into this block's shared memory, points in that of block `rank` of the cluster. It is read and
// written as any other pointer.
template <class T>
FASTDL_DEVICE T* map_shared(T* pointer, unsigned rank) {
#if FASTDL_HAS_SM90
  uint64_t mapped;
  asm("mapa.u64 %0, %1, %2;" : "=l"(mapped) : "l"(pointer), "r"(rank));
  return reinterpret_cast<T*>(mapped);
#else
  return pointer;
#endif
}

// A barrier that lies in shared memory: STATIC_SHARED(Mbarrier, full, [stages]). A phase ends when `count` arrivals and all
// announced bytes have come; phases have parity 0, 1, 0, ... and waiting for parity p returns when the current phase has another
// parity.
struct Mbarrier {
  uint64_t state;
};

// By one thread; then mbarrier_init_fence and a barrier, before any other thread or copy uses it.
FASTDL_DEVICE void mbarrier_init(Mbarrier* barrier, unsigned count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}
FASTDL_DEVICE void mbarrier_init_fence() {
#if FASTDL_HAS_SM90
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
FASTDL_DEVICE void mbarrier_invalidate(Mbarrier* barrier) {
  asm volatile("mbarrier.inval.shared.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}

FASTDL_DEVICE void mbarrier_arrive(Mbarrier* barrier) {
  asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared.b64 state, [%0];\n}" ::"r"(shared_address(barrier)) : "memory");
}
// One arrival, and `bytes` more to wait for, which bulk copies will bring.
FASTDL_DEVICE void mbarrier_arrive_expect(Mbarrier* barrier, unsigned bytes) {
#if FASTDL_HAS_SM90
  asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1;\n}" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
#else
  __trap();
#endif
}
// An arrival at the same barrier of block `rank` of the cluster.
FASTDL_DEVICE void mbarrier_arrive_remote(Mbarrier* barrier, unsigned rank) {
#if FASTDL_HAS_SM90
  asm volatile(
      "{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n}" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
#else
  mbarrier_arrive(barrier);
#endif
}
// An arrival that comes by itself when this thread's cp.async copies so far are there; it is one of the barrier's count.
FASTDL_DEVICE void cp_async_arrive(Mbarrier* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Whether the phase of this parity has ended; may wait a little for it.
FASTDL_DEVICE bool mbarrier_try_wait(Mbarrier* barrier, unsigned parity) {
  unsigned done;
#if FASTDL_HAS_SM90
  asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
               : "=r"(done)
               : "r"(shared_address(barrier)), "r"(parity)
               : "memory");
#else
  asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
               : "=r"(done)
               : "r"(shared_address(barrier)), "r"(parity)
               : "memory");
#endif
  return done != 0;
}
FASTDL_DEVICE void mbarrier_wait(Mbarrier* barrier, unsigned parity) {
  while (!mbarrier_try_wait(barrier, parity)) {
  }
}

}  // namespace fastdl::device
