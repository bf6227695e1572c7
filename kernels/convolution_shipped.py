"""Every configuration of the convolutions' kernels that the plans choose for the listed networks' layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdl.kernels import attention_plan
from fastdl.kernels.convolution_layout import empty_lines
from fastdl.kernels.launch import Launch, taking_down
from fastdl.kernels.shipped import Limits, Shipped
from fastdl.kernels.variants import TYPES, type_of

# The tensors with a place for each position. All others hold a number a channel, a tile or a weight.
LARGE = ("x", "y", "grad", "grad_x")
REGISTERS = 255
# What a block may ask for on each architecture.
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}


class Shape(NamedTuple):
    """A layer that is listed: input (N, C, H, H), output channels, a square kernel padded by half, stride, groups.

    ``norm``: ``batch``, ``evaluation``, ``group`` (32 groups) or ``none``.
    """

    name: str
    input: tuple[int, int, int]
    out_channels: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    dtype: torch.dtype = torch.bfloat16
    norm: str = "batch"
    activation: str = "relu"


SINGLE = torch.float32
SHAPES = (
    # ResNet-18 and ResNet-50 (He et al. 2016): the first layer, and of each kind the narrowest and the widest.
    Shape("resnet_first", (64, 3, 224), 64, 7, 2, norm="none", activation="identity"),
    Shape("resnet_first", (64, 3, 224), 64, 7, 2, norm="none", activation="identity", dtype=SINGLE),
    Shape("resnet18_64", (64, 64, 56), 64, 3),
    Shape("resnet18_64", (64, 64, 56), 64, 3, dtype=SINGLE),
    Shape("resnet18_128_down", (64, 64, 56), 128, 3, 2),
    Shape("resnet18_256", (64, 256, 14), 256, 3),
    Shape("resnet18_256", (64, 256, 14), 256, 3, dtype=SINGLE),
    Shape("resnet18_512", (8, 512, 7), 512, 3),
    Shape("resnet50_64_256", (64, 64, 56), 256),
    Shape("resnet50_256_64", (64, 256, 56), 64),
    Shape("resnet50_256_64", (64, 256, 56), 64, dtype=SINGLE),
    Shape("resnet50_down", (64, 256, 56), 512, 1, 2),
    Shape("resnet50_half", (64, 512, 28), 128, dtype=torch.float16),
    Shape("resnet50_evaluation", (64, 128, 28), 128, 3, norm="evaluation"),
    # A diffusion model's block, and a grouped one of ResNeXt.
    Shape("unet_320", (8, 320, 32), 320, 3, norm="group", activation="silu"),
    Shape("unet_320", (8, 320, 32), 320, 3, norm="group", activation="silu", dtype=SINGLE),
    Shape("resnext_32x16", (64, 512, 28), 512, 3, groups=32),
    # MobileNet (Howard et al. 2017; 2019): depthwise, and narrow ones by points.
    Shape("mobilenet_32_depthwise", (64, 32, 112), 32, 3, groups=32, activation="hardswish"),
    Shape("mobilenet_96_depthwise", (64, 96, 56), 96, 3, 2, groups=96, activation="hardswish"),
    Shape("mobilenet_96_depthwise", (64, 96, 56), 96, 3, 2, groups=96, activation="hardswish", dtype=SINGLE),
    Shape("mobilenet_120_depthwise", (64, 120, 28), 120, 5, groups=120, activation="hardswish"),
    Shape("mobilenet_16_24", (64, 16, 112), 24, activation="hardswish"),
    Shape("mobilenet_96_24", (64, 96, 56), 24),
    Shape("mobilenet_960_160", (64, 960, 7), 160, activation="hardswish"),
    Shape("resnext_32x4", (64, 128, 56), 128, 3, groups=32),
)


def variants(forward: Callable[..., Any], backward: Callable[..., Any]) -> tuple[Shipped, ...]:
    """What the layers launch, each once; planned for each architecture, listed for those that agree."""
    found: dict[Any, list[Any]] = {}
    for shape in SHAPES:
        for architecture in SHARED_BYTES:
            for one in _launches(shape, architecture, forward, backward):
                key = _key(one)
                entry = found.setdefault(key, [shape.name, one, []])
                if architecture not in entry[2]:
                    entry[2].append(architecture)
    return tuple(shipped_as(label, one, tuple(architectures)) for label, one, architectures in found.values())


def _launches(
    shape: Shape, architecture: int, forward: Callable[..., Any], backward: Callable[..., Any]
) -> list[Launch]:
    """The launches of both passes over tensors without memory, but for the norms' own kernels, listed with these."""
    before = attention_plan.assumed_architecture
    attention_plan.assumed_architecture = architecture
    try:
        with taking_down() as launches:
            _pass_through(shape, forward, backward)
    finally:
        attention_plan.assumed_architecture = before
    return [one for one in launches if "convolution" in one.kernel.fn.__module__]


