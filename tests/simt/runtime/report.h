// How a case ends early.
#pragma once

#include <string>

#include "simt/runtime.h"

namespace simt {

// The exit status of a case that the runtime ended; what is wrong is on the error stream.
inline constexpr int failure_status = 70;

// The same as fail, without formatting.
[[noreturn]] void fail_with(const char* kind, const std::string& where, const std::string& message, bool everyone);
// "file:line", or "" for a place that is not known.
std::string place(Site site);
// The address that places in the program are counted from.
const char* program_start();
// Where a thread runs: "block (0, 0, 0) thread (3, 0, 0)"; empty outside of kernels.
std::string whereabouts();
// Reports a bad address, which the system found, instead of dying of it. Not under AddressSanitizer, which does so itself.
void catch_bad_addresses();

}  // namespace simt
