"""What works on this machine, what does not and why: ``fastdl doctor``, or ``python -m fastdl.doctor``.

Asking for the backends loads the native kernels, and so builds them where that has not happened yet: a build that fails
is what a doctor has to find. ``FASTDL_BUILD=0 fastdl doctor`` looks without building.
"""

import argparse
import dataclasses
import importlib.metadata
import json as json_format
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fastdl
from fastdl import native
from fastdl.native import cache, cpu_features, cuda_toolkit, settings, toolchain
from fastdl.ops import dispatch, measured
from fastdl.ops.measured_choices import CHOICES
from fastdl.tuning import store

# Packages whose versions matter when something goes wrong, in the order of the report.
PACKAGES = ("torch", "triton", "numpy", "ninja", "lightning", "torchmetrics", "tyro", "nvidia-ml-py")

# What each variable does; fastdl's own documentation of them is where they are read.
VARIABLES = {
    "FASTDL_BACKEND": "the backend at start: auto (default), reference, cpu, triton or cuda",
    "FASTDL_BUILD": "auto (default): build native kernels on first use; 0: use only what is built; 1: build at install",
    "FASTDL_CACHE": "where native kernels are kept; default ~/.cache/fastdl",
    "FASTDL_CPU_ARCH": "what they are compiled for: native (default), x86-64, x86-64-v3, x86-64-v4, ...",
    "FASTDL_CUDA_ARCHS": "the GPUs compiled for: native (default: those at hand) or a list such as 80;90a;100a",
    "FASTDL_CPU_POOL": "the pool of large CPU outputs: on (default), off, or a limit such as 512MiB",
    "FASTDL_DATA": "where data sets lie, if --data-dir does not say",
    "FASTDL_DEBUG": "1: the command shows the traceback of an error",
    "FASTDL_TUNED": "0: what fastdl tune has stored on this machine is not used",
    "CXX": "the C++ compiler",
    "CUDACXX": "nvcc; also NVCC, and CUDA_HOME for the toolkit that it is in",
    "MAX_JOBS": "how many compilers run at once",
    "TRITON_INTERPRET": "1: Triton kernels run on the CPU, interpreted",
}


def report() -> dict[str, Any]:
    """Everything that ``fastdl doctor`` tells, ready for JSON; a part that cannot be found out says why in "error"."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", native.FastdlWarning)  # the same reason stands in the report
        parts: dict[str, Callable[[], Any]] = {
            "versions": _versions,
            "platform": _platform,
            "cpu": _cpu,
            "devices": _devices,
            "backends": _backends,
            "native": lambda: _native("cpu"),
            "native_cuda": _native_cuda,
            "toolchain": _toolchain,
            "cache": _cache,
            "cpu_pool": lambda: dataclasses.asdict(fastdl.cpu_pool()),
            "auto": dispatch.auto_choices,
            "auto_on_gpus": _auto_on_gpus,
            "tuned": _tuned,
            "environment": _environment,
        }
        return {name: _guarded(part) for name, part in parts.items()}


def main(json: bool = False) -> int:
    """Print the report, as JSON and nothing else on stdout if ``json``; return 0."""
    facts = report()
    if json:
        print(json_format.dumps(facts, indent=2))
    else:
        _print(sections(facts))
    return 0


def sections(facts: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The report as titled lists of (name, text), for people to read."""
    parts: list[tuple[str, str, Callable[[Any], list[tuple[str, str]]]]] = [
        ("Versions", "versions", lambda part: [(name, version or "not installed") for name, version in part.items()]),
        ("Machine", "platform", _rows),
        ("Processor", "cpu", _rows),
        ("Devices", "devices", _device_rows),
        ("Backends", "backends", lambda part: [(name, _availability(row)) for name, row in part.items()]),
        ("Native kernels", "native", _rows),
        ("CUDA C++ kernels", "native_cuda", _rows),
        ("Tools", "toolchain", lambda part: [(name, _tool_text(tool)) for name, tool in part.items()]),
        ("Cache of native kernels", "cache", _cache_rows),
        ("Pool of CPU outputs", "cpu_pool", _rows),
        ("What auto chooses", "auto", lambda part: [(op, _choices_text(row)) for op, row in part.items()]),
        ("What auto chooses on a GPU, and why", "auto_on_gpus", _rows),
        ("What fastdl tune has stored", "tuned", lambda part: list(part.items())),
        ("Environment", "environment", lambda part: [(name, _variable_text(row)) for name, row in part.items()]),
    ]
    return [(title, (_rows if "error" in facts[name] else rows)(facts[name])) for title, name, rows in parts]


