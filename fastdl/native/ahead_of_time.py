"""Build libraries into folders of their own, for a wheel or for a check; used by no running program.

``setup.py`` loads this package by its path, so nothing here may import the rest of fastdl.
"""

from pathlib import Path

from . import build as building
from . import cache
from .settings import build_mode, cpu_arch, cuda_archs, parse_cuda_archs
from .status import NativeUnavailableError
from .targets import TARGETS
from .toolchain import torch_installation

__all__ = ["build_cuda", "build_mode", "build_prebuilt", "cuda_archs"]


def build_prebuilt(csrc: Path, folder: Path) -> cache.Manifest:
    """Compile the CPU library for FASTDL_CPU_ARCH into ``folder``; NativeUnavailableError where that cannot be done.

    Whether the machine at hand could run the result does not matter here; the machine that loads it will check.
    """
    return _build("cpu", csrc, folder, cpu_arch())


def build_cuda(csrc: Path, folder: Path, archs: str, *, to_be_loaded: bool = True) -> cache.Manifest:
    """Compile the CUDA library for ``archs``, such as "80;90a", into ``folder``; no GPU is needed.

    Raises NativeUnavailableError where nvcc is missing or fails, and where torch has no CUDA: what is linked there
    lacks the name of the library that knows torch's streams. With ``to_be_loaded=False`` it is compiled and linked all
    the same, as a check of the sources.
    """
    torch = torch_installation()
    if to_be_loaded and torch.cuda is None:
        raise NativeUnavailableError(
            f"torch {torch.version} is built without CUDA, so the library could not be loaded.",
            "Build it beside a CUDA build of torch.",
        )
    return _build("cuda", csrc, folder, ";".join(parse_cuda_archs(archs)))


def _build(library: str, csrc: Path, folder: Path, arch: str) -> cache.Manifest:
    target = TARGETS[library]
    recipe = building.Recipe(target, target.sources(csrc.absolute()), arch, torch_installation(), target.tools())
    return building.build(recipe, "ahead-of-time", folder, for_this_machine=False)
