"""norm_act_conv as the tests see it: its cases, and torch's composition."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdl.ops import norm_act_conv
from fastdl.reference import norm_act_conv as reference
from tests.support import conv_norm_act
from tests.support.conv_norm_act import CONVOLUTIONS, FLOAT, SMOOTH, ConvNormActCase, normalize_by_torch
from tests.support.problems import Operator, Tensors, apply_activation


@dataclass(frozen=True)
class NormActConvCase(ConvNormActCase):
    order: str = "norm_act_conv"


def parameters(case: NormActConvCase, fill: Callable[..., Tensor], dtype: torch.dtype) -> Tensors:
    return conv_norm_act.parameters(case, fill, dtype, case.shape[1])


def ours(case: NormActConvCase, t: Tensors) -> Tensor:
    return call(norm_act_conv, case, t)


def by_reference(case: NormActConvCase, t: Tensors) -> Tensor:
    if case.kernel == BARE:
        return before_convolution(case, t)
    return call(reference, case, t)


def call(function: Callable[..., Tensor], case: NormActConvCase, t: Tensors) -> Tensor:
    weights = (t["convolution_weight"], t.get("convolution_bias"))
    return function(t["input"], *weights, **conv_norm_act.options(case, t))


def by_torch(case: NormActConvCase, t: Tensors) -> Tensor:
    x = before_convolution(case, t)
    return CONVOLUTIONS[len(case.kernel)](
        x,
        t["convolution_weight"],
        t.get("convolution_bias"),
        case.stride,
        case.padding,
        case.dilation,
        case.groups,
    )


def before_convolution(case: NormActConvCase, t: Tensors) -> Tensor:
    if case.order == "act_norm_conv":
        return normalize_by_torch(case, t, apply_activation(case, t["input"]))
    return apply_activation(case, normalize_by_torch(case, t, t["input"]))


# The kernel of a case that ends where the convolution would begin.
BARE = ()


def without_activation(case: NormActConvCase) -> NormActConvCase | None:
    if case.order == "act_norm_conv" or case.norm == "none":
        return None  # the activation's argument is an input, which nobody rounds
    return dataclasses.replace(case, activation="identity", activation_param=None, kernel=BARE)


def row(name: str, shape: tuple[int, ...], **options: Any) -> NormActConvCase:
    return NormActConvCase(name, shape, **options)


BASIC = (3, 6, 7, 8)
KERNEL = (10, 6, 3, 3)
NORMS: dict[str, dict[str, Any]] = {
    "batch_training": {"norm": "batch", "tracked": True},
    "batch_evaluation": {"norm": "batch", "tracked": True, "training": False},
    "batch_untracked": {"norm": "batch"},
    "group": {"norm": "group", "num_groups": 3},
    "layer": {"norm": "layer"},
    "instance": {"norm": "instance"},
    "none": {"norm": "none"},
}

NORM_CASES = [
    row(
        f"{name}_{order}_{layout}", BASIC, kernel=KERNEL, order=order, layout=layout, grad_layout=layout, padding=1,
        **options,
    )
    for i, (name, options) in enumerate(NORMS.items())
    for j, order in enumerate(("norm_act_conv", "act_norm_conv"))
    for layout in (("contiguous", "channels_last") if (i + j) % 2 else ("channels_last",))
]  # fmt: skip

ACTIVATION_CASES = [
    row(f"{activation}_{name}", BASIC, kernel=KERNEL, activation=activation, dtypes=FLOAT, **NORMS[name])
    for activation, name in (
        ("relu", "batch_training"),
        ("relu", "batch_evaluation"),
        ("relu", "none"),
        ("leaky_relu", "group"),
        ("elu", "batch_training"),
        ("hardswish", "layer"),
    )
] + [
    row(f"{activation}_batch", BASIC, kernel=KERNEL, activation=activation, layout="channels_last")
    for activation in SMOOTH
]

CONVOLUTION_CASES = [
    row("stride", BASIC, kernel=KERNEL, stride=2, padding=1, layout="channels_last"),
    row("stride_by_dimension", BASIC, kernel=KERNEL, stride=(2, 1), padding=(0, 2)),
    row("padding_wide", BASIC, kernel=KERNEL, padding=2, layout="channels_last"),
    row("padding_same", BASIC, kernel=KERNEL, padding="same", norm="group", num_groups=2),
    row("padding_same_even_kernel", BASIC, kernel=(4, 6, 2, 4), padding="same", tracked=True),
    row("padding_valid", BASIC, kernel=KERNEL, padding="valid"),
    row("dilation", BASIC, kernel=KERNEL, dilation=2, padding=2, norm="instance"),
    row("grouped", BASIC, kernel=(12, 2, 3, 3), groups=3, layout="channels_last"),
    row("depthwise", BASIC, kernel=(12, 1, 3, 3), groups=6, padding=1, layout="channels_last"),
    row("pointwise", BASIC, kernel=(17, 6, 1, 1), layout="channels_last"),
    row("pointwise_stride", BASIC, kernel=(17, 6, 1, 1), stride=2),
    row("asymmetric", BASIC, kernel=(5, 6, 1, 3), padding=(0, 1), layout="channels_last"),
    row("no_bias", BASIC, kernel=KERNEL, convolution_bias=False, tracked=True),
    row("no_parameters", BASIC, kernel=KERNEL, weight=False, bias=False),
    row("one_dimension", (3, 6, 19), kernel=(4, 6, 5), padding=2, tracked=True),
    row("one_dimension_channels_last", (3, 6, 19), kernel=(4, 6, 5), layout="channels_last"),
    row("three_dimensions", (2, 4, 3, 5, 4), kernel=(6, 4, 3, 3, 3), padding=1),
    row("three_dimensions_channels_last", (2, 4, 3, 5, 4), kernel=(6, 4, 1, 3, 3), layout="channels_last"),
    row("empty_batch", (0, 6, 7, 8), kernel=KERNEL, training=False, tracked=True),
    row("sliced", BASIC, kernel=KERNEL, layout="sliced_channels_last", grad_layout="sliced_space"),
    row("expanded", BASIC, kernel=KERNEL, grad_layout="expanded_space", norm="group", num_groups=2),
    row("odd_channels", (2, 7, 11, 5), kernel=(33, 7, 3, 3), layout="channels_last", tracked=True),
    row("shifted", (4, 6, 9, 9), kernel=KERNEL, values="shifted", layout="channels_last", dtypes=FLOAT, bounded=True),
    row("momentum", BASIC, kernel=KERNEL, tracked=True, momentum=0.7),
]

OPERATOR = Operator(
    name="norm_act_conv",
    cases=(*NORM_CASES, *ACTIVATION_CASES, *CONVOLUTION_CASES),
    parameters=parameters,
    ours=ours,
    reference=by_reference,
    torch=by_torch,
    without_activation=without_activation,
    differentiable=("input", "weight", "bias", "convolution_weight", "convolution_bias"),
    updated=("running_mean", "running_var"),
)
