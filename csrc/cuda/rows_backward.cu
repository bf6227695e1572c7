// Backward over slabs in rows (channels last); the equations are those of strips_backward.cu.
#include "activations.cuh"
#include "norm_launch.cuh"
#include "rows.cuh"

namespace fastdl::cuda {
namespace rows_backward {

// With eight values a vector a thread holds some hundred registers.
template <int V>
inline constexpr int most_threads = V == 1 ? 512 : 256;

// What a group's values are centred with; and gx = gu d w + (x - mean's high part) by_input + constant.
struct Group {
  Center center;
  float by_input, constant;
};

__device__ __forceinline__ void set_means(Group& group, float m1, float m2) {
  const float d = group.center.reciprocal_deviation;
  group.by_input = -d * d * m2;
  group.constant = d * (d * m2 * group.center.low - m1);
}

// Shared memory in order: sums of this block's groups, sums of columns, coefficients of groups, the scratch of join_row_lanes; what
// is kept, from scratch_bytes on.
template <class T, int V>
__global__ void __launch_bounds__(most_threads<V>, V == 1 ? 1 : 2) kernel(const Call call, const Rows rows) {
  DYNAMIC_SHARED(unsigned char, shared);
  Sums* const group_sums = reinterpret_cast<Sums*>(shared);
  ChannelSums* const columns = reinterpret_cast<ChannelSums*>(group_sums + rows.tile_groups);
  Group* const groups = reinterpret_cast<Group*>(columns + rows.vectors * V);
  float* const tree = reinterpret_cast<float*>(groups + rows.tile_groups);
  Pack<T, V>* const kept = reinterpret_cast<Pack<T, V>*>(shared + rows.scratch_bytes) + threadIdx.x;
  const int kept_gradient = rows.slots * blockDim.x, kept_residual = 2 * kept_gradient;  // behind the input
  const Tile tile = tile_of_block(call, rows);
  const RowThread thread = row_thread<V>(rows, tile);
  const T* const residual = static_cast<const T*>(call.residual);
  const int64_t first_slab = tile.outer * rows.groups + tile.first_group;

  {
    RowPointer x(static_cast<const T*>(call.input), call.input_strides, rows.input_step, tile, thread);
    RowPointer g(static_cast<const T*>(call.gradient), call.gradient_strides, rows.gradient_step, tile, thread);
    RowPointer r(residual, call.residual_strides, rows.residual_step, tile, thread);
    walk(
        rows, tile, thread,
        [&](int slot) {
          keep(kept + slot * blockDim.x, x.at, 0, V);
          keep(kept + kept_gradient + slot * blockDim.x, g.at, 0, V);
          if (residual) keep(kept + kept_residual + slot * blockDim.x, r.at, 0, V);
        },
        x, g, r);
    device::cp_async_commit();
  }

  for (int group = threadIdx.x; group < tile.groups; group += blockDim.x) {
    const int64_t slab = first_slab + group;
    groups[group].center = center_of(read<double>(call.mean, slab), read<double>(call.variance, slab), call.eps);
    const bool known = call.step == Step::apply && call.means;
    set_means(groups[group], known ? float(call.means[slab].gradient) : 0.0f, known ? float(call.means[slab].product) : 0.0f);
  }
  device::block_barrier();

  float high[V], scale[V], shift[V];
  if (thread.active) {
    int group[V];
    groups_of_columns(rows, thread, group);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const Center center = groups[group[i]].center;
      high[i] = center.high;
      scale[i] = center.reciprocal_deviation * weight_of(call.weight, thread.column + i);
      shift[i] = bias_of(call.bias, thread.column + i) - center.low * scale[i];
    }
  }
  device::cp_async_wait<0>();

