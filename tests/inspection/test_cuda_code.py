"""What is known of the launches of CUDA C++ kernels: their bounds, and their shared memory."""

import pytest

from fastdl.inspection import cuda_code
from fastdl.inspection.dynamic_shared import CONSTANTS, NAMESPACE
from fastdl.inspection.resources import Launch

# Named as the kernels of a fixed size are, to be asked for the constant that the table names.
SOURCE = r"""
namespace fastdl::cuda {
template <class T, int D>
inline constexpr unsigned long shared_bytes_of = D * sizeof(T) + 16;

namespace attention_forward_mma {
template <class T, int D>
inline constexpr unsigned long shared_bytes = shared_bytes_of<T, D>;
template <class T, int D>
__global__ void __launch_bounds__(96, 2) kernel(T* output) {
    extern __shared__ __align__(16) unsigned char dynamic[];
    __shared__ T fixed[64];
    fixed[threadIdx.x % 64] = T(dynamic[threadIdx.x]);
    __syncthreads();
    output[threadIdx.x] = fixed[(threadIdx.x + 1) % 64];
}
template __global__ void kernel<float, 32>(float*);
template __global__ void kernel<double, 64>(double*);
}

namespace by_shape {
__global__ void __launch_bounds__(512) kernel(unsigned char* output) {
    extern __shared__ __align__(16) unsigned char dynamic[];
    dynamic[threadIdx.x] = output[threadIdx.x];
    __syncthreads();
    output[threadIdx.x] = dynamic[threadIdx.x ^ 1];
}
}

__global__ void unbounded(float* output) { output[threadIdx.x] = 1; }
}
"""


@pytest.fixture(scope="module")
def launches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Launch]:
    if reason := cuda_code.missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("csrc") / "cuda"
    folder.mkdir()
    (folder / "toy.cu").write_text(SOURCE)
    return {name: resources.launch for name, resources in cuda_code.measure(folder / "toy.cu", 90).items()}


def test_a_fixed_size_is_that_of_the_source(launches: dict[str, Launch]) -> None:
    assert launches["fastdl::cuda::attention_forward_mma::kernel<float, 32>"] == Launch(96, False, 2, 256, 144)
    assert launches["fastdl::cuda::attention_forward_mma::kernel<double, 64>"] == Launch(96, False, 2, 512, 528)


def test_a_size_that_the_plan_counts_is_not_known(launches: dict[str, Launch]) -> None:
    assert launches["fastdl::cuda::by_shape::kernel"] == Launch(512, False, 0, 0, None)


def test_a_kernel_without_bounds_may_have_as_many_threads_as_a_block_can(launches: dict[str, Launch]) -> None:
    assert launches["fastdl::cuda::unbounded"] == Launch(1024, False, 0, 0, 0)


def test_every_constant_is_that_of_a_kernel() -> None:
    """A kernel that was given another name would be said to depend on the shape."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(cuda_code.folder().glob("*.limits.json")))
    assert [name for name in CONSTANTS if f'"{NAMESPACE}{name}<' not in text] == []


@pytest.mark.parametrize("architecture", [80, 90])
def test_attention_is_launched_with_what_its_tiles_take(architecture: int) -> None:
    """Three tiles of 64 rows with 64 features of 2 bytes and 16 bytes between rows (attention_sizes.h)."""
    if reason := cuda_code.missing() or cuda_code.unknown(architecture):
        pytest.skip(reason)
    found = cuda_code.measure(cuda_code.folder() / "attention_forward_bfloat16.cu", architecture)
    launch = found["fastdl::cuda::attention_forward_mma::kernel<fastdl::device::bfloat16_bits, 64>"].launch
    assert (launch.threads, launch.minimum_blocks) == (128, 3)
    assert launch.dynamic_shared_bytes == (64 + 2 * 64) * (64 * 2 + 16)


def test_names_lose_their_arguments_and_the_types_of_their_constants() -> None:
    assert cuda_code.without_arguments("void ns::apply<float, (int)4, (bool)1>(ns::Problem<float>)") == (
        "ns::apply<float, 4, 1>"
    )
    assert cuda_code.without_arguments("ns::plain(float*)") == "ns::plain"
    assert cuda_code.without_arguments("void ns::(anonymous namespace)::hidden<2>(int)") == (
        "ns::(anonymous namespace)::hidden<2>"
    )
