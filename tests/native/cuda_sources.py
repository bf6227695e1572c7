"""A source tree of one kernel that stands for ``csrc/cuda``, and an nvcc that only says what a test wants."""

from pathlib import Path

from tests.native.harness import executable

BINDINGS = """
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include "../shared.h"
#include "twice.h"

static void twice(torch::stable::Tensor x) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(0, &stream));
  made_up::twice(static_cast<float*>(x.mutable_data_ptr()), made_up::factor * x.numel() / made_up::factor, stream);
}
STABLE_TORCH_LIBRARY(fastdl_made_up_cuda, m) { m.def("twice(Tensor(a!) x) -> ()"); }
STABLE_TORCH_LIBRARY_IMPL(fastdl_made_up_cuda, CUDA, m) { m.impl("twice", TORCH_BOX(&twice)); }
"""
SHARED = """
#pragma once
namespace made_up { inline constexpr int factor = 2; }
"""
HEADER = """
#pragma once
#include <cstdint>
namespace made_up { void twice(float* x, int64_t count, void* stream); }
"""
KERNEL = """
#include "twice.h"
#include "twice.cuh"
#include "../shared.h"
void made_up::twice(float* x, int64_t count, void* stream) {
  doubled<<<unsigned((count + 255) / 256), 256, 0, static_cast<cudaStream_t>(stream)>>>(x, count);
}
"""
DEVICE_HEADER = """
#pragma once
static __global__ void doubled(float* x, int64_t count) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) x[i] = 2 * x[i];
}
"""


def write_cuda_sources(root: Path) -> Path:
    """The made-up source tree, in ``root``."""
    (root / "cuda").mkdir(parents=True)
    (root / "shared.h").write_text(SHARED)
    for name, text in (
        ("bindings.cpp", BINDINGS),
        ("twice.h", HEADER),
        ("twice.cuh", DEVICE_HEADER),
        ("twice.cu", KERNEL),
    ):
        (root / "cuda" / name).write_text(text)
    return root


def fake_nvcc(root: Path, release: str = "13.0", *, runtime: bool = True) -> Path:
    """A toolkit at ``root`` whose nvcc tells its release and its place, and compiles nothing; its nvcc."""
    for folder in ("bin", "include", "lib64"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "include" / "cuda_runtime.h").touch()
    if runtime:
        (root / "lib64" / "libcudart_static.a").touch()
    return executable(
        root / "bin" / "nvcc",
        'case "$*" in\n'
        f'  *--version*) echo "Cuda compilation tools, release {release}, V{release}.1";;\n'
        f'  *--dryrun*) echo "#\\$ TOP={root}/bin/.." >&2;;\n'
        '  *) echo "error: nothing is compiled here" >&2; exit 1;;\n'
        "esac",
    )
