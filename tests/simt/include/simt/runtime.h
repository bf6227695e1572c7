// The interface between the names that kernels use and the runtime that runs their threads. One process runs one case; one fibre at
// a time runs in it, so nothing here is locked. The runtime is never instrumented for races: what kernels do to memory through it
// is told to the race detector with the kernel's own file and line.
#pragma once

#include <cstddef>
#include <cstdint>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr operator uint3() const { return {x, y, z}; }
};

namespace simt {

// A place in a kernel. As a default argument `Site site = here()` is the place of the call.
struct Site {
  const char* file;
  int line;
};
constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }

// Ends the case with a report: its kind, where, which thread, and what all others wait for if `everyone`.
[[noreturn]] __attribute__((format(printf, 3, 4))) void fail(const char* kind, Site site, const char* format, ...);

// --- Launches -----------------------------------------------------------------------------------------------------------------
// A kernel with its arguments; run() is called by every thread.
struct Launch {
  virtual void run() const = 0;
  virtual const void* address() const = 0;

 protected:
  ~Launch() = default;
};
int launch(const Launch& kernel, dim3 grid, dim3 block, unsigned cluster_size, size_t dynamic_bytes);

// The facts that machine() reports.
struct Facts {
  int multiprocessors, shared_bytes, capability;
};
Facts& facts();

// --- Shared memory ------------------------------------------------------------------------------------------------------------
// The bytes of one declaration in one kernel, the same for all threads of a block; NaN at first.
void* static_shared(const char* function, int line, const char* name, size_t bytes, size_t alignment, Site site = here());
void* dynamic_shared();
// As device.cuh's; the first checks that the pointer lies in the block's shared memory.
uint32_t shared_address(const void* pointer, Site site);
void* shared_pointer(uint32_t address);
void* map_shared(const void* pointer, unsigned rank, Site site);

// --- Memory -------------------------------------------------------------------------------------------------------------------
// Checked (alignment, bounds, races) and then done, in one piece.
void read(void* to, const void* from, size_t bytes, Site site);
void write(void* to, const void* from, size_t bytes, Site site);
// Told to the race detector as atomic; the value then moves by the raw functions.
void note_atomic(const void* pointer, size_t bytes, Site site);
void raw_copy(void* to, const void* from, size_t bytes);
void thread_fence();

// --- Threads that wait for each other -------------------------------------------------------------------------------------------
void block_barrier(Site site);
void named_barrier(int id, int threads, bool wait, Site site);
void cluster_arrive(Site site);
void cluster_wait(Site site);
unsigned cluster_rank();
unsigned cluster_size();
unsigned lane_index();
unsigned active_mask();

// A collective of a warp: each lane of `mask` leaves its operand, and the last to come calls `compute` for all; lanes[i] is null
// for a lane that is not in the mask or has left the kernel.
enum class Collective { warp_barrier, shuffle, vote, match, elect, matrix_load, matrix_store, matrix_multiply, warp_group };
struct Lanes {
  void* lane[32];
  Site site;
};
using Compute = void (*)(Lanes& lanes);
void collective(Collective kind, unsigned mask, Site site, void* operand, Compute compute);

// --- Asynchronous copies --------------------------------------------------------------------------------------------------------
void cp_async(void* shared, const void* global, int bytes, int source_bytes, Site site);
void cp_async_commit();
void cp_async_wait(int pending, Site site);
void cp_async_arrive(void* barrier, Site site);

void mbarrier_init(void* barrier, unsigned count, Site site);
void mbarrier_invalidate(void* barrier, Site site);
void mbarrier_arrive(void* barrier, unsigned announced_bytes, Site site);
void mbarrier_wait(void* barrier, unsigned parity, Site site);

// A tensor in memory and the box that one copy moves, the innermost dimension first; strides in bytes.
struct Tile {
  const void* base;
  int rank, element_bytes, swizzle;
  uint64_t sizes[5], strides[5];
  uint32_t box[5];
};
void bulk_load(void* shared, const void* global, unsigned bytes, void* barrier, Site site);
void bulk_store(void* global, const void* shared, unsigned bytes, Site site);
void tile_load(void* shared, const Tile& tile, int rank, const int* at, void* barrier, Site site);
void tile_store(const Tile& tile, int rank, const int* at, const void* shared, Site site);
void fence_proxy_async();
void bulk_commit();
void bulk_wait(int pending, Site site);

// --- Warp-group matrix instructions
// ------------------------------------------------------------------------------------------------ Held until the wait. `a` is null
// if the operand comes from shared memory, else four registers.
struct Wgmma {
  float* d;
  int count;
  uint32_t a[4];
  bool a_in_registers, accumulate, a_transposed, b_transposed, half;
  uint64_t a_descriptor, b_descriptor;
  Site site;
};
void wgmma_fence(Site site);
void wgmma(const Wgmma& operation);
void wgmma_commit(Site site);
void wgmma_wait(int pending, Site site);

}  // namespace simt
