// Launches: makes the threads of a cluster, runs each warp until it waits, and finds deadlocks.
#include <cxxabi.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstring>

#include "arena.h"
#include "machine.h"
#include "report.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace simt {

namespace {

std::vector<std::unique_ptr<Fibre>> fibres;  // kept from launch to launch
unsigned fibres_in_use = 0;
Facts machine_facts{4, int(arena::dynamic_limit), 90};

std::string name_of(const void* function) {
  Dl_info info;
  if (dladdr(function, &info) == 0 || info.dli_sname == nullptr) return "a kernel of internal linkage";
  int status = 0;
  char* readable = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status);
  std::string name = status == 0 ? readable : info.dli_sname;
  std::free(readable);
  // Without the return type and the parameters: a template's name has both, and its own < > and ( ) may hold further ones.
  int depth = 0;
  size_t begin = 0, end = name.size();
  for (size_t i = 0; i < name.size(); ++i) {
    if (name[i] == '<' || (name[i] == '(' && depth > 0)) ++depth;
    else if (name[i] == '>' || (name[i] == ')' && depth > 0)) --depth;
    else if (name[i] == ' ' && depth == 0) begin = i + 1;
    else if (name[i] == '(' && depth == 0) {
      end = i;
      break;
    }
  }
  return name.substr(begin, end - begin);
}

template <class T>
void put_in_order(std::vector<T>& items) {
  Simulation& s = simulation();
  if (s.order == Order::reversed) std::reverse(items.begin(), items.end());
  if (s.order == Order::random) std::shuffle(items.begin(), items.end(), s.random);
}

void leave(Thread& thread) {
  leave_copies(thread);
  if (!thread.matrices.held.empty())
    fail("unfinished work", {nullptr, 0}, "the thread leaves without waiting for its wgmma operations");
  thread.state = State::done;
  thread.warp->alive &= ~(1u << thread.lane);
  --thread.block->alive;
  --simulation().cluster->alive;
  leave_collectives(thread);
  leave_barriers(thread);
  if (thread.block->alive == 0) {
    arena::check_segment(thread.block->rank);
    // Other blocks of the cluster may not look at this one's shared memory any more.
    arena::end_segment(thread.block->rank);
  }
}

void thread_main(void* argument) {
  auto& thread = *static_cast<Thread*>(argument);
  simulation().kernel->run();
  leave(thread);
  thread.fibre->suspend(true);
}

void run_thread(Thread& thread) {
  Simulation& s = simulation();
  s.current = &thread;
  threadIdx = thread.index;
  blockIdx = thread.block->index;
  thread.fibre->resume();
  s.current = nullptr;
}

// Runs the lanes of a warp, each until it waits, for as long as one of them can.
bool run_warp(Warp& warp) {
  bool ran = false;
  for (;;) {
    std::vector<Thread*> ready;
    for (Thread* thread : warp.lanes)
      if (thread->state == State::ready) ready.push_back(thread);
    if (ready.empty()) return ran;
    put_in_order(ready);
    for (Thread* thread : ready) run_thread(*thread);
    ran = true;
  }
}

void run_cluster(Cluster& cluster) {
  simulation().cluster = &cluster;
  std::vector<Warp*> warps;
  for (auto& block : cluster.blocks)
    for (auto& warp : block->warps) warps.push_back(warp.get());
  if (simulation().order == Order::reversed) std::reverse(warps.begin(), warps.end());
  while (cluster.alive > 0) {
    if (simulation().order == Order::random) put_in_order(warps);
    bool ran = false;
    for (Warp* warp : warps) {
      if (simulation().chance(4)) ran |= deliver_one();
      ran |= run_warp(*warp);
    }
    if (!ran && !deliver_one()) fail_with("deadlock", "", "every thread waits:\n" + waiting_threads(), false);
  }
  while (deliver_one()) {
  }
  simulation().cluster = nullptr;
}

std::unique_ptr<Block> make_block(dim3 size, unsigned rank, unsigned first_identity) {
  auto block = std::make_unique<Block>();
  block->rank = rank;
  block->thread_count = block->alive = size.x * size.y * size.z;
  const unsigned count = block->thread_count;
  for (unsigned first = 0; first < count; first += 32) {
    auto warp = std::make_unique<Warp>();
    warp->block = block.get();
    const unsigned lanes = std::min(32u, count - first);
    warp->alive = lanes == 32 ? 0xffffffffu : (1u << lanes) - 1;
    block->warps.push_back(std::move(warp));
  }
  block->warp_groups.resize((count + 127) / 128);
  for (unsigned i = 0; i < count; ++i) {
    auto thread = std::make_unique<Thread>();
    if (fibres_in_use == fibres.size()) fibres.push_back(std::make_unique<Fibre>());
    thread->fibre = fibres[fibres_in_use++].get();
    thread->block = block.get();
    thread->warp = block->warps[i / 32].get();
    thread->warp->lanes.push_back(thread.get());
    thread->index = {i % size.x, i / size.x % size.y, i / size.x / size.y};
    thread->number = i;
    thread->lane = i % 32;
    thread->identity = first_identity + i;
    thread->clock = race::start_of(thread->identity);
    thread->fibre->prepare(thread_main, thread.get());
    block->threads.push_back(std::move(thread));
  }
  return block;
}

}  // namespace

