"""Which backend serves a call: the one place that knows what exists on this machine, what was asked for, and what fits.

The request is a context variable over a process-wide default, so that a ``use_backend`` block in one thread or task
does not leak into another. ``torch.compile`` cannot trace a context variable, so traced code reads the same value
through ``requested_view``, an attribute that Dynamo guards on: leaving the block recompiles.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from fastdl import native
from fastdl.ops import measured


class BackendError(RuntimeError):
    """A backend was asked for by name and cannot serve the call."""


@dataclass(frozen=True)
class BackendStatus:
    """Whether a backend can run on this machine, and if not, why not and what to do."""

    available: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.available


@dataclass(frozen=True)
class Implementation:
    """One op on one backend: plain functions of tensors, which know nothing of autograd or of other backends.

    ``update_running_statistics(running_mean, running_var, statistics, count, momentum)``, for a norm that keeps them,
    writes into the first two behind autograd's back; None where the backend leaves that to torch's own ops.
    ``serving(input)``, where the backend is `BY_MEASUREMENT`: the kernels that a call of such an input is handed on to.
    """

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    backend: str = ""
    update_running_statistics: Callable[..., Any] | None = None
    serving: Callable[[torch.Tensor], Implementation] | None = None


@dataclass(frozen=True)
class Backend:
    """A row of the table: how to find out whether it is there, what it serves, and how to load an op's kernels."""

    probe: Callable[[], BackendStatus]
    load: Callable[[str], Implementation]
    devices: frozenset[str]
    dtypes: frozenset[torch.dtype]


def _probe_cpu() -> BackendStatus:
    status = native.load()
    return BackendStatus(status.available, status.reason)


def _load_cpu(op: str) -> Implementation:
    native.load()
    if op in COMPOSED:
        return _fused_or_composed("cpu")
    return _registered(torch.ops.fastdl_cpu, op)


# Ops that run on a backend's norms and the vendor's convolutions where no kernel of their own serves a call.
COMPOSED = frozenset({"norm_act_conv"})

# Ops whose gradient is the op itself on the gradient, so that no floor has a backward of theirs.
SELF_ADJOINT = frozenset({"dropout"})


def no_backward(*_: object) -> None:
    """What stands for the backward of an op that has none, which nobody calls."""
    raise AssertionError("this op's gradient is the op itself")


def _composed(backend: str) -> Implementation:
    from fastdl.ops.composed import composed

    return composed(backend)


def _fused_or_composed(backend: str) -> Implementation:
    from fastdl.ops.fused_convolution import fused_or_composed

    return fused_or_composed(backend)


def _registered(namespace: Any, op: str) -> Implementation:
    """The ops of a native library."""
    return Implementation(
        getattr(namespace, f"{op}_forward").default,
        no_backward if op in SELF_ADJOINT else getattr(namespace, f"{op}_backward").default,
        update_running_statistics=namespace.update_running_statistics.default if op == "batch_norm" else None,
    )


def _probe_triton() -> BackendStatus:
    if importlib.util.find_spec("triton") is None:
        return BackendStatus(False, "the triton package is not installed: pip install triton (Linux x86-64)")
    if importlib.util.find_spec("fastdl.kernels.group_norm") is None:
        return BackendStatus(
            False, "this version of fastdl has no Triton kernels yet: use a CPU tensor or a later version"
        )
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        return BackendStatus(
            False, "no CUDA GPU is visible: run on one, or set TRITON_INTERPRET=1 to check kernels on the CPU"
        )
    return BackendStatus(True)


def _load_triton(op: str) -> Implementation:
    if op in COMPOSED:
        return _fused_or_composed("triton")
    module = importlib.import_module(f"fastdl.kernels.{op}")
    guarded = importlib.import_module("fastdl.kernels.tuned").guarded
    update = getattr(module, "update_running_statistics", None)
    backward = no_backward if op in SELF_ADJOINT else guarded(module.backward)
    return Implementation(guarded(module.forward), backward, update_running_statistics=update)


def _probe_cuda() -> BackendStatus:
    status = native.load("cuda")
    return BackendStatus(status.available, status.reason)


def _load_cuda(op: str) -> Implementation:
    native.load("cuda")
    return _fused_or_composed("cuda") if op in COMPOSED else _registered(torch.ops.fastdl_cuda, op)


