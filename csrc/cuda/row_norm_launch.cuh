// From a call's dtype and plan to the kernel that serves it.
#pragma once

#include <limits>

#include "norm_launch.cuh"
#include "row_norm_rows.cuh"

namespace fastdl::cuda {

inline constexpr int invalid_value = 1;  // cudaErrorInvalidValue

inline RowNormCall make_row_norm_call(const RowNorm& norm, const RowNormPlan& plan) {
  RowNormCall call{};
  call.rows = norm.rows;
  call.inner = norm.inner;
  call.width = norm.width;
  call.few_rows = norm.rows < (int64_t(1) << 32);
  call.team_bits = plan.team_bits;
  call.eps = float(norm.eps);
  call.input = norm.input;
  call.weight = norm.weight.values;
  call.bias = norm.bias.values;
  call.wide_weight = norm.weight.dtype == Dtype::float32;
  call.wide_bias = norm.bias.dtype == Dtype::float32;
  return call;
}

// kernel_of(Type<T>, integral_constant<int, V>) is the kernel for values of T, V at a time.
template <class F>
int launch_row_norm_in_grid(Dtype dtype, bool vector, dim3 grid, int threads, const RowNormCall& call, void* stream, F kernel_of) {
  const auto with_type = [&](auto type) {
    using T = typename decltype(type)::type;
    const auto run = [&](auto width) {
      return device::launch(kernel_of(type, width), grid, dim3(unsigned(threads)), 0, static_cast<device::Stream>(stream), call);
    };
    return vector ? run(std::integral_constant<int, full_vector<T>>{}) : run(std::integral_constant<int, 1>{});
  };
  switch (dtype) {
    case Dtype::bfloat16: return with_type(Type<bfloat16_bits>{});
    case Dtype::float16: return with_type(Type<half_bits>{});
    default: return with_type(Type<float>{});
  }
}

template <class F>
int launch_row_norm(Dtype dtype, const RowNormPlan& plan, const RowNormCall& call, void* stream, F kernel_of) {
  if (plan.blocks > std::numeric_limits<int32_t>::max()) return invalid_value;  // more rows than any memory holds
  return launch_row_norm_in_grid(dtype, plan.vector, dim3(unsigned(plan.blocks)), plan.threads, call, stream, kernel_of);
}

}  // namespace fastdl::cuda
