// Forward of the row normalisations: layer_norm (`centered`) and rms_norm, each an instance of the kernels below.
#pragma once

#include "moments.cuh"
#include "row_norm_launch.cuh"

namespace fastdl::cuda {
namespace row_norm_forward {

// Of one row, for every thread of its team, from the sums of its values' squares, or of deviations from `mean` and their squares.
__device__ __forceinline__ Centre centre_of(const RowNormCall& call, float squares) {
  return {0.0f, 0.0f, reciprocal_root(squares / float(call.width), call.eps)};
}
__device__ __forceinline__ Centre centre_of(const RowNormCall& call, float mean, const float (&sums)[2]) {
  const float low = sums[0] / float(call.width);
  // Nothing is left of values that are all the same: they deviate by few units in the last place, whose sums are exact.
  return {mean, low, reciprocal_root(sums[1] / float(call.width) - low * low, call.eps)};
}

template <bool centered>
__device__ __forceinline__ void save(const RowNormCall& call, int64_t row, const Centre& centre) {
  if constexpr (centered) {
    call.statistics[row] = centre.mean + centre.low;
    call.statistics[call.rows + row] = centre.scale;
  } else {
    call.statistics[row] = centre.scale;
  }
}

// y = (s - mean) / deviation * weight + bias, of V values.
template <bool centered, class T, int V>
__device__ __forceinline__ Pack<T, V> normalize(const RowNormCall& call, const Centre& centre, const Pack<T, V>& pack,
                                                int64_t column) {
  float weight[V], bias[V];
  load_parameter<T, V>(call.weight, call.wide_weight, column, 1.0f, weight);
  if constexpr (centered) load_parameter<T, V>(call.bias, call.wide_bias, column, 0.0f, bias);
  Pack<T, V> result;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const float value = device::widen(pack[i]);
    result[i] = device::narrow<T>(centered ? fmaf(centre(value), weight[i], bias[i]) : value * centre.scale * weight[i]);
  }
  return result;
}

// Rows that their teams hold in registers: each value is read and written once. S vectors of V values a thread.
template <bool centered, class T, int V, int S, bool block>
__global__ void __launch_bounds__(block ? forward_block_threads : forward_warp_threads, 1) held(const RowNormCall call) {
  Team<block> team(call.team_bits);
  const int64_t row = int64_t(blockIdx.x) * team.count + team.index;
  const bool present = row < call.rows;
  const int width = int(call.width);
  const auto for_vectors = [&](auto each) {
#pragma unroll
    for (int slot = 0; slot < S; ++slot) {
      const int column = (slot * team.size + team.lane) * V;
      if (present && column < width) each(slot, column);
    }
  };
  const auto for_values = [&](const Pack<T, V>(&packs)[S], auto each) {
    for_vectors([&](int slot, int) {
#pragma unroll
      for (int i = 0; i < V; ++i) each(device::widen(packs[slot][i]));
    });
  };

  Pack<T, V> packs[S];
  const T* const input = row_of<T>(call, call.input, present ? row : 0);
  for_vectors([&](int slot, int column) { packs[slot] = load<T, V>(input + column); });
  if (call.other.values) {
    const T* const residual = row_of<T>(call, call.other, present ? row : 0);
    Pack<T, V> others[S];
    for_vectors([&](int slot, int column) { others[slot] = load<T, V>(residual + column); });
    for_vectors([&](int slot, int column) {
      packs[slot] = add(packs[slot], others[slot]);
      store(static_cast<T*>(call.sum) + row * width + column, packs[slot]);
    });
  }

  Centre centre;
  if constexpr (centered) {
    float sum[1] = {0.0f}, sums[2] = {0.0f, 0.0f};
    for_values(packs, [&](float value) { sum[0] += value; });
    team.add(sum);
    const float mean = sum[0] / float(width);
    for_values(packs, [&](float value) {
      const float deviation = value - mean;
      sums[0] += deviation;
      sums[1] = fmaf(deviation, deviation, sums[1]);
    });
    team.add(sums);
    centre = centre_of(call, mean, sums);
  } else {
    float sum[1] = {0.0f};
    for_values(packs, [&](float value) { sum[0] = fmaf(value, value, sum[0]); });
    team.add(sum);
    centre = centre_of(call, sum[0]);
  }
  if (present && team.lane == 0) save<centered>(call, row, centre);
  for_vectors([&](int slot, int column) {
    store(static_cast<T*>(call.output) + row * width + column, normalize<centered>(call, centre, packs[slot], column));
  });
}

// Rows too wide for that, a block each: the row is read again in each pass.
template <bool centered, class T, int V>
__global__ void __launch_bounds__(streamed_threads, 1) streamed(const RowNormCall call) {
  // Vectors that a thread loads together, and whose values it adds up before they join the sum of all: with hundreds of values a
  // thread, one sum alone would lose the digits that a row in registers keeps.
  constexpr int S = V == 1 ? 8 : 16 / V;
  Team<true> team(0);
  const int64_t row = blockIdx.x;
  const T* const input = row_of<T>(call, call.input, row);
  const T* const residual = call.other.values ? row_of<T>(call, call.other, row) : nullptr;
  T* const sum = static_cast<T*>(call.sum) + row * call.width;
  T* const output = static_cast<T*>(call.output) + row * call.width;
  const auto for_chunks = [&](auto each) {
    for (int64_t first = int64_t(team.lane) * V; first < call.width; first += int64_t(streamed_threads) * V * S) each(first);
  };
  const auto for_vectors = [&](int64_t first, auto each) {
#pragma unroll
    for (int slot = 0; slot < S; ++slot) {
      const int64_t column = first + int64_t(slot) * streamed_threads * V;
      if (column < call.width) each(slot, column);
    }
  };
  // each(value, partial sums), of what is normalised; `before` is done with each vector, and may change it.
  const auto sum_of_row = [&](auto& sums, auto load_from, auto each) {
    for_chunks([&](int64_t first) {
      Pack<T, V> packs[S];
      std::remove_reference_t<decltype(sums)> partial = {};
      for_vectors(first, [&](int slot, int64_t column) { packs[slot] = load_from(column); });
      for_vectors(first, [&](int slot, int64_t) {
#pragma unroll
        for (int i = 0; i < V; ++i) each(device::widen(packs[slot][i]), partial);
      });
      for (int i = 0; i < int(sizeof(sums) / sizeof(float)); ++i) sums[i] += partial[i];
    });
    team.add(sums);
  };
  const auto load_first = [&](int64_t column) {
    auto pack = load<T, V>(input + column);
    if (residual) {
      pack = add(pack, load<T, V>(residual + column));
      store(sum + column, pack);
    }
    return pack;
  };
  // What this thread itself wrote is no read-only memory.
  const auto load_again = [&](int64_t column) {
    return residual ? device::load_vector<Pack<T, V>>(sum + column) : load<T, V>(input + column);
  };

  Centre centre;
  float first_sum[1] = {0.0f};
  sum_of_row(first_sum, load_first, [&](float value, float (&partial)[1]) {
    partial[0] = centered ? partial[0] + value : fmaf(value, value, partial[0]);
  });
  if constexpr (centered) {
    const float mean = first_sum[0] / float(call.width);
    float sums[2] = {0.0f, 0.0f};
    sum_of_row(sums, load_again, [&](float value, float (&partial)[2]) {
      const float deviation = value - mean;
      partial[0] += deviation;
      partial[1] = fmaf(deviation, deviation, partial[1]);
    });
    centre = centre_of(call, mean, sums);
  } else {
    centre = centre_of(call, first_sum[0]);
  }
  if (team.lane == 0) save<centered>(call, row, centre);
  for_chunks([&](int64_t first) {
    for_vectors(
        first, [&](int, int64_t column) { store(output + column, normalize<centered>(call, centre, load_again(column), column)); });
  });
}

// The kernel of a plan, for values of T in vectors of V.
template <bool centered, class T, int V>
auto kernel_of(const RowNormPlan& plan) {
  constexpr int many = many_values(sizeof(T), V > 1, false) / V;
  if (plan.path == RowPath::streamed) return &streamed<centered, T, V>;
  if (plan.path == RowPath::block) return &held<centered, T, V, many, true>;
  if (plan.values == few_values) return &held<centered, T, V, few_values / V, false>;
  return &held<centered, T, V, many, false>;
}

template <bool centered>
int run(const RowNorm& norm, const RowNormResults& results, void* stream) {
  if (norm.rows == 0) return 0;
  // Of nothing at all; the statistics are not left as they lie in memory.
  if (norm.width == 0)
    return device::fill_bytes(results.statistics, 0, size_t(norm.rows) * (centered ? 2 : 1) * sizeof(float),
                              static_cast<device::Stream>(stream));
  const RowNormPlan plan = row_norm_forward_plan(norm, results);
  RowNormCall call = make_row_norm_call(norm, plan);
  call.other = norm.residual;
  call.output = results.output;
  call.sum = results.sum;
  call.statistics = results.statistics;
  return launch_row_norm(norm.dtype, plan, call, stream,
                         [&](auto type, auto width) { return kernel_of<centered, typename decltype(type)::type, width>(plan); });
}

}  // namespace row_norm_forward
}  // namespace fastdl::cuda
