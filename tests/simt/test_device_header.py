"""Both halves of device.cuh: everything that it offers compiles, for each architecture and for the host."""

from pathlib import Path

import pytest

from fastdl.native.cuda_toolkit import find_nvcc
from fastdl.native.status import NativeUnavailableError
from tests.simt.harness import CSRC, HERE, Runner, SimtError, build, compile_once

SOURCE = HERE / "kernels" / "everything.cu"
ARCHITECTURES = ("80", "90a", "100a")


def test_nvcc_compiles_everything_for_every_architecture_without_a_warning() -> None:
    try:
        nvcc = find_nvcc()
    except NativeUnavailableError as error:
        pytest.skip(str(error))
    targets = [word for each in ARCHITECTURES for word in ("-gencode", f"arch=compute_{each},code=sm_{each}")]
    # The oldest standard that the headers are written for.
    command = [str(nvcc.path), "-std=c++17", "-Werror", "all-warnings", "--threads", "2", *targets]
    compile_once([*command, f"-I{CSRC / 'cuda'}", "-c"], SOURCE, nvcc.identity)


def test_the_host_compiles_everything() -> None:
    assert isinstance(build([SOURCE], "plain"), Runner)


@pytest.mark.parametrize(
    "line",
    [
        # The host could not tell where such an array ends, or give each block of a cluster its own.
        "__shared__ float staged[32];",
        "extern __shared__ float staged[];",
        'asm volatile("bar.sync 0;");',
    ],
)
def test_the_host_refuses_what_it_cannot_check(line: str, tmp_path: Path) -> None:
    source = tmp_path / "refused.cu"
    source.write_text(f'#include "device.cuh"\n__global__ void kernel() {{\n  {line}\n}}\n')
    with pytest.raises(SimtError, match=r"error|Error"):
        build([source], "plain")