  // First the sums, then what is made of them: one loop, as the activation's code is most of the kernel.
#pragma unroll 1
  for (int pass = call.step == Step::apply ? 1 : 0; pass < 2; ++pass) {
    // In the first pass the sums of g and of g z; in the second a group's by_input and constant. One array, as either fills it.
    float gradients[2 * V];
    float(&first)[V] = reinterpret_cast<float(&)[V]>(gradients), (&second)[V] = reinterpret_cast<float(&)[V]>(gradients[V]);
#pragma unroll
    for (int i = 0; i < 2 * V; ++i) gradients[i] = 0.0f;
    if (pass == 1 && thread.active) {
      int group[V];
      groups_of_columns(rows, thread, group);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        first[i] = groups[group[i]].by_input;
        second[i] = groups[group[i]].constant;
      }
    }
    RowPointer gx(static_cast<T*>(call.output), call.output_strides, rows.output_step, tile, thread);
    RowPointer gr(static_cast<T*>(call.residual_gradient), call.output_strides, rows.output_step, tile, thread);
    walk(
        rows, tile, thread,
        [&](int slot) {
          float x[V], z[V], g[V];
          widen(kept[slot * blockDim.x], x);
#pragma unroll
          for (int i = 0; i < V; ++i) z[i] = x[i];
          if (call.activation_first) {
            activate<sizeof(T) == 4>(call.activation, call.parameter, z);
            if (residual) add(z, kept[kept_residual + slot * blockDim.x]);
          }
#pragma unroll
          for (int i = 0; i < V; ++i) z[i] -= high[i];
          widen(kept[kept_gradient + slot * blockDim.x], g);
          if (!call.activation_first) {
#pragma unroll
            for (int i = 0; i < V; ++i) x[i] = z[i] * scale[i] + shift[i];
            if (residual) add(x, kept[kept_residual + slot * blockDim.x]);
            scale_by_slope<sizeof(T) == 4>(call.activation, call.parameter, g, x);
          }
          if (pass == 0) {
#pragma unroll
            for (int i = 0; i < V; ++i) {
              first[i] += g[i];
              second[i] += g[i] * z[i];
            }
            return;
          }
          if (!call.activation_first && call.residual_gradient) store(gr.at, g, 0, V);
        // Constants send nothing back, and 0 times a value that is not finite would.
#pragma unroll
          for (int i = 0; i < V; ++i) g[i] = call.constant ? g[i] * scale[i] : g[i] * scale[i] + z[i] * first[i] + second[i];
          if (call.activation_first) {
            if (call.residual_gradient) store(gr.at, g, 0, V);
            scale_by_slope<sizeof(T) == 4>(call.activation, call.parameter, g, x);
          }
          if (call.output) store(gx.at, g, 0, V);
        },
        gx, gr);
    if (pass == 1) break;

    join_row_lanes(rows, thread, gradients, tree, [](float(&a)[2 * V], const float(&b)[2 * V]) {
#pragma unroll
      for (int i = 0; i < 2 * V; ++i) a[i] += b[i];
    });
    if (thread.lane == 0 && thread.active) {
      int group[V];
      groups_of_columns(rows, thread, group);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const int64_t channel = thread.column + i;
        const Center center = groups[group[i]].center;
        const ChannelSums sum{first[i], center.reciprocal_deviation * (second[i] - center.low * first[i])};
        columns[thread.vector * V + i] = sum;
        if (call.channel_sums) call.channel_sums[(tile.row_rank * rows.outer + tile.outer) * call.channels + channel] = sum;
      }
    }
    device::block_barrier();
    for_groups(rows, tile, [&](int group, int lane, int lanes) {
      const Range range = columns_of_group(rows, tile, group);
      Sums total{0.0, 0.0};
      for (int column = range.begin + lane; column < range.end; column += lanes) {
        const double weight = call.slab_is_channel ? 1.0 : double(weight_of(call.weight, tile.first_column + column));
        total.gradient += weight * double(columns[column].gradient);
        total.product += weight * double(columns[column].product);
      }
      for (int step = lanes / 2; step > 0; step /= 2) {
        total.gradient += device::shuffle_xor(total.gradient, step);
        total.product += device::shuffle_xor(total.product, step);
      }
      if (lane == 0) group_sums[group] = total;
    });
    if (call.clustered) device::cluster_barrier();
    else device::block_barrier();

    for (int group = threadIdx.x; group < tile.groups; group += blockDim.x) {
      const int64_t slab = first_slab + group;
      Sums total = group_sums[group];
      if (call.step == Step::gather) {
        call.partial_sums[tile.rank * call.slabs + slab] = {total.gradient, total.product};
        continue;
      }
      if (call.clustered) {
        total = {0.0, 0.0};
        for (int rank = 0; rank < call.ranks; ++rank) {
          const Sums part = *device::map_shared(group_sums + group, unsigned(rank));
          total.gradient += part.gradient;
          total.product += part.product;
        }
      }
      if (call.slab_is_channel) {
        if (tile.rank == 0) {
          if (call.weight_gradient.values) write(call.weight_gradient.values, call.weight_gradient.dtype, slab, total.product);
          if (call.bias_gradient.values) write(call.bias_gradient.values, call.bias_gradient.dtype, slab, total.gradient);
        }
        const double weight = weight_of(call.weight, slab);
        total = {total.gradient * weight, total.product * weight};
      }
      if (!call.constant) set_means(groups[group], float(total.gradient / call.count), float(total.product / call.count));
    }
    if (call.step == Step::gather) return;
    if (call.clustered) device::cluster_arrive();  // awaited below, before this block's shared memory goes
    device::block_barrier();
    if (!call.output && !call.residual_gradient) break;
  }
  if (call.clustered) device::cluster_wait();
}

}  // namespace rows_backward

size_t rows_backward_scratch_bytes(const Rows& rows, int vector) {
  return round_up(size_t(rows.tile_groups) * (sizeof(Sums) + sizeof(rows_backward::Group)) +
                  size_t(rows.vectors) * vector * sizeof(ChannelSums) + tree_floats(rows, 2 * vector) * sizeof(float));
}

int launch_rows_backward(const Launch& launch, const Call& call, const Rows& rows) {
  return launch_by_dtype(launch, call, rows, [&](auto type, auto width) {
    return &rows_backward::kernel<typename decltype(type)::type, decltype(width)::value>;
  });
}

}  // namespace fastdl::cuda
