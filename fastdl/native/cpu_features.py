"""Which instruction-set extensions a compiler was allowed to use, and which the machine has.

Both are told in the names of Linux's ``/proc/cpuinfo``. A library that was compiled for one machine and met another
would die of an illegal instruction, which no ``except`` catches; so the two lists are compared before it is loaded.
"""

import platform
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

# Predefined compiler macro -> name in /proc/cpuinfo. Extensions that a compiler never uses of its own accord and that
# no kernel here asks for (enclaves, power states, cache hints) are left out: a hypervisor that hides one does no harm.
X86_FEATURES = {
    "__SSE3__": "pni",
    "__SSSE3__": "ssse3",
    "__SSE4_1__": "sse4_1",
    "__SSE4_2__": "sse4_2",
    "__POPCNT__": "popcnt",
    "__AVX__": "avx",
    "__AVX2__": "avx2",
    "__FMA__": "fma",
    "__F16C__": "f16c",
    "__BMI__": "bmi1",
    "__BMI2__": "bmi2",
    "__LZCNT__": "abm",
    "__MOVBE__": "movbe",
    "__AVXVNNI__": "avx_vnni",
    "__AVX512F__": "avx512f",
    "__AVX512CD__": "avx512cd",
    "__AVX512BW__": "avx512bw",
    "__AVX512DQ__": "avx512dq",
    "__AVX512VL__": "avx512vl",
    "__AVX512IFMA__": "avx512ifma",
    "__AVX512VBMI__": "avx512vbmi",
    "__AVX512VBMI2__": "avx512_vbmi2",
    "__AVX512VNNI__": "avx512_vnni",
    "__AVX512BITALG__": "avx512_bitalg",
    "__AVX512VPOPCNTDQ__": "avx512_vpopcntdq",
    "__AVX512BF16__": "avx512_bf16",
    "__AVX512FP16__": "avx512_fp16",
    "__AMX_TILE__": "amx_tile",
    "__AMX_INT8__": "amx_int8",
    "__AMX_BF16__": "amx_bf16",
    "__GFNI__": "gfni",
    "__VAES__": "vaes",
    "__VPCLMULQDQ__": "vpclmulqdq",
}
ARM_FEATURES = {
    "__ARM_NEON": "asimd",
    "__ARM_FEATURE_ATOMICS": "atomics",
    "__ARM_FEATURE_CRC32": "crc32",
    "__ARM_FEATURE_DOTPROD": "asimddp",
    "__ARM_FEATURE_FP16_VECTOR_ARITHMETIC": "asimdhp",
    "__ARM_FEATURE_BF16": "bf16",
    "__ARM_FEATURE_MATMUL_INT8": "i8mm",
    "__ARM_FEATURE_SVE": "sve",
    "__ARM_FEATURE_SVE2": "sve2",
}
MACRO_FEATURES = {**X86_FEATURES, **ARM_FEATURES}

# macOS spells them in another way: Intel in machdep.cpu.*features, Apple silicon as hw.optional.* switches.
MACOS_INTEL_NAMES = {"sse3": "pni", "avx1.0": "avx", "sse4.1": "sse4_1", "sse4.2": "sse4_2", "lzcnt": "abm"}
MACOS_ARM_NAMES = {
    "hw.optional.AdvSIMD": "asimd",
    "hw.optional.neon": "asimd",
    "hw.optional.armv8_1_atomics": "atomics",
    "hw.optional.arm.FEAT_LSE": "atomics",
    "hw.optional.armv8_crc32": "crc32",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_FP16": "asimdhp",
    "hw.optional.neon_fp16": "asimdhp",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
}


def features_of_macros(dump: str) -> tuple[str, ...]:
    """The extensions that a compiler may use, from the output of ``-dM -E``."""
    defined = set(re.findall(r"^#define (\w+)", dump, flags=re.MULTILINE))
    return tuple(sorted({feature for macro, feature in MACRO_FEATURES.items() if macro in defined}))


def machine_features() -> frozenset[str]:
    """The extensions of the processor at hand, as far as the operating system has them switched on."""
    if platform.system() == "Darwin":
        return _known(parse_sysctl(_sysctl()))
    return _known(parse_cpuinfo(_first_processor()))


def machine_model() -> str:
    """The processor's name, for people to read."""
    if platform.system() == "Darwin":
        found = re.search(r"^machdep\.cpu\.brand_string: (.*)$", _sysctl(), flags=re.MULTILINE)
        return found.group(1) if found else platform.machine()
    found = re.search(r"^model name\s*: (.*)$", _first_processor(), flags=re.MULTILINE)
    return found.group(1) if found else platform.machine()


def parse_cpuinfo(text: str) -> set[str]:
    """The features in a processor's part of ``/proc/cpuinfo`` (``flags`` on x86, ``Features`` on Arm)."""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, flags=re.MULTILINE)
    return set(found.group(1).split()) if found else set()


def parse_sysctl(text: str) -> set[str]:
    """The same from the output of macOS's ``sysctl machdep.cpu hw.optional``."""
    features: set[str] = set()
    for name, value in re.findall(r"^([\w.]+): (.*)$", text, flags=re.MULTILINE):
        if name in ("machdep.cpu.features", "machdep.cpu.leaf7_features", "machdep.cpu.extfeatures"):
            features |= {MACOS_INTEL_NAMES.get(word, word) for word in value.lower().split()}
        elif name in MACOS_ARM_NAMES and value.strip() == "1":
            features.add(MACOS_ARM_NAMES[name])
    return features


def missing_features(required: Iterable[str], machine: frozenset[str]) -> tuple[str, ...]:
    return tuple(sorted(set(required) - machine))


def _known(features: set[str]) -> frozenset[str]:
    # Only these: the rest of the list changes with the kernel's version and would make the cache forget its entries.
    return frozenset(features & set(MACRO_FEATURES.values()))


def _first_processor() -> str:
    # One processor stands for all: Linux lists only what every core has, and a server's whole file takes long to write.
    lines = []
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if not line.strip():
                    break
                lines.append(line)
    except OSError:
        return ""
    return "".join(lines)


def _sysctl() -> str:
    try:
        return subprocess.run(
            ["/usr/sbin/sysctl", "machdep.cpu", "hw.optional"], capture_output=True, text=True, check=False
        ).stdout
    except OSError:
        return ""
