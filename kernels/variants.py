"""From calls of an op to the configurations that they launch, as `fastdl.kernels.shipped` lists them.

The calls are made on tensors without memory, by the code that serves real ones, so that the list cannot drift from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fastdl.kernels.launch import Launch, taking_down
from fastdl.kernels.shipped import Limits, Shipped

TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float64: "fp64",
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
}

# The tensors of the input's shape. All others hold a value a channel or group, and are a small part of the bytes.
LARGE = ("x", "y", "residual", "grad", "grad_x", "grad_residual")

# 128 registers a thread: at 16 warps all that there are, at 8 warps two programs to an SM.
REGISTERS = 128
SHARED_BYTES = 16384
STAGES = 3


def activation_tensor(shape: tuple[int, ...], channels_last: bool, dtype: torch.dtype) -> Tensor:
    """A tensor without memory, in one of the two layouts."""
    tensor = torch.empty(shape, dtype=dtype, device="meta")
    if not channels_last:
        return tensor
    order = (0, *range(2, len(shape)), 1)
    dense = torch.empty([shape[i] for i in order], dtype=dtype, device="meta")
    return dense.permute([order.index(i) for i in range(len(shape))])


def variants(op: str, calls: Iterable[tuple[str, Callable[[], Any]]]) -> tuple[Shipped, ...]:
    """Every configuration that the labelled calls launch, each once.

    Kernels over partial results and parameters alone are listed once, not for every number of chunks.
    """
    found: dict[Any, Shipped] = {}
    for label, call in calls:
        with taking_down() as launches:
            call()
        for one in launches:
            entry = shipped_as(f"{op}/{label}", one)
            moves_tensors = any(name in entry.signature for name in LARGE)
            configuration = (tuple(entry.signature.items()), tuple(entry.constexprs.items()), one.warps)
            key = (one.kernel, configuration if moves_tensors else None)
            found.setdefault(key, entry)
    return tuple(found.values())


def shipped_as(label: str, one: Launch) -> Shipped:
    """A launch as an entry, its name told by the label, the kernel, the tile and the dtype of the large tensors."""
    names = one.kernel.arg_names
    arguments = dict(zip(names, one.arguments, strict=False)) | dict(one.constants)
    signature = {name: type_of(name, arguments[name], one) for name in names}
    pointers = [name for name, kind in signature.items() if kind.startswith("*")]
    large = [name for name in LARGE if name in pointers]
    constants = one.constants
    tile = f"{constants.get('POSITIONS', constants.get('ROWS', 1))}x{constants['CHANNELS']}"
    dtype = signature[large[0]][1:] if large else signature[pointers[0]][1:]
    return Shipped(
        name=f"{label}/{one.kernel.__name__}/{tile}/{dtype}",
        kernel=one.kernel,
        signature=signature,
        constexprs={name: arguments[name] for name, kind in signature.items() if kind == "constexpr"},
        divisible=tuple(pointers),
        num_warps=one.warps,
        num_stages=STAGES,
        limits=Limits(
            registers=REGISTERS,
            shared_bytes=SHARED_BYTES,
            access_bytes=16,
            narrow=tuple(name for name in pointers if name not in LARGE),
        ),
    )


def element_of(value: Tensor | TensorDescriptor) -> torch.dtype:
    dtype: torch.dtype = value.base.dtype if isinstance(value, TensorDescriptor) else value.dtype
    return dtype


def type_of(name: str, value: Any, one: Launch) -> str:
    """Triton's type string of an argument, as its launcher would find it."""
    if value is None or name in one.constants:
        return "constexpr"
    if isinstance(value, Tensor):
        return f"*{TYPES[value.dtype]}"
    if isinstance(value, TensorDescriptor):
        return f"tensordesc<{TYPES[element_of(value)]}{list(value.block_shape)}>"
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"
