"""The list of packages, and the native libraries built ahead of time where that is asked for or possible.

``pip install .`` makes a pure wheel and imports nothing but setuptools: the native kernels are compiled on first use.
Two ways lead to a wheel with the compiled library inside:

- ``pip install --no-build-isolation .`` where torch can be imported; if compiling fails the wheel is pure all the same;
- ``FASTDL_BUILD=1 pip install .``, which lets pip fetch torch for the build, and fails if compiling fails.

``FASTDL_BUILD=0`` keeps the wheel pure; ``FASTDL_CPU_ARCH`` chooses the instruction set (default: this machine's). The
CUDA library joins it where ``FASTDL_CUDA_ARCHS`` names GPUs, such as ``80;90a``; that needs a torch with CUDA, and no
GPU. An editable installation never holds a library, since its sources change: what is built on first use follows them.
"""

import importlib
import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from setuptools import Distribution, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
PREBUILT = Path("fastdl", "native", "prebuilt")


def load_native() -> ModuleType:
    """``fastdl.native`` by its path, under another name: importing ``fastdl`` imports torch, which may not be there."""
    name = "fastdl_native"
    folder = HERE / "fastdl" / "native"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return importlib.import_module(f"{name}.ahead_of_time")


NATIVE = load_native()
BUILD = NATIVE.build_mode()


class BuildWithLibrary(build_py):
    """Copies the Python files, and builds the native libraries beside them."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        folder = Path(self.build_lib) / PREBUILT
        shutil.rmtree(folder, ignore_errors=True)  # build/ may still hold another wheel's
        if BUILD == "never" or (BUILD == "auto" and importlib.util.find_spec("torch") is None):
            return
        made = self.try_to_build("native", folder, lambda: NATIVE.build_prebuilt(HERE / "csrc", folder))
        archs = NATIVE.cuda_archs()
        if archs:
            cuda = folder / "cuda"
            made |= self.try_to_build("CUDA", cuda, lambda: NATIVE.build_cuda(HERE / "csrc", cuda, ";".join(archs)))
        if made:
            self.distribution.has_library = True
            self.get_finalized_command("bdist_wheel").root_is_pure = False

    def try_to_build(self, library: str, folder: Path, build: Callable[[], object]) -> bool:
        """Whether the library is in ``folder`` now; where FASTDL_BUILD asks for it, a failure ends the installation."""
        try:
            build()
        except Exception as error:
            shutil.rmtree(folder, ignore_errors=True)
            if BUILD == "always":
                raise SystemExit(
                    f"FASTDL_BUILD asks for the {library} library, which cannot be built. {error}"
                ) from error
            print(f"The {library} kernels will be compiled on first use; they were not now: {error}", file=sys.stderr)
            return False
        return True


class DistributionWithLibrary(Distribution):
    """Knows whether it holds the native library, which is no Python extension but makes the wheel a platform's own."""

    has_library = False

    def has_ext_modules(self) -> bool:
        return self.has_library or bool(super().has_ext_modules())


class WheelForAnyPython(bdist_wheel):
    """Names a wheel with the library py3-none-<platform>: the stable ABI depends on no version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        return (python, abi, platform) if self.root_is_pure else ("py3", "none", platform)


def packages_below(name: str, folder: str) -> list[str]:
    return [name, *(f"{name}.{below}" for below in find_packages(folder))]


setup(
    packages=[
        *packages_below("fastdl", "fastdl"),
        *packages_below("fastdl.kernels", "kernels"),
        *packages_below("fastdl.bench", "bench"),
        "fastdl._csrc",
    ],
    setup_requires=["torch>=2.11", "ninja", "filelock"] if BUILD == "always" else [],
    distclass=DistributionWithLibrary,
    cmdclass={"build_py": BuildWithLibrary, "bdist_wheel": WheelForAnyPython},
)
