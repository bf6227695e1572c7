"""The kernels as other processors get them: plain SSE2 and AVX2 builds pass the parity suite too.

Each variant is compiled once (its key in the cache holds the architecture) and tested in a process of its own.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from fastdl.native.cpu_features import machine_features
from tests.support.backends import BACKENDS_UNDER_TEST

ROOT = Path(__file__).resolve().parents[2]
FILES = [
    "tests/ops/test_group_norm.py", "tests/ops/test_batch_norm.py", "tests/ops/test_activations.py",
    "tests/ops/test_attention.py", "tests/ops/test_attention_varlen.py",
    "tests/ops/test_cpu_convolution.py", "tests/ops/test_dropout.py",
]  # fmt: skip
# Odd sizes, both layouts, all dtypes, activations, accuracy at a large mean: what depends on the vectors' width.
CORE = (
    "cpu and not reference and (sweep or shifted or residual or special or (positions and float32) or test_attention"
    " or test_cpu_convolution or test_dropout)"
)

VARIANTS = {
    "x86-64": {"needs": "", "without": {"avx", "avx2", "fma", "avx512f"}},
    "x86-64-v3": {"needs": "avx2", "without": {"avx512f"}},
}

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="these are x86 architectures")


def run(arch: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "FASTDL_BACKEND"))}
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment | {"FASTDL_CPU_ARCH": arch, "FASTDL_BUILD": "auto"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )


# A build takes a minute of two cores.
@pytest.mark.slow
@pytest.mark.parametrize("arch", VARIANTS)
def test_the_variant_is_built_for_what_it_says(arch: str) -> None:
    BACKENDS_UNDER_TEST["cpu"].device()
    skip_where_it_cannot_run(arch)
    result = run(arch, ["-c", "import fastdl.native as n; s = n.load(); print(s.available, *s.features, s.reason)"])
    available, *features = result.stdout.split()
    assert available == "True", result.stdout + result.stderr
    assert not VARIANTS[arch]["without"] & set(features)


@pytest.mark.slow
@pytest.mark.parametrize("arch", VARIANTS)
def test_the_variant_passes_the_core_of_the_parity_suite(arch: str) -> None:
    BACKENDS_UNDER_TEST["cpu"].device()
    skip_where_it_cannot_run(arch)
    result = run(
        arch, ["-m", "pytest", *FILES, "-k", CORE, "-m", "not slow", "-q", "-p", "no:cacheprovider", "--tb=line"]
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    passed = int(result.stdout.rsplit(" passed", 1)[0].split()[-1])
    assert passed > 300, result.stdout[-500:]


def skip_where_it_cannot_run(arch: str) -> None:
    needed = str(VARIANTS[arch]["needs"])
    if needed and needed not in machine_features():
        pytest.skip(f"this machine has no {needed}")
