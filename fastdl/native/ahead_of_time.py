"""Build the library into a folder of its own, for a wheel; used by ``setup.py`` and by no running program.

``setup.py`` loads this package by its path, so nothing here may import the rest of fastdl.
"""

from pathlib import Path

from . import build as building
from . import cache
from .settings import build_mode, cpu_arch
from .sources import read_sources
from .toolchain import find_compiler, torch_installation

__all__ = ["build_mode", "build_prebuilt"]


def build_prebuilt(csrc: Path, folder: Path) -> cache.Manifest:
    """Compile ``csrc`` for FASTDL_CPU_ARCH into ``folder``; raises NativeUnavailableError where that cannot be done.

    Whether the machine at hand could run the result does not matter here; the machine that loads it will check.
    """
    recipe = building.Recipe(read_sources(csrc), cpu_arch(), torch_installation(), find_compiler())
    return building.build(recipe, "ahead-of-time", folder, for_this_machine=False)
