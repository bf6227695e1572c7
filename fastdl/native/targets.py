"""The native libraries, for the CPU and for CUDA: what each is made of, what compiles it, what it needs to run."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cpu_features import machine_features, missing_features
from .cuda_toolkit import (
    NVCC_FLAGS,
    Nvcc,
    Toolkit,
    arch_of,
    find_nvcc,
    generation_flags,
    host_compiler,
    probe_toolkit,
    serves,
)
from .settings import Settings, build_mode, cpu_arch, cuda_archs
from .sources import SourceTree, read_sources
from .status import NativeAbsentError, NativeUnavailableError
from .toolchain import (
    LIBRARY_SUFFIX,
    Compiler,
    Probe,
    TorchInstallation,
    compile_flags,
    find_compiler,
    link_flags,
    probe,
)

LOWER_ARCH = "Set FASTDL_CPU_ARCH to a level that this machine has, such as 'x86-64-v3' or 'x86-64'."


@dataclass(frozen=True)
class Tools:
    """The programs that compile a library: a C++ compiler, and nvcc where there is code for a GPU."""

    compiler: Compiler
    nvcc: Nvcc | None = None

    @property
    def identity(self) -> str:
        return self.compiler.identity if self.nvcc is None else f"{self.compiler.identity}; {self.nvcc.identity}"

    @property
    def path(self) -> Path:
        return self.compiler.path if self.nvcc is None else self.nvcc.path


@dataclass(frozen=True)
class Facts:
    """What the tools say of themselves when a build begins."""

    host: Probe
    toolkit: Toolkit | None = None

    @property
    def version(self) -> str:
        if self.toolkit is None:
            return self.host.version
        return f"{self.host.version}; nvcc {self.toolkit.release[0]}.{self.toolkit.release[1]}"


class CpuTarget:
    """The library for the processor; also what the CUDA library differs from in the methods below."""

    name = "cpu"
    arch_variable = "FASTDL_CPU_ARCH"
    # How messages call what is in it, what the package does without it, and whom to blame for a failed compilation.
    kernels = "native CPU kernels"
    without = "fastdl runs without its native CPU kernels, on the slower 'reference' backend."
    cure = "Use another or a newer compiler (set CXX), or report this with the log."

    @property
    def library(self) -> str:
        return f"libfastdl_{self.name}{LIBRARY_SUFFIX}"

    def sources(self, csrc: Path) -> SourceTree:
        return read_sources(csrc, self.name)

    def settings(self, torch: TorchInstallation) -> Settings:
        """FASTDL_BUILD and the architecture; raises NativeUnavailableError for a value that cannot be."""
        return Settings(build_mode(), cpu_arch(), bool(os.environ.get("FASTDL_CPU_ARCH", "").strip()))

    def tools(self) -> Tools:
        return Tools(find_compiler())

    def probe(self, tools: Tools, arch: str, torch: TorchInstallation) -> Facts:
        return Facts(probe(tools.compiler, arch))

    def flags(self, arch: str, torch: TorchInstallation) -> tuple[str, ...]:
        """The C++ compiler's flags."""
        return compile_flags(arch, torch)

    def device_flags(self, arch: str) -> tuple[str, ...]:
        """nvcc's flags."""
        return ()

    def link_flags(self, torch: TorchInstallation, facts: Facts) -> tuple[str, ...]:
        return link_flags(torch)

    def machine_key(self, arch: str) -> Any:
        """What of the machine decides what is compiled: a named architecture gives the same code everywhere."""
        return sorted(machine_features()) if arch == "native" else None

    def obstacle(self, arch: str, features: tuple[str, ...]) -> NativeUnavailableError | None:
        """Why this machine cannot run what was compiled for ``arch`` with these instructions; None if it can."""
        missing = missing_features(features, machine_features())
        if not missing:
            return None
        return NativeUnavailableError(
            f"needs CPU instructions that this machine lacks: {', '.join(missing)}.", LOWER_ARCH
        )


