"""Reads machine code: what ``cuobjdump`` tells of a cubin, kernel by kernel.

Everything is counted from the disassembly and from the cubin's own record of resources, for Triton and nvcc alike, so
that one measure serves both; the assembler's log is not needed.
"""

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from .resources import Resources

RESOURCE = re.compile(
    r"Function (?P<name>\S+):\s+REG:(?P<REG>\d+) STACK:(?P<STACK>\d+) SHARED:(?P<SHARED>\d+) LOCAL:(?P<LOCAL>\d+)"
)
FUNCTION = re.compile(r"^\s*Function : (?P<name>\S+)\s*$")
INSTRUCTION = re.compile(
    r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[T0-9]+\s+)?(?P<opcode>[A-Z][A-Z0-9_]*(?:\.[A-Za-z0-9_:]+)*)"
)

# Modifier of a load or store -> bytes per thread; without one it is 4.
WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}
# LDGSTS copies from global to shared memory (cp.async). The bulk copies of the tensor memory accelerator are issued
# by one thread for a whole tile: they count as the widest.
GLOBAL_LOADS = {"LDG", "LDGSTS", "UBLKCP", "UTMALDG"}
GLOBAL_STORES = {"STG", "UTMASTG"}
BULK = {"UBLKCP", "UTMALDG", "UTMASTG"}
ATOMICS = {"ATOM", "ATOMG", "ATOMS", "RED", "REDG", "UREDGR"}
FLOATS = {"F16", "F16x2", "F32", "F64", "BF16", "BF16x2", "BF16_V2", "F16_V2"}


class ToolMissingError(RuntimeError):
    """A program that the gate needs is nowhere on this machine; the message says which, and what brings it."""


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


def measure(cubin: Path) -> dict[str, Resources]:
    """The resources of every kernel in the cubin, by its mangled name."""
    tool = str(find_cuobjdump())
    found = parse(run([tool, "--dump-resource-usage", str(cubin)]), run([tool, "-sass", str(cubin)]))
    # A cubin keeps each function in a section of its own: were the tool's words to change, none would be recognised.
    if not found and b".text." in cubin.read_bytes():
        raise ValueError(f"{cuobjdump_version()} told of no kernel in {cubin.name}, which has some")
    return found


def parse(usage: str, disassembly: str) -> dict[str, Resources]:
    """The same from the two texts, which may tell of no kernel. Raises ValueError where they tell of different ones."""
    records = {found["name"]: found for found in RESOURCE.finditer(usage)}
    code = dict(functions(disassembly.splitlines()))
    if records.keys() != code.keys():
        raise ValueError(f"resources are given for {sorted(records)}, but code for {sorted(code)}")
    return {name: _resources(record, code[name]) for name, record in records.items()}


def functions(lines: Iterable[str]) -> Iterator[tuple[str, list[list[str]]]]:
    """(name, opcodes) of each function; an opcode is split at its dots: ``["LDG", "E", "128"]``."""
    name, opcodes = "", list[list[str]]()
    for line in lines:
        if header := FUNCTION.match(line):
            if name:
                yield name, opcodes
            name, opcodes = header["name"], []
        elif name and (found := INSTRUCTION.match(line)):
            opcodes.append(found["opcode"].split("."))
    if name:
        yield name, opcodes


def width_of(opcode: list[str]) -> int:
    """Bytes per thread of a load or store."""
    if opcode[0] in BULK:
        return 16
    return next((WIDTHS[modifier] for modifier in opcode[1:] if modifier in WIDTHS), 4)


def _resources(record: "re.Match[str]", opcodes: list[list[str]]) -> Resources:
    return Resources(
        registers=int(record["REG"]),
        shared_bytes=int(record["SHARED"]),
        local_bytes=int(record["STACK"]) + int(record["LOCAL"]),
        spill_store_bytes=sum(width_of(opcode) for opcode in opcodes if opcode[0] == "STL"),
        spill_load_bytes=sum(width_of(opcode) for opcode in opcodes if opcode[0] == "LDL"),
        loads=dict(Counter(width_of(opcode) for opcode in opcodes if opcode[0] in GLOBAL_LOADS)),
        stores=dict(Counter(width_of(opcode) for opcode in opcodes if opcode[0] in GLOBAL_STORES)),
        matrix=dict(Counter(opcode[0] for opcode in opcodes if opcode[0].endswith("MMA"))),
        float_atomics=sum(opcode[0] in ATOMICS and not FLOATS.isdisjoint(opcode) for opcode in opcodes),
    )
