// Memory as kernels reach it: through device.cuh, and, in the race build, through every load and store that the compiler marks.
#include <cstring>

#include "arena.h"
#include "machine.h"
#include "report.h"

namespace simt {

namespace {

void check(const void* pointer, size_t bytes, bool write, Site site) {
  if (reinterpret_cast<uintptr_t>(pointer) % bytes != 0)
    fail("misaligned", site, "%s %zu bytes at %s, whose address is no multiple of %zu", write ? "writes" : "reads", bytes,
         arena::describe(pointer).c_str(), bytes);
  if (!arena::is_usable(pointer, bytes))
    fail("out of bounds", site, "%s %zu bytes at %s", write ? "writes" : "reads", bytes, arena::describe(pointer).c_str());
  race::note(pointer, bytes, write, false, site);
}

}  // namespace

void read(void* to, const void* from, size_t bytes, Site site) {
  check(from, bytes, false, site);
  std::memcpy(to, from, bytes);
}

void write(void* to, const void* from, size_t bytes, Site site) {
  check(to, bytes, true, site);
  std::memcpy(to, from, bytes);
}

void raw_copy(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }

void note_atomic(const void* pointer, size_t bytes, Site site) {
  current("an atomic operation", site);
  if (!arena::is_usable(pointer, bytes)) fail("out of bounds", site, "an atomic operation on %s", arena::describe(pointer).c_str());
  race::meet(pointer, simulation().current->fenced);
  race::note(pointer, bytes, true, true, site);
}

void thread_fence() { current("__threadfence", {nullptr, 0}).fenced = true; }
void fence_proxy_async() { race::proxy_fence(current("fence_proxy_async", {nullptr, 0})); }

}  // namespace simt

// What code calls that is compiled with -fsanitize=thread. libtsan is not linked: it would see one thread.
namespace {

void marked(const void* pointer, size_t bytes, bool write, const void* caller) {
  // A place with a null file is an address in the program, which the harness looks up.
  simt::race::note(pointer, bytes, write, false, {nullptr, int(static_cast<const char*>(caller) - simt::program_start())});
}

}  // namespace

#define SIMT_CALLER __builtin_extract_return_addr(__builtin_return_address(0))
#define SIMT_MARKED(bytes)                                                                                  \
  void __tsan_read##bytes(void* pointer) { marked(pointer, bytes, false, SIMT_CALLER); }                    \
  void __tsan_write##bytes(void* pointer) { marked(pointer, bytes, true, SIMT_CALLER); }                    \
  void __tsan_unaligned_read##bytes(void* pointer) { marked(pointer, bytes, false, SIMT_CALLER); }          \
  void __tsan_unaligned_write##bytes(void* pointer) { marked(pointer, bytes, true, SIMT_CALLER); }          \
  void __tsan_volatile_read##bytes(void* pointer) { marked(pointer, bytes, false, SIMT_CALLER); }           \
  void __tsan_volatile_write##bytes(void* pointer) { marked(pointer, bytes, true, SIMT_CALLER); }           \
  void __tsan_read_write##bytes(void* pointer) { marked(pointer, bytes, true, SIMT_CALLER); }               \
  void __tsan_unaligned_read_write##bytes(void* pointer) { marked(pointer, bytes, true, SIMT_CALLER); }     \
  void __tsan_unaligned_volatile_read##bytes(void* pointer) { marked(pointer, bytes, false, SIMT_CALLER); } \
  void __tsan_unaligned_volatile_write##bytes(void* pointer) { marked(pointer, bytes, true, SIMT_CALLER); }

extern "C" {
SIMT_MARKED(1)
SIMT_MARKED(2)
SIMT_MARKED(4)
SIMT_MARKED(8)
SIMT_MARKED(16)
void __tsan_read_range(void* pointer, unsigned long bytes) { marked(pointer, bytes, false, SIMT_CALLER); }
void __tsan_write_range(void* pointer, unsigned long bytes) { marked(pointer, bytes, true, SIMT_CALLER); }
// clang's names for the calls that it replaces.
void* __tsan_memcpy(void* to, const void* from, unsigned long bytes) {
  marked(from, bytes, false, SIMT_CALLER);
  marked(to, bytes, true, SIMT_CALLER);
  return std::memcpy(to, from, bytes);
}
void* __tsan_memmove(void* to, const void* from, unsigned long bytes) {
  marked(from, bytes, false, SIMT_CALLER);
  marked(to, bytes, true, SIMT_CALLER);
  return std::memmove(to, from, bytes);
}
void* __tsan_memset(void* to, int value, unsigned long bytes) {
  marked(to, bytes, true, SIMT_CALLER);
  return std::memset(to, value, bytes);
}
// By every such source, before main.
void __tsan_init() { simt::race::enabled = true; }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}
}
