"""A source tree of two small files that stands for ``csrc/``, and processes that load what is built from it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastdl.native.cache import Manifest
from fastdl.native.status import NativeUnavailableError
from fastdl.native.targets import TARGETS

LIBRARY = TARGETS["cpu"].library

BINDINGS = """
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include "cpu/twice.h"

static torch::stable::Tensor twice(torch::stable::Tensor x) {
  torch::stable::Tensor y = torch::stable::empty_like(x);
  made_up::twice(static_cast<const float*>(x.data_ptr()), static_cast<float*>(y.data_ptr()), x.numel());
  return y;
}
STABLE_TORCH_LIBRARY(fastdl_made_up, m) { m.def("twice(Tensor x) -> Tensor"); }
STABLE_TORCH_LIBRARY_IMPL(fastdl_made_up, CPU, m) { m.impl("twice", TORCH_BOX(&twice)); }
"""
HEADER = """
#pragma once
#include <cstdint>
namespace made_up { void twice(const float* x, float* y, int64_t count); }
"""
KERNEL = """
#include "cpu/twice.h"
void made_up::twice(const float* x, float* y, int64_t count) {
  for (int64_t i = 0; i < count; ++i) y[i] = 2 * x[i];
}
"""

# One process: load, use the operator if there is one, and print what happened as JSON.
PROCESS = """
import json, os, sys, warnings
from pathlib import Path
import torch
from fastdl.native.loader import Loader

Path(sys.argv[3], f"ready-{os.getpid()}").touch()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    loader = Loader(Path(sys.argv[1]), Path(sys.argv[2]))
    status = loader.load()
    assert loader.load() is status
result = [float(v) for v in torch.ops.fastdl_made_up.twice(torch.arange(3.0))] if status.available else None
print(json.dumps({
    "available": status.available, "reason": status.reason, "path": str(status.path), "features": status.features,
    "built_in_seconds": status.built_in_seconds, "result": result,
    "warnings": [[w.category.__name__, str(w.message)] for w in caught],
}))
"""


class Processes:
    """Starts processes that load the library of the test's source tree."""

    def __init__(self, csrc: Path, prebuilt: Path, ready: Path) -> None:
        self.ready = ready
        self.command = [sys.executable, "-c", PROCESS, str(csrc), str(prebuilt), str(ready)]

    def about_to_load(self) -> int:
        """How many processes have come to the point of loading."""
        return len(list(self.ready.glob("ready-*")))

    def start(self, **environment: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            self.command,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def outcome(self, process: "subprocess.Popen[str]") -> dict[str, Any]:
        output, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
        return {**json.loads(output), "stderr": errors}

    def run(self, **environment: str) -> dict[str, Any]:
        return self.outcome(self.start(**environment))


def a_manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "format": 1,
        "library": "libfastdl_cpu.so",
        "size": 7,
        "sha256": "0" * 64,
        "source_digest": "sources",
        "system": sys.platform,
        "machine": "x86_64",
        "arch": "native",
        "required_features": (),
        "flags": ("-O3",),
        "compiler": "/usr/bin/g++ 1 2",
        "compiler_version": "g++ 12",
        "torch": "2.13.0",
        "torch_target": "0x020b000000000000",
        "built_in_seconds": 1.0,
    }
    return Manifest(**{**values, **changes})


def only_entry(cache_folder: Path) -> Path:
    entries = [path for path in (cache_folder / "native").iterdir() if path.is_dir()]
    assert len(entries) == 1
    return entries[0]


def works(outcome: dict[str, object]) -> bool:
    return outcome["available"] is True and outcome["result"] == [0.0, 2.0, 4.0] and not outcome["warnings"]


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.02)


def find_no_ninja() -> Path:
    raise NativeUnavailableError("The build tool ninja was not found.", "Install it: pip install ninja.")


def executable(path: Path, text: str) -> Path:
    """A shell script at ``path``."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def failing_compiler(path: Path, compiler: str, message: str, while_exists: Path | None = None) -> Path:
    """A compiler that answers every question but fails to compile, with ``message`` (as long as a file exists)."""
    condition = f'[ -e "{while_exists}" ]' if while_exists else "true"
    return executable(
        path,
        f'case "$*" in *" -c "*) if {condition}; then echo "{message}" >&2; exit 1; fi;; esac\nexec "{compiler}" "$@"',
    )


def write_sources(root: Path) -> Path:
    """The made-up source tree, in ``root``."""
    (root / "cpu").mkdir(parents=True)
    (root / "bindings.cpp").write_text(BINDINGS)
    (root / "cpu" / "twice.h").write_text(HEADER)
    (root / "cpu" / "twice.cpp").write_text(KERNEL)
    return root
