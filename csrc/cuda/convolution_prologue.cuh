// act(norm(x)) of a vector of channels on its way into a convolution, and the way back through both.
#pragma once

#include "activations.cuh"
#include "convolution.h"
#include "elements.cuh"
#include "moments.cuh"

namespace fastdl::cuda {

// Of V neighbouring channels. Without a norm they leave values as they are.
template <int V>
struct Channels {
  float high[V], low[V], scale[V], bias[V];

  __device__ __forceinline__ Channels() {
#pragma unroll
    for (int i = 0; i < V; ++i) high[i] = low[i] = bias[i] = 0.0f, scale[i] = 1.0f;
  }

  // Of those channels from `channel` on that there are, of a sample.
  __device__ __forceinline__ void load(const Prologue& prologue, int64_t channels, int64_t sample, int64_t channel) {
    if (!prologue.coefficients) return;
    const ChannelCoefficients* const from = prologue.coefficients + (prologue.by_sample ? sample * channels : 0) + channel;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      if (channel + i >= channels) continue;
      const auto c = device::load_vector<ChannelCoefficients, device::Cache::read_only>(from + i);
      high[i] = c.high, low[i] = c.low, scale[i] = c.scale, bias[i] = c.bias;
    }
  }

  __device__ __forceinline__ void apply(float (&x)[V]) const {
#pragma unroll
    for (int i = 0; i < V; ++i) x[i] = fmaf((x[i] - high[i]) - low[i], scale[i], bias[i]);
  }
};

// x becomes act(norm(x)), or norm(act(x)).
template <class T, int V>
__device__ __forceinline__ void enter(const Prologue& prologue, const Channels<V>& channels, float (&x)[V]) {
  if (!prologue.activation_first) channels.apply(x);
  activate<sizeof(T) == 4>(prologue.activation, prologue.parameter, x);
  if (prologue.activation_first) channels.apply(x);
}

// The same of a vector in shared memory, in place.
template <class T, int V>
__device__ __forceinline__ void enter(const Prologue& prologue, const Channels<V>& channels, Pack<T, V>* at) {
  float x[V];
  widen(*at, x);
  enter<T>(prologue, channels, x);
  Pack<T, V> pack;
#pragma unroll
  for (int i = 0; i < V; ++i) pack[i] = device::narrow<T>(x[i]);
  device::store_vector(at, pack);
}

// g, the gradient of act(norm(x)), becomes that of the affine map's output, and z what the map centres.
template <class T, int V>
__device__ __forceinline__ void leave(const Prologue& prologue, const Channels<V>& channels, const float (&x)[V], float (&g)[V],
                                      float (&z)[V]) {
#pragma unroll
  for (int i = 0; i < V; ++i) z[i] = x[i];
  if (prologue.activation_first) activate<sizeof(T) == 4>(prologue.activation, prologue.parameter, z);
  float u[V];
#pragma unroll
  for (int i = 0; i < V; ++i) {
    z[i] = (z[i] - channels.high[i]) - channels.low[i];
    u[i] = fmaf(z[i], channels.scale[i], channels.bias[i]);
  }
  if (!prologue.activation_first) scale_by_slope<sizeof(T) == 4>(prologue.activation, prologue.parameter, g, u);
}

// What is left to do where the norm's statistics send nothing back.
template <class T, int V>
__device__ __forceinline__ void leave_constant(const Prologue& prologue, const Channels<V>& channels, const float (&x)[V],
                                               float (&g)[V]) {
#pragma unroll
  for (int i = 0; i < V; ++i) g[i] *= channels.scale[i];
  if (prologue.activation_first) scale_by_slope<sizeof(T) == 4>(prologue.activation, prologue.parameter, g, x);
}

// The sums over rows that backward needs, of V channels.
template <int V>
struct GradientSums {
  float gradient[V] = {}, product[V] = {};

  __device__ __forceinline__ void add(const float (&g)[V], const float (&z)[V]) {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      gradient[i] += g[i];
      product[i] = fmaf(g[i], z[i], product[i]);
    }
  }
};

// Adds up the sums of the block's threads with the same vector, thread t having vector t % vectors, and writes those of
// `columns` channels. scratch: a ChannelSums for each value of each thread. It has its own barriers.
template <int V>
__device__ __forceinline__ void write_gradient_sums(const GradientSums<V>& sums, int vectors, int columns, ChannelSums* scratch,
                                                    ChannelSums* to) {
  const int width = vectors * V, vector = int(threadIdx.x) % vectors, lane = int(threadIdx.x) / vectors;
  const int lanes = int(blockDim.x) / vectors;
  device::block_barrier();
  // Value by value, so that neighbouring threads use neighbouring banks.
#pragma unroll
  for (int i = 0; i < V; ++i)
    device::store_vector(scratch + lane * width + i * vectors + vector, Pack<float, 2>{sums.gradient[i], sums.product[i]});
  device::block_barrier();
  for (int column = int(threadIdx.x); column < columns; column += int(blockDim.x)) {
    double gradient = 0.0, product = 0.0;
    for (int from = 0; from < lanes; ++from) {
      const ChannelSums part = scratch[from * width + column % V * vectors + column / V];
      gradient += double(part.gradient);
      product += double(part.product);
    }
    to[column] = {float(gradient), float(product)};
  }
  device::block_barrier();
}

}  // namespace fastdl::cuda
