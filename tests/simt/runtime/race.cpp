#include "race.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "arena.h"
#include "machine.h"
#include "report.h"

namespace simt::race {

bool enabled = false;

namespace {

// What is known of one byte. A stamp from an earlier cluster means that nothing is.
struct Cell {
  uint32_t stamp;
  uint16_t writer, reader;
  uint32_t write_time, read_time;
  uint32_t write_site, read_site;
  uint32_t readers;  // if more than one: the list of all of them, counted from 1
  bool written, was_read, write_atomic, read_atomic;
};
static_assert(sizeof(Cell) == 32);

struct Reader {
  uint16_t identity;
  bool atomic;
  uint32_t time, site;
};

Cell* cells = nullptr;
uint32_t stamp = 0, first_stamp_of_launch = 1;
// The clusters of this launch that the present one has met, and those that were published at an address.
std::set<uint32_t> met;
std::unordered_map<const void*, std::set<uint32_t>> published;
// How far the writes of each thread are visible to bulk copies and wgmma.
Clock proxied;
unsigned components = 0;
std::vector<std::vector<Reader>> reader_lists;
std::vector<Site> sites;
std::unordered_map<uint64_t, uint32_t> site_numbers;

uint32_t number_of(Site site) {
  static Site last{};
  static uint32_t last_number = 0;
  if (last_number != 0 && site.file == last.file && site.line == last.line) return last_number;
  const uint64_t key = reinterpret_cast<uint64_t>(site.file) * 0x9e3779b97f4a7c15u + uint64_t(uint32_t(site.line));
  const auto found = site_numbers.try_emplace(key, uint32_t(sites.size()) + 1);
  if (found.second) sites.push_back(site);
  last = site;
  return last_number = found.first->second;
}

std::string owner(unsigned identity) {
  const Cluster& cluster = *simulation().cluster;
  if (identity >= cluster.thread_count) return "an asynchronous copy";
  const unsigned size = cluster.blocks[0]->thread_count;
  const uint3 block = cluster.blocks[identity / size]->index, thread = cluster.blocks[0]->threads[identity % size]->index;
  char text[128];
  std::snprintf(text, sizeof text, "block (%u, %u, %u) thread (%u, %u, %u)", block.x, block.y, block.z, thread.x, thread.y,
                thread.z);
  return text;
}

[[noreturn]] void report(const char* pointer, bool write, Site site, unsigned identity, bool other_writes, uint32_t other_site,
                         unsigned other) {
  const Site earlier = sites[other_site - 1];
  fail_with("race", place(site),
            owner(identity) + (write ? " writes " : " reads ") + arena::describe(pointer) + ", which " + owner(other) +
                (other_writes ? " wrote at " : " read at ") + place(earlier) + ", with no barrier between",
            false);
}

bool seen_by(const Clock& clock, unsigned identity, uint32_t time) { return clock.times[identity] >= time; }

void check_cell(Cell& cell, const char* pointer, bool write, bool atomic, Site site, unsigned identity, const Clock& seen) {
  if (cell.stamp != stamp) {
    const bool same_launch = cell.stamp >= first_stamp_of_launch && !arena::is_shared(arena::offset_of(pointer));
    if (same_launch && met.count(cell.stamp) == 0) {
      const bool after_write = cell.written && !(atomic && cell.write_atomic);
      const bool after_read = write && cell.was_read && !(atomic && cell.read_atomic);
      if (after_write || after_read)
        fail_with(
            "race", place(site),
            owner(identity) + (write ? " writes " : " reads ") + arena::describe(pointer) + ", which another block " +
                (after_write ? "wrote at " + place(sites[cell.write_site - 1]) : "read at " + place(sites[cell.read_site - 1])) +
                ", in the same launch",
            false);
    }
    cell = Cell{};
    cell.stamp = stamp;
  }
  if (cell.written && cell.writer != identity && !(atomic && cell.write_atomic) && !seen_by(seen, cell.writer, cell.write_time))
    report(pointer, write, site, identity, true, cell.write_site, cell.writer);
  if (!write) return;
  if (cell.readers != 0) {
    for (const Reader& reader : reader_lists[cell.readers - 1])
      if (reader.identity != identity && !(atomic && reader.atomic) && !seen_by(seen, reader.identity, reader.time))
        report(pointer, write, site, identity, false, reader.site, reader.identity);
  } else if (cell.was_read && cell.reader != identity && !(atomic && cell.read_atomic) &&
             !seen_by(seen, cell.reader, cell.read_time)) {
    report(pointer, write, site, identity, false, cell.read_site, cell.reader);
  }
}

void set_written(Cell& cell, unsigned identity, uint32_t time, bool atomic, uint32_t site) {
  cell.written = true;
  cell.write_atomic = atomic;
  cell.writer = uint16_t(identity);
  cell.write_time = time;
  cell.write_site = site;
  cell.was_read = false;
  cell.readers = 0;
}

void add_reader(Cell& cell, unsigned identity, uint32_t time, bool atomic, uint32_t site, const Clock& seen) {
  const Reader now{uint16_t(identity), atomic, time, site};
  if (cell.readers != 0) {
    std::vector<Reader>& list = reader_lists[cell.readers - 1];
    for (Reader& reader : list)
      if (reader.identity == identity) {
        reader = now;
        return;
      }
    list.push_back(now);
    return;
  }
  // A reader that the present one has seen need not be remembered: who has seen the present one has seen it as well.
  if (cell.was_read && cell.reader != identity && !seen_by(seen, cell.reader, cell.read_time)) {
    // The first of them stays in the cell as well.
    reader_lists.push_back({{cell.reader, cell.read_atomic, cell.read_time, cell.read_site}, now});
    cell.readers = uint32_t(reader_lists.size());
    return;
  }
  cell.was_read = true;
  cell.read_atomic = atomic;
  cell.reader = uint16_t(identity);
  cell.read_time = time;
  cell.read_site = site;
}

void join(Clock& into, const Clock& from) {
  if (into.times.size() < from.times.size()) into.times.resize(from.times.size());
  for (size_t i = 0; i < from.times.size(); ++i) into.times[i] = std::max(into.times[i], from.times[i]);
}

}  // namespace

void reserve() {
  if (!enabled) return;
  const size_t bytes = arena::reserved_bytes() * sizeof(Cell);
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    std::perror("simt: memory for the race detector");
    std::_Exit(69);
  }
  cells = static_cast<Cell*>(memory);
}

