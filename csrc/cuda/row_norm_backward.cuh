// Backward of the row normalisations. With xhat = (s - mean) / deviation and g = grad_output weight,
//   ds = (g - mean(g) - xhat mean(g xhat)) / deviation + grad_sum,
// without the mean of g in rms_norm, and the parameters' gradients are sums over rows of grad_output xhat and grad_output. A block
// has a run of rows and leaves one row of such sums, which norm_merge.cu adds up in double: nothing depends on who comes first.
#pragma once

#include "norm_plan.h"
#include "row_norm_launch.cuh"

namespace fastdl::cuda {
namespace row_norm_backward {

struct Range {
  int64_t begin, end;
};

// The rows of the `part`-th of `parts` equal parts.
__device__ __forceinline__ Range share_of(int64_t rows, int64_t part, int64_t parts) {
  const int64_t least = rows / parts, rest = rows % parts;
  const int64_t begin = part * least + (part < rest ? part : rest);
  return {begin, begin + least + (part < rest ? 1 : 0)};
}

// mean and scale of a row as forward left them; `low` is known only after a pass over the row.
template <bool centered>
__device__ __forceinline__ Centre saved_centre(const RowNormCall& call, int64_t row) {
  if constexpr (centered) return {call.statistics[row], 0.0f, call.statistics[call.rows + row]};
  return {0.0f, 0.0f, call.statistics[row]};
}

// Sums over a row of g (s - mean), g, and s - mean; only the first in rms_norm.
template <bool centered>
inline constexpr int sums_of_row = centered ? 3 : 1;

template <bool centered, class T, int V>
__device__ __forceinline__ void add_to_sums(const RowNormCall& call, const Centre& centre, const Pack<T, V>& values,
                                            const Pack<T, V>& gradients, int64_t column, float (&sums)[sums_of_row<centered>]) {
  float weight[V];
  load_parameter<T, V>(call.weight, call.wide_weight, column, 1.0f, weight);
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const float deviation = device::widen(values[i]) - centre.mean, g = device::widen(gradients[i]) * weight[i];
    sums[0] = fmaf(g, deviation, sums[0]);
    if constexpr (centered) {
      sums[1] += g;
      sums[2] += deviation;
    }
  }
}

// What the row's values share in their gradients.
struct Means {
  float gradient, product;  // of g, and of g xhat
};

template <bool centered>
__device__ __forceinline__ Means means_of(const RowNormCall& call, const float (&sums)[sums_of_row<centered>], Centre& centre) {
  const float width = float(call.width);
  if constexpr (!centered) {
    return {0.0f, centre.scale * (sums[0] / width)};
  } else {
    const float gradient = sums[1] / width;
    centre.low = sums[2] / width;
    return {gradient, centre.scale * (sums[0] / width - centre.low * gradient)};
  }
}

template <bool centered, class T, int V>
__device__ __forceinline__ Pack<T, V> gradient_of(const RowNormCall& call, const Centre& centre, const Means& means,
                                                  const Pack<T, V>& values, const Pack<T, V>& gradients, const Pack<T, V>& others,
                                                  int64_t column) {
  float weight[V];
  load_parameter<T, V>(call.weight, call.wide_weight, column, 1.0f, weight);
  Pack<T, V> result;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const float g = device::widen(gradients[i]) * weight[i], rest = centered ? g - means.gradient : g;
    result[i] = device::narrow<T>(
        fmaf(centre.scale, fmaf(-centre(device::widen(values[i])), means.product, rest), device::widen(others[i])));
  }
  return result;
}

// Sums of one column over rows, in registers.
template <int V>
struct ColumnSums {
  float gradient[V] = {}, product[V] = {};

  template <class T>
  __device__ __forceinline__ void add(const Centre& centre, const Pack<T, V>& values, const Pack<T, V>& gradients) {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const float g = device::widen(gradients[i]);
      gradient[i] += g;
      product[i] = fmaf(g, centre(device::widen(values[i])), product[i]);
    }
  }

  __device__ __forceinline__ void write(ChannelSums* to) const {
    if constexpr (V == 1) {
      device::store_vector(to, Pack<float, 2>{gradient[0], product[0]});
    } else {
#pragma unroll
      for (int i = 0; i < V; i += 2)
        device::store_vector<device::Cache::evict_last>(to + i,
                                                        Pack<float, 4>{gradient[i], product[i], gradient[i + 1], product[i + 1]});
    }
  }
};

