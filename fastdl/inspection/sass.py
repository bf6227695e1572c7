"""Reads machine code: what ``cuobjdump`` tells of a cubin, kernel by kernel.

Everything is counted from the disassembly and from the cubin's own record of resources, for Triton and nvcc alike, so
that one measure serves both; the assembler's log is not needed.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from . import instructions
from .resources import Launch, Resources
from .tools import cuobjdump_version, find_cuobjdump, run

RESOURCE = re.compile(
    r"Function (?P<name>\S+):\s+REG:(?P<REG>\d+) STACK:(?P<STACK>\d+) SHARED:(?P<SHARED>\d+) LOCAL:(?P<LOCAL>\d+)"
)
FUNCTION = re.compile(r"^\s*Function : (?P<name>\S+)\s*$")
INSTRUCTION = re.compile(
    r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[T0-9]+\s+)?(?P<opcode>[A-Z][A-Z0-9_]*(?:\.[A-Za-z0-9_:]+)*)"
)
# From sm_90 on the record counts what the system keeps of a block's shared memory, and the cubin has a section for it.
RESERVED_SECTION, RESERVED_BYTES = b".nv.shared.reserved.", 1024

# Modifier of a load or store -> bytes per thread; without one it is 4.
WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}
# LDGSTS copies from global to shared memory (cp.async). The bulk copies of the tensor memory accelerator are issued
# by one thread for a whole tile: they count as the widest.
GLOBAL_LOADS = {"LDG", "LDGSTS", "UBLKCP", "UTMALDG"}
GLOBAL_STORES = {"STG", "UTMASTG"}
BULK = {"UBLKCP", "UTMALDG", "UTMASTG"}
ATOMICS = {"ATOM", "ATOMG", "ATOMS", "RED", "REDG", "UREDGR"}
FLOATS = {"F16", "F16x2", "F32", "F64", "BF16", "BF16x2", "BF16_V2", "F16_V2"}


def measure(cubin: Path) -> dict[str, Resources]:
    """The resources of every kernel in the cubin, by its mangled name. Raises ToolMissingError without cuobjdump."""
    tool = str(find_cuobjdump())
    content = cubin.read_bytes()
    reserved = RESERVED_BYTES if RESERVED_SECTION in content else 0
    found = parse(run([tool, "--dump-resource-usage", str(cubin)]), run([tool, "-sass", str(cubin)]), reserved)
    # A cubin keeps each function in a section of its own: were the tool's words to change, none would be recognised.
    if not found and b".text." in content:
        raise ValueError(f"{cuobjdump_version()} told of no kernel in {cubin.name}, which has some")
    return found


def parse(usage: str, disassembly: str, reserved: int = 0) -> dict[str, Resources]:
    """The same from the two texts, which may tell of no kernel. Raises ValueError where they tell of different ones.

    ``reserved``: bytes of the system that the record counts among a block's shared memory, where it has any.
    """
    records = {found["name"]: found for found in RESOURCE.finditer(usage)}
    code = dict(functions(disassembly.splitlines()))
    if records.keys() != code.keys():
        raise ValueError(f"resources are given for {sorted(records)}, but code for {sorted(code)}")
    return {name: _resources(record, code[name], reserved) for name, record in records.items()}


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


def _resources(record: "re.Match[str]", opcodes: list[list[str]], reserved: int) -> Resources:
    shared = int(record["SHARED"])
    return Resources(
        registers=int(record["REG"]),
        shared_bytes=shared,
        local_bytes=int(record["STACK"]) + int(record["LOCAL"]),
        spill_store_bytes=sum(width_of(opcode) for opcode in opcodes if opcode[0] == "STL"),
        spill_load_bytes=sum(width_of(opcode) for opcode in opcodes if opcode[0] == "LDL"),
        loads=dict(Counter(width_of(opcode) for opcode in opcodes if opcode[0] in GLOBAL_LOADS)),
        stores=dict(Counter(width_of(opcode) for opcode in opcodes if opcode[0] in GLOBAL_STORES)),
        matrix=dict(Counter(opcode[0] for opcode in opcodes if opcode[0].endswith("MMA"))),
        float_atomics=sum(opcode[0] in ATOMICS and not FLOATS.isdisjoint(opcode) for opcode in opcodes),
        instructions=instructions.count(opcodes),
        # A kernel without shared memory may be recorded with none at all.
        launch=Launch(static_shared_bytes=max(shared - reserved, 0)),
    )