_HALF_AND_SINGLE = frozenset({torch.float16, torch.bfloat16, torch.float32})
_TRITON_DEVICES = frozenset({"cuda", "cpu"} if os.environ.get("TRITON_INTERPRET") == "1" else {"cuda"})

BACKENDS: dict[str, Backend] = {
    "cpu": Backend(_probe_cpu, _load_cpu, frozenset({"cpu"}), _HALF_AND_SINGLE | {torch.float64}),
    "triton": Backend(_probe_triton, _load_triton, _TRITON_DEVICES, _HALF_AND_SINGLE),
    "cuda": Backend(_probe_cuda, _load_cuda, frozenset({"cuda"}), _HALF_AND_SINGLE),
}

NAMES = ("auto", "reference", *BACKENDS)

# What `auto` prefers on each kind of device, best first; the reference is always behind them. On a GPU this holds where
# nothing was measured; see `fastdl.ops.measured`.
PREFERENCES: dict[str, tuple[str, ...]] = {"cpu": ("cpu",), "cuda": ("triton", "cuda")}

# What `auto` is on a GPU for the ops of `COMPOSED`, where nothing was measured: a backend's norms around the vendor's
# convolutions, which are the measure of all others.
VENDOR = "vendor"

# What `choose` answers where a measurement favours another backend than the usual one: each call is then looked up.
BY_MEASUREMENT = "measured"
BY_MEASUREMENT_ON_CPU = "measured on the CPU"


@cache
def status(name: str) -> BackendStatus:
    """Whether the backend called ``name`` can run here. Probing the CPU backend builds it if need be, once."""
    return BackendStatus(True) if name == "reference" else BACKENDS[name].probe()


def backends() -> dict[str, BackendStatus]:
    """Every backend with ``.available`` and, where it is not, a ``.reason`` that says what to do about it."""
    return {name: status(name) for name in NAMES if name != "auto"}


def _checked(name: str) -> str:
    if name not in NAMES:
        raise ValueError(f"backend must be one of {', '.join(NAMES)}; got {name!r}")
    return name


def _start_value() -> str:
    name = os.environ.get("FASTDL_BACKEND", "auto")
    if name not in NAMES:
        raise ValueError(f"the environment variable FASTDL_BACKEND must be one of {', '.join(NAMES)}; got {name!r}")
    return name


_default: str = _start_value()
_requested: ContextVar[str | None] = ContextVar("fastdl_backend", default=None)


class _RequestedView(types.ModuleType):
    """The requested backend as an attribute, which is what torch.compile's guards can watch."""

    def __getattr__(self, attribute: str) -> str:
        if attribute == "backend":
            return requested()
        raise AttributeError(attribute)


requested_view = _RequestedView("fastdl.ops.dispatch.requested_view")


def requested() -> str:
    """The backend asked for here: by the innermost ``use_backend``, else by ``set_backend``, else ``auto``."""
    return _requested.get() or _default