// What the teams of a block found, in the order of its warps; lanes of a warp that have the same columns are added first.
template <int V, int S>
__device__ __forceinline__ void join_teams(const RowNormCall& call, const Team<false>& team, ColumnSums<V> (&columns)[S]) {
  // Neighbouring threads, which have neighbouring vectors, use neighbouring banks.
  STATIC_SHARED(ChannelSums, total, [widest_of_warp]);
  const int width = int(call.width), vectors = width / V, warps = int(blockDim.x) / 32, warp = int(threadIdx.x) / 32;
  for (int distance = 16; distance >= team.size; distance /= 2) {
#pragma unroll
    for (int slot = 0; slot < S; ++slot)
#pragma unroll
      for (int i = 0; i < V; ++i) {
        columns[slot].gradient[i] += device::shuffle_xor(columns[slot].gradient[i], distance);
        columns[slot].product[i] += device::shuffle_xor(columns[slot].product[i], distance);
      }
  }
  for (int turn = 0; turn < warps; ++turn) {
    if (turn == warp && int(threadIdx.x) % 32 < team.size) {
#pragma unroll
      for (int slot = 0; slot < S; ++slot) {
        const int vector = slot * team.size + team.lane;
        if (vector >= vectors) break;
#pragma unroll
        for (int i = 0; i < V; ++i) {
          ChannelSums& sum = total[i * vectors + vector];
          const ChannelSums before = turn == 0 ? ChannelSums{0.0f, 0.0f} : sum;
          sum = {before.gradient + columns[slot].gradient[i], before.product + columns[slot].product[i]};
        }
      }
    }
    device::block_barrier();
  }
  for (int column = int(threadIdx.x); column < width; column += int(blockDim.x))
    device::store_vector(call.sums + blockIdx.x * call.width + column,
                         device::load_vector<Pack<float, 2>>(&total[column % V * vectors + column / V]));
}

// Rows that their teams hold in registers, one after another. S vectors of V values a thread.
template <bool centered, class T, int V, int S, bool block>
__global__ void __launch_bounds__(backward_threads, !block && S * V == few_values ? 2 : 1) held(const RowNormCall call) {
  Team<block> team(call.team_bits);
  const Range rows = share_of(call.rows, blockIdx.x, gridDim.x);
  const int width = int(call.width);
  ColumnSums<V> columns[S];
  // The teams of a warp stay together, as they exchange their sums together.
  for (int64_t first = rows.begin; first < rows.end; first += team.count) {
    const bool present = first + team.index < rows.end;
    const int64_t row = present ? first + team.index : first;
    const auto for_vectors = [&](auto each) {
#pragma unroll
      for (int slot = 0; slot < S; ++slot) {
        const int column = (slot * team.size + team.lane) * V;
        if (present && column < width) each(slot, column);
      }
    };
    Pack<T, V> values[S], gradients[S], others[S] = {};
    const T* const from = row_of<T>(call, call.input, row);
    const T* const gradient = row_of<T>(call, call.other, row);
    for_vectors([&](int slot, int column) {
      values[slot] = load<T, V>(from + column);
      gradients[slot] = load<T, V>(gradient + column);
    });
    // Early, for a warp waits for them as long as for the others. Single values take more registers for their addresses than for
    // themselves, and then spilled 4 to 20 bytes on sm_100: they are loaded where they are used.
    const T* const other = call.sum_gradient.values && call.output ? row_of<T>(call, call.sum_gradient, row) : nullptr;
    if (V > 1 && other) for_vectors([&](int slot, int column) { others[slot] = load<T, V>(other + column); });
    Centre centre = saved_centre<centered>(call, row);
    float sums[sums_of_row<centered>] = {};
    for_vectors([&](int slot, int column) { add_to_sums<centered>(call, centre, values[slot], gradients[slot], column, sums); });
    team.add(sums);
    const Means means = means_of<centered>(call, sums, centre);
    if (call.output)
      for_vectors([&](int slot, int column) {
        if (V == 1 && other) others[slot] = load<T, V>(other + column);
        store(static_cast<T*>(call.output) + row * width + column,
              gradient_of<centered>(call, centre, means, values[slot], gradients[slot], others[slot], column));
      });
    if (call.sums) for_vectors([&](int slot, int) { columns[slot].add(centre, values[slot], gradients[slot]); });
  }
  if (!call.sums) return;
  if constexpr (!block) {
    join_teams(call, team, columns);
  } else {
#pragma unroll
    for (int slot = 0; slot < S; ++slot) {
      const int column = (slot * team.size + team.lane) * V;
      if (column < width) columns[slot].write(call.sums + blockIdx.x * call.width + column);
    }
  }
}

