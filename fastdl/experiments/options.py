"""Types of command-line options that the experiments share."""

from __future__ import annotations

import os
from typing import Annotated

import torch
import tyro

import fastdl

__all__ = ["IntegerList", "Seeds", "default_backend", "resolve_backend", "resolve_device"]


def parse_integers(text: str) -> tuple[int, ...]:
    """Parse "1,4,8"; raises ValueError for anything but distinct integers separated by commas."""
    try:
        values = tuple(int(part) for part in text.removesuffix(",").split(","))
    except ValueError as error:
        raise ValueError(f"expected integers separated by commas, as 1,4,8, got {text!r}") from error
    if len(set(values)) < len(values):
        raise ValueError(f"expected every integer once, got {text!r}")
    return values


def parse_seeds(text: str) -> tuple[int, ...]:
    """Parse "3" as the seeds 0, 1, 2, "0,5" as these two, and "5," as this one."""
    values = parse_integers(text)
    if "," not in text:
        if values[0] < 1:
            raise ValueError(f"expected a number of seeds of at least 1, or seeds separated by commas, got {text!r}")
        return tuple(range(values[0]))
    if min(values) < 0:
        raise ValueError(f"expected seeds of 0 or more, got {text!r}")
    return values


def _show_integers(values: tuple[int, ...]) -> list[str]:
    return [",".join(map(str, values))]


def _show_seeds(values: tuple[int, ...]) -> list[str]:
    return [f"{values[0]},"] if len(values) == 1 else _show_integers(values)


def _is_integers(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(part, int) for part in value)


IntegerList = Annotated[
    tuple[int, ...],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="N,N,...",
        instance_from_str=lambda arguments: parse_integers(arguments[0]),
        is_instance=_is_integers,
        str_from_instance=_show_integers,
    ),
]
"""Integers separated by commas."""

Seeds = Annotated[
    tuple[int, ...],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="COUNT|N,N,...",
        instance_from_str=lambda arguments: parse_seeds(arguments[0]),
        is_instance=_is_integers,
        str_from_instance=_show_seeds,
    ),
]
"""A number of seeds, counted from 0, or the seeds themselves separated by commas."""


def resolve_device(name: str) -> str:
    """Return "cpu", "cuda" or "cuda:N" for the name of a device, where "auto" takes a GPU if there is one.

    Raises:
        ValueError: the name is none of these, or there is no such GPU.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (":" in name and not (kind == "cuda" and index.isdecimal())):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices")
    return name


def default_backend() -> str:
    """Return the backend that ``FASTDL_BACKEND`` asks for, otherwise "auto"."""
    return os.environ.get("FASTDL_BACKEND") or "auto"


def resolve_backend(name: str) -> str:
    """Return the name of a backend that can be used here.

    Raises:
        ValueError: there is no such backend, or it is not available; the message says why.
    """
    if name == "auto":
        return name
    statuses = fastdl.backends()
    if name not in statuses:
        raise ValueError(f"backend must be one of auto, {', '.join(statuses)}, got {name!r}")
    if not statuses[name].available:
        raise ValueError(f"backend {name!r} is not available: {statuses[name].reason}")
    return name
