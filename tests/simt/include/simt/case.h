// How a driver takes part: a C++ file beside the kernels' sources that names its cases and runs one with the arrays of a test.
//
//   SIMT_CASE(group_norm_forward) {
//     auto* input = c.array<const void>("input");
//     c.check(fastdl::group_norm_forward(..., input, c.array<void>("output"), c.integer("groups"), float(c.real("eps")), nullptr));
//   }
//
// Arrays lie between guards that every build checks, and are NaN where the test gave no contents.
#pragma once

#include <cstddef>
#include <cstdint>

namespace simt {

class Case {
 public:
  // The array that the test gave under this name; null if it gave None, an error if it gave nothing.
  template <class T>
  T* array(const char* name) {
    return static_cast<T*>(find_array(name));
  }
  size_t bytes(const char* name);
  int64_t integer(const char* name);
  double real(const char* name);
  // Guarded memory of the driver's own, full of NaN.
  void* workspace(size_t bytes, const char* name = "workspace");
  // Ends the case with a report unless `status`, which a launch returned, is 0.
  void check(int status);
  // An integer for the test to read: which path was taken, how many bytes were asked for.
  void report(const char* name, int64_t value);

 private:
  void* find_array(const char* name);
};

// Registered before main by SIMT_CASE.
struct Registration {
  Registration(const char* name, void (*function)(Case&));
};

}  // namespace simt

#define SIMT_CASE(name)                                                                    \
  static void fastdl_case_##name(::simt::Case& c);                                         \
  static const ::simt::Registration fastdl_registration_##name(#name, fastdl_case_##name); \
  static void fastdl_case_##name([[maybe_unused]] ::simt::Case& c)