// Rows too wide for that, a block each: the row is read again for its gradient. Leaves `lows` for column_sums.
template <bool centered, class T, int V>
__global__ void __launch_bounds__(streamed_threads, 1) streamed(const RowNormCall call) {
  constexpr int S = V == 1 ? 8 : 16 / V;  // as in forward
  Team<true> team(0);
  const int64_t row = blockIdx.x;
  const T* const from = row_of<T>(call, call.input, row);
  const T* const gradient = row_of<T>(call, call.other, row);
  const auto for_vectors = [&](int64_t first, auto each) {
#pragma unroll
    for (int slot = 0; slot < S; ++slot) {
      const int64_t column = first + int64_t(slot) * streamed_threads * V;
      if (column < call.width) each(slot, column);
    }
  };
  const auto for_chunks = [&](auto each) {
    for (int64_t first = int64_t(team.lane) * V; first < call.width; first += int64_t(streamed_threads) * V * S) {
      Pack<T, V> values[S], gradients[S];
      for_vectors(first, [&](int slot, int64_t column) {
        values[slot] = load<T, V>(from + column);
        gradients[slot] = load<T, V>(gradient + column);
      });
      each(first, values, gradients);
    }
  };
  Centre centre = saved_centre<centered>(call, row);
  float sums[sums_of_row<centered>] = {};
  for_chunks([&](int64_t first, const auto& values, const auto& gradients) {
    float partial[sums_of_row<centered>] = {};
    for_vectors(first, [&](int slot, int64_t column) {
      add_to_sums<centered>(call, centre, values[slot], gradients[slot], column, partial);
    });
    for (int i = 0; i < sums_of_row<centered>; ++i) sums[i] += partial[i];
  });
  team.add(sums);
  const Means means = means_of<centered>(call, sums, centre);
  if (call.lows && team.lane == 0) call.lows[row] = centre.low;
  if (!call.output) return;
  const T* const other = call.sum_gradient.values ? row_of<T>(call, call.sum_gradient, row) : nullptr;
  for_chunks([&](int64_t first, const auto& values, const auto& gradients) {
    for_vectors(first, [&](int slot, int64_t column) {
      const auto others = other ? load<T, V>(other + column) : Pack<T, V>{};
      store(static_cast<T*>(call.output) + row * call.width + column,
            gradient_of<centered>(call, centre, means, values[slot], gradients[slot], others, column));
    });
  });
}

// The parameters' gradients where rows are streamed: a thread has V columns of a run of rows.
template <bool centered, class T, int V>
__global__ void __launch_bounds__(column_threads) column_sums(const RowNormCall call) {
  constexpr int S = 4;  // rows that are loaded together
  const int64_t column = (int64_t(blockIdx.x) * column_threads + threadIdx.x) * V;
  if (column >= call.width) return;
  const Range rows = share_of(call.rows, blockIdx.y, gridDim.y);
  ColumnSums<V> columns;
  for (int64_t first = rows.begin; first < rows.end; first += S) {
    Pack<T, V> values[S], gradients[S];
#pragma unroll
    for (int i = 0; i < S; ++i) {
      if (first + i >= rows.end) break;
      values[i] = load<T, V>(row_of<T>(call, call.input, first + i) + column);
      gradients[i] = load<T, V>(row_of<T>(call, call.other, first + i) + column);
    }
#pragma unroll
    for (int i = 0; i < S; ++i) {
      if (first + i >= rows.end) break;
      Centre centre = saved_centre<centered>(call, first + i);
      if constexpr (centered) centre.low = call.lows[first + i];
      columns.add(centre, values[i], gradients[i]);
    }
  }
  columns.write(call.sums + blockIdx.y * call.width + column);
}

