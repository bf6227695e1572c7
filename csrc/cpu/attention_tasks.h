// How attention is cut into blocks and tasks, and where a task works.
#pragma once

#include <atomic>
#include <cstdlib>
#include <new>

#include "attention_rows.h"
#include "parallel.h"

namespace fastdl {

// Keys come in blocks whose packed matrices stay in a second-level cache. Blocks begin at multiples of their size, which depends on
// the shape alone: results do not depend on how many threads there are.
struct KeyBlocks {
  static constexpr int64_t granule = 64;
  int64_t size, count;

  KeyBlocks(int64_t keys, int64_t bytes_of_key, int64_t budget, int64_t most) {
    const int64_t fitting = std::clamp(budget / bytes_of_key / granule * granule, granule, most);
    const int64_t blocks = std::max<int64_t>(1, (keys + fitting - 1) / fitting);
    size = std::max(granule, round_up((keys + blocks - 1) / blocks, granule));
    count = (keys + size - 1) / size;
  }
};

// Rows of a buffer are an odd number of cache lines apart: columns of a matrix are read by the products of backward, and would
// otherwise share few sets of the first-level cache.
template <class T>
constexpr int64_t row_step(int64_t columns) {
  constexpr int64_t line = 64 / sizeof(T);
  return (round_up(columns, line) / line | 1) * line;
}

// Memory of a task, aligned to cache lines: first everything is asked for, then it is there. The thread keeps what is not large.
class Workspace {
 public:
  template <class T>
  void reserve(T*& pointer, int64_t count) {
    requests.push_back({reinterpret_cast<char**>(&pointer), bytes});
    bytes += round_up(count * int64_t(sizeof(T)), 64) + 64;
  }

  void allocate() {
    constexpr int64_t most_kept_bytes = 4 << 20;
    thread_local Block kept;
    Block& block = bytes > most_kept_bytes ? own : kept;
    block.grow(bytes);
    for (const Request& request : requests) *request.pointer = block.data + request.offset;
  }

 private:
  struct Request {
    char** pointer;
    int64_t offset;
  };
  struct Block {
    char* data = nullptr;
    int64_t size = 0;

    void grow(int64_t bytes) {
      if (bytes <= size) return;
      std::free(data);
      size = round_up(bytes, 4096);
      data = static_cast<char*>(std::aligned_alloc(4096, size_t(size)));
      if (!data) {
        size = 0;
        throw std::bad_alloc();
      }
    }
    ~Block() { std::free(data); }
  };

  std::vector<Request> requests;
  int64_t bytes = 0;
  Block own;
};

// Tasks of different lengths over the threads: each thread takes the next one that is left. `work` is that of all, in
// multiplications.
template <class Body>
void share_tasks(int64_t tasks, double work, Body&& body) {
  constexpr double enough = 1 << 17;  // a few microseconds' worth, the time that it takes to wake a thread
  const int64_t threads = std::min<int64_t>({thread_count(), tasks, int64_t(work / enough) + 1});
  if (threads <= 1) {
    for (int64_t i = 0; i < tasks; ++i) body(i);
    return;
  }
  std::atomic<int64_t> next{0};
  parallel(threads, int64_t(1) << 20, [&](int64_t) {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) body(i);
  });
}

template <class T>
inline MatrixRows<const T> matrix_of(const Operand4& tensor, int64_t sample, int64_t head, int64_t row) {
  return {static_cast<const T*>(tensor.data) + sample * tensor.sample + head * tensor.head + row * tensor.row, tensor.row,
          tensor.column};
}

template <class T>
inline T* row_of(const Operand4& tensor, int64_t sample, int64_t head, int64_t row) {
  return static_cast<T*>(tensor.data) + sample * tensor.sample + head * tensor.head + row * tensor.row;
}

template <class A>
inline A& number_of(const RowNumbers& numbers, int64_t sample, int64_t head, int64_t row) {
  return static_cast<A*>(numbers.data)[sample * numbers.sample + head * numbers.head + row * numbers.row];
}

// Rows of a result whose features are contiguous.
template <class T>
inline void clear_rows(const Operand4& tensor, int64_t sample, int64_t head, Range rows, int64_t columns) {
  for (int64_t row = rows.begin; row < rows.end; ++row)
    std::memset(row_of<T>(tensor, sample, head, row), 0, size_t(columns) * sizeof(T));
}

}  // namespace fastdl
