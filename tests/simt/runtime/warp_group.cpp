// wgmma: operations of four warps are held until they are waited for; until then the accumulators hold NaN.
#include <cmath>
#include <cstring>

#include "simt/cuda_names.h"
//
#include "arena.h"
#include "device_types.cuh"
#include "machine.h"
#include "report.h"

namespace simt {

namespace {

struct Operand {
  uint64_t descriptor;
  bool transposed, half;

  uint32_t field(int shift) const { return uint32_t(descriptor >> shift & 0x3fff) << 4; }
  // In chunks of 16 bytes a row.
  uint32_t swizzle() const { return uint32_t(4 - (descriptor >> 62)) % 4; }

  // Where element (row, k) lies; for b the row is a column of the product.
  uint32_t address(uint32_t row, uint32_t k) const {
    const uint32_t leading = field(16), stride = field(32), bits = swizzle(), chunks = 1u << bits;
    uint32_t offset;
    if (!transposed) {
      if (bits == 0) offset = row / 8 * stride + k / 8 * leading + row % 8 * 16 + k % 8 * 2;
      else offset = row / 8 * stride + row % 8 * (16 * chunks) + k * 2;
    } else {
      const uint32_t chunk = row / 8;
      if (bits == 0) offset = chunk * stride + k / 8 * leading + k % 8 * 16 + row % 8 * 2;
      else offset = chunk % chunks * 16 + chunk / chunks * leading + k / 8 * stride + k % 8 * (16 * chunks) + row % 8 * 2;
    }
    uint32_t address = field(0) + offset;
    if (bits != 0) address ^= (address >> 7 & (chunks - 1)) << 4;
    return address;
  }