def _pass_through(shape: Shape, forward: Callable[..., Any], backward: Callable[..., Any]) -> None:
    samples, channels, size = shape.input

    def parameter(count: int) -> Tensor:
        return torch.empty(count, device="meta")

    x = empty_lines((samples, channels, size, size), torch.empty(0, dtype=shape.dtype, device="meta"))
    kernel = (shape.out_channels, channels // shape.groups, shape.kernel, shape.kernel)
    weight = torch.empty(kernel, dtype=shape.dtype, device="meta")
    bias = None if shape.norm == "batch" else torch.empty(shape.out_channels, dtype=shape.dtype, device="meta")
    running = (parameter(channels), parameter(channels)) if shape.norm == "evaluation" else (None, None)
    of_norm = (parameter(channels), parameter(channels)) if shape.norm != "none" else (None, None)
    groups = {"group": 32, "none": -1}.get(shape.norm, 0)
    steps = ([shape.stride] * 2, [shape.kernel // 2] * 2, [1, 1], shape.groups)
    statics = (groups, 1e-5, shape.activation, 0.0, False, *steps, shape.norm != "evaluation")
    tensors = (x, *of_norm, weight, bias, *running, None)
    output, statistics = forward(*tensors, *statics)
    backward(output, *tensors, statistics, *statics, [True] * 5)


def _values(one: Launch) -> dict[str, Any]:
    return dict(zip(one.kernel.arg_names, one.arguments, strict=False)) | dict(one.constants)


def _key(one: Launch) -> Any:
    """Kernels over numbers a channel alone are listed once."""
    values = _values(one)
    if not any(isinstance(values.get(name), Tensor) for name in LARGE):
        return one.kernel
    kinds = tuple(type_of(name, values[name], one) for name in one.kernel.arg_names)
    return (one.kernel, kinds, tuple(sorted(one.constants.items())), one.warps, one.stages)


def shipped_as(label: str, one: Launch, architectures: tuple[int, ...]) -> Shipped:
    """A launch as an entry, its name told by the label, the kernel, the tile and the dtype."""
    values = _values(one)
    signature = {name: type_of(name, values[name], one) for name in one.kernel.arg_names}
    pointers = [name for name, kind in signature.items() if kind.startswith("*")]
    large = [name for name in LARGE if name in pointers]
    numbers = [values[name] for name in ("ROWS", "COLUMNS", "CHANNELS", "VALUES", "DEPTH", "TAPS") if name in values]
    dtype = TYPES[values[large[0] if large else pointers[0]].dtype]
    narrow = _narrow(one, values, large)
    on = "" if len(architectures) == len(SHARED_BYTES) else "/" + "-".join(f"sm_{n}" for n in architectures)
    return Shipped(
        name=f"norm_act_conv/{label}/{one.kernel.__name__}/{'x'.join(map(str, numbers))}/{dtype}{on}",
        kernel=one.kernel,
        signature=signature,
        constexprs={name: values[name] for name, kind in signature.items() if kind == "constexpr"},
        divisible=tuple(pointers),
        num_warps=one.warps,
        num_stages=one.stages,
        limits=Limits(
            registers=REGISTERS,
            shared_bytes=min(SHARED_BYTES[architecture] for architecture in architectures),
            access_bytes=16,
            narrow=tuple(name for name in pointers if name not in large or name in narrow),
            matrix=_matrix(values, dtype),
        ),
        architectures=architectures,
    )


def _narrow(one: Launch, values: dict[str, Any], large: list[str]) -> set[str]:
    """Those of the large tensors that are not reached by 16 bytes a thread: gathered number by number, with channels
    that are no multiple of 16 bytes, or of a tile with too few numbers."""
    gathered = set()
    if values.get("FLAT"):
        gathered.add("x")
    if values.get("IN_GROUP", 1) > 1 or values.get("OUT_GROUP", 1) > 1:
        gathered.add("grad" if "data" in one.kernel.__name__ else "x")
    name = one.kernel.__name__
    if name == "convolve_weight" and values["x"].dtype == torch.float32:
        # Copied into shared memory turned, number by number: TF32's warp-group product takes no other order.
        gathered.add("grad")
    for tensor in large:
        itemsize = values[tensor].element_size()
        unit = values["UNIT" if tensor in ("x", "grad_x") or name == "channel_sums" else "OUT_UNIT"]
        numbers = values["ROWS"] * values.get("COLUMNS", values.get("CHANNELS", 1))
        if name == "convolve_weight":
            numbers = values["DEPTH"] * values["ROWS" if tensor == "grad" else "COLUMNS"]
        if (name, tensor) in (("convolve_data", "grad"), ("convolve_forward", "x")):
            numbers = values["ROWS"] * values["DEPTH"]
        if min(unit, numbers // (32 * one.warps)) * itemsize < 16:
            gathered.add(tensor)
    return gathered


def _matrix(values: dict[str, Any], dtype: str) -> dict[int, str] | None:
    """Hopper's own instructions take 64 rows at least, and operands of half precision in any order."""
    if "PRECISION" not in values or (dtype == "fp32" and values["PRECISION"] == "ieee"):
        return None
    needed = {80: "HMMA"}
    if dtype != "fp32" and values["ROWS"] >= 64:
        needed[90] = "HGMMA"
    return needed