def _guarded(part: Callable[[], Any]) -> Any:
    try:
        return part()
    except Exception as error:  # one broken part must not hide the others
        return {"error": f"{type(error).__name__}: {error}"}


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"fastdl": fastdl.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return {**found, "torch": str(torch.__version__)}


def _platform() -> dict[str, str]:
    return {
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "executable": sys.executable,
        "package": str(Path(fastdl.__file__).parent),
    }


def _cpu() -> dict[str, Any]:
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "model": cpu_features.machine_model(),
        "processors": os.cpu_count(),
        "processors_allowed": affinity,
        "torch_threads": torch.get_num_threads(),
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "features": sorted(cpu_features.machine_features()),
    }


def _devices() -> dict[str, Any]:
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        gpus.append(
            {
                "index": index,
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_bytes": properties.total_memory,
                "multiprocessors": properties.multi_processor_count,
            }
        )
    return {"cuda_of_torch": torch.version.cuda, "driver": _driver(), "gpus": gpus}


def _driver() -> str:
    """The NVIDIA driver's version, or why there is none to be asked."""
    try:
        import pynvml
    except ImportError:
        return "unknown: nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return f"none: {error}"
    try:
        return str(pynvml.nvmlSystemGetDriverVersion())
    finally:
        pynvml.nvmlShutdown()


def _backends() -> dict[str, Any]:
    return {
        name: {"available": status.available, "reason": status.reason} for name, status in fastdl.backends().items()
    }


def _native(library: str) -> dict[str, Any]:
    status = native.status_without_building(library)
    return {**dataclasses.asdict(status), "path": str(status.path) if status.path else None}


def _native_cuda() -> dict[str, Any]:
    """The CUDA library, and what it is compiled for: the GPUs at hand, or those that are named."""
    try:
        named = settings.cuda_archs()
        found = sorted({cuda_toolkit.arch_of(torch.cuda.get_device_capability(i)) for i in range(_gpu_count())})
        archs = ";".join(named or found) or "none: no GPU is visible and FASTDL_CUDA_ARCHS names none"
    except native.NativeUnavailableError as error:
        archs = str(error)
    return {**_native("cuda"), "archs": archs}


def _gpu_count() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _auto_on_gpus() -> dict[str, str]:
    """For each op, and compute capability at hand or measured, what decides between the backends."""
    order = " before ".join(dispatch.PREFERENCES["cuda"])
    if not any(CHOICES.values()):
        return {"every op": f"{order}: no GPU has been measured yet (make gpu-bench, then python -m bench choose)"}
    at_hand = set(measured.capabilities()) if _gpu_count() else set()
    rows = {}
    for op, choices in sorted(CHOICES.items()):
        for capability in sorted(at_hand | {row.partition(" ")[0] for row in choices}):
            counts: dict[str, int] = {}
            for row, backend in choices.items():
                if row.startswith(f"{capability} "):
                    counts[backend] = counts.get(backend, 0) + 1
            told = ", ".join(f"{backend} in {number}" for backend, number in sorted(counts.items()))
            of_measured = f"of {sum(counts.values())} measured combinations of dtype, layout and size: {told}; "
            rows[f"{op} on {capability}"] = (of_measured if counts else "not measured; ") + f"elsewhere {order}"
    return rows


def _tuned() -> dict[str, str]:
    """For the CPU and the GPU at hand what is stored of measurements here, whether it counts, and how to renew it."""
    devices = [device for device in (store.processor(), store.gpu()) if device is not None]
    return {device.label: store.state(store.load(device)) for device in devices}


def _toolchain() -> dict[str, Any]:
    return {"compiler": _compiler(), "ninja": _ninja(), "nvcc": _nvcc()}


def _compiler() -> dict[str, str]:
    try:
        compiler = toolchain.find_compiler()
        return {"path": str(compiler.path), "version": _first_line([*compiler.command, "--version"])}
    except native.NativeUnavailableError as error:
        return {"reason": str(error)}


def _ninja() -> dict[str, str]:
    try:
        path = toolchain.find_ninja()
        return {"path": str(path), "version": _first_line([str(path), "--version"])}
    except native.NativeUnavailableError as error:
        return {"reason": str(error)}


