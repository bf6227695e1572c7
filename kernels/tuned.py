"""Sizes that were measured, above those that the plans count: the one place where a plan asks for them.

A plan settles some sizes (rows, columns, warps, stages) and derives all others (blocks, chunks, programs) from what
`sizes` gives back, so that no size that comes from here can contradict another one. The answer is, in this order,

1. a trial that is under way (`trying`), as `fastdl tune` makes it;
2. what is stored for this GPU (`fastdl.tuning.store`), read at the first plan that a process makes on one;
3. the plan's own default.

Plans are cached, and so asked once a shape. Without a GPU, and where nothing is stored, 3 holds at once.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch

Sizes = tuple[int, ...]
Table = Mapping[str, Mapping[str, Sizes]]
"""Name of the sizes -> key of the bucket -> sizes."""

FIELDS: dict[str, tuple[str, ...]] = {
    "attention_forward": ("rows", "columns", "warps", "stages"),
    "attention_decoding": ("columns", "warps", "stages"),
    "attention_backward_short": ("rows", "warps"),
    "attention_backward_keys": ("rows", "columns", "warps", "stages"),
    "attention_backward_queries": ("rows", "columns", "warps", "stages"),
    "attention_mask_gradient": ("rows", "columns", "warps"),
    "convolution_forward": ("rows", "columns", "depth", "warps", "stages"),
    "convolution_data": ("rows", "columns", "depth", "warps", "stages"),
    "convolution_weight": ("rows", "columns", "depth", "warps", "stages"),
    "direct_convolution_forward": ("rows", "columns", "warps"),
    "direct_convolution_data": ("rows", "columns", "warps"),
    "direct_convolution_weight": ("rows", "columns", "warps"),
    "dropout": ("calls", "warps"),
    "norm_forward": ("groups", "warps"),
    "norm_backward": ("groups", "warps"),
    "norm_moments": ("positions", "channels", "warps"),
    "norm_sums": ("positions", "channels", "warps"),
    "norm_apply_forward": ("positions", "channels", "warps"),
    "norm_apply_backward": ("positions", "channels", "warps"),
    "row_norm_forward": ("rows", "warps"),
    "row_norm_backward": ("rows", "warps", "stages"),
    "row_norm_wide": ("columns", "warps"),
    "row_norm_columns": ("rows", "columns", "warps"),
}
"""The sizes that can be tuned, by the name that a plan asks under, and what each number is."""


class Asked(NamedTuple):
    """What a plan asked for: a name of `FIELDS`, the key of the problem's bucket, and the plan's own sizes."""

    name: str
    key: str
    default: Sizes


Cached = TypeVar("Cached", bound=Any)
Function = TypeVar("Function", bound=Callable[..., Any])

_plans: list[Any] = []
_trials: dict[tuple[str, str | None], Sizes] = {}
_asked: list[Asked] | None = None
_table: Table | None = None  # None: not read yet
_shipped = False


def planned(cached: Cached) -> Cached:
    """Registers a plan's cache (``functools.lru_cache``), which a trial clears."""
    _plans.append(cached)
    return cached


def sizes(name: str, default: Sizes, **bucket: int) -> Sizes:
    """The sizes to take, as many as ``default`` has.

    ``name`` is one of `FIELDS`. ``bucket`` says what a problem has in common with those that share its sizes: what is
    exact (bytes a number, flags), and the power of two above what is not.
    """
    if not _trials and _asked is None:
        if _shipped:
            return default
        if not (_table if _table is not None else _read()):
            return default
    key = key_of(bucket)
    if _asked is not None:
        _asked.append(Asked(name, key, default))
    found = _trials.get((name, key), _trials.get((name, None)))
    if found is None and not _shipped:
        found = (_table if _table is not None else _read()).get(name, {}).get(key)
    return found if found is not None and len(found) == len(default) else default


def key_of(bucket: Mapping[str, int]) -> str:
    """``itemsize=2 block=64 causal``: numbers by name, flags that are set by their name alone."""
    parts = (name if value is True else f"{name}={value}" for name, value in bucket.items() if value is not False)
    return " ".join(parts)


@contextmanager
def trying(name: str, sizes: Sizes, key: str | None = None) -> Iterator[None]:
    """Within it plans get these sizes under this name: in one bucket, or in all where ``key`` is None. In all threads.

    Raises ValueError for a name that is not in `FIELDS`, another number of sizes, or a size that is no positive int.
    """
    fields = FIELDS.get(name)
    if fields is None:
        raise ValueError(f"name must be one of {', '.join(FIELDS)}; got {name!r}")
    if len(sizes) != len(fields) or any(type(size) is not int or size < 1 for size in sizes):
        raise ValueError(f"sizes of {name!r} must be {len(fields)} positive ints ({', '.join(fields)}); got {sizes!r}")
    before = _trials.get((name, key))
    _trials[name, key] = tuple(sizes)
    clear_plans()
    try:
        yield
    finally:
        del _trials[name, key]
        if before is not None:
            _trials[name, key] = before
        clear_plans()


@contextmanager
def asking() -> Iterator[list[Asked]]:
    """Takes down what plans ask for within it, each plan once."""
    global _asked
    before, _asked = _asked, []
    clear_plans()
    try:
        yield _asked
    finally:
        _asked = before


@contextmanager
def shipped_only() -> Iterator[None]:
    """Within it nothing that is stored counts: for the lists of what ships, which are the same on every machine."""
    global _shipped
    before, _shipped = _shipped, True
    if _table:
        clear_plans()
    try:
        yield
    finally:
        _shipped = before
        if _table or _table is None:  # what was planned here may not be what is stored
            clear_plans()


def clear_plans() -> None:
    """Every plan is made anew at its next call."""
    for cached in _plans:
        cached.cache_clear()


def forget() -> None:
    """What is stored is read again at the next plan: after it has changed."""
    global _table
    _table = None
    clear_plans()


def guarded(function: Function) -> Function:
    """A kernel's function that goes on with the plans' own sizes where stored ones do not compile.

    Sizes were measured in one problem of their bucket; another one may need more registers or shared memory. Where
    nothing is stored it is the function itself.
    """
    if not (_table if _table is not None else _read()):
        return function

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as error:
            if not _table or _trials or not _is_of_the_compiler(error):
                raise
            _give_up(error)
        return function(*arguments)

    return call  # type: ignore[return-value]


def _is_of_the_compiler(error: Exception) -> bool:
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources

    return isinstance(error, (CompilationError, OutOfResources)) or "PassManager" in str(error)


def _give_up(error: Exception) -> None:
    """Nothing that is stored counts any more in this process."""
    from fastdl import native

    global _table
    _table = {}
    clear_plans()
    reason = str(error).strip().partition("\n")[0]
    text = (
        f"sizes that `fastdl tune` has stored do not compile for a call ({type(error).__name__}: {reason}); in this "
        "process the kernels' own sizes are taken from here on. `fastdl tune --clear` removes what is stored."
    )
    warnings.warn(text, native.FastdlWarning, stacklevel=4)


def _read() -> Table:
    """The table stored for this GPU. Without one, and under the interpreter, it is empty."""
    global _table
    _table = {}
    if os.environ.get("TRITON_INTERPRET") != "1" and torch.cuda.is_available():
        from fastdl.tuning import store

        _table = store.sizes_of(store.gpu())
    return _table
