// The race detector: vector clocks, of threads and of the engines that copy by themselves. An access races with an earlier one of
// the same byte by another thread if one of them writes, not both are atomic, and no barrier lies between them: if the earlier
// one's time is later than what the clock of the present thread has seen of its owner.
//
// Times advance where a thread publishes what it did (a barrier, an arrival). A shuffle or a vote orders no memory.
//
// Clusters of one launch run one after the other, and are watched as a whole: what one did is ordered before another's doings only
// if a thread of the first did __threadfence and then an atomic operation at an address at which one of the other did one later.
//
// What threads write with ordinary stores, a bulk copy or wgmma may read only after a fence_proxy_async.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "simt/runtime.h"

namespace simt {

struct Thread;

// times[i] is how far the owner has seen of thread i.
struct Clock {
  std::vector<uint32_t> times;
};

namespace race {

// Whether the sources were compiled with the marks that -fsanitize=thread sets.
extern bool enabled;

// Components of a clock beyond those of the threads: one for each of so many mbarriers, whose copies land by themselves.
inline constexpr unsigned engine_count = 32;

void reserve();
void begin_launch();
void begin_cluster(unsigned threads);
Clock start_of(unsigned identity);

// What `thread` did so far is visible to whoever acquires `into`.
void release(Thread& thread, Clock& into);
void acquire(Thread& thread, const Clock& from);
// The thread's time goes on, so that what it does next is not taken for what it did before.
void advance(Thread& thread);

// An access by `identity`, who has seen `seen`.
void access(const void* pointer, size_t bytes, bool write, bool atomic, Site site, unsigned identity, const Clock& seen);
// The same by the current thread; nothing outside kernels.
void note(const void* pointer, size_t bytes, bool write, bool atomic, Site site);
// The moment when a copy lands that was started when its thread had seen `seen`: whoever touched the bytes since is in a race. From
// then on it is a write of `identity` at its own time.
void land(const void* pointer, size_t bytes, Site site, const Clock& seen, unsigned identity, uint32_t time);
// The moment when a copy that was started at `seen` has read: whoever wrote the bytes since is in a race.
void land_read(const void* pointer, size_t bytes, Site site, const Clock& seen);
// A read of shared memory by a bulk copy or wgmma, on behalf of the current thread.
void note_proxy_read(const void* pointer, size_t bytes, Site site);
void proxy_fence(Thread& thread);
// An atomic operation of a thread, which may have published what its cluster did before.
void meet(const void* pointer, bool fenced);

}  // namespace race

}  // namespace simt
