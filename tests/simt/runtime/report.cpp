#include "report.h"

#include <dlfcn.h>
#include <signal.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>

#include "arena.h"
#include "machine.h"

namespace simt {

const char* program_start() {
  static const char* const start = [] {
    Dl_info info;
    return dladdr(reinterpret_cast<const void*>(&program_start), &info) != 0 ? static_cast<const char*>(info.dli_fbase) : nullptr;
  }();
  return start;
}

std::string place(Site site) {
  char text[512] = "";
  if (site.file != nullptr) std::snprintf(text, sizeof text, "%s:%d", site.file, site.line);
  // To be looked up by the harness; the byte before the return address belongs to the call.
  else if (site.line != 0) std::snprintf(text, sizeof text, "{program+0x%x}", unsigned(site.line) - 1);
  return text;
}

std::string whereabouts() {
  const Simulation& s = simulation();
  if (s.kernel == nullptr) return "";
  std::string text = s.kernel_name;
  if (s.current != nullptr) {
    char more[128];
    const uint3 block = s.current->block->index, thread = s.current->index;
    std::snprintf(more, sizeof more, ", block (%u, %u, %u) thread (%u, %u, %u)", block.x, block.y, block.z, thread.x, thread.y,
                  thread.z);
    text += more;
  }
  return text;
}

void fail_with(const char* kind, const std::string& where, const std::string& message, bool everyone) {
  std::string text = std::string(kind) + ": " + message + "\n";
  if (!where.empty()) text += "  at " + where + "\n";
  const std::string who = whereabouts();
  if (!who.empty()) text += "  in " + who + "\n";
  if (everyone && simulation().cluster != nullptr) text += waiting_threads();
  std::fflush(nullptr);
  ssize_t done = ::write(STDERR_FILENO, text.data(), text.size());
  _exit(done < 0 ? 69 : failure_status);
}

void fail(const char* kind, Site site, const char* format, ...) {
  char message[1024];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  fail_with(kind, place(site), message, false);
}

namespace {

void on_bad_address(int, siginfo_t* info, void*) {
  // Not in a state to allocate, but nothing else will be done, and a second fault ends the process.
  signal(SIGSEGV, SIG_DFL);
  signal(SIGBUS, SIG_DFL);
  fail_with("out of bounds", "", "a bad address: " + arena::describe(info->si_addr), false);
}

}  // namespace

void catch_bad_addresses() {
  static char stack[64 * 1024];
  stack_t alternate{};
  alternate.ss_sp = stack;
  alternate.ss_size = sizeof stack;
  sigaltstack(&alternate, nullptr);
  struct sigaction action {};
  action.sa_sigaction = on_bad_address;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, nullptr);
  sigaction(SIGBUS, &action, nullptr);
}

}  // namespace simt
