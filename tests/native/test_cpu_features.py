import platform
import subprocess
import sys

import pytest

from fastdl.native.cpu_features import (
    features_of_macros,
    machine_features,
    machine_model,
    missing_features,
    parse_cpuinfo,
    parse_sysctl,
)
from fastdl.native.toolchain import find_compiler, probe

CPUINFO_X86 = """processor\t: 0
model name\t: A Processor
flags\t\t: fpu sse2 pni avx avx2 fma f16c
bugs\t\t: spectre_v1
"""
CPUINFO_ARM = """processor\t: 0
Features\t: fp asimd crc32 atomics asimddp sve
"""
SYSCTL_INTEL = """machdep.cpu.features: FPU SSE3 SSE4.1 AVX1.0 FMA
machdep.cpu.leaf7_features: AVX2 BMI1
machdep.cpu.extfeatures: SYSCALL LZCNT
machdep.cpu.brand_string: Intel(R) Core(TM)
"""
SYSCTL_APPLE = """hw.optional.arm.FEAT_BF16: 1
hw.optional.arm.FEAT_I8MM: 0
hw.optional.AdvSIMD: 1
"""


def test_macros_become_the_names_of_cpuinfo() -> None:
    dump = "#define __AVX2__ 1\n#define __FMA__ 1\n#define __GNUC__ 12\n#define __ARM_FEATURE_SVE 1\n"
    assert features_of_macros(dump) == ("avx2", "fma", "sve")


def test_flags_are_read_on_every_platform() -> None:
    assert {"pni", "avx", "avx2", "fma", "f16c"} <= parse_cpuinfo(CPUINFO_X86)
    assert "spectre_v1" not in parse_cpuinfo(CPUINFO_X86)
    assert {"asimd", "crc32", "atomics", "asimddp", "sve"} <= parse_cpuinfo(CPUINFO_ARM)
    assert parse_cpuinfo("") == set()
    assert {"pni", "sse4_1", "avx", "fma", "avx2", "bmi1", "abm"} <= parse_sysctl(SYSCTL_INTEL)
    assert parse_sysctl(SYSCTL_APPLE) == {"bf16", "asimd"}


def test_missing_is_what_is_required_and_not_there() -> None:
    assert missing_features(("avx", "avx512f"), frozenset({"avx", "avx2"})) == ("avx512f",)
    assert missing_features((), frozenset()) == ()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="levels of x86-64")
def test_the_compiler_tells_the_levels_apart(compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", compiler)
    levels = {arch: set(probe(find_compiler(), arch).features) for arch in ("x86-64", "x86-64-v3", "x86-64-v4")}
    assert "avx" not in levels["x86-64"]
    assert {"avx2", "fma", "bmi2", "f16c"} <= levels["x86-64-v3"]
    assert "avx512f" not in levels["x86-64-v3"]
    assert {"avx512f", "avx512vl", "avx512bw", "avx512dq"} <= levels["x86-64-v4"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/cpuinfo")
def test_this_machine_runs_what_is_compiled_for_it(compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", compiler)
    required = probe(find_compiler(), "native").features
    assert required
    assert missing_features(required, machine_features()) == ()
    assert machine_model() in subprocess.run(["cat", "/proc/cpuinfo"], capture_output=True, text=True).stdout
