"""Dropout (Srivastava et al. 2014) in Triton, with the residual that it is added to, in one pass.

What is kept is a function of a seed and of each value's place, as ``fastdl.reference.dropout`` defines it, so that the
gradient is the same pass over the output's gradient.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdl.kernels import tuned
from fastdl.kernels.configs import power_of_two
from fastdl.kernels.launch import launch, on_device, taking_down
from fastdl.kernels.layout import empty_output, has_inner_channels, is_contiguous, view_of
from fastdl.kernels.philox import key_of, levels, philox
from fastdl.kernels.seeds import dropped_levels, scale_of_kept, seed_arguments
from fastdl.kernels.shipped import Limits, Shipped
from fastdl.kernels.variants import activation_tensor, type_of

# Sixteen values a thread of each tensor: 32 or 64 bytes asked for ahead of the arithmetic.
CALLS = 256
WARPS = 4
LAST_OF_32_BITS = 1 << 31


# Compiled once for all sizes: of `calls` and `channels` alone it matters whether they are multiples of 16.
INTEGERS = ["octets", "width", "lines", "dropped", "seed_low", "seed_high"]


@triton.jit(do_not_specialize=[name for name in INTEGERS if name != "lines"])
def dropout_rows(
    x, residual, y, seed, calls, octets, width, scale, dropped, seed_low, seed_high,
    DENSE: tl.constexpr, WIDE: tl.constexpr, CALLS: tl.constexpr,
):  # fmt: skip
    """Contiguous rows, whose octets are counted through all of them: a call of Philox for each.

    ``DENSE``: the width is a multiple of 8, and the octets of a program one run. ``WIDE``: places take 64 bits.
    """
    first = tl.program_id(0)
    if WIDE:
        first = first.to(tl.int64)
    call = first * CALLS + tl.arange(0, CALLS)
    row = call // octets
    octet = call % octets
    keep = kept_of(seed, seed_low, seed_high, row, octet, dropped, WIDE, CALLS)
    if DENSE:
        place = first * (CALLS * 8) + tl.arange(0, CALLS * 8)
        valid = place < calls * 8
        keep = tl.reshape(keep, [CALLS * 8])
    else:
        column = octet[:, None] * 8 + tl.arange(0, 8)[None, :]
        place = row[:, None] * width + column
        valid = (column < width) & (call < calls)[:, None]
    drop(x, residual, y, place, valid, keep, scale)


@triton.jit(do_not_specialize=INTEGERS)
def dropout_channels_last(
    x, residual, y, seed, calls, octets, width, lines, channels, scale, dropped, seed_low, seed_high,
    WIDE: tl.constexpr, CALLS: tl.constexpr,
):  # fmt: skip
    """Images whose channels are innermost: neighbouring calls are of neighbouring channels, for eight places each."""
    first = tl.program_id(0)
    if WIDE:
        first = first.to(tl.int64)
    call = first * CALLS + tl.arange(0, CALLS)
    channel = call % channels
    octet = call // channels % octets
    sample_line = call // channels // octets
    row = (sample_line // lines * channels + channel) * lines + sample_line % lines
    keep = kept_of(seed, seed_low, seed_high, row, octet, dropped, WIDE, CALLS)
    column = octet[None, :] * 8 + tl.arange(0, 8)[:, None]
    place = (sample_line[None, :] * width + column) * channels + channel[None, :]
    valid = (column < width) & (call < calls)[None, :]
    drop(x, residual, y, place, valid, tl.trans(keep), scale)


@triton.jit
def kept_of(seed, seed_low, seed_high, row, octet, dropped, WIDE: tl.constexpr, CALLS: tl.constexpr):
    """Which values of some octets are kept: (CALLS, 8)."""
    low, high = key_of(seed, seed_low, seed_high)
    zero = tl.zeros([CALLS], tl.int32).to(tl.uint32, bitcast=True)
    row_high = (row >> 32).to(tl.uint32) if WIDE else zero
    w0, w1, w2, w3 = philox(octet.to(tl.uint32), row.to(tl.uint32), row_high, zero, low, high)
    return tl.reshape(levels(w0, w1, w2, w3) >= dropped, [CALLS, 8])


@triton.jit
def drop(x, residual, y, place, valid, keep, scale):
    # A product, not a choice: NaN and infinity go through as torch lets them.
    value = tl.load(x + place, valid, 0.0).to(tl.float32) * tl.where(keep, scale, 0.0)
    if residual is not None:
        value += tl.load(residual + place, valid, 0.0).to(tl.float32)
    tl.store(y + place, value.to(y.dtype.element_ty), valid)


@tuned.planned
@lru_cache(maxsize=4096)
def sizes_of(itemsize: int, channels_last: bool, added: bool, calls: int) -> tuple[int, int]:
    """Calls of Philox to a program, and its warps; ``calls``: of the whole tensor, rounded up to a power of two."""
    bucket = {"itemsize": itemsize, "channels_last": channels_last, "added": added, "calls": calls}
    each, warps = tuned.sizes("dropout", (CALLS, WARPS), **bucket)
    return each, warps


def forward(input: Tensor, residual: Tensor | None, seed: Tensor, dropout_p: float) -> Tensor:
    """``residual + input * kept / (1 - p)``, in the input's layout.

    ``input`` is of any shape in float32, float16 or bfloat16 with any strides, ``residual`` of the same shape and
    dtype. Gradients are the same of the output's gradient, without a residual.
    """
    geometry = geometry_of(input)
    output = geometry.empty(input)
    if output.numel() == 0:
        return output
    x = geometry.dense(input)
    added = None if residual is None else geometry.dense(residual)
    dropped = dropped_levels(dropout_p)
    seeds = seed_arguments(seed, input.device.type == "meta")
    rest = (scale_of_kept(dropped), dropped, *seeds[1:])
    octets = triton.cdiv(geometry.width, 8)
    calls = geometry.rows * octets
    each, warps = sizes_of(
        input.element_size(), geometry.channels is not None, residual is not None, power_of_two(calls)
    )
    programs = triton.cdiv(calls, each)
    wide = programs * each * 8 >= LAST_OF_32_BITS
    with on_device(input):
        if geometry.channels is None:
            launch(
                dropout_rows, programs, x, added, output, seeds[0], calls, octets, geometry.width, *rest,
                warps=warps, DENSE=geometry.width % 8 == 0, WIDE=wide, CALLS=each,
            )  # fmt: skip
        else:
            launch(
                dropout_channels_last, programs, x, added, output, seeds[0], calls, octets, geometry.width,
                geometry.lines, geometry.channels, *rest, warps=warps, WIDE=wide, CALLS=each,
            )  # fmt: skip
    return output


class Geometry(NamedTuple):
    """A tensor as ``rows`` of ``width``; ``channels`` is None where it is contiguous, else its channels are innermost.

    ``lines``: rows of a channel, by which an image's rows are counted.
    """

    shape: tuple[int, ...]
    rows: int
    width: int
    lines: int
    channels: int | None

    def empty(self, like: Tensor) -> Tensor:
        """An uninitialised tensor in this layout."""
        if self.channels is None:
            return torch.empty(self.shape, dtype=like.dtype, device=like.device)
        return empty_output(view_of(self.shape, like.stride()), like)

    def dense(self, tensor: Tensor) -> Tensor:
        """The tensor, or a copy of it, in this layout."""
        if self.channels is None:
            return tensor.contiguous()
        order = (0, *range(2, tensor.ndim), 1)
        in_memory = tensor.permute(order)
        if is_contiguous(tuple(in_memory.shape), in_memory.stride()):
            return tensor
        return in_memory.contiguous().permute([order.index(i) for i in range(tensor.ndim)])


def geometry_of(input: Tensor) -> Geometry:
    shape, strides = tuple(input.shape), tuple(input.stride())
    width = shape[-1] if shape else 1
    rows = math.prod(shape[:-1])
    if len(shape) > 2 and not is_contiguous(shape, strides) and has_inner_channels(shape, strides):
        return Geometry(shape, rows, width, math.prod(shape[2:-1]), shape[1])
    return Geometry(shape, rows, width, 1, None)


CASES = (
    ("rows", (4096, 768), False, 16),
    ("ragged", (4096, 197), False, 0),
    ("image", (8, 64, 56, 56), True, 16),
    ("image_of_17", (8, 17, 56, 56), True, 0),
)
"""Label, shape, whether channels are innermost, and the least width of an access in bytes; 0 is one value."""


def shipped() -> tuple[Shipped, ...]:
    """What the layouts, dtypes and a residual launch."""
    return tuple(
        shipped_as(label, shape, channels_last, access_bytes or dtype.itemsize, dtype, added)
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
        for label, shape, channels_last, access_bytes in CASES
        for added in (False, True)
    )


def shipped_as(
    label: str, shape: tuple[int, ...], channels_last: bool, access_bytes: int, dtype: torch.dtype, added: bool
) -> Shipped:
    x = activation_tensor(shape, channels_last, dtype)
    with taking_down() as launches:
        forward(x, x if added else None, torch.empty(1, dtype=torch.int64, device="meta"), 0.1)
    (one,) = launches
    arguments = dict(zip(one.kernel.arg_names, one.arguments, strict=False)) | dict(one.constants)
    signature = {name: type_of(name, arguments[name], one) for name in one.kernel.arg_names}
    multiples = [name for name in ("calls", "channels") if name in signature and arguments[name] % 16 == 0]
    return Shipped(
        name=f"dropout/{label}{'/added' if added else ''}/{one.kernel.__name__}/{signature['x'][1:]}",
        kernel=one.kernel,
        signature=signature,
        constexprs={name: arguments[name] for name, kind in signature.items() if kind == "constexpr"},
        divisible=(*(name for name, kind in signature.items() if kind.startswith("*")), *multiples),
        num_warps=one.warps,
        num_stages=one.stages,
        limits=Limits(registers=80, shared_bytes=8192, access_bytes=access_bytes, narrow=("seed",)),
    )
