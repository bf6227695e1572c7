// The runner: reads cases from a file, runs each in a process of its own, and writes what became of it to another file. The format
// is that of ../cases.py: little-endian numbers, and byte strings after their 64-bit length.
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "arena.h"
#include "machine.h"
#include "report.h"
#include "sanitizer.h"
#include "simt/case.h"

namespace simt {

namespace {

struct Array {
  std::string name, contents;  // contents are of `bytes` bytes, or empty for NaN
  int64_t bytes, offset;
  bool given, wanted;  // given: not None
  void* memory = nullptr;
};
struct Parameters {
  std::string name;
  int64_t order, seed, seconds, multiprocessors, shared_bytes, capability;
  std::vector<std::pair<std::string, int64_t>> integers;
  std::vector<std::pair<std::string, double>> reals;
  std::vector<Array> arrays;
};

std::vector<std::pair<const char*, void (*)(Case&)>>& registered() {
  static std::vector<std::pair<const char*, void (*)(Case&)>> all;
  return all;
}

Parameters* parameters = nullptr;
std::vector<std::pair<std::string, int64_t>> reports;

class Reader {
 public:
  explicit Reader(const char* path) {
    std::FILE* file = std::fopen(path, "rb");
    if (file == nullptr) stop(path);
    char buffer[65536];
    while (const size_t n = std::fread(buffer, 1, sizeof buffer, file)) bytes_.append(buffer, n);
    std::fclose(file);
  }
  template <class T>
  T number() {
    T value;
    std::memcpy(&value, take(sizeof value), sizeof value);
    return value;
  }
  std::string text() {
    const size_t n = size_t(number<int64_t>());
    return std::string(take(n), n);
  }
  bool at_end() const { return at_ == bytes_.size(); }

 private:
  [[noreturn]] static void stop(const char* what) {
    std::perror(what);
    std::_Exit(69);
  }
  const char* take(size_t n) {
    if (bytes_.size() - at_ < n) stop("simt: the file of cases ends early");
    at_ += n;
    return bytes_.data() + at_ - n;
  }
  std::string bytes_;
  size_t at_ = 0;
};

Parameters read_case(Reader& reader) {
  Parameters p;
  p.name = reader.text();
  for (int64_t* field : {&p.order, &p.seed, &p.seconds, &p.multiprocessors, &p.shared_bytes, &p.capability})
    *field = reader.number<int64_t>();
  for (int64_t n = reader.number<int64_t>(); n > 0; --n) {
    const std::string name = reader.text();
    p.integers.emplace_back(name, reader.number<int64_t>());
  }
  for (int64_t n = reader.number<int64_t>(); n > 0; --n) {
    const std::string name = reader.text();
    p.reals.emplace_back(name, reader.number<double>());
  }
  for (int64_t n = reader.number<int64_t>(); n > 0; --n) {
    Array array;
    array.name = reader.text();
    array.bytes = reader.number<int64_t>();
    array.offset = reader.number<int64_t>();
    const int64_t flags = reader.number<int64_t>();
    array.given = (flags & 1) != 0;
    array.wanted = (flags & 2) != 0;
    array.contents = reader.text();
    p.arrays.push_back(std::move(array));
  }
  return p;
}

void put_number(std::string& out, int64_t value) { out.append(reinterpret_cast<const char*>(&value), sizeof value); }
void put_text(std::string& out, const std::string& text) {
  put_number(out, int64_t(text.size()));
  out += text;
}

void write_all(int file, const std::string& bytes) {
  for (size_t at = 0; at < bytes.size();) {
    const ssize_t n = ::write(file, bytes.data() + at, bytes.size() - at);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) _exit(69);
    at += size_t(n);
  }
}

// In the case's own process: everything wanted goes to `out`.
void run_case(Parameters& p, int out) {
  parameters = &p;
  // Of processor time: a case never sleeps, and a loaded machine fails none.
  const itimerval limit{{0, 0}, {time_t(p.seconds), 0}};
  setitimer(ITIMER_PROF, &limit, nullptr);
  if (!sanitizer::present()) catch_bad_addresses();
  arena::reserve();
  race::reserve();
  Simulation& s = simulation();
  s.order = Order(p.order);
  s.random.seed(uint64_t(p.seed));
  facts() = {int(p.multiprocessors), int(p.shared_bytes), int(p.capability)};
  for (Array& array : p.arrays) {
    if (!array.given) continue;
    array.memory = arena::allocate(size_t(array.bytes), size_t(array.offset), array.name.c_str());
    if (!array.contents.empty()) std::memcpy(array.memory, array.contents.data(), array.contents.size());
  }
  void (*function)(Case&) = nullptr;
  for (const auto& entry : registered())
    if (p.name == entry.first) function = entry.second;
  if (function == nullptr) fail("no such case", {nullptr, 0}, "'%s' is in no driver", p.name.c_str());
  Case c;
  function(c);
  arena::check_guards();

  std::string results;
  put_number(results, int64_t(reports.size()));
  for (const auto& [name, value] : reports) {
    put_text(results, name);
    put_number(results, value);
  }
  put_number(results, int64_t(s.launched.size()));
  for (const std::string& name : s.launched) put_text(results, name);
  for (const Array& array : p.arrays)
    if (array.wanted) put_text(results, std::string(static_cast<const char*>(array.memory), size_t(array.bytes)));
  write_all(out, results);
}

std::string read_whole(int file) {
  std::string text;
  char buffer[65536];
  for (ssize_t n; (n = ::read(file, buffer, sizeof buffer)) != 0;) {
    if (n > 0) text.append(buffer, size_t(n));
    else if (errno != EINTR) break;
  }
  return text;
}

std::string ending(int status, const Parameters& p) {
  char text[128] = "";
  if (WIFSIGNALED(status) && WTERMSIG(status) == SIGPROF)
    std::snprintf(text, sizeof text, "timeout: not done after %lld s\n", (long long)(p.seconds));
  else if (WIFSIGNALED(status)) std::snprintf(text, sizeof text, "killed by signal %d\n", WTERMSIG(status));
  return text;
}

int run_all(const char* cases, const char* results) {
  std::FILE* out = std::fopen(results, "wb");
  if (out == nullptr) return 69;
  for (Reader reader(cases); !reader.at_end();) {
    Parameters p = read_case(reader);
    int pipe_ends[2];
    std::FILE* errors = std::tmpfile();
    if (errors == nullptr || pipe(pipe_ends) != 0) return 69;
    std::fflush(out);
    const pid_t child = fork();
    if (child < 0) return 69;
    if (child == 0) {
      close(pipe_ends[0]);
      dup2(fileno(errors), STDERR_FILENO);
      run_case(p, pipe_ends[1]);
      std::fflush(nullptr);
      _exit(0);
    }
    close(pipe_ends[1]);
    const std::string produced = read_whole(pipe_ends[0]);
    close(pipe_ends[0]);
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    std::rewind(errors);
    std::string text = ending(status, p) + read_whole(fileno(errors));
    std::fclose(errors);
    std::string record;
    put_number(record, WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 1 : 0);
    put_text(record, text);
    put_text(record, produced);
    if (std::fwrite(record.data(), 1, record.size(), out) != record.size()) return 69;
  }
  return std::fclose(out) == 0 ? 0 : 69;
}

}  // namespace