  float read(uint32_t row, uint32_t k, Site site) const {
    const void* at = shared_pointer(address(row, k));
    if (!arena::is_usable(at, 2)) fail("out of bounds", site, "wgmma reads %s", arena::describe(at).c_str());
    race::note_proxy_read(at, 2, site);
    uint16_t bits;
    std::memcpy(&bits, at, 2);
    return half ? fastdl::device::widen(fastdl::device::half_bits{bits})
                : fastdl::device::widen(fastdl::device::bfloat16_bits{bits});
  }
};

float element(const uint32_t (&a)[4], int i, int part, bool half) {
  const uint16_t bits = uint16_t(a[i] >> (16 * part));
  return half ? fastdl::device::widen(fastdl::device::half_bits{bits}) : fastdl::device::widen(fastdl::device::bfloat16_bits{bits});
}

// One operation of all 128 threads.
void compute(const std::vector<Thread*>& threads, const std::vector<Wgmma>& operations) {
  const Wgmma& first = operations[0];
  for (const Wgmma& other : operations)
    if (other.count != first.count || other.b_descriptor != first.b_descriptor || other.a_descriptor != first.a_descriptor ||
        other.accumulate != first.accumulate || other.a_in_registers != first.a_in_registers || other.half != first.half ||
        other.site.line != first.site.line)
      fail("wgmma", other.site, "the threads of the warp group do not all start the same operation");
  const int n = 2 * first.count;
  std::vector<float> a(64 * 16), b(size_t(n) * 16);
  if (first.a_in_registers) {
    for (int t = 0; t < 128; ++t)
      for (int i = 0; i < 4; ++i)
        for (int part = 0; part < 2; ++part) {
          const int row = 16 * (t / 32) + t % 32 / 4 + 8 * (i % 2), k = 2 * (t % 4) + part + 8 * (i / 2);
          a[size_t(row * 16 + k)] = element(operations[size_t(t)].a, i, part, first.half);
        }
  } else {
    const Operand operand{first.a_descriptor, first.a_transposed, first.half};
    for (uint32_t row = 0; row < 64; ++row)
      for (uint32_t k = 0; k < 16; ++k) a[row * 16 + k] = operand.read(row, k, first.site);
  }
  const Operand operand{first.b_descriptor, first.b_transposed, first.half};
  for (uint32_t column = 0; column < uint32_t(n); ++column)
    for (uint32_t k = 0; k < 16; ++k) b[column * 16 + k] = operand.read(column, k, first.site);
  for (int t = 0; t < 128; ++t) {
    const Wgmma& own = operations[size_t(t)];
    std::vector<float>& d = threads[size_t(t)]->matrices.held[own.d];
    for (int i = 0; i < own.count; ++i) {
      const int row = 16 * (t / 32) + t % 32 / 4 + 8 * (i % 4 / 2), column = 8 * (i / 4) + 2 * (t % 4) + i % 2;
      float sum = own.accumulate ? d[size_t(i)] : 0;
      for (int k = 0; k < 16; ++k) sum += a[size_t(row * 16 + k)] * b[size_t(column * 16 + k)];
      d[size_t(i)] = sum;
    }
  }
}

// The oldest group of all threads.
void compute_group(const std::vector<Thread*>& threads, Site site) {
  std::vector<std::vector<Wgmma>> groups;
  for (Thread* thread : threads) {
    groups.push_back(std::move(thread->matrices.groups.front()));
    thread->matrices.groups.pop_front();
    if (groups.back().size() != groups.front().size())
      fail("wgmma", site, "the threads of the warp group have not all started the same number of operations");
  }
  for (size_t i = 0; i < groups.front().size(); ++i) {
    std::vector<Wgmma> operations;
    for (const auto& group : groups) operations.push_back(group[i]);
    compute(threads, operations);
  }
}

// Accumulators that no operation under way will change go back to their thread.
void give_back(WarpGroupOperations& matrices) {
  for (auto it = matrices.held.begin(); it != matrices.held.end();) {
    bool busy = false;
    for (const auto& group : matrices.groups)
      for (const Wgmma& operation : group) busy |= operation.d == it->first;
    for (const Wgmma& operation : matrices.open) busy |= operation.d == it->first;
    if (busy) {
      ++it;
    } else {
      std::memcpy(it->first, it->second.data(), it->second.size() * sizeof(float));
      it = matrices.held.erase(it);
    }
  }
}

}  // namespace

void wgmma_fence(Site site) { current("wgmma_fence", site).matrices.fenced = true; }

void wgmma(const Wgmma& operation) {
  Thread& thread = current("wgmma", operation.site);
  if (!thread.matrices.fenced) fail("wgmma", operation.site, "no wgmma_fence before it");
  if (thread.number / 128 * 128 + 128 > thread.block->thread_count)
    fail("wgmma", operation.site, "needs a group of four whole warps");
  const size_t count = size_t(operation.count);
  const auto held = thread.matrices.held.try_emplace(operation.d, operation.d, operation.d + count);
  if (held.first->second.size() != count) fail("wgmma", operation.site, "the same accumulators in another size");
  std::memset(operation.d, 0xff, count * sizeof(float));
  thread.matrices.open.push_back(operation);
}

void wgmma_commit(Site site) {
  WarpGroupOperations& matrices = current("wgmma_commit", site).matrices;
  matrices.groups.push_back(std::move(matrices.open));
  matrices.open.clear();
}

void wgmma_wait(int pending, Site site) {
  Thread& thread = current("wgmma_wait", site);
  if (thread.number / 128 * 128 + 128 > thread.block->thread_count) fail("wgmma", site, "needs a group of four whole warps");
  WarpGroupMeeting& meeting = thread.block->warp_groups[thread.number / 128];
  if (!meeting.waiting.empty() && (meeting.pending != pending || meeting.site.line != site.line))
    fail("wgmma", site, "others of the warp group wait at another place, %s", place(meeting.site).c_str());
  meeting.pending = pending;
  meeting.site = site;
  meeting.waiting.push_back(&thread);
  thread.matrices.fenced = false;
  if (meeting.waiting.size() < 128) {
    wait({"wgmma_wait", site});
    return;
  }
  std::vector<Thread*> threads(128);
  for (Thread* each : meeting.waiting) threads[each->number % 128] = each;
  meeting.waiting.clear();
  const size_t groups = threads[0]->matrices.groups.size();
  for (Thread* each : threads)
    if (each->matrices.groups.size() != groups)
      fail("wgmma", site, "the threads of the warp group have not all committed the same number of groups");
  for (size_t i = size_t(pending); i < groups; ++i) compute_group(threads, site);
  for (Thread* each : threads) {
    give_back(each->matrices);
    wake(*each);
  }
}

}  // namespace simt
