"""``fastdl inspect``: what kernels compile to, on any machine, with a GPU or without."""

import argparse
import json
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeVar

from . import cuda_code
from .catalog import CUDA, DTYPES, TRITON, Item, catalog, of_dtype, select
from .columns import WIDEST, tables
from .document import document
from .measuring import Failure, measure_all
from .occupancy import ARCHITECTURES

FAILED, NOTHING_DONE = 1, 2
NAMES = {str(architecture): number for number, architecture in ARCHITECTURES.items()}
DEFAULT = "sm_90"
Value = TypeVar("Value")


def main(words: Sequence[str]) -> int:
    """Run the command and return its status: 0, 1 where something did not compile, 2 where nothing could be done.

    Raises ValueError for a kernel, an architecture or a type that is not there, with those that are.
    """
    parser = _parser()
    options = parser.parse_args(list(words))
    architectures = _each(options.arch or [DEFAULT], NAMES, "--arch")
    dtypes = _each(options.dtype or [], {name: name for name in DTYPES}, "--dtype")
    items, missing = catalog()
    if options.list:
        _say_missing(missing)
        print(_listing(items))
        return 0
    if not options.kernel:
        parser.print_help()
        return NOTHING_DONE
    if not items:
        _say_missing(missing)
        return NOTHING_DONE
    chosen = _chosen(options.kernel, items, dtypes, architectures, missing)
    if CUDA not in missing and any(item.language == CUDA for item in chosen) and (reason := cuda_code.missing()):
        missing[CUDA] = reason
    chosen = [item for item in chosen if item.language not in missing]
    _say_missing(missing)
    if not chosen:
        return NOTHING_DONE
    rows, failures = measure_all(chosen, architectures, options.kernel, dtypes)
    if options.json:
        print(json.dumps(document(rows, failures, missing, architectures), indent=2))
    else:
        # A pipe or a file has no width: there the lines are as wide as they may be.
        width = shutil.get_terminal_size((WIDEST, 24)).columns
        print(tables(rows, width) if rows else "no kernel of these exists for the architectures and types asked for")
    _say_failures(failures)
    return FAILED if failures else 0 if rows else NOTHING_DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastdl inspect",
        description="What kernels compile to: registers, shared memory, spills, occupancy and instructions, read from "
        "machine code on any machine, with a GPU or without. What was compiled once is remembered.",
        epilog="docs/inspection.md explains every column.",
    )
    parser.add_argument(
        "kernel",
        nargs="*",
        metavar="KERNEL",
        help="an op (attention, group_norm), a kernel, a configuration, a .cu file, or a pattern of one ('*' is all)",
    )
    parser.add_argument(
        "--arch", action="append", metavar="SM", help=f"{', '.join(NAMES)} (default: {DEFAULT}); again for more"
    )
    parser.add_argument(
        "--dtype", action="append", metavar="TYPE", help=f"{', '.join(DTYPES)} (default: all); again for more"
    )
    parser.add_argument("--json", action="store_true", help="print everything that is known, for programs")
    parser.add_argument("--list", action="store_true", help="print what there is, and compile nothing")
    return parser


def _each(values: Sequence[str], known: Mapping[str, Value], option: str) -> list[Value]:
    for value in values:
        if value not in known:
            raise ValueError(f"{option} takes {', '.join(known)}, got {value!r}")
    return list(dict.fromkeys(known[value] for value in values))


def _chosen(
    words: Sequence[str],
    items: Sequence[Item],
    dtypes: Sequence[str],
    architectures: Sequence[int],
    missing: Mapping[str, str],
) -> list[Item]:
    try:
        chosen = select(words, items)
    except ValueError as error:
        # The name may be that of a kernel which this machine cannot tell of.
        notes = [f"({language}: {reason})" for language, reason in missing.items()]
        raise ValueError(" ".join([str(error), *notes])) from None
    fitting = [item for item in chosen if of_dtype(dtypes, item) and set(architectures) & set(item.architectures)]
    if not fitting:
        raise ValueError(f"none of the kernels that {', '.join(words)} names is made for the --arch and --dtype given")
    return fitting


def _listing(items: Sequence[Item]) -> str:
    operators = sorted({name for item in items for name in item.operators})
    lines = ["Ops, each for all of its kernels:", *(f"  {name}" for name in operators)]
    for language, unit in ((TRITON, "configuration"), (CUDA, "kernel template")):
        counts: Counter[str] = Counter()
        for item in items:
            if item.language == language:
                counts[item.subject] += 1 if item.entry else len(item.kernels)
        width = max(map(len, counts), default=0)
        lines += ["", f"{language}:"] if counts else []
        lines += [
            f"  {name:{width}}  {count} {unit}{'' if count == 1 else 's'}" for name, count in sorted(counts.items())
        ]
    return "\n".join(lines)


def _say_missing(missing: dict[str, str]) -> None:
    for language, reason in missing.items():
        print(f"fastdl inspect: the {language} kernels cannot be compiled here. {reason}", file=sys.stderr)


def _say_failures(failures: Sequence[Failure]) -> None:
    for failure in failures:
        print(f"fastdl inspect: {failure.name} failed on sm_{failure.architecture}: {failure.message}", file=sys.stderr)
