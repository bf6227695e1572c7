"""The environment variables that steer the native build, read in one place."""

import os
import re
from dataclasses import dataclass

from .status import NativeUnavailableError

NEVER = frozenset({"0", "never"})
ALWAYS = frozenset({"1", "always"})
AUTO = frozenset({"", "auto"})


@dataclass(frozen=True)
class Settings:
    """``build``: "auto", "never" or "always" (FASTDL_BUILD). ``arch``: what ``-march`` gets (FASTDL_CPU_ARCH).

    ``arch_is_asked_for`` tells an architecture that the user named from the default, ``native``.
    """

    build: str
    arch: str
    arch_is_asked_for: bool


def read_settings() -> Settings:
    """Read FASTDL_BUILD and FASTDL_CPU_ARCH; raise NativeUnavailableError for a value that neither takes."""
    return Settings(
        build=build_mode(), arch=cpu_arch(), arch_is_asked_for=bool(os.environ.get("FASTDL_CPU_ARCH", "").strip())
    )


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
