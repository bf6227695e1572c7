"""The switch between fibres: each of its three forms runs the same kernels."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.simt.harness import HERE, ORDERS, VARIANTS, Case, HostCompiler, Output, Runner, build, run

SOURCES = [HERE / "kernels" / "block_sum.cu", HERE / "planted" / "missing_barrier.cu"]


def check(runner: Runner, orders: Sequence[str] = ORDERS) -> None:
    values = np.random.default_rng(0).normal(size=(5, 1000)).astype(np.float32)
    sums = Case("block_sum", {"in": values, "out": Output((5,), np.float32)}, {"rows": 5, "n": 1000})
    planted = Case("missing_barrier", {"in": values[0, :128], "out": Output((128,), np.float32)}, {"planted": 1})
    for order in orders:
        right, wrong = run(runner, [sums, planted], order, seed=1)
        right.check()
        assert right.kernels == ["block_sum::sum"]
        # Sums of 1000 values of deviation 1, in float32.
        np.testing.assert_allclose(right.arrays["out"], values.sum(1, dtype=np.float64), rtol=0, atol=1e-4)
        assert wrong.kind == ("race" if runner.variant == "race" else None)


@pytest.mark.parametrize("variant", VARIANTS)
def test_ucontext(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # As if the machine were none of those that have a switch of their own.
    monkeypatch.setenv("SIMT_UCONTEXT", "1")
    check(build(SOURCES, variant))


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["plain", "race"])
def test_aarch64(variant: str) -> None:
    command, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
    libraries = Path("/usr/aarch64-linux-gnu")
    if command is None or emulator is None or not libraries.exists():
        pytest.skip("needs aarch64-linux-gnu-g++ and qemu-aarch64 (Debian: g++-aarch64-linux-gnu, qemu-user)")
    version = subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout
    compiler = HostCompiler((command,), version, (emulator, "-L", str(libraries)))
    check(build(SOURCES, variant, compiler=compiler), ["random"])
