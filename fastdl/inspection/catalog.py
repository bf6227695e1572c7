"""What can be inspected, by name: the Triton configurations that ship, and the CUDA C++ sources with their kernels."""

import difflib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from fastdl.kernels.shipped import ARCHITECTURES, Shipped, all_shipped
from fastdl.native.status import NativeUnavailableError

from . import cuda_code, triton_code
from .dynamic_shared import NAMESPACE

TRITON, CUDA = "Triton", "CUDA C++"
DTYPES = ("bf16", "fp16", "fp32")
# Sources that several ops are made of; every other one belongs to the op that its name begins with.
_SHARED_SOURCES = {
    "strips_*": ("group_norm", "batch_norm"),
    "rows_*": ("group_norm", "batch_norm"),
    "norm_merge": ("group_norm", "batch_norm"),
    "convolution_*": ("norm_act_conv",),
}
# How the sources call the types of the kernels' data, in template arguments and at the end of file names.
_CUDA_DTYPES = {"bfloat16_bits": "bf16", "half_bits": "fp16", "float": "fp32"}
_FILE_DTYPES = {"_bfloat16": "bf16", "_float16": "fp16", "_float": "fp32"}
# A name may stand for all that begin with it and go on with one of these.
_SEPARATORS = "_./<:"


@dataclass(frozen=True, eq=False)
class Item:
    """What is compiled in one go: a Triton configuration, or a CUDA C++ source.

    ``subject`` is ``<module>.<kernel>`` or the file's name; ``name`` the configuration's, or the file's again.
    ``operators``: the ops that it serves. ``kernels``: of a source, its kernels' names without namespace and template
    arguments, as the file of their limits has them. ``entry`` and ``source``: which of the two it is.
    """

    language: str
    subject: str
    name: str
    operators: tuple[str, ...]
    kernels: tuple[str, ...] = ()
    entry: Shipped | None = None
    source: Path | None = None
    architectures: tuple[int, ...] = ARCHITECTURES

    @property
    def labels(self) -> tuple[str, ...]:
        """The names by which all of it is asked for."""
        parts = self.subject.partition(".")[::2] if self.entry else (Path(self.subject).stem,)
        return (*self.operators, self.subject, *parts, self.name)


def catalog() -> tuple[list[Item], dict[str, str]]:
    """Everything, and by language why there is nothing of it on this machine."""
    items: list[Item] = []
    reasons: dict[str, str] = {}
    if reason := triton_code.missing():
        reasons[TRITON] = reason
    else:
        items += [triton_item(entry) for entry in all_shipped()]
    try:
        items += [item for path in cuda_code.sources() if (item := cuda_item(path)).kernels]
    except NativeUnavailableError as error:
        reasons[CUDA] = str(error)
    return items, reasons


def triton_item(entry: Shipped) -> Item:
    function = entry.kernel.fn
    subject = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
    return Item(
        *(TRITON, subject, entry.name, (entry.name.partition("/")[0],)), entry=entry, architectures=entry.architectures
    )


def cuda_item(path: Path) -> Item:
    """A source with its kernels; one of host code alone has no file of limits beside it, and no kernels."""
    limits = path.with_suffix(".limits.json")
    patterns: Iterable[str] = json.loads(limits.read_text(encoding="utf-8")) if limits.is_file() else ()
    kernels = tuple(dict.fromkeys(pattern.removeprefix(NAMESPACE).partition("<")[0] for pattern in patterns))
    shared = (names for pattern, names in _SHARED_SOURCES.items() if fnmatchcase(path.stem, pattern))
    return Item(CUDA, path.name, path.name, next(shared, ()), kernels, source=path)


def select(words: Sequence[str], items: Sequence[Item]) -> list[Item]:
    """The items that one of the words asks for. Raises ValueError, with what there is, for one that asks for none."""
    chosen: dict[Item, None] = {}
    for word in words:
        fitting = [item for item in items if _asks_for_all(word, item) or _kernels_asked_for(word, item)]
        if not fitting:
            raise ValueError(_unknown(word, items))
        chosen.update(dict.fromkeys(fitting))
    return [item for item in items if item in chosen]


def wants(words: Sequence[str], item: Item, kernel: str) -> bool:
    """Whether one of the words asks for this kernel of a source, by the short name that is shown."""
    return any(_asks_for_all(word, item) or fits(word, kernel) or fits(word, NAMESPACE + kernel) for word in words)


def fits(word: str, label: str) -> bool:
    """Whether a word names this: as a pattern where it has wildcards, or else wholly or by its beginning."""
    if any(character in word for character in "*?["):
        return fnmatchcase(label, word)
    return label == word or (label.startswith(word) and label[len(word)] in _SEPARATORS)


def of_dtype(dtypes: Sequence[str], item: Item) -> bool:
    """Whether an item may hold kernels for data of one of these types."""
    if item.entry is not None:
        return not dtypes or any(part in dtypes for part in item.name.split("/"))
    own = next((dtype for end, dtype in _FILE_DTYPES.items() if Path(item.subject).stem.endswith(end)), None)
    return not dtypes or own is None or own in dtypes


def kernel_of_dtype(dtypes: Sequence[str], kernel: str) -> bool:
    """The same for a CUDA C++ kernel; one whose name tells of no type serves all of them."""
    arguments = kernel.partition("<")[2]
    own = [dtype for dtype in DTYPES if dtype in arguments.rstrip(">").split(", ")]
    return not dtypes or not own or own[0] in dtypes


def short_name(kernel: str) -> str:
    """A CUDA C++ kernel's name without what all of them share, and with Triton's names of types."""
    for name, dtype in _CUDA_DTYPES.items():
        kernel = kernel.replace(f"fastdl::device::{name}", dtype)
    head, bracket, arguments = kernel.replace(NAMESPACE, "").partition("<")
    namespace = head.partition("::")[0]
    arguments = arguments.replace(f"{namespace}::", "").replace("float", "fp32")
    return f"{head}{bracket}{arguments}"


def _asks_for_all(word: str, item: Item) -> bool:
    return any(fits(word, label) for label in item.labels)


def _kernels_asked_for(word: str, item: Item) -> bool:
    """Whether the word may name a kernel of the source: the template arguments are known once it is compiled."""
    name = word.removeprefix(NAMESPACE).partition("<")[0]
    return any(fits(name, kernel) for kernel in item.kernels)


def _unknown(word: str, items: Sequence[Item]) -> str:
    labels = sorted({label for item in items for label in (*item.labels, *item.kernels)})
    close = difflib.get_close_matches(word, labels, n=3)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    operators = sorted({name for item in items for name in item.operators})
    return (
        f"there is no kernel {word!r}.{hint} There are the ops {', '.join(operators)}, and what `fastdl inspect "
        "--list` shows; a pattern such as 'attention/*/bf16*' in quotation marks fits kernels and configurations"
    )
