// Attention's forward on sm_90a: one warp group brings tiles of keys and values (TMA) while two others multiply them (wgmma), 64
// queries each, and weigh the scores of a step while the tensor cores do the product of the step before (Shah et al. 2024,
// arXiv:2407.08608, section 3.2).
#pragma once

#include "attention_forward.cuh"

namespace fastdl::cuda {
namespace attention_forward_wgmma {

inline constexpr int groups = 2, rows = 64 * groups, threads = 128 * (groups + 1), stages = 2;
// Keys of a step. With 128 of them and 128 features the scores, the weights and the output leave no register for masks.
template <int D>
inline constexpr int columns_of = D == 64 ? 128 : 96;

// A tile is boxes of 64 features, 128 bytes a row, as the widest swizzle has them.
template <int D>
inline constexpr int boxes = D / 64;
template <int D>
inline constexpr unsigned step_bytes = columns_of<D> * D * 2;
// Queries, where the output of a group is staged later, in rows that are 16 bytes longer.
template <int D>
inline constexpr unsigned group_bytes = 64 * (D + 8) * 2;
template <int D>
inline constexpr size_t shared_bytes = 1024 + groups * group_bytes<D> + stages * 2 * step_bytes<D>;
static_assert(group_bytes<64> % 1024 == 0 && group_bytes<128> % 1024 == 0);
static_assert(rows == attention_wgmma_rows && shared_bytes<128> <= attention_wgmma_shared_bytes - 4096);

// A dimension with stride 0 is one element to the copies.
struct TileRows {
  bool has_samples, has_heads;

