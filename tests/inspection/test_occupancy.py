"""Occupancy: worked examples, the edges of every limit, and NVIDIA's own calculator where its header is at hand."""

import importlib.util
import itertools
import shutil
import subprocess
from pathlib import Path

import pytest

from fastdl.inspection.occupancy import ARCHITECTURES, occupancy

KIB = 1024


@pytest.mark.parametrize(
    ("number", "threads", "registers", "shared", "blocks", "limited_by"),
    [
        # 32 registers for each of 2048 threads are all of the 65536 that there are.
        (80, 256, 32, 0, 8, ("registers", "threads")),
        (80, 256, 33, 0, 6, ("registers",)),  # 40 a thread, given in units of 256 a warp: 12 warps a part, 48 in all
        (90, 384, 168, 0, 1, ("registers",)),  # as warp-group attention with three warp groups has them
        (90, 128, 168, 0, 3, ("registers",)),
        (90, 128, 255, 0, 2, ("registers",)),
        # A block has all registers, or one too many.
        (90, 1024, 64, 0, 1, ("registers",)),
        (90, 1024, 65, 0, 0, ("registers",)),
        (90, 128, 256, 0, 0, ("registers",)),
        # A warp's registers lie in one part: 16384 of them hold 2 warps of 32 x 176, and four parts 8 and not 9.
        (90, 288, 168, 0, 1, ("registers",)),
        (90, 288, 176, 0, 0, ("registers",)),
        # 1 KiB goes with each block.
        (90, 128, 32, 227 * KIB, 1, ("shared",)),
        (90, 128, 32, 227 * KIB + 1, 0, ("shared",)),
        (90, 128, 32, 113 * KIB, 2, ("shared",)),
        (90, 128, 32, 113 * KIB + 1, 1, ("shared",)),
        (80, 128, 32, 163 * KIB, 1, ("shared",)),
        (80, 128, 32, 163 * KIB + 1, 0, ("shared",)),
        (80, 128, 32, 81 * KIB, 2, ("shared",)),
        (80, 128, 32, 81 * KIB + 1, 1, ("shared",)),
        (100, 128, 32, 227 * KIB, 1, ("shared",)),
        (100, 128, 32, 227 * KIB + 1, 0, ("shared",)),
        # Shared memory is given in units of 128 bytes: 228 KiB hold 12 blocks of 18 KiB and 1 KiB.
        (90, 64, 32, 18 * KIB, 12, ("shared",)),
        (90, 64, 32, 18 * KIB + 1, 11, ("shared",)),
        # One warp a block: 32 blocks leave half of the warps' places empty; two fill them.
        (90, 32, 32, 0, 32, ("blocks",)),
        (90, 33, 32, 0, 32, ("registers", "threads", "blocks")),
        (90, 65, 16, 0, 21, ("threads",)),
        (90, 1024, 32, 0, 2, ("registers", "threads")),
        (90, 1025, 16, 0, 0, ("threads",)),
        (90, 96, 0, 0, 21, ("threads",)),
    ],
)
def test_worked_examples(
    number: int, threads: int, registers: int, shared: int, blocks: int, limited_by: tuple[str, ...]
) -> None:
    found = occupancy(ARCHITECTURES[number], threads, registers, shared)
    assert (found.blocks, found.limited_by) == (blocks, limited_by)
    assert found.warps == blocks * -(-threads // 32)
    assert found.share == found.warps / 64


@pytest.mark.parametrize(
    ("threads", "registers", "shared", "name"),
    [(0, 32, 0, "threads"), (32, -1, 0, "registers"), (32, 32, -1, "shared")],
)
def test_what_no_kernel_has_is_refused(threads: int, registers: int, shared: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}.* must be"):
        occupancy(ARCHITECTURES[90], threads, registers, shared)


PROGRAM = r"""
#include <cuda_occupancy.h>
#include <stdio.h>

int main() {
  int major, threads, registers, shared, per_multiprocessor, per_block;
  while (scanf("%d %d %d %d %d %d", &major, &per_multiprocessor, &per_block, &threads, &registers, &shared) == 6) {
    cudaOccDeviceProp device = {};
    device.computeMajor = major;
    device.maxThreadsPerBlock = 1024;
    device.maxThreadsPerMultiprocessor = 2048;
    device.regsPerBlock = device.regsPerMultiprocessor = 65536;
    device.warpSize = 32;
    device.sharedMemPerBlock = 48 * 1024;
    device.sharedMemPerMultiprocessor = per_multiprocessor;
    device.numSms = 132;
    device.sharedMemPerBlockOptin = per_block;
    device.reservedSharedMemPerBlock = 1024;
    cudaOccFuncAttributes kernel = {};
    kernel.maxThreadsPerBlock = 1024;
    kernel.numRegs = registers;
    kernel.maxDynamicSharedSizeBytes = per_block;
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    cudaOccDeviceState state = {};
    cudaOccResult result = {};
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, shared)) return 1;
    printf("%d\n", result.activeBlocksPerMultiprocessor);
  }
}
"""


def calculator_folder() -> Path | None:
    """Where ``cuda_occupancy.h`` lies: in Triton's wheel, or in a CUDA toolkit."""
    spec = importlib.util.find_spec("triton")
    roots = [Path(root) / "backends/nvidia/include" for root in (spec.submodule_search_locations or [])] if spec else []
    roots.append(Path("/usr/local/cuda/include"))
    return next((root for root in roots if (root / "cuda_occupancy.h").is_file()), None)


def test_it_agrees_with_the_calculator_of_the_toolkit(tmp_path: Path) -> None:
    folder, compiler = calculator_folder(), shutil.which("c++") or shutil.which("g++")
    if folder is None or compiler is None:
        pytest.skip("needs cuda_occupancy.h (Triton's wheel has it) and a C++ compiler")
    (tmp_path / "calculator.cpp").write_text(PROGRAM)
    program = tmp_path / "calculator"
    subprocess.run([compiler, "-w", f"-I{folder}", "-o", str(program), str(tmp_path / "calculator.cpp")], check=True)
    cases = [
        (architecture, threads, registers, shared)
        for architecture in ARCHITECTURES.values()
        for threads, registers, shared in itertools.product(
            (*range(1, 1025, 31), 128, 256, 384, 1024),
            (1, 16, 24, 32, 33, 40, 64, 72, 96, 128, 129, 168, 176, 200, 255),
            (*(0, 1, 127, 128, 1000, 18 * KIB, 18 * KIB + 1, 40000, 81 * KIB), *(113 * KIB, 163 * KIB, 227 * KIB + 1)),
        )
    ]
    asked = "\n".join(
        f"{architecture.number // 10} {architecture.shared_per_multiprocessor} {architecture.shared_per_block} "
        f"{threads} {registers} {shared}"
        for architecture, threads, registers, shared in cases
    )
    answer = subprocess.run([str(program)], input=asked, capture_output=True, text=True, check=True).stdout.split()
    assert len(answer) == len(cases)
    found = [occupancy(*case).blocks for case in cases]
    wrong = [
        (str(case[0]), *case[1:], ours, theirs)
        for case, ours, theirs in zip(cases, found, answer, strict=True)
        if ours != int(theirs)
    ]
    assert not wrong, wrong[:10]
