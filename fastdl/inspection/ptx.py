"""Reads PTX: which pointer argument each global load and store goes through, and how wide it is.

A kernel that reads its tensor in 16-byte pieces still reads statistics and parameters one number at a time, so a count
of instructions alone cannot tell a narrow access that is meant from one that is a fault. PTX has one register for each
value: following the address backwards leads to the kernel's argument, by name. The assembler keeps the widths
(``triton_code`` compares the counts), so what holds here holds in the machine code.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from .resources import Access

ENTRY = re.compile(r"\.entry\s+(?P<name>[\w$]+)\s*\(")
REGISTER = re.compile(r"%(?!tid|ntid|ctaid|nctaid|laneid|warpid|clusterid|cluster)[a-zA-Z]+\d+")
PARAMETER = re.compile(r"[\w$]_param_(?P<index>\d+)\b")
ADDRESS = re.compile(r"\[\s*(?P<register>%\w+)")
VECTOR = {"v2": 2, "v4": 4, "v8": 8}
ELEMENT = re.compile(r"[busf](?P<bits>8|16|32|64|128)|bf16|f16x2|bf16x2")


@dataclass
class Instruction:
    """``opcode`` split at its dots, and the text of its operands."""

    opcode: list[str]
    operands: str


@dataclass
class Code:
    """One kernel: for each register the instructions that write it, and all accesses of global memory."""

    written_by: "defaultdict[str, list[Instruction]]" = field(default_factory=lambda: defaultdict(list))
    accesses: list[Instruction] = field(default_factory=list)


def argument_accesses(ptx: str, arguments: Sequence[str], pointers: Sequence[str]) -> dict[str, Access]:
    """By pointer argument, the widths in bytes (and the number) of its loads and stores.

    ``arguments`` are the names of the kernel's arguments in PTX's order (Triton's constants have none there);
    ``pointers`` those of them that are pointers. Raises ValueError for an access that leads to no pointer argument, for
    it could not be held to any limit.
    """
    code = read(ptx)
    loads: dict[str, Counter[int]] = {name: Counter() for name in pointers}
    stores: dict[str, Counter[int]] = {name: Counter() for name in pointers}
    for access in code.accesses:
        address, width, is_store = describe(access)
        origins = {arguments[index] for index in _origins(code, address) if index < len(arguments)} & set(pointers)
        if not origins:
            raise ValueError(f"`{'.'.join(access.opcode)} {access.operands}` goes through no pointer argument")
        for name in origins:
            (stores if is_store else loads)[name][width] += 1
    return {name: Access(dict(loads[name]), dict(stores[name])) for name in pointers}


def read(ptx: str) -> Code:
    """The one kernel in a PTX text."""
    entries = list(ENTRY.finditer(ptx))
    if len(entries) != 1:
        raise ValueError(f"expected PTX of one kernel, but it has {len(entries)}")
    code = Code()
    body = re.sub(r"//[^\n]*", "", ptx[entries[0].end() :])
    for statement in re.split(r"[;\n]", body):
        parts = statement.strip().split(None, 1)
        if len(parts) == 2 and parts[0].startswith("@"):
            parts = parts[1].strip().split(None, 1)
        if len(parts) != 2 or parts[0].startswith("."):
            continue
        instruction = Instruction(parts[0].split("."), parts[1].strip())
        if is_global_access(instruction):
            code.accesses.append(instruction)
        for register in REGISTER.findall(_destination(instruction)):
            code.written_by[register].append(instruction)
    return code


def is_global_access(instruction: Instruction) -> bool:
    kind, modifiers = instruction.opcode[0], instruction.opcode[1:]
    if kind in ("ld", "st"):
        return "global" in modifiers
    # Asynchronous copies between global and shared memory; commit_group and wait_group move nothing.
    return kind == "cp" and "global" in modifiers


def describe(access: Instruction) -> tuple[str, int, bool]:
    """(address register, bytes per thread, whether it is a store) of an access of global memory."""
    addresses = ADDRESS.findall(access.operands)
    if access.opcode[0] == "cp":
        # cp.async [shared], [global], bytes: the second address, and the third operand is the size. Bulk copies move
        # tiles by one instruction.
        spaces = [modifier.partition("::")[0] for modifier in access.opcode]
        if "bulk" in access.opcode:
            to_global = spaces.index("global") < spaces.index("shared")
            return addresses[0 if to_global else 1], 16, to_global
        size = re.split(r"\]\s*,", access.operands)[2].split(",")[0].strip()
        return addresses[1], int(size, 0), False
    bits = 0
    for modifier in access.opcode[1:]:
        if found := ELEMENT.fullmatch(modifier):
            bits = int(found["bits"] or 0) or (32 if modifier.endswith("x2") else 16)
    lanes = next((VECTOR[modifier] for modifier in access.opcode if modifier in VECTOR), 1)
    if not addresses or not bits:
        raise ValueError(f"`{'.'.join(access.opcode)} {access.operands}` is no access that this reader knows")
    return addresses[0], lanes * bits // 8, access.opcode[0] == "st"


def _destination(instruction: Instruction) -> str:
    """The text of the first operand, which is what an instruction writes (a list in braces counts as one)."""
    if instruction.opcode[0] in ("st", "bra", "bar", "red", "cp", "ret", "call"):
        return ""
    operands = instruction.operands
    return operands[: operands.index("}") + 1] if operands.startswith("{") else operands.partition(",")[0]


def _origins(code: Code, register: str) -> set[int]:
    """The numbers of the kernel's parameters that the register's value was computed from."""
    found: set[int] = set()
    seen: set[str] = set()
    waiting = [register]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        for instruction in code.written_by.get(current, ()):
            if parameter := PARAMETER.search(instruction.operands):
                found.add(int(parameter["index"]))
            elif instruction.opcode[0] not in ("ld", "atom"):  # an index that was loaded is no pointer
                rest = instruction.operands[len(_destination(instruction)) :]
                waiting += REGISTER.findall(rest)
    return found