def _nvcc() -> dict[str, str]:
    try:
        path = cuda_toolkit.find_nvcc().path
    except native.NativeUnavailableError as error:
        return {"reason": f"{error} Only the CUDA C++ kernels need it."}
    return {"path": str(path), "version": _first_line([str(path), "--version"], containing="release")}


def _first_line(command: list[str], containing: str = "") -> str:
    """The first line with ``containing`` in what a program prints, or why there is none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unknown: {error}"
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if containing in line]
    return lines[0] if lines else "unknown"


def _cache() -> dict[str, Any]:
    entries = [
        {
            "path": str(entry / manifest.library),
            "bytes": manifest.size,
            "arch": manifest.arch,
            "torch": manifest.torch,
            "compiler": manifest.compiler_version,
            "built_in_seconds": manifest.built_in_seconds,
        }
        for entry, manifest in cache.entries()
    ]
    folders = [str(root) for root in cache.readable_roots()]
    return {"folders": folders, "entries": entries, "bytes": sum(entry["bytes"] for entry in entries)}


def _environment() -> dict[str, dict[str, str | None]]:
    """Each variable that is known, set or not, and each that looks like one of fastdl's but is none."""
    unknown = sorted(name for name in os.environ if name.startswith("FASTDL_") and name not in VARIABLES)
    known = {name: {"value": os.environ.get(name), "effect": effect} for name, effect in VARIABLES.items()}
    effect = f"no such variable; there is {', '.join(name for name in VARIABLES if name.startswith('FASTDL_'))}"
    return {**known, **{name: {"value": os.environ[name], "effect": effect} for name in unknown}}


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (name.replace("_", " "), _text(value, name)) for name, value in facts.items() if value not in (None, "", [], ())
    ]


def _text(value: Any, name: str = "") -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    if isinstance(value, int) and name in ("limit", "cached", "in_use", "bytes", "memory_bytes"):
        return f"{value / 2**20:,.1f} MiB"
    return str(value)


def _availability(row: dict[str, Any]) -> str:
    return "available" if row["available"] else f"not available: {row['reason']}"


def _tool_text(tool: dict[str, str]) -> str:
    return tool["reason"] if "reason" in tool else f"{tool['version']}  ({tool['path']})"


def _variable_text(row: dict[str, str | None]) -> str:
    value = "not set" if row["value"] is None else repr(row["value"])
    return f"{value}  ({row['effect']})"


def _device_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    gpus = [(f"cuda:{gpu['index']}", _gpu_text(gpu)) for gpu in facts["gpus"]]
    return [
        ("NVIDIA driver", facts["driver"]),
        ("CUDA of torch", facts["cuda_of_torch"] or "none: this torch is built for the CPU"),
        *(gpus or [("GPUs", "none visible")]),
    ]


def _gpu_text(gpu: dict[str, Any]) -> str:
    memory = _text(gpu["memory_bytes"], "memory_bytes")
    return f"{gpu['name']}, capability {gpu['capability']}, {gpu['multiprocessors']} multiprocessors, {memory}"


def _cache_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    total = f"{len(facts['entries'])} libraries, {_text(facts['bytes'], 'bytes')}"
    libraries = [
        (entry["arch"], f"{entry['path']}  (torch {entry['torch']}, {_text(entry['bytes'], 'bytes')})")
        for entry in facts["entries"]
    ]
    return [("folders", _text(facts["folders"])), ("content", total), *libraries]


def _choices_text(row: dict[str, str]) -> str:
    """``cpu: float32 bfloat16; reference: float16`` for one op."""
    by_backend: dict[str, list[str]] = {}
    for where, backend in row.items():
        by_backend.setdefault(backend, []).append(where)
    return "; ".join(f"{backend} for {', '.join(where)}" for backend, where in by_backend.items())


def _print(shown: list[tuple[str, list[tuple[str, str]]]]) -> None:
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        for title, rows in shown:
            width = max(len(name) for name, _ in rows)
            print(title, *(f"  {name:{width}}  {text}" for name, text in rows), "", sep="\n")
        return
    console = Console(highlight=False)
    for title, rows in shown:
        table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=True)
        table.add_column(style="cyan", no_wrap=True)
        table.add_column(overflow="fold")
        for name, text in rows:
            # Square brackets in a reason are its own, not markup.
            table.add_row(name, console.render_str(text, markup=False))
        console.print(table)
        console.print()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m fastdl.doctor", description="Tells what works on this machine and why not."
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    sys.exit(main(json=parser.parse_args().json))
