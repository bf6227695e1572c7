// Forward over slabs in rows (channels last): moments, and act(w xhat + b + r), or w xhat + b of act(x) + r.
#include "activations.cuh"
#include "norm_launch.cuh"
#include "rows.cuh"

namespace fastdl::cuda {
namespace rows_forward {

// With eight values a vector a thread holds some hundred registers.
template <int V>
inline constexpr int most_threads = V == 1 ? 512 : 256;

// Shared memory in order: moments of columns and of this block's groups, centers of groups, the scratch of join_row_lanes; what is
// kept, from scratch_bytes on.
template <class T, int V>
__global__ void __launch_bounds__(most_threads<V>, V == 1 ? 1 : 2) kernel(const Call call, const Rows rows) {
  DYNAMIC_SHARED(unsigned char, shared);
  Moments *const columns = reinterpret_cast<Moments*>(shared), *const groups = columns + rows.vectors * V;
  Center* const centers = reinterpret_cast<Center*>(groups + rows.tile_groups);
  float* const tree = reinterpret_cast<float*>(centers + rows.tile_groups);
  Pack<T, V>* const kept = reinterpret_cast<Pack<T, V>*>(shared + rows.scratch_bytes) + threadIdx.x;
  const int kept_residual = rows.slots * blockDim.x;  // behind the input
  const Tile tile = tile_of_block(call, rows);
  const RowThread thread = row_thread<V>(rows, tile);
  const T* const residual = static_cast<const T*>(call.residual);

  {
    RowPointer x(static_cast<const T*>(call.input), call.input_strides, rows.input_step, tile, thread);
    RowPointer r(residual, call.residual_strides, rows.residual_step, tile, thread);
    walk(
        rows, tile, thread,
        [&](int slot) {
          keep(kept + slot * blockDim.x, x.at, 0, V);
          if (residual) keep(kept + kept_residual + slot * blockDim.x, r.at, 0, V);
        },
        x, r);
    device::cp_async_commit();
  }

  if (call.step != Step::apply) {
    device::cp_async_wait<0>();
    // Twice over this thread's values: each column's mean, then deviations from it. Fields: low, squares and high of each, and a
    // count.
    float fields[3 * V + 1];
    float(&sum)[V] = reinterpret_cast<float(&)[V]>(fields), (&squares)[V] = reinterpret_cast<float(&)[V]>(fields[V]),
    (&high)[V] = reinterpret_cast<float(&)[V]>(fields[2 * V]);
    float count = 0.0f, share = 0.0f;
#pragma unroll
    for (int i = 0; i < V; ++i) high[i] = 0.0f;
#pragma unroll 1
    for (int pass = 0; pass < 2; ++pass) {
#pragma unroll
      for (int i = 0; i < V; ++i) sum[i] = squares[i] = 0.0f;
      count = 0.0f;
      walk(rows, tile, thread, [&](int slot) {
        float z[V];
        widen(kept[slot * blockDim.x], z);
        if (call.activation_first) {
          activate<sizeof(T) == 4>(call.activation, call.parameter, z);
          if (residual) {
            float r[V];
            widen(kept[kept_residual + slot * blockDim.x], r);
#pragma unroll
            for (int i = 0; i < V; ++i) z[i] += r[i];
          }
        }
        count += 1.0f;
#pragma unroll
        for (int i = 0; i < V; ++i) {
          const float d = z[i] - high[i];
          sum[i] += d;
          squares[i] += d * d;
        }
      });
      share = count > 0.0f ? 1.0f / count : 0.0f;
      if (pass == 1) break;
#pragma unroll
      for (int i = 0; i < V; ++i) high[i] = sum[i] * share;
    }
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const float low = sum[i] * share;
      squares[i] -= sum[i] * low;
      sum[i] = low;
    }
    fields[3 * V] = count;
    join_row_lanes(rows, thread, fields, tree, [](float(&a)[3 * V + 1], const float(&b)[3 * V + 1]) {
      Moments joined{};
#pragma unroll
      for (int i = 0; i < V; ++i) {
        joined = merge({a[3 * V], a[2 * V + i], a[i], a[V + i]}, {b[3 * V], b[2 * V + i], b[i], b[V + i]});
        a[2 * V + i] = joined.high, a[i] = joined.low, a[V + i] = joined.squares;
      }
      a[3 * V] = joined.count;
    });
    if (thread.lane == 0 && thread.active) {
#pragma unroll
      for (int i = 0; i < V; ++i) columns[thread.vector * V + i] = {fields[3 * V], high[i], sum[i], squares[i]};
    }
    device::block_barrier();
    for_groups(rows, tile, [&](int group, int lane, int lanes) {
      const Range range = columns_of_group(rows, tile, group);
      Moments moments{0.0f, 0.0f, 0.0f, 0.0f};
      for (int column = range.begin + lane; column < range.end; column += lanes) moments = merge(moments, columns[column]);
      if (lanes > 1) moments = merge_warp(moments);
      if (lane == 0) groups[group] = moments;
    });
    if (call.clustered) device::cluster_barrier();
    else device::block_barrier();

    for (int group = threadIdx.x; group < tile.groups; group += blockDim.x) {
      const int64_t slab = tile.outer * rows.groups + tile.first_group + group;
      Moments moments = groups[group];
      if (call.step == Step::gather) {
        call.partial_moments[tile.rank * call.slabs + slab] = {moments.count, double(moments.high) + double(moments.low),
                                                               moments.squares};
        continue;
      }
      if (call.clustered) {
        moments = {0.0f, 0.0f, 0.0f, 0.0f};
        for (int rank = 0; rank < call.ranks; ++rank) moments = merge(moments, *device::map_shared(groups + group, unsigned(rank)));
      }
      centers[group] = center_of(moments, call.eps);
      if (tile.rank == 0) {
        call.statistics[slab] = double(moments.high) + double(moments.low);
        call.statistics[call.slabs + slab] = double(moments.squares) / double(moments.count);
      }
    }
    if (call.step == Step::gather) return;
    if (call.clustered) device::cluster_arrive();  // awaited below, before this block's shared memory goes
  } else {
    for (int group = threadIdx.x; group < tile.groups; group += blockDim.x) {
      const int64_t slab = tile.outer * rows.groups + tile.first_group + group;
      const double mean = read<double>(call.mean, slab), variance = read<double>(call.variance, slab);
      centers[group] = center_of(mean, variance, call.eps);
      if (call.statistics && tile.rank == 0) {
        call.statistics[slab] = mean;
        call.statistics[call.slabs + slab] = variance;
      }
    }
  }
  device::block_barrier();

