// What the runtime itself promises: order, guards, limits and what drivers are told.
#include "device.cuh"
#include "simt/case.h"

namespace behaviour {
using namespace fastdl::device;

// The order in which threads came here.
__global__ void arrivals(int* out, int* count) {
  const int place = atomicAdd(count, 1);
  out[blockIdx.x * blockDim.x + threadIdx.x] = place;
}

__global__ void endless(volatile int* flag) {
  while (*flag != 1) {
  }
}

// By the compiler's own store, which only the guards see in the plain build.
__global__ void stray(unsigned char* out, int at) { out[at] = 7; }

__global__ void large(float* out) {
  STATIC_SHARED(float, first, [64 * 128]);
  STATIC_SHARED(float, second, [64 * 128]);
  first[threadIdx.x] = second[threadIdx.x] = 0;
  out[threadIdx.x] = first[threadIdx.x];
}

__global__ void values(float* out) {
  STATIC_SHARED(float, one);
  STATIC_SHARED(double, wide, [2]);
  DYNAMIC_SHARED(float, dynamic);
  out[0] = one;
  out[1] = float(wide[1]);
  out[2] = dynamic[3];
  one = 1;
  wide[1] = 2;
  dynamic[3] = 3;
}

__global__ void indices(unsigned* out) {
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  out[block * 24 + thread] =
      threadIdx.x + 10 * threadIdx.y + 100 * threadIdx.z + 1000 * blockIdx.x + 10000 * blockIdx.y + 100000 * blockIdx.z;
}
}  // namespace behaviour

SIMT_CASE(arrivals) {
  auto* count = static_cast<int*>(c.workspace(sizeof(int), "count"));
  c.check(fastdl::device::fill_bytes(count, 0, sizeof(int), nullptr));
  c.check(fastdl::device::launch(behaviour::arrivals, 3, 96, 0, nullptr, c.array<int>("out"), count));
}
SIMT_CASE(endless) { c.check(fastdl::device::launch(behaviour::endless, 1, 1, 0, nullptr, c.array<int>("flag"))); }
SIMT_CASE(stray) {
  c.check(fastdl::device::launch(behaviour::stray, 1, 1, 0, nullptr, c.array<unsigned char>("out"), int(c.integer("at"))));
}
SIMT_CASE(large) { c.check(fastdl::device::launch(behaviour::large, 1, 32, 0, nullptr, c.array<float>("out"))); }
SIMT_CASE(values) { c.check(fastdl::device::launch(behaviour::values, 3, 1, 16, nullptr, c.array<float>("out"))); }
SIMT_CASE(indices) {
  c.check(fastdl::device::launch(behaviour::indices, dim3(2, 3, 2), dim3(2, 3, 4), 0, nullptr, c.array<unsigned>("out")));
}
SIMT_CASE(launch_of) {
  const dim3 grid(unsigned(c.integer("x")), unsigned(c.integer("y"))), block(unsigned(c.integer("threads")));
  c.report("status",
           fastdl::device::launch(behaviour::values, grid, block, size_t(c.integer("shared")), nullptr, c.array<float>("out")));
}
SIMT_CASE(facts) {
  const fastdl::device::Machine machine = fastdl::device::machine();
  c.report("multiprocessors", machine.multiprocessors);
  c.report("shared_bytes", machine.shared_bytes);
  c.report("capability", machine.capability);
  c.report("bytes", int64_t(c.bytes("given")));
  c.report("offset", int64_t(reinterpret_cast<uintptr_t>(c.array<void>("given")) % 256));
  c.report("absent", c.array<void>("none") == nullptr ? 1 : 0);
  c.report("half", int64_t(2 * c.real("half")));
}
SIMT_CASE(asks_for_too_much) { c.array<void>("nothing"); }
