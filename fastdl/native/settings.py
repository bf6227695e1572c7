"""The environment variables that steer the native build, read in one place."""

import os
import re
from dataclasses import dataclass

from .status import NativeUnavailableError

NEVER = frozenset({"0", "never"})
ALWAYS = frozenset({"1", "always"})
AUTO = frozenset({"", "auto"})
# Asynchronous copies into shared memory came with compute capability 8.0.
LEAST_CUDA_ARCH = 80


@dataclass(frozen=True)
class Settings:
    """``build``: "auto", "never" or "always" (FASTDL_BUILD). ``arch``: FASTDL_CPU_ARCH or FASTDL_CUDA_ARCHS, resolved.

    ``arch_is_asked_for`` tells an architecture that the user named from the default, ``native``.
    """

    build: str
    arch: str
    arch_is_asked_for: bool


def build_mode() -> str:
    value = os.environ.get("FASTDL_BUILD", "").strip().lower()
    for mode, spellings in (("auto", AUTO), ("never", NEVER), ("always", ALWAYS)):
        if value in spellings:
            return mode
    raise NativeUnavailableError(
        f"FASTDL_BUILD is {value!r}.",
        "It takes 'auto' (build on first use), '0' or 'never' (use only a library that exists), '1' or 'always'.",
    )


def cpu_arch() -> str:
    value = os.environ.get("FASTDL_CPU_ARCH", "").strip() or "native"
    # The value becomes part of a compiler's command line.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", value):
        raise NativeUnavailableError(
            f"FASTDL_CPU_ARCH is {value!r}, which is no architecture name.",
            "It takes 'native', 'x86-64', 'x86-64-v3', 'x86-64-v4' or another value of the compiler's -march.",
        )
    return value


def cuda_archs() -> tuple[str, ...]:
    """FASTDL_CUDA_ARCHS as a sorted tuple, such as ("80", "90a"); empty for ``native``, the GPUs at hand."""
    value = os.environ.get("FASTDL_CUDA_ARCHS", "").strip()
    return () if value.lower() in ("", "native") else parse_cuda_archs(value)


def parse_cuda_archs(value: str) -> tuple[str, ...]:
    """The architectures in a list such as ``80;90a;100a``; raises NativeUnavailableError for anything else."""
    names = [name for name in re.split(r"[;,\s]+", value) if name]
    for name in names:
        found = re.fullmatch(r"(\d{2,3})(a|\+ptx)?", name)
        if not found or int(found[1]) < LEAST_CUDA_ARCH:
            raise NativeUnavailableError(
                f"FASTDL_CUDA_ARCHS is {value!r}; {name!r} is no architecture that the CUDA kernels are compiled for.",
                f"It takes 'native' or a list such as '80;90a;100a': numbers from {LEAST_CUDA_ARCH} on, with 'a' for "
                "an architecture's own instructions or '+ptx' for code that later GPUs can take as well.",
            )
    if not names:
        raise NativeUnavailableError(f"FASTDL_CUDA_ARCHS is {value!r}.", "It takes 'native' or a list: '80;90a;100a'.")
    return tuple(sorted(set(names), key=lambda name: (int(re.sub(r"\D", "", name)), name)))
