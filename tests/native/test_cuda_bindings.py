"""csrc/cuda/bindings*.cpp from torch's tensors to the kernels, without a GPU: see cuda_on_host.cpp."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fastdl.native import cache
from fastdl.native.toolchain import TORCH_TARGET_VERSION, torch_installation
from tests.simt import harness

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SUFFIXES = (".h", ".cuh", ".cpp", ".cu")
FLAGS = ("-std=c++20", "-O1", "-fPIC", "-w", "-fno-strict-aliasing", "-DFASTDL_SIMT", "-DUSE_CUDA")
TARGET = f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"


def library() -> Path:
    """The bindings over the host build of the kernels, kept in the cache by the content of all that goes into it."""
    compiler, torch = harness.find_compiler(), torch_installation()
    units = sorted((harness.CSRC / "cuda").glob("*.cu"))
    units += [path for path in sorted(harness.RUNTIME.glob("*.cpp")) if path.name != "main.cpp"]
    units.append(HERE / "cuda_on_host.cpp")
    folders = (harness.CSRC, harness.RUNTIME, harness.HERE / "include")
    read = {path for folder in folders for path in folder.rglob("*") if path.suffix in SUFFIXES}
    digest = hashlib.sha256(repr((compiler.version, torch.version, FLAGS, TARGET)).encode())
    for path in sorted(read | set(units)):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    made = cache.writable_root() / "simt" / f"bindings-{digest.hexdigest()[:24]}.so"
    if made.exists():
        return made
    made.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=made.parent, prefix=".bindings-") as name:
        includes = [f"-I{path}" for path in (*harness.INCLUDES, harness.RUNTIME)]
        includes += ["-isystem", str(torch.include)]

        def compiled(unit: Path) -> str:
            # arena.cpp answers for its own arrays; cuda_on_host.cpp asks it, and answers for torch's tensors.
            renamed = ["-Dis_usable=is_usable_in_arena"] if unit.name == "arena.cpp" else []
            output = str(Path(name) / f"{unit.stem}.o")
            run([*compiler.command, *FLAGS, TARGET, *renamed, *includes, "-x", "c++", "-c", str(unit), "-o", output])
            return output

        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(compiled, units))
        # Our functions of torch's names come before torch's own.
        links = ["-shared", "-Wl,-Bsymbolic", f"-L{torch.library}", "-Wl,--no-as-needed", "-ltorch_cpu", "-ldl"]
        whole = Path(name) / "whole.so"
        run([*compiler.command, "-o", str(whole), *objects, *links])
        whole.replace(made)
    return made


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.timeout(900)
def test_torchs_tensors_reach_the_kernels_and_come_back() -> None:
    """Parity of forward, gradients and running statistics for every layout, rank, option and empty tensor.

    On sm_80 there is no cluster, so other plans are made; a few checks are enough to see that they are.
    """
    made = library()
    outcomes = {}
    for capability, what in (("90", []), ("80", ["checks"])):
        done = subprocess.run(
            [sys.executable, str(HERE / "cuda_on_host.py"), str(made), *what],
            env={**os.environ, "PYTHONPATH": str(ROOT), "SIMT_CAPABILITY": capability},
            capture_output=True,
            text=True,
            check=False,
            timeout=800,
        )
        assert done.returncode == 0, done.stderr
        *failures, outcomes[capability] = [json.loads(line) for line in done.stdout.splitlines()]
        assert failures == []
        assert outcomes[capability]["guards"] == 0
    ran = outcomes["90"]["ran"]
    assert ran.keys() == {
        "group_norm", "batch_norm", "layer_norm", "rms_norm", "norm_act_conv", "attention", "dropout",
    }  # fmt: skip
    assert min(ran.values()) > 40
    assert outcomes["90"]["streams"] > 2 * sum(ran.values()) * 0.9
