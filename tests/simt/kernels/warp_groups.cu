// wgmma: c = a b with a of 64 rows, b of N columns and any multiple of 64 along K, in every layout of its operands.
#include "device.cuh"
#include "simt/case.h"

namespace warp_groups {
using namespace fastdl::device;

constexpr int depth = 64;  // of a stage: 128 bytes, the widest swizzle

template <class T, int n>
__device__ void store(float* out, const float (&d)[n / 2]) {
  const unsigned warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  for (int i = 0; i < n / 8; ++i)
    for (int j = 0; j < 4; ++j) {
      const unsigned row = 16 * warp + g + 8 * unsigned(j / 2), column = unsigned(8 * i) + 2 * t + unsigned(j % 2);
      out[row * n + column] = d[4 * i + j];
    }
}

// Operands come by tensor copies, K contiguous; rows of `width` bytes with the swizzle of that width. Two stages: a producer warp
// fills one while the group multiplies the other.
template <class T, int n, int width>
__global__ void __launch_bounds__(160)
    from_tiles(float* out, const __grid_constant__ TileMap a, const __grid_constant__ TileMap b, int k) {
  constexpr int columns = width / 2;  // of a box
  constexpr int boxes = depth / columns;
  constexpr unsigned a_bytes = 64 * depth * 2, b_bytes = n * depth * 2;
  constexpr Swizzle swizzle = width == 128 ? Swizzle::bytes_128 : width == 64 ? Swizzle::bytes_64 : Swizzle::bytes_32;
  DYNAMIC_SHARED(unsigned char, memory);
  STATIC_SHARED(Mbarrier, full, [2]);
  STATIC_SHARED(Mbarrier, empty, [2]);
  unsigned char* tiles = memory + (1024 - shared_address(memory) % 1024) % 1024;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < 2; ++stage) {
      mbarrier_init(&full[stage], 1);
      mbarrier_init(&empty[stage], 128);
    }
    mbarrier_init_fence();
  }
  block_barrier();
  if (threadIdx.x >= 128) {
    if (!elect_one()) return;
    for (int i = 0; i < k / depth; ++i) {
      unsigned char* stage = tiles + unsigned(i % 2) * (a_bytes + b_bytes);
      mbarrier_wait(&empty[i % 2], unsigned(i / 2 + 1) & 1u);
      mbarrier_arrive_expect(&full[i % 2], a_bytes + b_bytes);
      for (int box = 0; box < boxes; ++box) {
        const int at = i * depth + box * columns;
        tile_load(stage + box * 64 * width, a, {at, 0}, &full[i % 2]);
        tile_load(stage + a_bytes + box * n * width, b, {at, 0}, &full[i % 2]);
      }
    }
    return;
  }
  float d[n / 2];
  for (int i = 0; i < k / depth; ++i) {
    const unsigned char* stage = tiles + unsigned(i % 2) * (a_bytes + b_bytes);
    mbarrier_wait(&full[i % 2], unsigned(i / 2) & 1u);
    wgmma_fence();
    for (int step = 0; step < depth / 16; ++step) {
      const int box = step * 16 / columns, inside = step * 32 % width;
      wgmma<T>(d, matrix_descriptor(stage + box * 64 * width + inside, 16, 8 * width, swizzle),
               matrix_descriptor(stage + a_bytes + box * n * width + inside, 16, 8 * width, swizzle), i > 0 || step > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    mbarrier_arrive(&empty[i % 2]);
  }
  store<T, n>(out, d);
}

// Without a swizzle, in core matrices that the threads themselves lay out, a and b each with K contiguous or not; or a in
// registers.
template <class T, int n, bool a_transposed, bool b_transposed, bool a_in_registers>
__global__ void __launch_bounds__(128) from_core_matrices(float* out, const T* a, const T* b) {
  DYNAMIC_SHARED(T, left);  // 64 x 16, then 16 x n; core matrices along K first
  T* right = left + 64 * 16;
  const auto place = [](int row, int k, bool transposed) {
    const int inside = transposed ? k % 8 * 8 + row % 8 : row % 8 * 8 + k % 8;
    return (row / 8 * 2 + k / 8) * 64 + inside;
  };
  for (int i = int(threadIdx.x); i < 64 * 16; i += 128) left[place(i / 16, i % 16, a_transposed)] = a[i];
  for (int i = int(threadIdx.x); i < 16 * n; i += 128) right[place(i % n, i / n, b_transposed)] = b[i];
  fence_proxy_async();
  block_barrier();
  // 128 bytes along K and 256 from one group of 8 rows to the next, whichever is contiguous inside.
  const auto describe = [](const T* matrix) { return matrix_descriptor(matrix, 128, 256, Swizzle::none); };
  float d[n / 2];
  for (float& each : d) each = 1;
  wgmma_fence();
  if constexpr (a_in_registers) {
    const unsigned row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, k = 2 * (threadIdx.x % 4);
    const auto pair = [&](unsigned r, unsigned at) { return a[r * 16 + at].bits | uint32_t(a[r * 16 + at + 1].bits) << 16; };
    const uint32_t fragment[4] = {pair(row, k), pair(row + 8, k), pair(row, k + 8), pair(row + 8, k + 8)};
    wgmma<T, b_transposed>(d, fragment, describe(right), true);
  } else {
    wgmma<T, a_transposed, b_transposed>(d, describe(left), describe(right), true);
  }
  wgmma_commit();
  wgmma_wait<0>();
  store<T, n>(out, d);
}

// b comes as it lies in a matrix of K rows: its columns are contiguous, 64 of them a box.
template <class T, int n>
__global__ void __launch_bounds__(128)
    from_transposed_tiles(float* out, const __grid_constant__ TileMap a, const __grid_constant__ TileMap b) {
  constexpr unsigned a_bytes = 64 * depth * 2, box_bytes = 64 * depth * 2, b_bytes = n / 64 * box_bytes;
  DYNAMIC_SHARED(unsigned char, memory);
  STATIC_SHARED(Mbarrier, full);
  unsigned char* tiles = memory + (1024 - shared_address(memory) % 1024) % 1024;
  if (threadIdx.x == 0) {
    mbarrier_init(&full, 1);
    mbarrier_init_fence();
    mbarrier_arrive_expect(&full, a_bytes + b_bytes);
    tile_load(tiles, a, {0, 0}, &full);
    for (int box = 0; box < n / 64; ++box) tile_load(tiles + a_bytes + unsigned(box) * box_bytes, b, {box * 64, 0}, &full);
  }
  block_barrier();
  mbarrier_wait(&full, 0);
  float d[n / 2];
  wgmma_fence();
  for (int step = 0; step < depth / 16; ++step)
    wgmma<T, false, true>(d, matrix_descriptor(tiles + step * 32, 16, 1024, Swizzle::bytes_128),
                          matrix_descriptor(tiles + a_bytes + step * 2048, box_bytes, 1024, Swizzle::bytes_128), step > 0);
  wgmma_commit();
  wgmma_wait<0>();
  store<T, n>(out, d);
}

template <class T, int n, int width>
void run_tiles(simt::Case& c, TileType type) {
  TileMap a, b;
  const auto k = uint64_t(c.integer("k"));
  const uint64_t a_sizes[2] = {k, 64}, b_sizes[2] = {k, uint64_t(n)}, strides[1] = {2 * k};
  const uint32_t a_box[2] = {width / 2, 64}, b_box[2] = {width / 2, n};
  constexpr Swizzle swizzle = width == 128 ? Swizzle::bytes_128 : width == 64 ? Swizzle::bytes_64 : Swizzle::bytes_32;
  c.check(make_tile_map(a, type, 2, c.array<void>("a"), a_sizes, strides, a_box, swizzle));
  c.check(make_tile_map(b, type, 2, c.array<void>("b"), b_sizes, strides, b_box, swizzle));
  const size_t bytes = 1024 + 2 * size_t(64 + n) * depth * 2;
  c.check(launch(from_tiles<T, n, width>, 1, 160, bytes, nullptr, c.array<float>("out"), a, b, int(k)));
}

template <class T, int n>
void run_transposed(simt::Case& c, TileType type) {
  TileMap a, b;
  const uint64_t a_sizes[2] = {depth, 64}, b_sizes[2] = {uint64_t(n), depth}, a_strides[1] = {2 * depth},
                 b_strides[1] = {2 * uint64_t(n)};
  const uint32_t box[2] = {64, 64};
  c.check(make_tile_map(a, type, 2, c.array<void>("a"), a_sizes, a_strides, box, Swizzle::bytes_128));
  c.check(make_tile_map(b, type, 2, c.array<void>("b"), b_sizes, b_strides, box, Swizzle::bytes_128));
  const size_t bytes = 1024 + 2 * size_t(64 + n) * depth;
  c.check(launch(from_transposed_tiles<T, n>, 1, 128, bytes, nullptr, c.array<float>("out"), a, b));
}

template <class T, int n, bool a_transposed, bool b_transposed, bool a_in_registers = false>
void run_core(simt::Case& c) {
  c.check(launch(from_core_matrices<T, n, a_transposed, b_transposed, a_in_registers>, 1, 128, (64 + n) * 16 * 2, nullptr,
                 c.array<float>("out"), c.array<const T>("a"), c.array<const T>("b")));
}
}  // namespace warp_groups

SIMT_CASE(wgmma_tiles) {
  using namespace warp_groups;
  if (c.integer("n") == 8) run_tiles<bfloat16_bits, 8, 32>(c, TileType::bfloat16);
  else if (c.integer("n") == 24) run_tiles<bfloat16_bits, 24, 64>(c, TileType::bfloat16);
  else run_tiles<bfloat16_bits, 256, 128>(c, TileType::bfloat16);
}
SIMT_CASE(wgmma_transposed_tiles) {
  warp_groups::run_transposed<fastdl::device::bfloat16_bits, 128>(c, fastdl::device::TileType::bfloat16);
}
SIMT_CASE(wgmma_core) {
  using namespace warp_groups;
  switch (c.integer("form")) {
    case 0: return run_core<half_bits, 16, false, false>(c);
    case 1: return run_core<half_bits, 16, true, false>(c);
    case 2: return run_core<half_bits, 16, false, true>(c);
    case 3: return run_core<half_bits, 16, true, true>(c);
    case 4: return run_core<half_bits, 16, false, false, true>(c);
    default: return run_core<half_bits, 16, false, true, true>(c);
  }
}
