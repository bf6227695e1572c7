// AddressSanitizer, where the program is linked with it: the runtime is compiled once for all variants, and asks at run time.
#pragma once

#include <cstddef>

extern "C" {
void __asan_poison_memory_region(const volatile void* pointer, size_t bytes) __attribute__((weak));
void __asan_unpoison_memory_region(const volatile void* pointer, size_t bytes) __attribute__((weak));
void __sanitizer_start_switch_fiber(void** fake_stack, const void* stack, size_t bytes) __attribute__((weak));
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** stack, size_t* bytes) __attribute__((weak));
}

namespace simt::sanitizer {

inline bool present() { return __asan_poison_memory_region != nullptr; }
inline void poison(const void* pointer, size_t bytes) {
  if (present()) __asan_poison_memory_region(pointer, bytes);
}
inline void unpoison(const void* pointer, size_t bytes) {
  if (present()) __asan_unpoison_memory_region(pointer, bytes);
}
inline void start_switch(void** fake_stack, const void* stack, size_t bytes) {
  if (present()) __sanitizer_start_switch_fiber(fake_stack, stack, bytes);
}
inline void finish_switch(void* fake_stack, const void** stack, size_t* bytes) {
  if (present()) __sanitizer_finish_switch_fiber(fake_stack, stack, bytes);
}

}  // namespace simt::sanitizer
