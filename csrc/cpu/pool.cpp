// A caching pool for large outputs.
//
// malloc gives blocks of this size back to the system and takes new ones, and the kernel clears every new page when it is first
// touched: filling 40 MB of fresh memory takes over ten times as long as filling 40 MB that was used before. Blocks come in size
// classes, eight to a doubling, so that at most an eighth of one is wasted; from 2 MiB up they are aligned for huge pages.
#include "pool.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <unordered_map>

namespace fastdl {
namespace {

constexpr size_t smallest = size_t(1) << 20;
constexpr size_t huge_page = size_t(2) << 20;

size_t size_class(size_t bytes) {
  size_t step = 4096;
  while (step * 16 <= bytes) step *= 2;
  return (bytes + step - 1) / step * step;
}

size_t physical_memory() { return size_t(sysconf(_SC_PHYS_PAGES)) * size_t(sysconf(_SC_PAGESIZE)); }

// The number after `key` in a small file of the system, or -1. With an empty key, the file's first number ("max" gives -1).
int64_t read_number(const char* path, const char* key) {
  FILE* file = std::fopen(path, "r");
  if (!file) return -1;
  char line[256];
  int64_t value = -1;
  while (value < 0 && std::fgets(line, sizeof line, file)) {
    if (std::strncmp(line, key, std::strlen(key))) continue;
    char* end;
    const long long number = std::strtoll(line + std::strlen(key), &end, 10);
    if (end != line + std::strlen(key)) value = number;
    else break;
  }
  std::fclose(file);
  return value;
}

// Whether less than a sixteenth of the memory of the machine, or of the container, is left.
bool memory_is_short() {
  const int64_t available = read_number("/proc/meminfo", "MemAvailable:");
  if (available >= 0 && size_t(available) * 1024 < physical_memory() / 16) return true;
  const int64_t most = read_number("/sys/fs/cgroup/memory.max", "");
  const int64_t used = read_number("/sys/fs/cgroup/memory.current", "");
  const int64_t reclaimable = read_number("/sys/fs/cgroup/memory.stat", "inactive_file ");
  return most > 0 && used >= 0 && most - used + (reclaimable > 0 ? reclaimable : 0) < most / 16;
}

struct Free {
  void* block;
  uint64_t stamp;  // when it was given back, for letting the oldest go first
};

class Pool {
 public:
  static Pool& instance() {
    static Pool* pool = new Pool;  // never destroyed: tensors may outlive the library's static objects
    return *pool;
  }

  void* allocate(size_t bytes) {
    if (bytes < smallest) return nullptr;
    const size_t size = size_class(bytes);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!enabled_) return nullptr;
      auto found = free_.lower_bound(size);
      if (found != free_.end() && found->first <= size + size / 8) {
        // The last of those of this size that was given back, which is the likeliest to be in a cache: equal keys are in the order
        // of their insertion. Taking the first, RMSNorm at (1, 1024, 4096) in bfloat16 took twice as long where earlier work had
        // left a dozen blocks of its size.
        found = std::prev(free_.upper_bound(found->first));
        void* block = found->second.block;
        cached_ -= found->first;
        in_use_ += found->first;
        used_[block] = found->first;
        free_.erase(found);
        ++hits_;
        return block;
      }
    }
    void* block = map(size);
    if (!block) {
      clear();
      block = map(size);
    }
    if (!block) return nullptr;
    std::lock_guard<std::mutex> lock(mutex_);
    used_[block] = size;
    in_use_ += size;
    ++misses_;
    return block;
  }

