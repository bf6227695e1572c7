"""The gate's own tests: CUDA C++ kernels with a planted fault are refused, and what is clean passes."""

from dataclasses import replace
from pathlib import Path

import pytest

from fastdl.inspection import cuda_code
from fastdl.inspection.resources import Resources
from fastdl.kernels.shipped import ARCHITECTURES

from .limits import CudaLimits, check_cuda

pytestmark = pytest.mark.skipif(bool(cuda_code.missing()), reason=cuda_code.missing())

# Two files would be compiled in nearly twice the time of one: all faults are in the same.
SOURCE = r"""
#include "toys.cuh"
#include <cuda_runtime.h>
namespace toys {
template <typename Vector>
__global__ void copy(const Vector* input, const float* factors, Vector* output, int count) {
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index < count) {
        Vector values = input[index];
        values.x *= factors[blockIdx.x];
        output[index] = values;
    }
}
template __global__ void copy<float4>(const float4*, const float*, float4*, int);
template __global__ void copy<float1>(const float1*, const float*, float1*, int);

__global__ void centre(const float* input, float* output) {
    float values[COUNT];
    float sum = 0;
#pragma unroll
    for (int index = 0; index < COUNT; ++index) {
        values[index] = input[index * blockDim.x + threadIdx.x];
        sum += values[index];
    }
#pragma unroll
    for (int index = 0; index < COUNT; ++index) output[index * blockDim.x + threadIdx.x] = values[index] - sum;
}

__global__ void pick(const float* input, float* output, const int* order) {
    __shared__ float shared[256];
    shared[threadIdx.x] = input[threadIdx.x];
    float values[8];
    for (int index = 0; index < 8; ++index) values[order[index]] = shared[index];
    output[threadIdx.x] = values[order[threadIdx.x]];
}

__global__ void accumulate(const float* input, float* total) { atomicAdd(total, input[threadIdx.x]); }
__global__ void count(const int* input, int* total) { atomicAdd(total, input[threadIdx.x]); }
}
"""
# A value for each thread's registers, of which there are 255, and twice as many.
FITTING, OVERFLOWING = 100, 400
GENEROUS = CudaLimits(255, 4096, wide_loads=0, wide_stores=0, narrow_loads=None, narrow_stores=None)
VECTORS = CudaLimits(32, 0, wide_loads=1, wide_stores=1, narrow_loads=1, narrow_stores=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As csrc/cuda: sources with a header beside them, inside another folder that holds headers too."""
    path = tmp_path_factory.mktemp("csrc") / "cuda"
    path.mkdir()
    (path / "toys.cu").write_text(SOURCE)
    (path / "toys.cuh").write_text(f"#define COUNT {OVERFLOWING}\n")
    return path


@pytest.fixture(scope="module")
def kernels(folder: Path) -> dict[str, Resources]:
    return cuda_code.measure(folder / "toys.cu", 90)


def refusals(kernels: dict[str, Resources], name: str, limits: CudaLimits = GENEROUS) -> list[str]:
    return check_cuda(name, 90, kernels[name], limits)


def test_kernels_are_told_by_name(kernels: dict[str, Resources]) -> None:
    assert set(kernels) == {
        "toys::copy<float4>",
        "toys::copy<float1>",
        "toys::centre",
        "toys::pick",
        "toys::accumulate",
        "toys::count",
    }


def test_a_clean_kernel_passes(kernels: dict[str, Resources]) -> None:
    assert refusals(kernels, "toys::copy<float4>", VECTORS) == []
    assert kernels["toys::copy<float4>"].loads == {16: 1, 4: 1}
    assert kernels["toys::copy<float4>"].stores == {16: 1}


def test_narrow_accesses_are_refused(kernels: dict[str, Resources]) -> None:
    name = "toys::copy<float1>"
    assert refusals(kernels, name, VECTORS) == [
        f"{name} on sm_90: 0 loads of 16 bytes or more (2 of 4), at least 1 are required",
        f"{name} on sm_90: 2 loads narrower than 16 bytes (2 of 4), limit 1",
        f"{name} on sm_90: 0 stores of 16 bytes or more (1 of 4), at least 1 are required",
        f"{name} on sm_90: 1 stores narrower than 16 bytes (1 of 4), limit 0",
    ]


def test_spills_are_refused(kernels: dict[str, Resources]) -> None:
    (sentence,) = refusals(kernels, "toys::centre")
    assert sentence.startswith("toys::centre on sm_90: ")
    assert sentence.endswith(" bytes of local memory (spills), limit 0")
    assert int(sentence.split()[3]) >= 4 * (OVERFLOWING - 255)


def test_an_array_that_finds_no_register_is_refused(kernels: dict[str, Resources]) -> None:
    (sentence,) = refusals(kernels, "toys::pick")
    assert sentence == "toys::pick on sm_90: 32 bytes of local memory (spills), limit 0"


def test_too_many_registers_are_refused(kernels: dict[str, Resources]) -> None:
    name = "toys::copy<float4>"
    used = kernels[name].registers
    assert refusals(kernels, name, replace(VECTORS, registers=used)) == []
    assert refusals(kernels, name, replace(VECTORS, registers=used - 1)) == [
        f"{name} on sm_90: {used} registers, limit {used - 1}"
    ]


def test_too_much_shared_memory_is_refused(kernels: dict[str, Resources]) -> None:
    used = kernels["toys::pick"].shared_bytes
    assert used >= 1024
    found = refusals(kernels, "toys::pick", replace(GENEROUS, spill_bytes=64, shared_bytes=used - 1))
    assert found == [f"toys::pick on sm_90: {used} bytes of shared memory, limit {used - 1}"]


def test_float_atomics_are_refused_and_counters_are_not(kernels: dict[str, Resources]) -> None:
    (sentence,) = refusals(kernels, "toys::accumulate")
    assert "1 atomic additions of floating-point numbers" in sentence
    assert refusals(kernels, "toys::count") == []


def test_a_missing_matrix_instruction_is_refused(kernels: dict[str, Resources]) -> None:
    found = refusals(kernels, "toys::copy<float4>", replace(VECTORS, matrix={90: "HGMMA"}))
    assert found == ["toys::copy<float4> on sm_90: no HGMMA instruction, which is required (none)"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_change_of_a_header_is_seen(folder: Path, kernels: dict[str, Resources], architecture: int) -> None:
    if reason := cuda_code.unknown(architecture):
        pytest.skip(reason)
    other = folder.parent.parent / f"fitting-{architecture}" / "cuda"
    other.mkdir(parents=True)
    (other / "toys.cu").write_text(SOURCE)
    (other / "toys.cuh").write_text(f"#define COUNT {FITTING}\n")
    measured = cuda_code.measure(other / "toys.cu", architecture)
    assert check_cuda("toys::centre", architecture, measured["toys::centre"], GENEROUS) == []
    assert kernels["toys::centre"].local_bytes > 0


def test_a_file_of_host_code_holds_no_kernel(folder: Path) -> None:
    (folder / "host.cu").write_text("int host() { return 0; }\n")
    assert cuda_code.measure(folder / "host.cu", 90) == {}


def test_what_does_not_compile_is_an_error_with_the_compilers_words(folder: Path) -> None:
    (folder / "broken.cu").write_text("__global__ void broken() { unheard_of(); }\n")
    with pytest.raises(RuntimeError, match="unheard_of"):
        cuda_code.measure(folder / "broken.cu", 90)
