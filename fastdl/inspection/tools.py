"""The programs that read machine code, and running them."""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path


class ToolMissingError(RuntimeError):
    """A program that is needed is nowhere on this machine; the message says which, and what brings it."""


@cache
def find_cuobjdump() -> Path:
    """The one in Triton's wheel, or else that of a CUDA toolkit. Raises ToolMissingError."""
    folders: list[str] = []
    try:
        import triton.backends.nvidia as backend

        folders.append(str(Path(next(iter(backend.__path__))) / "bin"))
    except ImportError:
        pass
    home = os.environ.get("CUDA_HOME", "").strip()
    folders += [str(Path(home) / "bin")] if home else []
    found = shutil.which("cuobjdump", path=os.pathsep.join(folders)) or shutil.which("cuobjdump")
    if found is None:
        raise ToolMissingError("cuobjdump was not found: it comes with Triton's wheel (pip install triton) or CUDA")
    return Path(found)


@cache
def cuobjdump_version() -> str:
    return run([str(find_cuobjdump()), "--version"]).strip().rpartition("\n")[2]


@cache
def find_demangler() -> Path:
    """``cu++filt`` or ``c++filt``, which give C++ names back their words. Raises ToolMissingError."""
    found = shutil.which("cu++filt") or shutil.which("c++filt")
    if found is None:
        raise ToolMissingError("c++filt was not found: it comes with the C++ compiler (binutils)")
    return Path(found)


def run(command: list[str], timeout: float = 600.0) -> str:
    """The command's output; raises RuntimeError with the end of what it said where it fails."""
    # cuobjdump starts nvdisasm, which it looks for on PATH and which lies beside it.
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(command[0]).parent), os.environ.get("PATH", "")])}
    result = subprocess.run(
        command, capture_output=True, text=True, errors="replace", env=environment, timeout=timeout, check=False
    )
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {(result.stderr or result.stdout).strip()[-2000:]}")
    return result.stdout
