"""The rows that the CUDA kernels of norm_act_conv are held to: what they alone serve, in many sizes."""

from __future__ import annotations

from typing import Any

import torch

from tests.simt.convolution.suite import HALF
from tests.support.norm_act_conv import NORMS, NormActConvCase, row

FLOATS = (torch.float32, *HALF)
LAST: dict[str, Any] = {"layout": "channels_last", "grad_layout": "channels_last"}


def pointwise(name: str, shape: tuple[int, ...], outputs: int, **options: Any) -> NormActConvCase:
    return row(f"pointwise_{name}", shape, kernel=(outputs, shape[1], 1, 1), **LAST, **options)


def depthwise(
    name: str, shape: tuple[int, ...], kernel: tuple[int, int], outputs: int = 1, **options: Any
) -> NormActConvCase:
    channels = shape[1]
    return row(f"depthwise_{name}", shape, kernel=(outputs * channels, 1, *kernel), groups=channels, **LAST, **options)


NORM_CASES = [
    case
    for name, options in NORMS.items()
    for order in ("norm_act_conv", "act_norm_conv")
    for case in (
        pointwise(f"{name}_{order}", (3, 6, 7, 8), 17, order=order, **options),
        pointwise(f"{name}_{order}_vector", (3, 24, 7, 8), 16, order=order, **options),
        depthwise(f"{name}_{order}", (3, 6, 7, 8), (3, 3), padding=1, order=order, **options),
        depthwise(f"{name}_{order}_vector", (3, 24, 7, 8), (3, 3), padding=1, order=order, **options),
    )
]
ACTIVATION_CASES = [
    case
    for activation in (
        "identity",
        "leaky_relu",
        "sigmoid",
        "tanh",
        "gelu",
        "gelu_tanh",
        "elu",
        "hardswish",
        "mish",
        "softplus",
    )
    for case in (
        pointwise(activation, (2, 8, 5, 4), 8, activation=activation, dtypes=(torch.float32, torch.float64)),
        depthwise(
            activation, (2, 8, 5, 4), (3, 3), padding=1, activation=activation, dtypes=(torch.float32, torch.float64)
        ),
    )
] + [
    depthwise(
        "leaky_relu_steep", (2, 8, 5, 4), (3, 3), activation="leaky_relu", activation_param=0.5, dtypes=(torch.float32,)
    ),
    pointwise("relu_none", (2, 8, 5, 4), 8, activation="relu", norm="none", dtypes=(torch.float32,)),
]
SIZE_CASES = [
    pointwise("one_channel_each", (3, 1, 5, 4), 1),
    pointwise("one_value", (1, 3, 1, 1), 5, norm="none"),
    pointwise("one_position", (9, 40, 1, 1), 24),
    pointwise("wide", (2, 200, 5, 7), 72),
    pointwise("wide_output", (2, 72, 5, 7), 136, norm="group", num_groups=9),
    pointwise("odd", (2, 67, 11, 13), 131, norm="layer"),
    pointwise("many_rows", (5, 16, 13, 14), 24, tracked=True),
    pointwise("many_rows_by_sample", (5, 16, 13, 14), 24, norm="instance"),
    pointwise("many_tiles", (3, 8, 29, 31), 8),
    pointwise("many_tiles_by_sample", (2, 8, 29, 31), 8, norm="layer"),
    pointwise("stride", (3, 16, 9, 8), 24, stride=2),
    pointwise("stride_by_dimension", (3, 7, 9, 8), 6, stride=(1, 3), norm="group", num_groups=7),
    pointwise("stride_beyond", (3, 8, 4, 9), 8, stride=(5, 4), training=False, tracked=True),
    pointwise("stride_of_activation", (3, 8, 4, 9), 8, stride=(2, 2), norm="none"),
    pointwise("stride_act_norm", (3, 8, 5, 9), 8, stride=(2, 2), norm="layer", order="act_norm_conv"),
    pointwise("no_bias", (2, 8, 5, 4), 8, convolution_bias=False),
    pointwise("no_parameters", (2, 8, 5, 4), 8, weight=False, bias=False),
    pointwise("wide_parameters", (2, 8, 5, 4), 8, parameter_dtype=torch.float32, norm="group", num_groups=2),
    pointwise("eps", (2, 8, 5, 4), 8, eps=0.3),
    pointwise("empty", (0, 8, 5, 4), 8, training=False, tracked=True),
    depthwise("one_tap", (2, 9, 5, 4), (1, 1), stride=2),
    depthwise("one_position", (17, 24, 1, 1), (3, 3), padding=1),
    depthwise("seven", (2, 72, 12, 10), (7, 7), padding=3),
    depthwise("seven_odd", (2, 37, 12, 10), (7, 7), padding=3, norm="layer"),
    depthwise("rectangle", (2, 16, 9, 11), (2, 5), padding=(1, 2), norm="group", num_groups=4),
    depthwise("stride", (3, 16, 13, 12), (3, 3), padding=1, stride=2),
    depthwise("stride_by_dimension", (3, 5, 13, 12), (3, 4), padding=(0, 3), stride=(3, 1), norm="instance"),
    depthwise("stride_beyond", (2, 8, 12, 14), (2, 1), stride=(5, 3)),
    depthwise("dilation", (2, 8, 19, 17), (3, 5), padding=(6, 2), dilation=(9, 3)),
    depthwise(
        "dilation_and_stride", (2, 3, 19, 17), (3, 3), padding=4, dilation=(4, 2), stride=(2, 3), order="act_norm_conv"
    ),
    depthwise("padding_wide", (2, 8, 4, 5), (3, 3), padding=(5, 4), activation="softplus"),
    depthwise("multiplier", (2, 8, 7, 8), (3, 3), outputs=3, padding=1),
    depthwise("multiplier_stride", (2, 5, 9, 8), (5, 5), outputs=2, padding=2, stride=2, norm="group", num_groups=5),
    depthwise("many_channels", (2, 520, 3, 4), (3, 3), padding=1, training=False, tracked=True),
    depthwise("many_tiles", (3, 16, 37, 21), (3, 3), padding=1),
    depthwise("many_tiles_by_sample", (3, 16, 37, 21), (3, 3), padding=1, norm="layer"),
    depthwise("no_bias", (2, 8, 5, 4), (3, 3), convolution_bias=False),
    depthwise("no_parameters", (2, 8, 5, 4), (3, 3), weight=False, bias=False),
    depthwise("wide_parameters", (2, 8, 5, 4), (3, 3), parameter_dtype=torch.float32),
    depthwise("empty", (0, 8, 5, 4), (3, 3)),
]
VALUE_CASES = [
    case
    for kind, dtypes in (
        ("shifted", (torch.float32,)),
        ("shifted_little", HALF),
        ("tiny", (torch.float32,)),
        ("constant", FLOATS),
    )
    for case in (
        pointwise(kind, (4, 8, 9, 9), 16, values=kind, dtypes=dtypes, floor=1.0),
        depthwise(kind, (4, 8, 9, 9), (3, 3), padding=1, values=kind, dtypes=dtypes, floor=1.0),
    )
] + [
    # Nothing is taken off, so that the output has such values too.
    pointwise("outlier_first", (4, 8, 9, 9), 16, values="first_is_outlier", norm="none", activation="identity"),
    depthwise("outlier_first", (4, 8, 9, 9), (3, 3), values="first_is_outlier", norm="none", activation="identity"),
    pointwise(
        "far_output", (4, 8, 19, 9), 16, values="shifted", norm="none", activation="identity", dtypes=(torch.float32,)
    ),
    depthwise(
        "far_output",
        (4, 8, 19, 9),
        (3, 3),
        values="shifted",
        norm="none",
        activation="identity",
        dtypes=(torch.float32,),
    ),
]
CASES = (*NORM_CASES, *ACTIVATION_CASES, *SIZE_CASES, *VALUE_CASES)
# With these each kernel has whole vectors and single values, blocks with several tiles and tiles that are not full.
REACHING = [
    case
    for case in SIZE_CASES
    if case.name.removeprefix("depthwise_").removeprefix("pointwise_")
    in (
        "wide",
        "odd",
        "many_tiles",
        "stride_act_norm",
        "seven_odd",
        "dilation",
        "multiplier",
        "many_tiles_by_sample",
    )
]