def set_backend(name: str) -> None:
    """Asks for a backend in the whole process: ``auto``, ``reference``, ``cpu``, ``triton`` or ``cuda``.

    Raises ValueError for any other name. The environment variable ``FASTDL_BACKEND`` sets the value at start.
    """
    global _default
    _default = _checked(name)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Asks for a backend inside a ``with`` block, in this thread and task alone; blocks nest.

    Raises ValueError for an unknown name at once. A backend that cannot serve a call raises BackendError at that call.
    The backward pass of a call runs on the backend of its forward, wherever and whenever it runs.
    """
    token = _requested.set(_checked(name))
    try:
        yield
    finally:
        _requested.reset(token)


@cache
def implementation(op: str, backend: str) -> Implementation:
    """The kernels of ``op`` on ``backend``, loaded once."""
    with native.without_forks():
        return _implementation(op, backend)


def _implementation(op: str, backend: str) -> Implementation:
    if backend in (BY_MEASUREMENT, BY_MEASUREMENT_ON_CPU):
        return _by_measurement(op, backend)
    if backend == VENDOR:
        return replace(_composed(next(name for name in PREFERENCES["cuda"] if status(name).available)), backend=backend)
    return replace(BACKENDS[backend].load(op), backend=backend)


def _by_measurement(op: str, name: str) -> Implementation:
    """Kernels that look up, call by call, which backend was measured fastest for such an input.

    Forward and backward of a call have the same input, and so the same backend.
    """
    from fastdl.ops import OPERATORS

    if name == BY_MEASUREMENT_ON_CPU:
        from fastdl.ops.reference_kernels import reference_kernels

        usual = implementation(op, "cpu")
        kernels = {"cpu": usual, "reference": reference_kernels(op)}
    else:
        order = [backend for backend in PREFERENCES["cuda"] if status(backend).available]
        kernels = {backend: implementation(op, backend) for backend in order}
        usual = implementation(op, VENDOR) if op in COMPOSED else kernels[order[0]]
    operator = OPERATORS[op]

    def serving(input: torch.Tensor) -> Implementation:
        return kernels.get(measured.fastest(op, input, operator.layout_of(input)) or "", usual)

    def forward(input: torch.Tensor, *arguments: Any) -> Any:
        return serving(input).forward(input, *arguments)

    def backward(*arguments: Any) -> Any:
        # The input comes behind the gradients, one a differentiable output.
        return serving(arguments[operator.outputs]).backward(*arguments)

    return Implementation(forward, backward, name, usual.update_running_statistics, serving)


@cache
def choose(op: str, request: str, device: str, dtype: torch.dtype) -> str:
    """The backend that serves ``op`` for this request, device type and dtype; never ``auto``.

    On a GPU it may be ``measured`` or ``vendor``, and on the CPU ``measured on the CPU``, which `implementation` knows:
    where it was measured, layout and size decide, call by call. Raises BackendError where a backend asked for by name
    is missing or does not serve this device or dtype.
    """
    with native.without_forks():
        return _choose(op, request, device, dtype)


def _choose(op: str, request: str, device: str, dtype: torch.dtype) -> str:
    if request == "reference":
        return request
    if request == "auto":
        return _best(op, device, dtype)
    backend = BACKENDS[request]
    if device not in backend.devices or dtype not in backend.dtypes:
        raise BackendError(
            f"{op}: backend {request!r} serves {_names(backend.dtypes)} on {', '.join(sorted(backend.devices))}; "
            f"got input of {dtype} on {device}"
        )
    if not status(request).available:
        raise BackendError(f"{op}: backend {request!r} is not available: {status(request).reason}")
    return request


def choose_while_tracing(op: str, request: str, device: str, dtype: torch.dtype) -> str:
    """`choose`, for torch.compile a constant of the graph."""
    return choose(op, request, device, dtype)


# What torch.compiler.assume_constant_result sets. That function imports all of Dynamo to do so, a second at every
# start.
choose_while_tracing._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _best(op: str, device: str, dtype: torch.dtype) -> str:
    """What ``auto`` is on a kind of device: the first that is there, or the table where it favours another one."""
    names = PREFERENCES.get(device, ())
    usual = next((name for name in names if dtype in BACKENDS[name].dtypes and status(name).available), "reference")
    if usual == "cpu" and "reference" in measured.measured_backends_on_cpu(op, dtype):
        return BY_MEASUREMENT_ON_CPU
    if device != "cuda" or usual == "reference":
        return usual
    # Only what a measurement favours is asked whether it is there: asking for `cuda` compiles it.
    others = measured.measured_backends(op, dtype) - {VENDOR if op in COMPOSED else usual}
    if any(status(name).available for name in others & set(PREFERENCES["cuda"])):
        return BY_MEASUREMENT
    return VENDOR if op in COMPOSED else usual


@contextmanager
def assuming_choices(device: str, table: measured.Table) -> Iterator[None]:
    """Within it, in all threads, ``auto`` takes this table for the user's own on the devices of a kind."""
    try:
        with measured.assuming(device, table):
            choose.cache_clear()
            yield
    finally:
        choose.cache_clear()


def forget_choices() -> None:
    """What ``auto`` is is found anew: after the user's own table has changed."""
    measured.forget()
    choose.cache_clear()


def _names(dtypes: frozenset[torch.dtype]) -> str:
    return ", ".join(sorted(str(dtype) for dtype in dtypes))


def auto_choices() -> dict[str, dict[str, str]]:
    """What ``auto`` picks on this machine: op -> "device/dtype" -> backend."""
    from fastdl.ops import OPERATORS

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    dtypes = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
    return {
        op: {
            f"{device}/{str(d).removeprefix('torch.')}": choose(op, "auto", device, d)
            for device in devices
            for d in dtypes
        }
        for op in OPERATORS
    }