Facts& facts() { return machine_facts; }

Simulation& simulation() {
  static Simulation the_simulation;
  return the_simulation;
}

Thread& current(const char* what, Site site) {
  Thread* thread = simulation().current;
  if (thread == nullptr) fail("not in a kernel", site, "%s outside of a kernel", what);
  return *thread;
}

void wait(const Wait& wait) {
  Thread& thread = *simulation().current;
  thread.wait = wait;
  thread.state = State::waiting;
  thread.fibre->suspend(false);
}

void wake(Thread& thread) { thread.state = State::ready; }

int launch(const Launch& kernel, dim3 grid, dim3 block, unsigned cluster_size, size_t dynamic_bytes) {
  Simulation& s = simulation();
  const uint64_t threads = uint64_t(block.x) * block.y * block.z;
  // What a GPU refuses as well.
  if (threads == 0 || threads > 1024 || block.z > 64 || grid.x == 0 || grid.x > 0x7fffffffu || grid.y == 0 || grid.y > 65535 ||
      grid.z == 0 || grid.z > 65535 || cluster_size == 0 || cluster_size > arena::segment_count || grid.x % cluster_size != 0 ||
      dynamic_bytes > size_t(facts().shared_bytes))
    return 1;
  if (facts().capability < 90 && cluster_size > 1) return 1;
  s.kernel = &kernel;
  s.kernel_name = name_of(kernel.address());
  s.launched.push_back(s.kernel_name);
  s.declarations.clear();
  race::begin_launch();
  gridDim = grid;
  blockDim = block;

  std::vector<dim3> first_blocks;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; x += cluster_size) first_blocks.push_back({x, y, z});
  put_in_order(first_blocks);
  for (const dim3 first : first_blocks) {
    Cluster cluster;
    fibres_in_use = 0;
    race::begin_cluster(unsigned(threads) * cluster_size);
    for (unsigned rank = 0; rank < cluster_size; ++rank) {
      arena::begin_segment(rank, dynamic_bytes);
      cluster.blocks.push_back(make_block(block, rank, unsigned(threads) * rank));
      cluster.blocks.back()->index = {first.x + rank, first.y, first.z};
    }
    cluster.thread_count = cluster.alive = unsigned(threads) * cluster_size;
    cluster.arrived_phase.assign(cluster.thread_count, 0);
    run_cluster(cluster);
  }
  arena::check_guards();
  s.kernel = nullptr;
  return 0;
}

// The offset of a declaration is the same in all blocks of a launch: in the order in which the first block comes to them.
void* static_shared(const char* function, int line, const char* name, size_t bytes, size_t alignment, Site site) {
  constexpr size_t gap = 128;  // two red zones
  Thread& thread = current("a static shared array", site);
  std::vector<StaticDeclaration>& all = simulation().declarations;
  size_t i = 0;
  while (i < all.size() && (all[i].function != function || all[i].line != line || all[i].bytes != bytes)) ++i;
  if (i == all.size()) {
    size_t offset = arena::static_offset + gap, used = bytes;
    for (const StaticDeclaration& other : all) {
      offset = other.offset + other.bytes + gap;
      used += other.bytes;
    }
    if (used > arena::static_limit) fail("too much shared memory", site, "the static arrays of a kernel may take 48 KB at most");
    all.push_back({function, line, (offset + alignment - 1) / alignment * alignment, bytes});
  }
  std::vector<bool>& declared = thread.block->declared;
  if (declared.size() <= i) declared.resize(i + 1);
  if (!declared[i]) arena::use_in_segment(thread.block->rank, all[i].offset, bytes, name);
  declared[i] = true;
  return arena::segment(thread.block->rank) + all[i].offset;
}

void* dynamic_shared() {
  return arena::segment(current("dynamic shared memory", {nullptr, 0}).block->rank) + arena::dynamic_offset;
}

uint32_t shared_address(const void* pointer, Site site) {
  const char* segment = arena::segment(current("a shared address", site).block->rank);
  const char* at = static_cast<const char*>(pointer);
  if (at < segment || at >= segment + arena::segment_bytes)
    fail("not shared memory", site, "%s is not in the block's shared memory", arena::describe(pointer).c_str());
  return uint32_t(at - segment);
}

void* shared_pointer(uint32_t address) { return arena::segment(simulation().current->block->rank) + address; }

void* map_shared(const void* pointer, unsigned rank, Site site) {
  const uint32_t address = shared_address(pointer, site);
  if (rank >= simulation().cluster->blocks.size())
    fail("wrong rank", site, "block %u of a cluster of %zu", rank, simulation().cluster->blocks.size());
  return arena::segment(rank) + address;
}

unsigned cluster_rank() { return current("cluster_rank", {nullptr, 0}).block->rank; }
unsigned cluster_size() { return unsigned(simulation().cluster->blocks.size()); }
unsigned lane_index() { return current("lane_index", {nullptr, 0}).lane; }
// Lanes run one after the other: as if they had all diverged.
unsigned active_mask() { return 1u << lane_index(); }

}  // namespace simt