void begin_launch() {
  first_stamp_of_launch = stamp + 1;
  published.clear();
}

void begin_cluster(unsigned threads) {
  if (!enabled) return;
  ++stamp;
  met.clear();
  proxied.times.assign(threads + engine_count, 0);
  components = threads + engine_count;
  reader_lists.clear();
}

Clock start_of(unsigned identity) {
  Clock clock;
  if (!enabled) return clock;
  clock.times.assign(components, 0);
  clock.times[identity] = 1;
  return clock;
}

void advance(Thread& thread) {
  if (enabled) ++thread.clock.times[thread.identity];
}

void release(Thread& thread, Clock& into) {
  if (!enabled) return;
  join(into, thread.clock);
  advance(thread);
}

void acquire(Thread& thread, const Clock& from) {
  if (enabled) join(thread.clock, from);
}

void access(const void* pointer, size_t bytes, bool write, bool atomic, Site site, unsigned identity, const Clock& seen) {
  if (!enabled || !arena::contains(pointer)) return;
  if (!arena::is_usable(pointer, bytes))
    fail("out of bounds", site, "%s %zu bytes at %s", write ? "writes" : "reads", bytes, arena::describe(pointer).c_str());
  const uint32_t number = number_of(site), time = seen.times[identity];
  Cell* first = cells + arena::offset_of(pointer);
  for (size_t i = 0; i < bytes; ++i) {
    check_cell(first[i], static_cast<const char*>(pointer) + i, write, atomic, site, identity, seen);
    if (write) set_written(first[i], identity, time, atomic, number);
    else add_reader(first[i], identity, time, atomic, number, seen);
  }
}

void note(const void* pointer, size_t bytes, bool write, bool atomic, Site site) {
  if (!enabled || !arena::contains(pointer)) return;
  Thread* thread = simulation().current;
  if (thread != nullptr) access(pointer, bytes, write, atomic, site, thread->identity, thread->clock);
}

void land(const void* pointer, size_t bytes, Site site, const Clock& seen, unsigned identity, uint32_t time) {
  if (!enabled || !arena::contains(pointer)) return;
  const uint32_t number = number_of(site);
  Cell* first = cells + arena::offset_of(pointer);
  for (size_t i = 0; i < bytes; ++i) {
    check_cell(first[i], static_cast<const char*>(pointer) + i, true, false, site, components, seen);
    set_written(first[i], identity, time, false, number);
  }
}

void land_read(const void* pointer, size_t bytes, Site site, const Clock& seen) {
  if (!enabled || !arena::contains(pointer)) return;
  Cell* first = cells + arena::offset_of(pointer);
  for (size_t i = 0; i < bytes; ++i)
    check_cell(first[i], static_cast<const char*>(pointer) + i, false, false, site, components, seen);
}

void note_proxy_read(const void* pointer, size_t bytes, Site site) {
  if (!enabled) return;
  note(pointer, bytes, false, false, site);
  const Cell* first = cells + arena::offset_of(pointer);
  for (size_t i = 0; i < bytes; ++i)
    if (first[i].written && first[i].writer < simulation().cluster->thread_count &&
        proxied.times[first[i].writer] < first[i].write_time)
      fail_with("missing proxy fence", place(site),
                arena::describe(static_cast<const char*>(pointer) + i) + " was written by " + owner(first[i].writer) + " at " +
                    place(sites[first[i].write_site - 1]) + ", with no fence_proxy_async between",
                false);
}

void proxy_fence(Thread& thread) {
  if (!enabled) return;
  join(proxied, thread.clock);
  advance(thread);
}

void meet(const void* pointer, bool fenced) {
  if (!enabled) return;
  std::set<uint32_t>& here = published[pointer];
  met.insert(here.begin(), here.end());
  if (!fenced) return;
  here.insert(met.begin(), met.end());
  here.insert(stamp);
}

}  // namespace simt::race
