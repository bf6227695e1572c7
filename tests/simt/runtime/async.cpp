#include "async.h"

#include <cstring>

#include "arena.h"
#include "machine.h"
#include "report.h"

namespace simt {

namespace {

void check_piece(const Piece& piece, Site site) {
  if (!arena::is_usable(piece.to, piece.bytes))
    fail("out of bounds", site, "copies %u bytes to %s", piece.bytes, arena::describe(piece.to).c_str());
  if (piece.from != nullptr && !arena::is_usable(piece.from, piece.bytes))
    fail("out of bounds", site, "copies %u bytes from %s", piece.bytes, arena::describe(piece.from).c_str());
}

// What is there until the copy lands must not be used.
void start(Copy& copy, bool to_shared) {
  Thread& thread = *simulation().current;
  for (const Piece& piece : copy.pieces) {
    check_piece(piece, copy.site);
    if (!to_shared) {
      race::note_proxy_read(piece.from, piece.bytes, copy.site);
      continue;
    }
    if (piece.from != nullptr) race::note(piece.from, piece.bytes, false, false, copy.site);
    race::note(piece.to, piece.bytes, true, false, copy.site);
    std::memset(piece.to, 0xff, piece.bytes);
  }
  copy.seen = thread.clock;
  race::advance(thread);
}

void move(const Copy& copy) {
  for (const Piece& piece : copy.pieces) {
    if (piece.from == nullptr) std::memset(piece.to, 0, piece.bytes);
    else std::memcpy(piece.to, piece.from, piece.bytes);
  }
}

// For the thread itself, which waited.
void land(const Copy& copy, Thread& thread) {
  move(copy);
  if (!race::enabled) return;
  for (const Piece& piece : copy.pieces)
    race::land(piece.to, piece.bytes, copy.site, copy.seen, thread.identity, thread.clock.times[thread.identity]);
}

void land_stores(const std::vector<Copy>& copies) {
  for (const Copy& copy : copies) {
    move(copy);
    for (const Piece& piece : copy.pieces) {
      race::land_read(piece.from, piece.bytes, copy.site, copy.seen);
      race::note(piece.to, piece.bytes, true, false, copy.site);
    }
  }
}

Mbarrier& find(const void* address, Site site) {
  auto& all = simulation().cluster->mbarriers.at;
  const auto found = all.find(address);
  if (found == all.end() || !found->second->valid)
    fail("mbarrier", site, "%s has not been initialised", arena::describe(address).c_str());
  race::note(address, 8, true, true, site);
  return *found->second;
}

void finish_phase_if_complete(Mbarrier& barrier) {
  if (barrier.pending > 0 || barrier.bytes != 0) return;
  ++barrier.phase;
  barrier.pending = barrier.count;
  barrier.done = std::move(barrier.gathered);
  barrier.gathered = Clock{};
  for (Thread* thread : barrier.waiting) wake(*thread);
  barrier.waiting.clear();
}

}  // namespace

void cp_async(void* shared, const void* global, int bytes, int source_bytes, Site site) {
  Thread& thread = current("cp_async", site);
  shared_address(shared, site);
  if (source_bytes < 0 || source_bytes > bytes)
    fail("wrong argument", site, "cp_async of %d bytes with %d from the source", bytes, source_bytes);
  if (reinterpret_cast<uintptr_t>(shared) % unsigned(bytes) != 0 || reinterpret_cast<uintptr_t>(global) % unsigned(bytes) != 0)
    fail("misaligned", site, "cp_async of %d bytes from %s to %s", bytes, arena::describe(global).c_str(),
         arena::describe(shared).c_str());
  Copy copy{{}, site, {}, unsigned(bytes)};
  if (source_bytes > 0) copy.pieces.push_back({shared, global, unsigned(source_bytes)});
  if (source_bytes < bytes)
    copy.pieces.push_back({static_cast<char*>(shared) + source_bytes, nullptr, unsigned(bytes - source_bytes)});
  start(copy, true);
  if (simulation().chance(2)) land(copy, thread);
  else thread.copies.open.push_back(std::move(copy));
}

void cp_async_commit() {
  Thread& thread = current("cp_async_commit", {nullptr, 0});
  thread.copies.groups.push_back(std::move(thread.copies.open));
  thread.copies.open.clear();
}

void cp_async_wait(int pending, Site site) {
  Thread& thread = current("cp_async_wait", site);
  for (auto& groups = thread.copies.groups; groups.size() > size_t(pending); groups.pop_front())
    for (const Copy& copy : groups.front()) land(copy, thread);
}

void cp_async_arrive(void* barrier, Site site) {
  Thread& thread = current("cp_async_arrive", site);
  Delivery delivery{&find(barrier, site), {}, &thread};
  for (auto& group : thread.copies.groups)
    for (Copy& copy : group) delivery.copies.push_back(std::move(copy));
  for (Copy& copy : thread.copies.open) delivery.copies.push_back(std::move(copy));
  for (auto& group : thread.copies.groups) group.clear();
  thread.copies.open.clear();
  race::release(thread, delivery.barrier->gathered);
  simulation().cluster->mbarriers.deliveries.push_back(std::move(delivery));
}

void leave_copies(Thread& thread) {
  const ThreadCopies& copies = thread.copies;
  bool any = !copies.open.empty() || !copies.open_stores.empty() || !copies.store_groups.empty();
  for (const auto& group : copies.groups) any |= !group.empty();
  if (any) fail("unfinished work", {nullptr, 0}, "the thread leaves while copies that it started are under way");
}

void mbarrier_init(void* barrier, unsigned count, Site site) {
  current("mbarrier_init", site);
  shared_address(barrier, site);
  if (count == 0 || count >= 1u << 20) fail("wrong argument", site, "an mbarrier for %u arrivals", count);
  const uint64_t state = count;
  write(barrier, &state, 8, site);
  Mbarriers& all = simulation().cluster->mbarriers;
  auto& slot = all.at[barrier];
  if (slot == nullptr) {
    slot = std::make_unique<Mbarrier>();
    slot->engine = all.created++ % race::engine_count;
  }
  slot->count = count;
  slot->pending = count;
  slot->bytes = 0;
  slot->phase = 0;
  slot->valid = true;
}

void mbarrier_invalidate(void* barrier, Site site) {
  current("mbarrier_invalidate", site);
  find(barrier, site).valid = false;
}

void mbarrier_arrive(void* barrier, unsigned announced_bytes, Site site) {
  Thread& thread = current("mbarrier_arrive", site);
  Mbarrier& state = find(barrier, site);
  state.bytes += announced_bytes;
  if (--state.pending < 0) fail("mbarrier", site, "more arrivals than the %u it was initialised for", state.count);
  race::release(thread, state.gathered);
  finish_phase_if_complete(state);
}

void mbarrier_wait(void* barrier, unsigned parity, Site site) {
  Thread& thread = current("mbarrier_wait", site);
  if (parity > 1) fail("wrong argument", site, "parity %u", parity);
  Mbarrier& state = find(barrier, site);
  while ((state.phase & 1u) == parity) {
    state.waiting.push_back(&thread);
    wait({"an mbarrier", site, 0, barrier, parity, 0});
  }
  race::acquire(thread, state.done);
}

bool deliver_one() {
  if (simulation().cluster == nullptr || simulation().cluster->mbarriers.deliveries.empty()) return false;
  std::vector<Delivery>& all = simulation().cluster->mbarriers.deliveries;
  size_t which = 0;
  if (simulation().order == Order::reversed) which = all.size() - 1;
  if (simulation().order == Order::random) which = simulation().random() % all.size();
  const Delivery delivery = std::move(all[which]);
  all.erase(all.begin() + long(which));
  Mbarrier& barrier = *delivery.barrier;
  const unsigned engine = simulation().cluster->thread_count + barrier.engine;
  const uint32_t time = ++barrier.engine_time;
  for (const Copy& copy : delivery.copies) {
    move(copy);
    if (race::enabled)
      for (const Piece& piece : copy.pieces) race::land(piece.to, piece.bytes, copy.site, copy.seen, engine, time);
    if (delivery.arrival == nullptr) barrier.bytes -= copy.bytes;
  }
  if (race::enabled) {
    if (barrier.gathered.times.size() <= engine) barrier.gathered.times.resize(engine + 1);
    barrier.gathered.times[engine] = time;
  }
  if (delivery.arrival != nullptr) --barrier.pending;
  finish_phase_if_complete(barrier);
  return true;
}

namespace {

void start_load(Copy copy, void* barrier) {
  Delivery delivery{&find(barrier, copy.site), {}, nullptr};
  start(copy, true);
  delivery.copies.push_back(std::move(copy));
  simulation().cluster->mbarriers.deliveries.push_back(std::move(delivery));
}

void start_store(Copy copy) {
  Thread& thread = *simulation().current;
  start(copy, false);
  thread.copies.open_stores.push_back(std::move(copy));
}

void require_multiple(const void* pointer, unsigned multiple, Site site) {
  if (reinterpret_cast<uintptr_t>(pointer) % multiple != 0)
    fail("misaligned", site, "a bulk copy at %s, whose address is no multiple of %u", arena::describe(pointer).c_str(), multiple);
}

// The box at these coordinates, in pieces of one 16-byte chunk of a row each, clipped to the tensor.
Copy tile_copy(const Tile& tile, int rank, const int* at, const char* shared, bool load, Site site) {
  if (rank != tile.rank) fail("wrong argument", site, "%d coordinates for a tensor of %d dimensions", rank, tile.rank);
  // Swizzled addresses are the hardware's own, so the pattern depends on where the tile lies, whatever its alignment.
  require_multiple(shared, 128, site);
  Copy copy{{}, site, {}, 0};
  uint32_t box[5] = {1, 1, 1, 1, 1};
  for (int i = 0; i < rank; ++i) box[i] = tile.box[i];
  const uint32_t width = box[0] * uint32_t(tile.element_bytes);
  const uint32_t element = uint32_t(tile.element_bytes);
  const uint32_t start = shared_address(shared, site);
  uint32_t row = 0;
  uint32_t i[5] = {};
  for (i[4] = 0; i[4] < box[4]; ++i[4])
    for (i[3] = 0; i[3] < box[3]; ++i[3])
      for (i[2] = 0; i[2] < box[2]; ++i[2])
        for (i[1] = 0; i[1] < box[1]; ++i[1], ++row) {
          bool inside = true;
          int64_t offset = 0;
          for (int d = 1; d < rank; ++d) {
            const int64_t coordinate = int64_t(at[d]) + i[d];
            inside &= coordinate >= 0 && coordinate < int64_t(tile.sizes[d]);
            offset += coordinate * int64_t(tile.strides[d]);
          }
          for (uint32_t byte = 0; byte < width; byte += element) {
            const int64_t coordinate = int64_t(at[0]) + byte / element;
            const bool element_inside = inside && coordinate >= 0 && coordinate < int64_t(tile.sizes[0]);
            uint32_t address = start + row * width + byte;
            if (tile.swizzle > 0) address ^= (address >> 7 & ((1u << tile.swizzle) - 1)) << 4;
            char* in_shared = static_cast<char*>(shared_pointer(address));
            const char* in_tensor = static_cast<const char*>(tile.base) + offset + coordinate * int64_t(element);
            if (!load && !element_inside) continue;
            Piece piece = load ? Piece{in_shared, element_inside ? in_tensor : nullptr, element}
                               : Piece{const_cast<char*>(in_tensor), in_shared, element};
            // Neighbours in both places become one piece.
            if (!copy.pieces.empty()) {
              Piece& last = copy.pieces.back();
              const bool follows = static_cast<char*>(last.to) + last.bytes == piece.to &&
                                   ((last.from == nullptr && piece.from == nullptr) ||
                                    (last.from != nullptr && static_cast<const char*>(last.from) + last.bytes == piece.from));
              if (follows) {
                last.bytes += element;
                continue;
              }
            }
            copy.pieces.push_back(piece);
          }
        }
  copy.bytes = row * width;
  return copy;
}

}  // namespace

void bulk_load(void* shared, const void* global, unsigned bytes, void* barrier, Site site) {
  current("bulk_load", site);
  shared_address(shared, site);
  require_multiple(shared, 16, site);
  require_multiple(global, 16, site);
  if (bytes == 0 || bytes % 16 != 0) fail("wrong argument", site, "a bulk copy of %u bytes", bytes);
  start_load({{{shared, global, bytes}}, site, {}, bytes}, barrier);
}

void bulk_store(void* global, const void* shared, unsigned bytes, Site site) {
  current("bulk_store", site);
  shared_address(shared, site);
  require_multiple(shared, 16, site);
  require_multiple(global, 16, site);
  if (bytes == 0 || bytes % 16 != 0) fail("wrong argument", site, "a bulk copy of %u bytes", bytes);
  start_store({{{global, shared, bytes}}, site, {}, bytes});
}

void tile_load(void* shared, const Tile& tile, int rank, const int* at, void* barrier, Site site) {
  current("tile_load", site);
  start_load(tile_copy(tile, rank, at, static_cast<const char*>(shared), true, site), barrier);
}

void tile_store(const Tile& tile, int rank, const int* at, const void* shared, Site site) {
  current("tile_store", site);
  start_store(tile_copy(tile, rank, at, static_cast<const char*>(shared), false, site));
}

void bulk_commit() {
  ThreadCopies& copies = current("bulk_commit", {nullptr, 0}).copies;
  copies.store_groups.push_back(std::move(copies.open_stores));
  copies.open_stores.clear();
}

void bulk_wait(int pending, Site site) {
  ThreadCopies& copies = current("bulk_wait", site).copies;
  for (; copies.store_groups.size() > size_t(pending); copies.store_groups.pop_front()) land_stores(copies.store_groups.front());
}

}  // namespace simt
