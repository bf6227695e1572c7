"""Every configuration of the norms over rows that the plans choose, as `fastdl.kernels.shipped` lists them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdl.kernels.launch import Launch, taking_down
from fastdl.kernels.row_norm_columns import column_sums
from fastdl.kernels.row_norm_on_chip import row_norm_backward
from fastdl.kernels.row_norm_plan import LIMITS, REGISTERS
from fastdl.kernels.shipped import Limits, Shipped
from fastdl.kernels.variants import type_of

# The tensors of the input's shape. All others hold a number a row, a column or a program.
LARGE = ("x", "y", "residual", "sum", "grad", "grad_x", "grad_sum")

# Of a reduction, beside the tiles that are asked for ahead of their turn.
SHARED_BYTES = 16384


class Shape(NamedTuple):
    """A call that is listed; parameters are float32."""

    rows: int
    width: int
    dtype: torch.dtype = torch.bfloat16
    residual: bool = False


SHAPES = (
    Shape(65536, 32),
    Shape(65536, 96, torch.float32),
    Shape(12608, 192, residual=True),
    Shape(1576, 384),  # few rows: small tiles
    Shape(12608, 768),
    Shape(12608, 768, torch.float32, residual=True),
    Shape(8192, 1024, torch.float16, residual=True),
    Shape(32768, 1024, torch.float32),
    Shape(16384, 2048),
    Shape(8192, 4096, residual=True),
    Shape(8192, 4096, torch.float32),
    Shape(4096, 8192, residual=True),
    Shape(4096, 8192, torch.float32, residual=True),
    Shape(2048, 16384, residual=True),
    Shape(2048, 16384, torch.float32, residual=True),
    Shape(2048, 65536, residual=True),
    Shape(2048, 65536, torch.float32),
    Shape(8, 200704, residual=True),  # few rows, each shared by several programs
    Shape(8, 200704, torch.float32),
)


def variants(op: str, forward: Callable[..., Any], backward: Callable[..., Any]) -> tuple[Shipped, ...]:
    """What the calls launch, each once; the calls are made on tensors without memory."""
    found: dict[Any, Shipped] = {}
    for shape in SHAPES:
        for one in launches(shape, forward, backward):
            names = one.kernel.arg_names
            values = dict(zip(names, one.arguments, strict=False)) | dict(one.constants)
            entry = shipped_as(f"{op}/{shape.rows}x{shape.width}", one, values)
            key = (one.kernel, *entry.signature.items(), *entry.constexprs.items(), one.warps)
            found.setdefault(key if "x" in entry.signature else one.kernel, entry)
    return tuple(found.values())


def launches(shape: Shape, forward: Callable[..., Any], backward: Callable[..., Any]) -> Iterator[Launch]:
    x = torch.empty((shape.rows, shape.width), dtype=shape.dtype, device="meta")
    parameter = torch.empty(shape.width, device="meta")
    parameters = (parameter, parameter) if backward.__module__.endswith("layer_norm") else (parameter,)
    sum = x if shape.residual else None
    with taking_down() as taken:
        *_, statistics = forward(x, sum, *parameters, 1, 1e-5)
        backward(x, sum, x, None, *parameters, statistics, 1, 1e-5, [True] * (2 + len(parameters)))
    yield from taken


def shipped_as(label: str, one: Launch, values: dict[str, Any]) -> Shipped:
    signature = {name: type_of(name, values[name], one) for name in one.kernel.arg_names}
    pointers = [name for name, kind in signature.items() if kind.startswith("*")]
    dtype = next(signature[name][1:] for name in (*LARGE, *pointers) if signature.get(name, "").startswith("*"))
    tile = "x".join(str(values[name]) for name in ("ROWS", "COLUMNS", "CHANNELS") if name in values)
    added = "/added" if any(isinstance(values.get(name), Tensor) for name in ("residual", "grad_sum")) else ""
    return Shipped(
        name=f"{label}{added}/{one.kernel.__name__}/{tile}/{dtype}",
        kernel=one.kernel,
        signature=signature,
        constexprs={name: values[name] for name, kind in signature.items() if kind == "constexpr"},
        divisible=tuple(pointers),
        num_warps=one.warps,
        num_stages=one.stages,
        limits=Limits(
            registers=80 if one.kernel is column_sums else REGISTERS,
            shared_bytes=LIMITS.shared_bytes + 3072 if one.kernel is row_norm_backward else SHARED_BYTES,
            access_bytes=16,
            narrow=tuple(name for name in pointers if name not in LARGE),
        ),
    )
