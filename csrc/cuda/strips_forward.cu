// Forward over slabs in strips (NCHW): moments, and act(w xhat + b + r), or w xhat + b of act(x) + r.
#include "activations.cuh"
#include "norm_launch.cuh"
#include "strips.cuh"

namespace fastdl::cuda {
namespace strips_forward {

[[maybe_unused]] constexpr int most_threads = 512;

struct Scratch {
  Moments warps[32], rank;
};

template <class T, int V>
__global__ void __launch_bounds__(most_threads) kernel(const Call call, const Strips strips) {
  DYNAMIC_SHARED(Scratch, scratch);
  Pack<T, V>* const kept = reinterpret_cast<Pack<T, V>*>(scratch + 1) + threadIdx.x;
  const Place place = place_of_block(call);
  const T *const input = static_cast<const T*>(call.input), *const residual = static_cast<const T*>(call.residual);
  const int kept_residual = strips.slots * blockDim.x;  // behind the input

  {
    const T *x = nullptr, *r = nullptr;
    walk<V>(
        strips, place,
        [&](const Item& item) {
          x = input + offset_of(call.input_strides, item);
          if (residual) r = residual + offset_of(call.residual_strides, item);
          return values_before<T, V>(x);
        },
        [&](int slot, int64_t start, int low, int high) {
          if (high <= low) return;
          keep(kept + slot * blockDim.x, x + start, low, high);
          if (r) keep(kept + kept_residual + slot * blockDim.x, r + start, low, high);
        },
        [](const Item&, bool) {});
    device::cp_async_commit();
  }

  Center center;
  if (call.step == Step::apply) {
    const double mean = read<double>(call.mean, place.slab), variance = read<double>(call.variance, place.slab);
    center = center_of(mean, variance, call.eps);
    if (call.statistics && place.rank == 0 && threadIdx.x == 0) {
      call.statistics[place.slab] = mean;
      call.statistics[call.slabs + place.slab] = variance;
    }
    device::cp_async_wait<0>();
  } else {
    device::cp_async_wait<0>();
    // Twice over this thread's values: their mean, then deviations from it.
    Moments moments{0.0f, 0.0f, 0.0f, 0.0f};
    float sum = 0.0f, squares = 0.0f;
#pragma unroll 1
    for (int pass = 0; pass < 2; ++pass) {
      sum = squares = 0.0f;
      walk<V>(
          strips, place, [&](const Item& item) { return values_before<T, V>(input + offset_of(call.input_strides, item)); },
          [&](int slot, int64_t, int low, int high) {
            if (high <= low) return;
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
            float part = 0.0f, part_squares = 0.0f;
            if (pass == 0) moments.count += float(high - low);
#pragma unroll
            for (int i = 0; i < V; ++i) {
              const float d = i >= low && i < high ? z[i] - moments.high : 0.0f;
              part += d;
              part_squares += d * d;
            }
            sum += part;
            squares += part_squares;
          },
          [](const Item&, bool) {});
      if (pass == 0) moments.high = moments.count > 0.0f ? sum / moments.count : 0.0f;
    }
    if (moments.count > 0.0f) {
      moments.low = sum / moments.count;
      moments.squares = squares - sum * moments.low;
    }
    moments = merge_block(moments, scratch->warps);

    if (call.step == Step::gather) {
      if (threadIdx.x == 0)
        call.partial_moments[place.rank * call.slabs + place.slab] = {moments.count, double(moments.high) + double(moments.low),
                                                                      moments.squares};
      return;
    }
    if (call.clustered) {
      if (threadIdx.x == 0) scratch->rank = moments;
      device::cluster_barrier();
      const unsigned lane = threadIdx.x % 32;
      moments = lane < unsigned(call.ranks) ? *device::map_shared(&scratch->rank, lane) : Moments{0.0f, 0.0f, 0.0f, 0.0f};
      moments = from_lane_0(merge_warp(moments));
      device::cluster_arrive();  // awaited below, before this block's shared memory goes
    }
    if (place.rank == 0 && threadIdx.x == 0) {
      call.statistics[place.slab] = double(moments.high) + double(moments.low);
      call.statistics[call.slabs + place.slab] = double(moments.squares) / double(moments.count);
    }
    center = center_of(moments, call.eps);
  }

  T *const output = static_cast<T*>(call.output), *y = nullptr;
  float scale = 0.0f, shift = 0.0f;
  int64_t channel = -1;
  walk<V>(
      strips, place,
      [&](const Item& item) {
        y = output + offset_of(call.output_strides, item);
        if (item.channel != channel) {
          channel = item.channel;
          scale = center.reciprocal_deviation * weight_of(call.weight, channel);
          shift = bias_of(call.bias, channel) - center.low * scale;
        }
        return values_before<T, V>(y);
      },
      [&](int slot, int64_t start, int low, int high) {
        if (high <= low) return;
        float u[V], r[V];
        widen(kept[slot * blockDim.x], u);
#pragma unroll
        for (int i = 0; i < V; ++i) r[i] = 0.0f;
        if (residual) widen(kept[kept_residual + slot * blockDim.x], r);
        if (!call.activation_first) {
#pragma unroll
          for (int i = 0; i < V; ++i) u[i] = (u[i] - center.high) * scale + shift + r[i];
        }
        activate<sizeof(T) == 4>(call.activation, call.parameter, u);
        if (call.activation_first) {
#pragma unroll
          for (int i = 0; i < V; ++i) u[i] = (u[i] + r[i] - center.high) * scale + shift;
        }
        store(y + start, u, low, high);
      },
      [](const Item&, bool) {});
  if (call.clustered) device::cluster_wait();
}

}  // namespace strips_forward

size_t strips_scratch_bytes() { return 2048; }

int launch_strips_forward(const Launch& launch, const Call& call, const Strips& strips) {
  return launch_by_dtype(launch, call, strips, [&](auto type, auto width) {
    return &strips_forward::kernel<typename decltype(type)::type, decltype(width)::value>;
  });
}

}  // namespace fastdl::cuda