Registration::Registration(const char* name, void (*function)(Case&)) { registered().emplace_back(name, function); }

void* Case::find_array(const char* name) {
  for (const Array& array : parameters->arrays)
    if (array.name == name) return array.memory;
  fail("no such array", {nullptr, 0}, "the test gives no array '%s'", name);
}
size_t Case::bytes(const char* name) {
  for (const Array& array : parameters->arrays)
    if (array.name == name) return size_t(array.bytes);
  fail("no such array", {nullptr, 0}, "the test gives no array '%s'", name);
}
int64_t Case::integer(const char* name) {
  for (const auto& [key, value] : parameters->integers)
    if (key == name) return value;
  fail("no such number", {nullptr, 0}, "the test gives no integer '%s'", name);
}
double Case::real(const char* name) {
  for (const auto& [key, value] : parameters->reals)
    if (key == name) return value;
  fail("no such number", {nullptr, 0}, "the test gives no real number '%s'", name);
}
void* Case::workspace(size_t bytes, const char* name) { return arena::allocate(bytes, 0, name); }
void Case::check(int status) {
  if (status != 0) fail("launch", {nullptr, 0}, "a launch returned %d", status);
}
void Case::report(const char* name, int64_t value) { reports.emplace_back(name, value); }

}  // namespace simt

int main(int count, char** arguments) {
  if (count != 3) {
    std::fputs("usage: runner CASES RESULTS\n", stderr);
    return 64;
  }
  return simt::run_all(arguments[1], arguments[2]);
}

// Leaks are no matter in a process of one case, and stacks that are switched are no place for fake ones.
extern "C" const char* __asan_default_options() {
  return "detect_leaks=0:malloc_context_size=2:detect_stack_use_after_return=0:abort_on_error=0:exitcode=71:print_legend=0:"
         "allocator_may_return_null=1";
}
extern "C" const char* __ubsan_default_options() { return "print_stacktrace=1"; }