// The kernel of a plan, for values of T in vectors of V.
template <bool centered, class T, int V>
auto kernel_of(const RowNormPlan& plan) {
  constexpr int many = many_values(sizeof(T), V > 1, true) / V;
  if (plan.path == RowPath::streamed) return &streamed<centered, T, V>;
  if (plan.path == RowPath::block) return &held<centered, T, V, many, true>;
  if (plan.values == few_values) return &held<centered, T, V, few_values / V, false>;
  return &held<centered, T, V, many, false>;
}

template <bool centered>
int run(const RowNorm& norm, const float* statistics, const RowNormGradients& gradients, void* workspace, const Target& target,
        void* stream) {
  const device::Stream queue = static_cast<device::Stream>(stream);
  if (norm.rows == 0 || norm.width == 0) {
    for (const ParameterGradient& gradient : {gradients.weight, gradients.bias}) {
      const size_t bytes = size_t(norm.width) * (gradient.dtype == Dtype::float64 ? 8 : value_bytes(gradient.dtype));
      const int status = gradient.values && bytes ? device::fill_bytes(gradient.values, 0, bytes, queue) : 0;
      if (status != 0) return status;
    }
    return 0;
  }
  const RowNormPlan plan = row_norm_backward_plan(norm, gradients, target);
  const bool sums = plan.sum_rows > 0;
  if (!gradients.input && !sums) return 0;
  RowNormCall call = make_row_norm_call(norm, plan);
  call.other = gradients.output;
  call.sum_gradient = gradients.sum;
  call.output = gradients.input;
  call.statistics = const_cast<float*>(statistics);
  if (sums) call.sums = static_cast<ChannelSums*>(workspace);
  const RowNormWorkspace pieces = row_norm_workspace(norm, plan, centered);
  if (pieces.lows) call.lows = reinterpret_cast<float*>(static_cast<char*>(workspace) + pieces.sums);
  if (gradients.input || plan.path != RowPath::streamed || centered) {
    const int status = launch_row_norm(norm.dtype, plan, call, stream, [&](auto type, auto width) {
      return kernel_of<centered, typename decltype(type)::type, width>(plan);
    });
    if (status != 0) return status;
  }
  if (!sums) return 0;
  if (plan.path == RowPath::streamed) {
    const int64_t tiles = divide_up(norm.width, plan.tile_width);
    if (tiles > std::numeric_limits<int32_t>::max()) return invalid_value;
    const dim3 grid(unsigned(tiles), unsigned(plan.sum_rows));
    const int status = launch_row_norm_in_grid(
        norm.dtype, plan.vector, grid, column_threads, call, stream,
        [&](auto type, auto width) { return &column_sums<centered, typename decltype(type)::type, width>; });
    if (status != 0) return status;
  }
  Call merge{};
  merge.channels = norm.width;
  merge.channel_sums = call.sums;
  merge.weight_gradient = gradients.weight;
  merge.bias_gradient = gradients.bias;
  return launch_parameter_gradients(merge, plan.sum_rows, 1, stream);
}

template <bool centered>
size_t workspace_bytes(const RowNorm& norm, const RowNormGradients& gradients, const Target& target) {
  if (norm.rows == 0 || norm.width == 0) return 0;
  const RowNormWorkspace pieces = row_norm_workspace(norm, row_norm_backward_plan(norm, gradients, target), centered);
  return pieces.sums + pieces.lows;
}

}  // namespace row_norm_backward
}  // namespace fastdl::cuda
