#include "arena.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "report.h"
#include "sanitizer.h"
#include "simt/runtime.h"

namespace simt::arena {

namespace {

constexpr size_t reservation = size_t(512) << 20;
// All bits set is NaN in every floating type, so that what is read beside an array shows in the result.
constexpr unsigned char guard = 0xff;
// Kept around each allocation in shared memory, and watched there.
constexpr size_t red_zone = 64;

struct Region {
  size_t begin, end;              // usable
  size_t guard_begin, guard_end;  // mapped, and of this region alone
  std::string name;
  bool ended = false;
};

char* base = nullptr;
size_t next_page = 0;
std::vector<Region> arrays;
std::vector<Region> shared[segment_count];
bool segment_mapped[segment_count];

size_t page_bytes() { return size_t(sysconf(_SC_PAGESIZE)); }
size_t round_up(size_t bytes, size_t multiple) { return (bytes + multiple - 1) / multiple * multiple; }

void map(size_t offset, size_t bytes) {
  if (mprotect(base + offset, bytes, PROT_READ | PROT_WRITE) != 0) {
    std::perror("simt: memory for a case");
    std::_Exit(69);
  }
}

void fill_raw(size_t begin, size_t end) {
  for (volatile char* p = base + begin; p < base + end; ++p) *p = char(guard);
}

long find_written(size_t begin, size_t end) {
  for (size_t i = begin; i < end; ++i)
    if (static_cast<unsigned char>(*static_cast<volatile char*>(base + i)) != guard) return long(i);
  return -1;
}

void check(const Region& region) {
  long at = find_written(region.guard_begin, region.begin);
  if (at < 0) at = find_written(region.end, region.guard_end);
  if (at >= 0) fail("out of bounds", {nullptr, 0}, "something was written at %s", describe(base + at).c_str());
}

}  // namespace

void reserve() {
  void* whole = mmap(nullptr, reservation + segment_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (whole == MAP_FAILED) {
    std::perror("simt: reserving memory");
    std::_Exit(69);
  }
  base = reinterpret_cast<char*>(round_up(reinterpret_cast<size_t>(whole), segment_bytes));
  next_page = segment_count * segment_bytes + page_bytes();
}

void* allocate(size_t bytes, size_t offset, const char* name) {
  constexpr size_t alignment = 256;
  const size_t mapped = round_up(bytes + offset + alignment, page_bytes());
  const size_t begin_page = next_page, end_page = begin_page + mapped;
  if (end_page + page_bytes() > reservation) fail("out of memory", {nullptr, 0}, "the arrays of a case may take 500 MB at most");
  next_page = end_page + page_bytes();
  map(begin_page, mapped);
  const size_t begin = (end_page - bytes - offset) / alignment * alignment + offset;
  fill_raw(begin_page, end_page);
  sanitizer::poison(base + begin_page, mapped);
  sanitizer::unpoison(base + begin, bytes);
  arrays.push_back({begin, begin + bytes, begin_page, end_page, name, false});
  return base + begin;
}

void check_guards() {
  for (const Region& region : arrays) check(region);
}

char* segment(unsigned rank) { return base + rank * segment_bytes; }

void begin_segment(unsigned rank, size_t dynamic_bytes) {
  const size_t begin = rank * segment_bytes;
  constexpr size_t used = static_offset + 2 * static_limit;
  if (!segment_mapped[rank]) {
    map(begin, segment_bytes - page_bytes());
    fill_raw(begin, begin + used);
    segment_mapped[rank] = true;
  } else {
    for (const Region& region : shared[rank]) {
      sanitizer::unpoison(base + region.begin, region.end - region.begin);
      fill_raw(region.begin, region.end);
    }
  }
  shared[rank].clear();
  sanitizer::poison(base + begin, segment_bytes - page_bytes());
  if (dynamic_bytes > 0) use_in_segment(rank, dynamic_offset, dynamic_bytes, "dynamic shared memory");
}

void use_in_segment(unsigned rank, size_t offset, size_t bytes, const char* name) {
  const size_t begin = rank * segment_bytes + offset;
  sanitizer::unpoison(base + begin, bytes);
  shared[rank].push_back({begin, begin + bytes, begin - red_zone, begin + bytes + red_zone, name, false});
}

void check_segment(unsigned rank) {
  for (const Region& region : shared[rank]) check(region);
}

void end_segment(unsigned rank) {
  for (Region& region : shared[rank]) {
    sanitizer::unpoison(base + region.begin, region.end - region.begin);
    fill_raw(region.begin, region.end);
    region.name += " of a block that has left";
    region.ended = true;
  }
  sanitizer::poison(base + rank * segment_bytes, segment_bytes - page_bytes());
}

bool contains(const void* pointer) {
  return static_cast<const char*>(pointer) >= base && static_cast<const char*>(pointer) < base + reservation;
}
size_t offset_of(const void* pointer) { return size_t(static_cast<const char*>(pointer) - base); }
size_t reserved_bytes() { return reservation; }

bool is_usable(const void* pointer, size_t bytes) {
  if (!contains(pointer)) return true;  // a thread's own memory, or the driver's
  const size_t at = offset_of(pointer);
  const std::vector<Region>& regions = at < segment_count * segment_bytes ? shared[at / segment_bytes] : arrays;
  for (const Region& region : regions)
    if (at >= region.begin && at + bytes <= region.end) return !region.ended;
  return false;
}

std::string describe(const void* pointer) {
  char text[256];
  if (!contains(pointer)) {
    std::snprintf(text, sizeof text, "address %p, which is in no array", pointer);
    return text;
  }
  const size_t at = offset_of(pointer);
  const bool is_shared = at < segment_count * segment_bytes;
  const std::vector<Region>& regions = is_shared ? shared[at / segment_bytes] : arrays;
  const Region* nearest = nullptr;
  size_t distance = ~size_t(0);
  for (const Region& region : regions) {
    const size_t d = at < region.begin ? region.begin - at : at >= region.end ? at - region.end + 1 : 0;
    if (d < distance) nearest = &region, distance = d;
  }
  const char* kind = is_shared ? "shared" : "array";
  if (nearest == nullptr) std::snprintf(text, sizeof text, "address %p of %s memory, where nothing is", pointer, kind);
  else if (distance == 0)
    std::snprintf(text, sizeof text, "byte %zu of %zu of %s '%s'", at - nearest->begin, nearest->end - nearest->begin, kind,
                  nearest->name.c_str());
  else if (at < nearest->begin) std::snprintf(text, sizeof text, "%zu bytes before %s '%s'", distance, kind, nearest->name.c_str());
  else
    std::snprintf(text, sizeof text, "%zu bytes past the end of %s '%s' of %zu bytes", distance - 1, kind, nearest->name.c_str(),
                  nearest->end - nearest->begin);
  return text;
}

}  // namespace simt::arena
