"""Reads from PTX how a kernel may be launched: its bound on threads, and whether it uses dynamic shared memory."""

import re
from dataclasses import dataclass

ENTRY = re.compile(r"\.entry\s+(?P<name>[\w$]+)\s*\([^)]*\)(?P<directives>[^{]*)\{")
# An array without a size is what a launch adds.
DYNAMIC_SHARED = re.compile(r"\.extern\s+\.shared\b[^;]*?\s(?P<name>[\w$]+)\s*\[\s*\]\s*;")
DIRECTIVE = re.compile(r"\.(?P<name>maxntid|reqntid|minnctapersm)\s+(?P<numbers>[\d, ]+)")


@dataclass(frozen=True)
class Entry:
    """``threads``: per block, None where nothing bounds them; ``exact``: whether a block must have as many."""

    threads: int | None
    exact: bool
    minimum_blocks: int
    uses_dynamic_shared: bool


def read_entries(ptx: str) -> dict[str, Entry]:
    """The kernels in a PTX text, by their mangled names."""
    text = re.sub(r"//[^\n]*", "", ptx)
    dynamic = [re.compile(rf"(?<![\w$]){re.escape(name)}(?![\w$])") for name in DYNAMIC_SHARED.findall(text)]
    matches = list(ENTRY.finditer(text))
    ends = [match.start() for match in matches[1:]] + [len(text)]
    return {
        match["name"]: _entry(match["directives"], any(name.search(text, match.end(), end) for name in dynamic))
        for match, end in zip(matches, ends, strict=True)
    }


def _entry(directives: str, uses_dynamic_shared: bool) -> Entry:
    found: dict[str, int] = {}
    for directive in DIRECTIVE.finditer(directives):
        number = 1
        for size in directive["numbers"].split(","):
            number *= int(size)
        found[directive["name"]] = number
    exact = "reqntid" in found
    threads = found.get("reqntid", found.get("maxntid"))
    return Entry(threads, exact, found.get("minnctapersm", 0), uses_dynamic_shared)
