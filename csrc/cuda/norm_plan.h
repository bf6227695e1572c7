// How a normalisation is laid out on a machine: which path, how many blocks, what each of them keeps. By counting alone: nothing is
// measured or tuned at run time, and the same arguments always give the same plan.
#pragma once

#include "norm_call.h"

namespace fastdl::cuda {

// Group norm takes its slabs within a sample, batch norm by channel across samples.
struct Task {
  const Norm& norm;
  int64_t groups;  // of channels; all of them for batch norm
  bool across_samples;
  bool constant;  // statistics are given, and are constants
};

// A tensor that the kernels touch.
struct Operand {
  const void* data;
  Strides strides;
};

struct Plan {
  Path path;  // block, cluster or split
  bool by_rows;
  Strips strips;  // if not by_rows
  Rows rows;      // if by_rows
  int ranks;
  int64_t slabs;
  double count;   // values a slab
  Launch launch;  // of the large kernels; without the stream
};

// Whether 16-byte accesses fit all of these tensors.
bool fits_vectors(const Task& task, const Operand* operands, int count);

// kept: how many of the tensors a block keeps; the input, the gradient if backward, the residual if there is one.
Plan make_plan(const Task& task, const Target& target, bool backward, bool vector, int kept);

// The two halves of make_plan. False if no plan of this kind exists.
bool plan_strips(const Task& task, const Target& target, int vector, int kept, bool aligned, Plan& plan);
bool plan_rows(const Task& task, const Target& target, bool backward, int vector, int kept, Plan& plan);

// Once the call is known.
void set_row_steps(const Call& call, Rows& rows);

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline size_t value_bytes(Dtype dtype) { return dtype == Dtype::float32 ? 4 : 2; }

}  // namespace fastdl::cuda
