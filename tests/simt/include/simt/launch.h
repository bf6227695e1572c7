// The host's half of device_launch.cuh.
#pragma once

#include <cstddef>
#include <tuple>
#include <type_traits>

#include "runtime.h"

// As types, so that the extents stay part of them: the name is a reference to an array that the runtime holds.
#define STATIC_SHARED(type, name, ...)                                     \
  using fastdl_type_of_##name = type __VA_ARGS__;                          \
  auto& name = *static_cast<fastdl_type_of_##name*>(::simt::static_shared( \
      __PRETTY_FUNCTION__, __LINE__, #name, sizeof(fastdl_type_of_##name), ::simt::alignment_of<fastdl_type_of_##name>()))
#define DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(::simt::dynamic_shared())

namespace simt {

template <class T>
constexpr size_t alignment_of() {
  return alignof(T) < 16 ? 16 : alignof(T);
}

template <class... Parameters>
struct LaunchOf final : Launch {
  void (*kernel)(Parameters...);
  std::tuple<std::remove_cv_t<Parameters>...> arguments;

  LaunchOf(void (*kernel)(Parameters...), const Parameters&... arguments) : kernel(kernel), arguments(arguments...) {}
  void run() const override { std::apply(kernel, arguments); }
  const void* address() const override { return reinterpret_cast<const void*>(kernel); }
};

}  // namespace simt

namespace fastdl::device {

using Stream = void*;
using Status = int;

inline const char* status_text(Status status) { return status == 0 ? "no error" : "invalid launch"; }

struct Machine {
  int multiprocessors;
  int shared_bytes;
  int capability;
};
inline Machine machine() {
  const simt::Facts facts = simt::facts();
  return {facts.multiprocessors, facts.shared_bytes, facts.capability};
}

template <class... Parameters>
Status launch_cluster(void (*kernel)(Parameters...), dim3 grid, dim3 block, unsigned cluster_size, size_t shared_bytes, Stream,
                      std::type_identity_t<Parameters>... arguments) {
  const simt::LaunchOf<Parameters...> launch(kernel, arguments...);
  return simt::launch(launch, grid, block, cluster_size, shared_bytes);
}

template <class... Parameters>
Status launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream,
              std::type_identity_t<Parameters>... arguments) {
  return launch_cluster(kernel, grid, block, 1, shared_bytes, stream, arguments...);
}

inline Status fill_bytes(void* pointer, int value, size_t bytes, Stream) {
  std::memset(pointer, value, bytes);
  return 0;
}

}  // namespace fastdl::device