class CudaTarget(CpuTarget):
    """The library for NVIDIA's GPUs. Its architecture is a list such as ``80;90a``; its host code runs anywhere."""

    name = "cuda"
    arch_variable = "FASTDL_CUDA_ARCHS"
    kernels = "CUDA C++ kernels"
    without = "fastdl runs without its CUDA C++ kernels."
    cure = (
        "Use another nvcc (set CUDACXX) or a C++ compiler that this nvcc takes (set CXX), or report this with the log."
    )

    def settings(self, torch: TorchInstallation) -> Settings:
        devices = device_capabilities(torch)
        asked = cuda_archs()
        archs = asked or tuple(sorted({arch_of(capability) for capability in devices}))
        return Settings(build_mode(), ";".join(archs), bool(asked))

    def tools(self) -> Tools:
        return Tools(find_compiler(), find_nvcc())

    def probe(self, tools: Tools, arch: str, torch: TorchInstallation) -> Facts:
        assert tools.nvcc is not None
        return Facts(probe(tools.compiler, ""), probe_toolkit(tools.nvcc, torch))

    def flags(self, arch: str, torch: TorchInstallation) -> tuple[str, ...]:
        # torch declares the functions that give its current stream under this macro alone.
        return (*compile_flags("", torch), "-DUSE_CUDA")

    def device_flags(self, arch: str) -> tuple[str, ...]:
        archs = tuple(arch.split(";"))
        # Hopper's warp-group products are in code for 90a alone; the host must not ask code for plain 90 for them.
        without = () if "90a" in archs else ("-DFASTDL_WITHOUT_WGMMA",)
        return (*NVCC_FLAGS, *without, *generation_flags(archs))

    def link_flags(self, torch: TorchInstallation, facts: Facts) -> tuple[str, ...]:
        assert facts.toolkit is not None
        of_torch = ("-Wl,--no-as-needed", "-ltorch_cuda", "-Wl,--as-needed") if torch.cuda else ()
        return (*link_flags(torch), *of_torch, *facts.toolkit.link_flags())

    def machine_key(self, arch: str) -> Any:
        return None

    def obstacle(self, arch: str, features: tuple[str, ...]) -> NativeUnavailableError | None:
        archs = arch.split(";")
        for capability in visible_capabilities():
            if not any(serves(compiled, capability) for compiled in archs):
                return NativeUnavailableError(
                    f"is compiled for {arch}, which a GPU of compute capability {capability[0]}.{capability[1]} "
                    "cannot run.",
                    f"Set FASTDL_CUDA_ARCHS to 'native' or to a list with {arch_of(capability)!r} in it.",
                )
        return None


TARGETS: dict[str, CpuTarget] = {"cpu": CpuTarget(), "cuda": CudaTarget()}


def device_capabilities(torch: TorchInstallation) -> tuple[tuple[int, int], ...]:
    """The compute capabilities of the visible GPUs; raises NativeAbsentError where there is none."""
    if torch.cuda is None:
        raise NativeAbsentError(
            f"torch {torch.version} is built without CUDA.", "Install a CUDA build of torch on a machine with a GPU."
        )
    capabilities = visible_capabilities()
    if not capabilities:
        raise NativeAbsentError("torch sees no CUDA GPU.", "Run on a machine that has one (see CUDA_VISIBLE_DEVICES).")
    return capabilities


def visible_capabilities() -> tuple[tuple[int, int], ...]:
    """The compute capabilities of the GPUs that torch sees, each once."""
    import torch

    if not torch.cuda.is_available():
        return ()
    return tuple(sorted({torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}))


def nvcc_command(tools: Tools, flags: tuple[str, ...]) -> tuple[str, ...]:
    """nvcc with the same C++ compiler behind it that compiles the rest."""
    assert tools.nvcc is not None
    return (str(tools.nvcc.path), "-ccbin", host_compiler(tools.compiler), *flags)
