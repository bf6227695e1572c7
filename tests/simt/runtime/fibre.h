// A stack of its own for each thread of a kernel, and the switch between them.
#pragma once

#include <cstddef>

namespace simt {

class Fibre {
 public:
  // Readies this fibre to run `entry(argument)`, which must end by suspend(true).
  void prepare(void (*entry)(void*), void* argument);
  // From the scheduler: runs until the fibre suspends.
  void resume();
  // From inside: back to the scheduler; for good if `finished`.
  void suspend(bool finished);

  const char* stack() const { return stack_; }
  static size_t stack_bytes();

 private:
  static void main();

  char* stack_ = nullptr;
  void* context_ = nullptr;
  void* fake_stack_ = nullptr;  // AddressSanitizer's
  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
};

}  // namespace simt
