// Backward over slabs in strips (NCHW). With d the reciprocal deviation, m1 and m2 the means over the slab of w gu and w gu xhat,
//   gx = d (w gu - m1 - xhat m2), gw = sum gu xhat, gb = sum gu,
// where gu is the gradient before the activation; or, with the activation first, gu is the output's and gx goes on through it.
#include "activations.cuh"
#include "norm_launch.cuh"
#include "strips.cuh"

namespace fastdl::cuda {
namespace strips_backward {

[[maybe_unused]] constexpr int most_threads = 512;

struct Scratch {
  Sums warps[32], rank;
};

// What a vector's values are multiplied with and moved by, for one channel.
struct Slope {
  float scale, shift;                     // u = (x - mean's high part) scale + shift
  float by_gradient, by_input, constant;  // gx = gu by_gradient + (x - mean's high part) by_input + constant
};

template <class T, int V>
__global__ void __launch_bounds__(most_threads) kernel(const Call call, const Strips strips) {
  DYNAMIC_SHARED(Scratch, scratch);
  Pack<T, V>* const kept = reinterpret_cast<Pack<T, V>*>(scratch + 1) + threadIdx.x;
  const Place place = place_of_block(call);
  const T *const input = static_cast<const T*>(call.input), *const residual = static_cast<const T*>(call.residual);
  const int kept_gradient = strips.slots * blockDim.x, kept_residual = 2 * kept_gradient;  // behind the input

  {
    const T *x = nullptr, *g = nullptr, *r = nullptr;
    walk<V>(
        strips, place,
        [&](const Item& item) {
          x = input + offset_of(call.input_strides, item);
          g = static_cast<const T*>(call.gradient) + offset_of(call.gradient_strides, item);
          if (residual) r = residual + offset_of(call.residual_strides, item);
          return values_before<T, V>(x);
        },
        [&](int slot, int64_t start, int low, int high) {
          if (high <= low) return;
          keep(kept + slot * blockDim.x, x + start, low, high);
          keep(kept + kept_gradient + slot * blockDim.x, g + start, low, high);
          if (r) keep(kept + kept_residual + slot * blockDim.x, r + start, low, high);
        },
        [](const Item&, bool) {});
    device::cp_async_commit();
  }
  const Center center = center_of(read<double>(call.mean, place.slab), read<double>(call.variance, place.slab), call.eps);
  const float d = center.reciprocal_deviation;
  float m1 = 0.0f, m2 = 0.0f;
  if (call.step == Step::apply && call.means) {
    m1 = float(call.means[place.slab].gradient);
    m2 = float(call.means[place.slab].product);
  }
  device::cp_async_wait<0>();

  Sums total{0.0, 0.0};
  // First the sums, then what is made of them: one loop, as the activation's code is most of the kernel.
#pragma unroll 1
  for (int pass = call.step == Step::apply ? 1 : 0; pass < 2; ++pass) {
    T *gx = nullptr, *gr = nullptr;
    Slope slope{};
    float weight = 0.0f, gradient_sum = 0.0f, product_sum = 0.0f;
    int64_t channel = -1;
    // Constants send nothing back, and 0 times a value that is not finite would.
    auto through_norm = [&](float g, float centred) {
      const float direct = g * slope.by_gradient;
      return call.constant ? direct : direct + centred * slope.by_input + slope.constant;
    };
    walk<V>(
        strips, place,
        [&](const Item& item) {
          const int64_t to = offset_of(call.output_strides, item);
          if (call.output) gx = static_cast<T*>(call.output) + to;
          if (call.residual_gradient) gr = static_cast<T*>(call.residual_gradient) + to;
          if (item.channel != channel) {
            channel = item.channel;
            weight = weight_of(call.weight, channel);
            slope.scale = d * weight;
            slope.shift = bias_of(call.bias, channel) - center.low * slope.scale;
            slope.by_gradient = d * weight;
            slope.by_input = -d * d * m2;
            slope.constant = d * (d * m2 * center.low - m1);
          }
          return values_before<T, V>(input + offset_of(call.input_strides, item));
        },
        [&](int slot, int64_t start, int low, int high) {
          if (high <= low) return;
          float x[V], z[V], g[V], r[V];
          widen(kept[slot * blockDim.x], x);
          widen(kept[kept_gradient + slot * blockDim.x], g);
#pragma unroll
          for (int i = 0; i < V; ++i) r[i] = 0.0f;
          if (residual) widen(kept[kept_residual + slot * blockDim.x], r);
#pragma unroll
          for (int i = 0; i < V; ++i) z[i] = x[i];
          if (call.activation_first) {
            activate<sizeof(T) == 4>(call.activation, call.parameter, z);
#pragma unroll
            for (int i = 0; i < V; ++i) z[i] += r[i];
          }
      // The normalised tensor's gradient, or, with the activation first, the gradient that goes on to the activation.
#pragma unroll
          for (int i = 0; i < V; ++i) {
            const float centred = z[i] - center.high;
            z[i] = centred;
            if (!call.activation_first) x[i] = centred * slope.scale + slope.shift + r[i];
            else if (pass == 1) g[i] = through_norm(g[i], centred);
          }
          if (call.activation_first && pass == 1 && gr) store(gr + start, g, low, high);
          if (!call.activation_first || pass == 1) scale_by_slope<sizeof(T) == 4>(call.activation, call.parameter, g, x);
          if (pass == 0) {
            float part = 0.0f, part_product = 0.0f;
#pragma unroll
            for (int i = 0; i < V; ++i) {
              const float valid = i >= low && i < high ? g[i] : 0.0f;
              part += valid;
              part_product += i >= low && i < high ? g[i] * z[i] : 0.0f;
            }
            gradient_sum += part;
            product_sum += part_product;
            return;
          }
          if (!call.activation_first) {
            if (gr) store(gr + start, g, low, high);
#pragma unroll
            for (int i = 0; i < V; ++i) g[i] = through_norm(g[i], z[i]);
          }
          if (gx) store(gx + start, g, low, high);
        },
        [&](const Item& item, bool active) {
          if (pass == 1) return;
          const float product = d * (product_sum - center.low * gradient_sum);
          const float factor = call.slab_is_channel ? 1.0f : weight;
          total.gradient += double(factor * gradient_sum);
          total.product += double(factor * product);
          if (call.channel_sums) {
            ChannelSums sums{gradient_sum, product};
            for (int step = 1 << strips.lanes >> 1; step > 0; step /= 2) {
              sums.gradient += device::shuffle_xor(sums.gradient, step);
              sums.product += device::shuffle_xor(sums.product, step);
            }
            if (active && (threadIdx.x & ((1 << strips.lanes) - 1)) == 0)
              call.channel_sums[(item.sample * call.channels + item.channel) * strips.pieces + item.piece] = sums;
          }
          gradient_sum = product_sum = 0.0f;
        });
    if (pass == 1) break;

    total = sum_block(total, scratch->warps);
    if (call.step == Step::gather) {
      if (threadIdx.x == 0) call.partial_sums[place.rank * call.slabs + place.slab] = {total.gradient, total.product};
      return;
    }
    if (call.clustered) {
      if (threadIdx.x == 0) scratch->rank = total;
      device::cluster_barrier();
      total = {0.0, 0.0};
      for (int rank = 0; rank < call.ranks; ++rank) {
        const Sums part = *device::map_shared(&scratch->rank, unsigned(rank));
        total.gradient += part.gradient;
        total.product += part.product;
      }
      device::cluster_arrive();  // awaited below, before this block's shared memory goes
    }
    if (call.slab_is_channel) {
      if (place.rank == 0 && threadIdx.x == 0) {
        if (call.weight_gradient.values) write(call.weight_gradient.values, call.weight_gradient.dtype, place.slab, total.product);
        if (call.bias_gradient.values) write(call.bias_gradient.values, call.bias_gradient.dtype, place.slab, total.gradient);
      }
      const double channel_weight = weight_of(call.weight, place.slab);
      total = {total.gradient * channel_weight, total.product * channel_weight};
    }
    if (!call.constant) {
      m1 = float(total.gradient / call.count);
      m2 = float(total.product / call.count);
    }
    if (!call.output && !call.residual_gradient) break;
  }
  if (call.clustered) device::cluster_wait();
}

}  // namespace strips_backward

int launch_strips_backward(const Launch& launch, const Call& call, const Strips& strips) {
  return launch_by_dtype(launch, call, strips, [&](auto type, auto width) {
    return &strips_backward::kernel<typename decltype(type)::type, decltype(width)::value>;
  });
}

}  // namespace fastdl::cuda
