// Asynchronous copies: cp.async in two stages, tensor tiles of every rank, and a sum over a cluster.
#include "device.cuh"
#include "simt/case.h"

namespace copies {
using namespace fastdl::device;

// out = the sum of `rounds` chunks of 128 floats, of which the last may be short; the next chunk is on its way while one is added.
__global__ void two_stages(float* out, const float* in, int n) {
  STATIC_SHARED(float, staged, [2][128]);
  const int rounds = (n + 127) / 128;
  const auto start = [&](int round) {
    if (threadIdx.x < 32 && round < rounds) {
      const int begin = round * 128 + 4 * int(threadIdx.x), left = n - begin;
      cp_async<16>(&staged[round % 2][4 * threadIdx.x], in + (left > 0 ? begin : 0), left <= 0 ? 0 : left < 4 ? 4 * left : 16);
    }
    cp_async_commit();
  };
  float sum = 0;
  start(0);
  for (int round = 0; round < rounds; ++round) {
    start(round + 1);
    cp_async_wait<1>();
    block_barrier();
    sum += staged[round % 2][threadIdx.x];
    block_barrier();
  }
  out[threadIdx.x] = sum;
}

// The same with an mbarrier that the copies arrive at by themselves.
__global__ void arriving(float* out, const float* in) {
  STATIC_SHARED(float, staged, [128]);
  STATIC_SHARED(Mbarrier, full);
  if (threadIdx.x == 0) mbarrier_init(&full, 128);
  block_barrier();
  cp_async<4>(&staged[threadIdx.x], in + threadIdx.x);
  cp_async_arrive(&full);
  mbarrier_wait(&full, 0);
  out[threadIdx.x] = staged[127 - threadIdx.x];
}

// One box in, and out again to another tensor.
template <int rank>
__global__ void tile(float* shared_copy, const __grid_constant__ TileMap from, const __grid_constant__ TileMap to, const int* at,
                     unsigned elements) {
  DYNAMIC_SHARED(unsigned char, memory);
  STATIC_SHARED(Mbarrier, full);
  auto* box = reinterpret_cast<float*>(memory + (1024 - shared_address(memory) % 1024) % 1024);
  if (threadIdx.x == 0) {
    mbarrier_init(&full, 1);
    mbarrier_init_fence();
  }
  block_barrier();
  int first[rank];
  for (int i = 0; i < rank; ++i) first[i] = at[i];
  if (threadIdx.x == 0) {
    tile_prefetch_map(from);
    mbarrier_arrive_expect(&full, elements * 4);
    tile_load(box, from, first, &full);
  }
  mbarrier_wait(&full, 0);
  for (unsigned i = threadIdx.x; i < elements; i += 32) shared_copy[i] = box[i];
  if (threadIdx.x == 0) {
    tile_store(to, first, box);
    bulk_commit();
    bulk_wait<0>();
  }
}

// Each block adds up its part, and then all of them the parts: out[block] holds the same sum.
__global__ void cluster_sum(float* out, const float* in) {
  STATIC_SHARED(float, partial);
  DYNAMIC_SHARED(float, own);
  const unsigned rank = cluster_rank(), size = cluster_size();
  float value = in[blockIdx.x * 32 + threadIdx.x];
  own[threadIdx.x] = value;
  for (int distance = 16; distance > 0; distance /= 2) value += shuffle_xor(value, distance);
  if (threadIdx.x == 0) partial = value;
  cluster_barrier();
  float total = 0;
  for (unsigned other = 0; other < size; ++other) total += *map_shared(&partial, other);
  // And one value of the next block's dynamic memory.
  total += 1000 * map_shared(own, (rank + 1) % size)[threadIdx.x];
  cluster_barrier();
  out[blockIdx.x * 32 + threadIdx.x] = total;
}

// Block 0 of the cluster waits until all others have written into its memory.
__global__ void gather(float* out, const float* in) {
  STATIC_SHARED(float, gathered, [8]);
  STATIC_SHARED(Mbarrier, arrived);
  if (threadIdx.x == 0) {
    mbarrier_init(&arrived, cluster_size());
    mbarrier_init_fence();
  }
  cluster_barrier();
  if (threadIdx.x == 0) {
    map_shared(gathered, 0)[cluster_rank()] = in[blockIdx.x];
    mbarrier_arrive_remote(&arrived, 0);
  }
  if (cluster_rank() == 0) {
    mbarrier_wait(&arrived, 0);
    if (threadIdx.x < cluster_size()) out[blockIdx.x + threadIdx.x] = 2 * gathered[threadIdx.x];
  }
  cluster_barrier();
}

template <int rank>
void run_tile(simt::Case& c) {
  TileMap from, to;
  const auto* sizes = c.array<const uint64_t>("sizes");
  const auto* box = c.array<const uint32_t>("box");
  uint64_t strides[5] = {};
  uint64_t bytes = 4;
  unsigned elements = 1;
  for (int i = 0; i < rank; ++i) {
    bytes *= sizes[i];
    elements *= box[i];
    strides[i] = bytes;
  }
  const auto swizzle = Swizzle(c.integer("swizzle"));
  c.check(make_tile_map(from, TileType::float32, rank, c.array<void>("in"), sizes, strides, box, swizzle));
  c.check(make_tile_map(to, TileType::float32, rank, c.array<void>("out"), sizes, strides, box, swizzle));
  c.check(launch(tile<rank>, 1, 32, 1024 + elements * 4, nullptr, c.array<float>("shared"), from, to, c.array<const int>("at"),
                 elements));
}
}  // namespace copies

SIMT_CASE(two_stages) {
  const int n = int(c.bytes("in") / sizeof(float));
  c.check(fastdl::device::launch(copies::two_stages, 1, 128, 0, nullptr, c.array<float>("out"), c.array<const float>("in"), n));
}
SIMT_CASE(arriving) {
  c.check(fastdl::device::launch(copies::arriving, 1, 128, 0, nullptr, c.array<float>("out"), c.array<const float>("in")));
}
SIMT_CASE(tile) {
  switch (c.integer("rank")) {
    case 1: return copies::run_tile<1>(c);
    case 2: return copies::run_tile<2>(c);
    case 3: return copies::run_tile<3>(c);
    case 4: return copies::run_tile<4>(c);
    default: return copies::run_tile<5>(c);
  }
}
SIMT_CASE(cluster_sum) {
  const auto size = unsigned(c.integer("size"));
  c.check(fastdl::device::launch_cluster(copies::cluster_sum, 2 * size, 32, size, 128, nullptr, c.array<float>("out"),
                                         c.array<const float>("in")));
}
SIMT_CASE(gather) {
  c.check(fastdl::device::launch_cluster(copies::gather, 8, 32, 4, 0, nullptr, c.array<float>("out"), c.array<const float>("in")));
}
