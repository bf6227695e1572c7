// Everything in device.cuh that an architecture has, compiled and never run: the test of nvcc's half.
#include "device.cuh"

namespace everything {
using namespace fastdl::device;

__global__ void __launch_bounds__(256) warp(float* out, const float* in, int* counts) {
  STATIC_SHARED(float, partial, [8][32]);
  STATIC_SHARED(int, last);
  DYNAMIC_SHARED(float, dynamic);
  const unsigned lane = lane_index();
  float x = in[blockIdx.x * blockDim.x + threadIdx.x];
  partial[threadIdx.x / 32][lane] = x;
  if (threadIdx.x == 0) last = 1;
  dynamic[threadIdx.x] = x;
  block_barrier();
  x += partial[lane & 7][lane] + float(last) + dynamic[255 - threadIdx.x];
  named_barrier(1, 256);
  named_barrier_arrive(2, 512);
  warp_barrier();
  x += shuffle(x, 3) + shuffle_xor(x, 1) + shuffle_down(x, 2) + shuffle_up(x, 4);
  const double wide = shuffle(double(x), 3) + reciprocal_sqrt(double(x));
  const long long whole = shuffle_xor((long long)(wide), 1);
  unsigned votes = ballot_lanes(x > 0) ^ match_any(int(whole)) ^ match_any(whole) ^ active_mask();
  if (any_lane(x > 1) && !all_lanes(x > 2) && elect_one()) atomicAdd(counts, int(votes));
  x = reciprocal_sqrt(x) + exp2_approx(x) + exp_approx(x) + log2_approx(x) + reciprocal_approx(x) + divide_approx(x, 3) +
      tanh_approx(x);
  out[blockIdx.x * blockDim.x + threadIdx.x] = x;
}

template <class T>
__global__ void memory(T* out, const T* in) {
  using V = Vector<T, 16 / int(sizeof(T))>;
  DYNAMIC_SHARED(T, tile);
  prefetch(in + 4096);
  cp_async<16>(tile + threadIdx.x * (16 / sizeof(T)), in, 8);
  cp_async<8>(tile, in);
  cp_async<4>(tile, in);
  cp_async_commit();
  cp_async_wait<0>();
  block_barrier();
  V v = load_vector<V>(tile);
  const V w[] = {load_vector<V, Cache::read_only>(in), load_vector<V, Cache::streaming>(in),
                 load_vector<V, Cache::read_only_streaming>(in), load_vector<V, Cache::evict_first>(in),
                 load_vector<V, Cache::evict_last>(in)};
  const T one = load_vector<T, Cache::read_only>(in);
  for (int i = 0; i < 16 / int(sizeof(T)); ++i) {
    float sum = widen(v[i]) + widen(one);
    for (const V& each : w) sum += widen(each[i]);
    v[i] = narrow<T>(sum);
  }
  store_vector(out, v);
  store_vector<Cache::streaming>(out + 64, v);
  store_vector<Cache::evict_first>(out + 128, v);
  store_vector<Cache::evict_last>(out + 192, v);
  store_vector<Cache::streaming>(out + 256, v[0]);
}

template <class T>
__global__ void matrix(float* out) {
  DYNAMIC_SHARED(T, tile);
  uint32_t a[4], b[2], c[1];
  ldmatrix<4>(a, tile + threadIdx.x * 8);
  ldmatrix<2, true>(b, tile + threadIdx.x * 8);
  ldmatrix<1>(c, tile);
  ldmatrix<1, true>(c, tile);
  ldmatrix<2>(b, tile);
  ldmatrix<4, true>(a, tile);
  float d[4] = {};
  mma_m16n8k16<T>(d, a, b);
  const uint32_t e[4] = {to_tf32(d[0]), to_tf32(d[1]), to_tf32(d[2]), narrow_pair<T>(d[0], d[1])}, f[2] = {e[0], e[1]};
  mma_m16n8k8_tf32(d, e, f);
  for (int i = 0; i < 4; ++i) out[4 * threadIdx.x + i] = d[i] + float(a[i] ^ b[i % 2] ^ c[0]);
}

// By itself: below sm_90 the kernel is a trap, and nothing else in it would be compiled.
__global__ void store_matrix(float* out) {
  DYNAMIC_SHARED(float, tile);
  const uint32_t fragment[4] = {threadIdx.x, 1, 2, 3};
  stmatrix(tile + 4 * threadIdx.x, fragment);
  warp_barrier();
  out[threadIdx.x] = tile[threadIdx.x];
}

__global__ void cluster(float* out) {
  STATIC_SHARED(float, own, [32]);
  STATIC_SHARED(Mbarrier, barrier, [2]);
  if (threadIdx.x == 0) {
    mbarrier_init(&barrier[0], blockDim.x);
    mbarrier_init_fence();
  }
  own[threadIdx.x] = float(cluster_rank());
  cluster_barrier();
  float sum = 0;
  for (unsigned rank = 0; rank < cluster_size(); ++rank) sum += map_shared(own, rank)[threadIdx.x];
  mbarrier_arrive(&barrier[0]);
  cp_async_arrive(&barrier[0]);
  mbarrier_arrive_remote(&barrier[0], 0);
  mbarrier_wait(&barrier[0], 0);
  cluster_arrive();
  cluster_wait();
  if (threadIdx.x == 0) mbarrier_invalidate(&barrier[0]);
  out[threadIdx.x] = sum;
}

template <class T>
__global__ void __launch_bounds__(128, 1) tiles(float* out, const T* in, const __grid_constant__ TileMap map) {
  DYNAMIC_SHARED(T, tile);
  STATIC_SHARED(Mbarrier, barrier);
  registers_increase<232>();
  tile_prefetch_map(map);
  mbarrier_arrive_expect(&barrier, 4096);
  bulk_load(tile, in, 64, &barrier);
  tile_load(tile, map, {1}, &barrier);
  tile_load(tile, map, {1, 2}, &barrier);
  tile_load(tile, map, {1, 2, 3}, &barrier);
  tile_load(tile, map, {1, 2, 3, 4}, &barrier);
  tile_load(tile, map, {1, 2, 3, 4, 5}, &barrier);
  mbarrier_wait(&barrier, 0);
  const uint64_t a = matrix_descriptor(tile, 0, 1024, Swizzle::bytes_128);
  float small[4], middle[48], large[128];
  const uint32_t fragment[4] = {1, 2, 3, 4};
  wgmma_fence();
  wgmma<T>(small, a, a, false);
  wgmma<T, false, true>(middle, a, a, true);
  wgmma<T>(middle, fragment, a, true);
  wgmma<T>(large, a, a, false);
  wgmma_commit();
  wgmma_wait<0>();
  for (int i = 0; i < 128; ++i) out[i * 128 + threadIdx.x] = large[i] + middle[i % 48] + small[i % 4];
  fence_proxy_async();
  bulk_store(out, tile, 64);
  tile_store(map, {1}, tile);
  tile_store(map, {1, 2}, tile);
  tile_store(map, {1, 2, 3}, tile);
  tile_store(map, {1, 2, 3, 4}, tile);
  tile_store(map, {1, 2, 3, 4, 5}, tile);
  bulk_commit();
  bulk_wait<1, true>();
  bulk_wait<0>();
  registers_decrease<40>();
}

Status run(float* out, const float* in, int* counts, Stream stream) {
  const Machine facts = machine();
  TileMap map;
  const uint64_t sizes[2] = {64, 64}, strides[1] = {128};
  const uint32_t box[2] = {64, 8};
  if (const Status status = make_tile_map(map, TileType::bfloat16, 2, in, sizes, strides, box, Swizzle::bytes_128)) return status;
  if (const Status status = launch(warp, dim3(unsigned(facts.multiprocessors)), 256, 1024, stream, out, in, counts)) return status;
  if (const Status status = launch_cluster(cluster, 8, 32, 4, 0, stream, out)) return status;
  const auto* half = reinterpret_cast<const half_bits*>(in);
  const auto* brain = reinterpret_cast<const bfloat16_bits*>(in);
  launch(memory<half_bits>, 1, 32, 65536, stream, nullptr, half);
  launch(memory<float>, 1, 32, 65536, stream, out, in);
  launch(matrix<half_bits>, 1, 32, 4096, stream, out);
  launch(matrix<bfloat16_bits>, 1, 32, 4096, stream, out);
  launch(store_matrix, 1, 32, 4096, stream, out);
  launch(tiles<half_bits>, 1, 128, 65536, stream, out, half, map);
  return launch(tiles<bfloat16_bits>, 1, 128, 65536, stream, out, brain, map);
}
}  // namespace everything