  float high[V], scale[V], shift[V];
  if (thread.active) {
    int group[V];
    groups_of_columns(rows, thread, group);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const Center center = centers[group[i]];
      high[i] = center.high;
      scale[i] = center.reciprocal_deviation * weight_of(call.weight, thread.column + i);
      shift[i] = bias_of(call.bias, thread.column + i) - center.low * scale[i];
    }
  }
  device::cp_async_wait<0>();
  RowPointer y(static_cast<T*>(call.output), call.output_strides, rows.output_step, tile, thread);
  walk(
      rows, tile, thread,
      [&](int slot) {
        float u[V], r[V];
        widen(kept[slot * blockDim.x], u);
#pragma unroll
        for (int i = 0; i < V; ++i) r[i] = 0.0f;
        if (residual) widen(kept[kept_residual + slot * blockDim.x], r);
        if (!call.activation_first) {
#pragma unroll
          for (int i = 0; i < V; ++i) u[i] = (u[i] - high[i]) * scale[i] + shift[i] + r[i];
        }
        activate<sizeof(T) == 4>(call.activation, call.parameter, u);
        if (call.activation_first) {
#pragma unroll
          for (int i = 0; i < V; ++i) u[i] = (u[i] + r[i] - high[i]) * scale[i] + shift[i];
        }
        store(y.at, u, 0, V);
      },
      y);
  if (call.clustered) device::cluster_wait();
}

}  // namespace rows_forward

size_t rows_forward_scratch_bytes(const Rows& rows, int vector) {
  const size_t moments = size_t(rows.vectors) * vector + size_t(rows.tile_groups);
  return round_up(moments * sizeof(Moments) + size_t(rows.tile_groups) * sizeof(Center) +
                  tree_floats(rows, 3 * vector + 1) * sizeof(float));
}

int launch_rows_forward(const Launch& launch, const Call& call, const Rows& rows) {
  return launch_by_dtype(launch, call, rows, [&](auto type, auto width) {
    return &rows_forward::kernel<typename decltype(type)::type, decltype(width)::value>;
  });
}

}  // namespace fastdl::cuda
