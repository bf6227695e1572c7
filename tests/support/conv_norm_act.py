"""conv_norm_act as the tests see it: its cases, and torch's composition."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdl.ops import conv_norm_act
from fastdl.reference import conv_norm_act as reference
from tests.support.problems import Case, Operator, Tensors, compose

CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


@dataclass(frozen=True)
class ConvNormActCase(Case):
    """``kernel`` is the shape of the weight. ``tracked``: whether there are running statistics."""

    kernel: tuple[int, ...] = (12, 5, 3, 3)
    convolution_bias: bool = True
    stride: int | tuple[int, ...] = 1
    padding: int | tuple[int, ...] | str = 0
    dilation: int | tuple[int, ...] = 1
    groups: int = 1
    norm: str = "batch"
    num_groups: int | None = None
    training: bool = True
    tracked: bool = False
    momentum: float = 0.1
    activation: str = "silu"
    order: str = "conv_norm_act"


def parameters(
    case: ConvNormActCase, fill: Callable[..., Tensor], dtype: torch.dtype, normalized: int | None = None
) -> Tensors:
    """``normalized``: how many channels the norm has; those that the convolution puts out if not given."""
    channels = (case.kernel[0] if normalized is None else normalized,)
    fan_in = torch.Size(case.kernel[1:]).numel()
    tensors: Tensors = {"convolution_weight": (fill(case.kernel, to=torch.float64) / fan_in**0.5).to(dtype)}
    if case.convolution_bias:
        tensors["convolution_bias"] = fill(case.kernel[:1])
    for name, given in (("weight", case.weight), ("bias", case.bias)):
        if given and case.norm != "none":
            tensors[name] = fill(channels, to=case.parameter_dtype or dtype)
    if case.tracked:
        tensors["running_mean"] = fill(channels)
        tensors["running_var"] = 0.5 + fill(channels).square()
    return tensors


def ours(case: ConvNormActCase, t: Tensors) -> Tensor:
    return call(conv_norm_act, case, t)


def by_reference(case: ConvNormActCase, t: Tensors) -> Tensor:
    return call(reference, case, t)


def call(function: Callable[..., Tensor], case: ConvNormActCase, t: Tensors) -> Tensor:
    return function(
        t["input"], t["convolution_weight"], t.get("convolution_bias"), residual=t.get("residual"), **options(case, t)
    )  # fmt: skip


def options(case: ConvNormActCase, t: Tensors) -> dict[str, Any]:
    """The keyword arguments that both orders of convolution and norm take."""
    return {
        "stride": case.stride,
        "padding": case.padding,
        "dilation": case.dilation,
        "groups": case.groups,
        "norm": case.norm,
        "norm_weight": t.get("weight"),
        "norm_bias": t.get("bias"),
        "running_mean": t.get("running_mean"),
        "running_var": t.get("running_var"),
        "num_groups": case.num_groups,
        "training": case.training,
        "momentum": case.momentum,
        "eps": case.eps,
        "activation": case.activation,
        "activation_param": case.activation_param,
        "order": case.order,
    }


def by_torch(case: ConvNormActCase, t: Tensors) -> Tensor:
    convolution = CONVOLUTIONS[len(case.kernel)]
    x = convolution(
        t["input"],
        t["convolution_weight"],
        t.get("convolution_bias"),
        case.stride,
        case.padding,
        case.dilation,
        case.groups,
    )
    return compose(case, lambda x: normalize_by_torch(case, t, x), x, t.get("residual"))


def normalize_by_torch(case: ConvNormActCase, t: Tensors, x: Tensor) -> Tensor:
    running, affine = (t.get("running_mean"), t.get("running_var")), (t.get("weight"), t.get("bias"))
    if case.norm == "batch":
        return F.batch_norm(x, *running, *affine, case.training, case.momentum, case.eps)
    if case.norm == "instance":
        own = case.training or not case.tracked
        return F.instance_norm(x, *running, *affine, own, case.momentum, case.eps)
    if case.norm == "none":
        return x
    groups = 1 if case.norm == "layer" else case.num_groups
    assert groups is not None
    return F.group_norm(x, groups, *affine, case.eps)


def without_activation(case: ConvNormActCase) -> ConvNormActCase:
    """What the activation is applied to: with the activation first, the convolution alone."""
    if case.order == "conv_act_norm":
        case = dataclasses.replace(case, norm="none", num_groups=None, order="conv_norm_act", residual=None)
    return dataclasses.replace(case, activation="identity", activation_param=None)


def row(name: str, shape: tuple[int, ...], **options: Any) -> ConvNormActCase:
    return ConvNormActCase(name, shape, margin=3e-5, **options)


BASIC = (3, 5, 9, 8)
FLOAT = (torch.float32, torch.float64)
# A half-precision convolution rounds its output by more than the distance to a kink.
SMOOTH = ("identity", "sigmoid", "tanh", "silu", "gelu", "gelu_tanh", "mish", "softplus")
NORMS: dict[str, dict[str, Any]] = {
    "batch_training": {"norm": "batch", "tracked": True},
    "batch_evaluation": {"norm": "batch", "tracked": True, "training": False},
    "batch_untracked": {"norm": "batch"},
    "group": {"norm": "group", "num_groups": 4},
    "layer": {"norm": "layer"},
    "instance": {"norm": "instance"},
    "instance_training": {"norm": "instance", "tracked": True},
    "instance_evaluation": {"norm": "instance", "tracked": True, "training": False},
    "none": {"norm": "none"},
}

NORM_CASES = [
    row(
        f"{name}_{order}{'_residual' if residual else ''}_{layout}",
        BASIC,
        order=order,
        residual=residual,
        layout=layout,
        grad_layout=layout,
        padding=1,
        **options,
    )
    for i, (name, options) in enumerate(NORMS.items())
    for j, order in enumerate(("conv_norm_act", "conv_act_norm"))
    for residual in (None, "contiguous")
    for layout in (("contiguous", "channels_last") if (i + j) % 2 else ("channels_last",))
]

ACTIVATION_CASES = [
    row(f"{activation}_{norm}", BASIC, activation=activation, dtypes=FLOAT, **NORMS[norm])
    for activation, norm in (
        ("relu", "batch_training"),
        ("relu", "batch_evaluation"),
        ("relu", "group"),
        ("leaky_relu", "batch_training"),
        ("elu", "layer"),
        ("hardswish", "batch_evaluation"),
        ("relu", "none"),
        ("leaky_relu", "instance"),
    )
] + [
    row(f"{activation}_batch", BASIC, activation=activation, layout="channels_last", order=order)
    for activation, order in zip(SMOOTH, ("conv_norm_act", "conv_act_norm") * 4, strict=True)
]

CONVOLUTION_CASES = [
    row("stride", BASIC, stride=2, padding=1),
    row("stride_by_dimension", BASIC, stride=(2, 1), padding=(0, 2), layout="channels_last"),
    row("padding_same", BASIC, padding="same", norm="group", num_groups=3),
    row("padding_valid", BASIC, padding="valid"),
    row("dilation", BASIC, dilation=2, padding=2, norm="instance"),
    row("grouped", (2, 6, 7, 7), kernel=(12, 2, 3, 3), groups=3),
    row("depthwise", (2, 6, 7, 7), kernel=(12, 1, 3, 3), groups=6, layout="channels_last"),
    row("pointwise", BASIC, kernel=(12, 5, 1, 1), layout="channels_last"),
    row("no_convolution_bias", BASIC, convolution_bias=False),
    row("no_norm_parameters", BASIC, weight=False, bias=False),
    row("no_norm_bias", BASIC, bias=False, norm="layer"),
    row("one_dimension", (3, 5, 17), kernel=(12, 5, 3), padding=1),
    row("one_dimension_group", (3, 5, 17), kernel=(12, 5, 3), padding=1, norm="group", num_groups=6),
    row("three_dimensions", (2, 3, 5, 6, 4), kernel=(8, 3, 3, 3, 3), padding=1, tracked=True),
    row("three_dimensions_instance", (2, 3, 5, 6, 4), kernel=(8, 3, 3, 3, 3), norm="instance", layout="channels_last"),
    row("sliced_input", BASIC, layout="sliced_space"),
    row("transposed_input", BASIC, layout="reversed_dimensions", norm="group", num_groups=2),
    row("gradient_expanded", BASIC, grad_layout="expanded_everywhere"),
    row("gradient_of_the_other_layout", BASIC, grad_layout="channels_last"),
    row("residual_of_the_other_layout", BASIC, residual="channels_last", padding=1),
    row("momentum_half", BASIC, momentum=0.5, tracked=True),
    row("eps_large", BASIC, eps=1e-2, norm="instance", tracked=True),
    row("odd_channels", (2, 7, 11, 5), kernel=(33, 7, 3, 3), layout="channels_last", tracked=True),
]

OPERATOR = Operator(
    name="conv_norm_act",
    cases=(*NORM_CASES, *ACTIVATION_CASES, *CONVOLUTION_CASES),
    parameters=parameters,
    ours=ours,
    reference=by_reference,
    torch=by_torch,
    without_activation=without_activation,
    differentiable=("input", "convolution_weight", "convolution_bias", "weight", "bias", "residual"),
    updated=("running_mean", "running_var"),
    # A norm right behind the convolution takes its bias away again.
    cancelling=(("gradient of convolution_bias", "gradient of convolution_weight"),),
)
