"""Attention's problems as calls of its CUDA kernels on the host, and their results as tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdl.ops.layout import empty_with_heads
from fastdl.reference.dropout import dropped_levels
from tests.simt.harness import CSRC, HERE, Case, Input, Machine, Output, Result, Runner, build
from tests.simt.norms.calls import DTYPES, STORED, offset_of, read_only, span_of

MASKS: dict[torch.dtype, int] = {torch.bool: 1}
GRADIENTS = ("query", "key", "value", "mask")


def sources() -> list[Path]:
    return [*sorted((CSRC / "cuda").glob("attention*.cu")), HERE / "attention" / "attention.cpp"]


def runner(variant: str) -> Runner:
    return build(sources(), variant)


@dataclass(frozen=True)
class Arguments:
    """One call, as the op has it; ``starts`` are cu_seqlens_q and cu_seqlens_k, with a sample of all sequences."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None = None
    query_offset: Tensor | None = None
    starts: tuple[Tensor, Tensor] | None = None
    scale: float | None = None
    softcap: float = 0.0
    window: tuple[int, int] = (-1, -1)
    offset: int = 0
    dropout_p: float = 0.0
    seed: int = 0
    seed_on_device: bool = False
    grad_output: Tensor | None = None
    grad_log_sum: Tensor | None = None
    wanted: Sequence[str] = GRADIENTS
    machine: Machine = field(default_factory=Machine)


def make_case(given: Arguments) -> Case:
    """The call of forward and, with a gradient, of backward; raises nothing of its own."""
    query, key, value, mask = given.query, given.key, given.value, given.mask
    samples, heads, length, features = query.shape
    keys = key.shape[2]
    arrays: dict[str, Any] = {}
    scalars: dict[str, int | float] = {
        "dtype": DTYPES.index(query.dtype),
        "samples": samples,
        "heads": heads,
        "key_heads": key.shape[1],
        "length": length,
        "keys": keys,
        "features": features,
        "value_features": value.shape[3],
        "scale": float(1 / math.sqrt(features) if given.scale is None else given.scale),
        "softcap": float(given.softcap),
        "window_left": given.window[0],
        "window_right": given.window[1],
        "offset": given.offset,
        "sequences": samples if given.starts is None else len(given.starts[0]) - 1,
        "longest_query": length if given.starts is None else longest(given.starts[0]),
        "longest_key": keys if given.starts is None else longest(given.starts[1]),
        "dropped": dropped_levels(given.dropout_p),
        "seed": given.seed,
    }

    def add(name: str, tensor: Tensor | None, stored: Any) -> None:
        arrays[name] = stored
        if tensor is None:
            return
        steps = [0 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
        scalars.update(
            {f"{name}.{axis}": s for axis, s in zip(("sample", "head", "row", "column"), steps, strict=True)}
        )

    for name, tensor in (("query", query), ("key", key), ("value", value), ("grad_output", given.grad_output)):
        add(name, tensor, read_only(tensor))
    add("mask", mask, None if mask is None else as_bytes(mask))
    mask_type = 0
    if mask is not None:
        mask_type = 1 if mask.dtype == torch.bool else 2 if mask.dtype == query.dtype else 3
    scalars["mask_type"] = mask_type
    scalars.update({f"mask_size.{i}": 1 if mask is None else mask.shape[i] for i in range(4)})
    output = output_of(given)
    add("output", output, room_of(output))
    arrays["log_sum"] = Output((samples, heads, length), np.float32)
    for name, tensor in (
        ("query_offset", given.query_offset),
        ("starts_q", given.starts[0] if given.starts else None),
        ("starts_k", given.starts[1] if given.starts else None),
    ):
        arrays[name] = None if tensor is None else Input(span_of(tensor))
        scalars[f"{name}.stride"] = 0 if tensor is None else tensor.stride(0)
        scalars[f"{name}.wide"] = tensor is not None and tensor.dtype == torch.int64
    arrays["seed_on_device"] = np.array([given.seed], np.int64) if given.seed_on_device else None
    lse = given.grad_log_sum
    arrays["grad_log_sum"] = None if lse is None else Input(lse.contiguous().numpy())
    for name, like in zip(GRADIENTS, gradients_of(given), strict=True):
        wanted = like is not None and name in given.wanted
        add(f"grad_{name}", like if wanted else None, room_of(like) if wanted and like is not None else None)
    return Case("attention", arrays, scalars, given.machine)


def longest(starts: Tensor) -> int:
    return int(starts.diff().max()) if len(starts) > 1 else 0


def as_bytes(tensor: Tensor) -> Input:
    return Input(span_of(tensor), offset_of(tensor))


def room_of(tensor: Tensor) -> Output:
    return Output((tensor.numel(),), STORED[tensor.dtype])


def output_of(given: Arguments) -> Tensor:
    return empty_with_heads(given.query, (*given.query.shape[:3], given.value.shape[3]))


def gradients_of(given: Arguments) -> tuple[Tensor | None, ...]:
    """Uninitialised tensors in the layouts of the results; None for a mask that has no gradient."""
    mask = given.mask
    without = mask is None or mask.dtype == torch.bool
    return (
        *(empty_with_heads(tensor, tuple(tensor.shape)) for tensor in (given.query, given.key, given.value)),
        None if without or mask is None else torch.empty(mask.shape, dtype=mask.dtype),
    )


def results_of(result: Result, given: Arguments) -> dict[str, Tensor]:
    """Output, log-sum-exp and gradients; raises if the run failed. What no kernel wrote is NaN."""
    result.check()
    results = {
        "output": as_tensor(result, "output", output_of(given)),
        "log_sum": torch.from_numpy(result.arrays["log_sum"]),
    }
    for name, like in zip(GRADIENTS, gradients_of(given), strict=True):
        if like is not None and f"grad_{name}" in result.arrays:
            named = "attn_mask" if name == "mask" else name
            results[f"gradient of {named}"] = as_tensor(result, f"grad_{name}", like)
    return results


def as_tensor(result: Result, name: str, like: Tensor) -> Tensor:
    flat = torch.from_numpy(result.arrays[name])
    if like.dtype == torch.bfloat16:
        flat = flat.view(torch.bfloat16)
    return flat.as_strided(like.shape, like.stride())