  __device__ void load(unsigned char* to, const device::TileMap& map, int feature, int64_t row, int64_t head, int64_t sample,
                       device::Mbarrier* barrier) const {
    const int at[4] = {feature, int(row), has_heads ? int(head) : 0, has_samples ? int(sample) : 0};
    device::tile_load(to, map, at, barrier);
  }
};

struct Maps {
  TileRows query, key, value;
};

template <class T, int D>
__global__ void __launch_bounds__(threads, 1)
    kernel(const AttentionForward call, const Maps maps, const __grid_constant__ device::TileMap query_map,
           const __grid_constant__ device::TileMap key_map, const __grid_constant__ device::TileMap value_map) {
#if !defined(__CUDA_ARCH__) || FASTDL_HAS_WGMMA
  constexpr int columns = columns_of<D>;
  using device::Mbarrier;
  using device::Swizzle;
  DYNAMIC_SHARED(unsigned char, shared);
  STATIC_SHARED(RowFacts, facts, [rows]);
  STATIC_SHARED(Mbarrier, full, [2][stages]);  // of keys, of values
  STATIC_SHARED(Mbarrier, empty, [2][stages]);
  STATIC_SHARED(Mbarrier, queries_full);
  unsigned char *const queries = shared + (1024 - device::shared_address(shared) % 1024) % 1024, *const steps =
                                                                                                     queries +
                                                                                                     groups * group_bytes<D>;
  const auto tile_of = [&](int operand, int step) { return steps + (step % stages * 2 + operand) * step_bytes<D>; };
  const Attention& attention = call.attention;
  // In shared memory, so that what is read once a step takes no registers.
  STATIC_SHARED(ForwardBlock, block);
  if (threadIdx.x == 0) block = ForwardBlock::of<rows, columns>(call);
  device::block_barrier();
  // wgmma runs on by itself only where the compiler knows that all threads of a warp go the same way; that what was loaded is the
  // same in all it learns by a shuffle.
  const auto same = [](int number) { return device::shuffle(number, 0); };
  if (same(block.first_row >= block.rows)) return;
  const int low = same(block.keys.low), high = same(block.keys.high), begin = low / columns,
            step_count = low <= high ? high / columns + 1 - begin : 0;
  if (threadIdx.x < rows) facts[threadIdx.x] = RowFacts::of(call, block, int(threadIdx.x));
  if (threadIdx.x == 0) {
    for (int operand = 0; operand < 2; ++operand)
      for (int stage = 0; stage < stages; ++stage) {
        device::mbarrier_init(&full[operand][stage], 1);
        device::mbarrier_init(&empty[operand][stage], 4 * groups);
      }
    device::mbarrier_init(&queries_full, 1);
    device::mbarrier_init_fence();
  }
  device::block_barrier();

  const int group = device::shuffle(int(threadIdx.x) / 128, 0);
  if (group == groups) {
    device::registers_decrease<40>();
    if (threadIdx.x / 32 != 4 * groups || !device::elect_one() || step_count == 0) return;
    device::mbarrier_arrive_expect(&queries_full, groups * 64 * D * 2);
    for (int group = 0; group < groups; ++group)
      for (int box = 0; box < boxes<D>; ++box)
        maps.query.load(queries + group * group_bytes<D> + box * 64 * 128, query_map, 64 * box, block.first_row + 64 * group,
                        block.head, block.place.sample, &queries_full);
    const int64_t key_head = block.head / (attention.heads / attention.key_heads);
#pragma unroll 1
    for (int step = 0; step < step_count; ++step)
#pragma unroll
      for (int operand = 0; operand < 2; ++operand) {
        Mbarrier* const barrier = &full[operand][step % stages];
        device::mbarrier_wait(&empty[operand][step % stages], unsigned(step / stages + 1) & 1u);
        device::mbarrier_arrive_expect(barrier, step_bytes<D>);
        for (int box = 0; box < boxes<D>; ++box)
          (operand ? maps.value : maps.key)
              .load(tile_of(operand, step) + box * columns * 128, operand ? value_map : key_map, 64 * box,
                    int64_t(begin + step) * columns, key_head, block.place.sample, barrier);
      }
    return;
  }

  device::registers_increase<232>();
  const int warp_row = int(threadIdx.x) / 32 * 16;
  unsigned char* const own_queries = queries + group * group_bytes<D>;
  const RowFacts* const own_facts = facts + warp_row + threadIdx.x % 32 / 4;
  const Dropout dropout = dropout_of(attention);
  Softmax<T> softmax;
  const Span whole{same(block.whole.low), same(block.whole.high)};
  float output[D / 8][4];
  Left<T> weights[columns / 16];
  clear(output);
  const auto wait_for = [&](int operand, int step) {
    device::mbarrier_wait(&full[operand][step % stages], unsigned(step / stages) & 1u);
  };
  const auto release = [&](int operand, int step) {
    device::warp_barrier();
    if (threadIdx.x % 32 == 0) device::mbarrier_arrive(&empty[operand][step % stages]);
  };
  // Queues s = q k^T.
  const auto multiply_keys = [&](float (&s)[columns / 8][4], int step) {
#pragma unroll
    for (int k = 0; k < D; k += 16) {
      const int inside = k % 64 * 2;
      device::wgmma<T>(reinterpret_cast<float (&)[columns / 2]>(s),
                       device::matrix_descriptor(own_queries + k / 64 * 64 * 128 + inside, 16, 1024, Swizzle::bytes_128),
                       device::matrix_descriptor(tile_of(0, step) + k / 64 * columns * 128 + inside, 16, 1024, Swizzle::bytes_128),
                       k > 0);
    }
    device::wgmma_commit();
  };
  // Queues output += p v.
  const auto multiply_values = [&](int step) {
#pragma unroll
    for (int k = 0; k < columns / 16; ++k)
      device::wgmma<T, true>(reinterpret_cast<float (&)[D / 2]>(output), weights[k].values,
                             device::matrix_descriptor(tile_of(1, step) + k * 16 * 128, columns * 128, 1024, Swizzle::bytes_128),
                             true);
    device::wgmma_commit();
  };
  const auto narrow_weights = [&](const float (&s)[columns / 8][4]) {
#pragma unroll
    for (int k = 0; k < columns / 16; ++k) weights[k] = weights_of<T>(s, k);
  };
  const auto store = [&] {
    // The four warps of the group have read the queries, where the output goes now.
    device::named_barrier(1 + group, 128);
    store_output<T, D>(call, block, dropout, softmax, warp_row, output,
                       reinterpret_cast<T*>(own_queries) + warp_row % 64 * pitch<T, D>);
  };
  if (step_count == 0) return store();
  // No branch from here on but the loop: ptxas lets wgmma run on only where it sees that all threads of the group do the same.
  device::mbarrier_wait(&queries_full, 0);
  {
    float s[columns / 8][4], correction[2];
    wait_for(0, 0);
    device::wgmma_fence();
    multiply_keys(s, 0);
    device::wgmma_wait<0>();
    release(0, 0);
    weigh_step<T>(call, block, whole, own_facts, dropout, begin * columns, softmax, s, correction);
    narrow_weights(s);
  }
#pragma unroll 1
  for (int step = 1; step < step_count; ++step) {
    float s[columns / 8][4], correction[2];
    wait_for(0, step);
    device::wgmma_fence();
    multiply_keys(s, step);
    wait_for(1, step - 1);
    device::wgmma_fence();
    multiply_values(step - 1);
    device::wgmma_wait<1>();
    release(0, step);
    weigh_step<T>(call, block, whole, own_facts, dropout, (begin + step) * columns, softmax, s, correction);
    device::wgmma_wait<0>();
    release(1, step - 1);
    rescale(output, correction);
    narrow_weights(s);
  }
  wait_for(1, step_count - 1);
  device::wgmma_fence();
  multiply_values(step_count - 1);
  device::wgmma_wait<0>();
  store();
#else
  __trap();
#endif
}

// (features, length, heads, samples) in boxes of 64 features and `box_rows` rows; a dimension with stride 0 has one element.
template <class T>
int describe(device::TileMap& map, TileRows& rows_of_map, const AttentionTensor& tensor, int features, int64_t length,
             int64_t heads, int64_t samples, int box_rows) {
  rows_of_map = {tensor.sample != 0, tensor.head != 0};
  const uint64_t sizes[4] = {uint64_t(features), uint64_t(length), tensor.head ? uint64_t(heads) : 1,
                             tensor.sample ? uint64_t(samples) : 1};
  // Of a dimension with one element any stride will do.
  const uint64_t strides[3] = {uint64_t(2 * tensor.row), tensor.head ? uint64_t(2 * tensor.head) : 16,
                               tensor.sample ? uint64_t(2 * tensor.sample) : 16};
  const uint32_t box[4] = {64, uint32_t(box_rows), 1, 1};
  return device::make_tile_map(map, std::is_same_v<T, half_bits> ? device::TileType::float16 : device::TileType::bfloat16, 4,
                               tensor.values, sizes, strides, box, device::Swizzle::bytes_128);
}

template <class T, int D>
int launch(const AttentionForward& call, unsigned blocks, void* stream) {
  const Attention& attention = call.attention;
  device::TileMap query, key, value;
  Maps maps;
  int status =
      describe<T>(query, maps.query, attention.query, attention.features, attention.length, attention.heads, attention.samples, 64);
  if (status == 0)
    status = describe<T>(key, maps.key, attention.key, attention.features, attention.keys, attention.key_heads, attention.samples,
                         columns_of<D>);
  if (status == 0)
    status = describe<T>(value, maps.value, attention.value, attention.value_features, attention.keys, attention.key_heads,
                         attention.samples, columns_of<D>);
  if (status != 0) return status;
  return device::launch(kernel<T, D>, dim3(blocks), dim3(threads), shared_bytes<D>, static_cast<device::Stream>(stream), call, maps,
                        query, key, value);
}

template <class T>
int launch_by_width(const AttentionForward& call, unsigned blocks, void* stream) {
  const bool wide = call.attention.features > 64 || call.attention.value_features > 64;
  return wide ? launch<T, 128>(call, blocks, stream) : launch<T, 64>(call, blocks, stream);
}

}  // namespace attention_forward_wgmma
}  // namespace fastdl::cuda