  void release(void* block) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = used_.find(block);
    const size_t size = found->second;
    used_.erase(found);
    in_use_ -= size;
    if (!enabled_ || size > limit_) {
      munmap(block, size);
      return;
    }
    free_.emplace(size, Free{block, ++stamp_});
    cached_ += size;
    if (short_of_memory()) shrink(0);
    else shrink(limit_);
  }

  void configure(int enabled, int64_t limit) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (enabled >= 0) enabled_ = enabled;
    if (limit >= 0) limit_ = size_t(limit);
    shrink(enabled_ ? limit_ : 0);
  }

  void clear() {
    std::lock_guard<std::mutex> lock(mutex_);
    shrink(0);
  }

  fastdl_pool_snapshot status() {
    std::lock_guard<std::mutex> lock(mutex_);
    return {enabled_, int64_t(limit_), int64_t(cached_), int64_t(in_use_), hits_, misses_};
  }

 private:
  Pool() : limit_(physical_memory() / 8) {
    read_environment(std::getenv("FASTDL_CPU_POOL"));
    // A fork must not happen while another thread holds the lock. The child's copies of the free blocks would cost a copy a page,
    // so it lets them go.
    pthread_atfork([] { instance().mutex_.lock(); }, [] { instance().mutex_.unlock(); },
                   [] {
                     instance().shrink(0);
                     instance().mutex_.unlock();
                   });
  }

  // "off", "on", or a limit such as "512MiB". fastdl/memory.py refuses any other text before the library is loaded.
  void read_environment(const char* text) {
    if (!text || !*text || !std::strcmp(text, "on")) return;
    if (!std::strcmp(text, "off")) {
      enabled_ = false;
      return;
    }
    char* unit;
    const double number = std::strtod(text, &unit);
    while (*unit == ' ') ++unit;
    const char letter = char(*unit & ~0x20);
    const int power = letter == 'K' ? 1 : letter == 'M' ? 2 : letter == 'G' ? 3 : 0;
    const double base = power && (unit[1] & ~0x20) == 'I' ? 1024 : 1000;
    double bytes = number;
    for (int i = 0; i < power; ++i) bytes *= base;
    limit_ = size_t(bytes);
  }

  static void* map(size_t size) {
    if (size < huge_page) {
      void* block = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      return block == MAP_FAILED ? nullptr : block;
    }
    char* whole = static_cast<char*>(mmap(nullptr, size + huge_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (whole == MAP_FAILED) return nullptr;
    char* block = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(whole) + huge_page - 1) / huge_page * huge_page);
    if (block > whole) munmap(whole, size_t(block - whole));
    munmap(block + size, huge_page - size_t(block - whole));
#ifdef MADV_HUGEPAGE
    madvise(block, size, MADV_HUGEPAGE);
#endif
    return block;
  }

  // Gives the blocks that have waited longest back to the system until no more than `most` bytes are kept.
  void shrink(size_t most) {
    while (cached_ > most) {
      auto oldest = free_.begin();
      for (auto it = free_.begin(); it != free_.end(); ++it)
        if (it->second.stamp < oldest->second.stamp) oldest = it;
      munmap(oldest->second.block, oldest->first);
      cached_ -= oldest->first;
      free_.erase(oldest);
    }
  }

  // Reading the system's files takes some 30 us, so an answer holds for 50 ms.
  bool short_of_memory() {
    const auto now = std::chrono::steady_clock::now();
    if (now - checked_ > std::chrono::milliseconds(50)) {
      checked_ = now;
      short_ = memory_is_short();
    }
    return short_;
  }

  std::mutex mutex_;
  bool enabled_ = true, short_ = false;
  size_t limit_, cached_ = 0, in_use_ = 0;
  int64_t hits_ = 0, misses_ = 0;
  uint64_t stamp_ = 0;
  std::chrono::steady_clock::time_point checked_{};
  std::multimap<size_t, Free> free_;
  std::unordered_map<void*, size_t> used_;
};

// Made while the library is loaded, which fork waits for (fastdl/native/loader.py): were it made by the first allocation, a fork
// could begin before its handlers are registered and copy the lock while that allocation holds it.
[[maybe_unused]] Pool& made_at_load = Pool::instance();

}  // namespace

void* pool_allocate(size_t bytes) { return Pool::instance().allocate(bytes); }
void pool_release(void* block) { Pool::instance().release(block); }

}  // namespace fastdl

#define FASTDL_EXPORT __attribute__((visibility("default")))
extern "C" {
FASTDL_EXPORT void fastdl_pool_configure(int enabled, int64_t limit) { fastdl::Pool::instance().configure(enabled, limit); }
FASTDL_EXPORT void fastdl_pool_clear() { fastdl::Pool::instance().clear(); }
FASTDL_EXPORT void fastdl_pool_status(fastdl_pool_snapshot* out) { *out = fastdl::Pool::instance().status(); }
}
