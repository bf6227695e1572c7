// From a launch's dtype and vector width to the kernel that serves it, and over the grid's limit.
#pragma once

#include <type_traits>

#include "elements.cuh"
#include "norm_call.h"

namespace fastdl::cuda {

template <class T>
struct Type {
  using type = T;
};

// kernel_of(Type<T>, integral_constant<int, V>) is the kernel for values of T, V at a time.
template <class Shape, class F>
int launch_by_dtype(const Launch& launch, const Call& given, const Shape& shape, F kernel_of) {
  Call call = given;
  call.blocks = launch.blocks;
  auto run = [&](auto kernel) {
    const int64_t most = int64_t(1) << 30;
    for (call.first_block = 0; call.first_block < launch.blocks; call.first_block += most) {
      const int64_t rest = launch.blocks - call.first_block;
      const dim3 grid(unsigned(rest < most ? rest : most)), block(launch.threads);
      const int status = device::launch_cluster(kernel, grid, block, unsigned(launch.cluster), launch.shared_bytes,
                                                static_cast<device::Stream>(launch.stream), call, shape);
      if (status != 0) return status;
    }
    return 0;
  };
  auto with_type = [&](auto type) {
    using T = typename decltype(type)::type;
    if (launch.vector) return run(kernel_of(type, std::integral_constant<int, full_vector<T>>{}));
    return run(kernel_of(type, std::integral_constant<int, 1>{}));
  };
  switch (launch.dtype) {
    case Dtype::bfloat16: return with_type(Type<bfloat16_bits>{});
    case Dtype::float16: return with_type(Type<half_bits>{});
    default: return with_type(Type<float>{});
  }
}

}  // namespace fastdl::cuda
