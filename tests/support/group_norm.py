"""group_norm as the tests see it: its cases, and torch's composition."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdl.ops.group_norm import normalize_groups
from fastdl.reference import ACTIVATIONS
from fastdl.reference import group_norm as reference
from tests.support.backends import FLOATING
from tests.support.layouts import LAYOUTS
from tests.support.problems import Case, Operator, Tensors, compose

SINGLE_AND_DOUBLE = (torch.float32, torch.float64)
HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class GroupNormCase(Case):
    """``num_groups`` divides the channels, the second number of ``shape``."""

    num_groups: int = 1


def parameters(case: GroupNormCase, fill: Callable[..., Tensor], dtype: torch.dtype) -> Tensors:
    tensors: Tensors = {}
    for name, given in (("weight", case.weight), ("bias", case.bias)):
        if given:
            tensors[name] = fill((case.shape[1],), to=case.parameter_dtype or dtype)
    return tensors


def ours(case: GroupNormCase, t: Tensors) -> Tensor:
    return normalize_groups(
        t["input"],
        case.num_groups,
        t.get("weight"),
        t.get("bias"),
        case.eps,
        case.activation,
        case.activation_param,
        case.order,
        t.get("residual"),
    )


def by_reference(case: GroupNormCase, t: Tensors) -> Tensor:
    return reference(
        t["input"],
        case.num_groups,
        t.get("weight"),
        t.get("bias"),
        case.eps,
        activation=case.activation,
        activation_param=case.activation_param,
        order=case.order,
        residual=t.get("residual"),
    )


def by_torch(case: GroupNormCase, t: Tensors) -> Tensor:
    weight, bias = t.get("weight"), t.get("bias")
    if weight is None and bias is not None:
        weight = torch.ones_like(bias)  # torch's own backward fails with a bias alone: "tensor does not have a device"

    def normalize(x: Tensor) -> Tensor:
        return F.group_norm(x, case.num_groups, weight, bias, case.eps)

    return compose(case, normalize, t["input"], t.get("residual"))


def without_activation(case: GroupNormCase) -> GroupNormCase | None:
    if case.order == "act_norm":
        return None  # the activation's argument is an input, which nobody rounds
    return dataclasses.replace(case, activation="identity", activation_param=None)


def row(name: str, shape: tuple[int, ...], num_groups: int, **options: Any) -> GroupNormCase:
    return GroupNormCase(name, shape, num_groups=num_groups, **options)


BASIC = (2, 12, 5, 7)

ACTIVATION_CASES = [
    row(f"{activation}_{layout}", BASIC, 3, activation=activation, layout=layout, grad_layout=layout)
    for activation in ACTIVATIONS
    for layout in ("contiguous", "channels_last")
] + [
    row("leaky_relu_slope", BASIC, 3, activation="leaky_relu", activation_param=0.2),
    row("leaky_relu_slope_negative", BASIC, 3, activation="leaky_relu", activation_param=-0.5),
    row("elu_alpha", BASIC, 3, activation="elu", activation_param=0.5, layout="channels_last"),
    row("elu_alpha_large", BASIC, 3, activation="elu", activation_param=3.0),
]

LAYOUT_CASES = [row(f"input_{layout}", (3, 12, 4, 6), 4, layout=layout) for layout in LAYOUTS]
LAYOUT_CASES += [
    row(f"gradient_{layout}", (3, 12, 4, 6), 3, grad_layout=layout, layout=input_layout)
    for layout, input_layout in zip(LAYOUTS, ["contiguous", "channels_last"] * len(LAYOUTS), strict=False)
]
LAYOUT_CASES += [
    row("channels_last_gradient_contiguous", (2, 20, 3, 5), 4, layout="channels_last"),
    row("channels_last_gradient_expanded", (2, 20, 3, 5), 5, layout="channels_last", grad_layout="expanded_everywhere"),
    row("contiguous_gradient_channels_last", (2, 20, 3, 5), 4, grad_layout="channels_last"),
    row(
        "sliced_channels_last_both", (2, 20, 3, 5), 2, layout="sliced_channels_last", grad_layout="sliced_channels_last"
    ),
]

RANK_CASES = [
    row("two_dimensions", (5, 12), 4),
    row("two_dimensions_transposed", (5, 12), 3, layout="reversed_dimensions"),
    row("two_dimensions_wide", (3, 257 * 2), 2, activation="gelu"),
    row("three_dimensions", (3, 10, 17), 5),
    row("three_dimensions_channels_last", (3, 10, 17), 5, layout="channels_last", grad_layout="channels_last"),
    row("five_dimensions", (2, 6, 3, 4, 5), 2),
    row("five_dimensions_channels_last", (2, 6, 3, 4, 5), 3, layout="channels_last", grad_layout="channels_last"),
    row("six_dimensions", (2, 4, 2, 3, 2, 3), 2),
]


def sweep() -> list[GroupNormCase]:
    """Odd channels and odd sizes against each other: pairs in rotation, so that each meets several of the rest."""
    channels = (1, 3, 5, 7, 12, 30, 33, 96, 257)
    sizes = (
        (1, 1),
        (1, 2),
        (3, 1),
        (2, 2),
        (5, 1),
        (2, 3),
        (7, 1),
        (2, 4),
        (3, 3),
        (2, 5),
        (11, 1),
        (3, 4),
        (13, 1),
        (7, 2),
    )
    sizes += ((3, 5), (4, 4), (17, 1), (8, 8), (16, 16), (17, 17))
    activations = tuple(ACTIVATIONS)
    cases = []
    for i in range(len(channels) * 4):
        c = channels[i % len(channels)]
        divisors = [g for g in range(1, c + 1) if c % g == 0]
        groups, size = divisors[i * 5 % len(divisors)], sizes[i * 7 % len(sizes)]
        activation = activations[i * 5 % len(activations)]
        batch = 1 + i % 3
        for layout in ("contiguous", "channels_last"):
            name = f"sweep_{batch}x{c}x{size[0]}x{size[1]}_groups{groups}_{activation}_{layout}"
            if (c // groups) * size[0] * size[1] == 1:
                continue  # one value a group: in a table of its own, since the gradient is 0 there
            cases.append(row(name, (batch, c, *size), groups, layout=layout, grad_layout=layout, activation=activation))
    return cases


def boundaries() -> list[GroupNormCase]:
    """Positions around the sizes at which kernels go over to another loop: vectors, blocks of rows, chunks of a sum."""
    near = (8, 16, 32, 64, 128, 256, 512, 1024, 4096)
    cases = []
    for i, positions in enumerate(p for size in near for p in (size - 1, size, size + 1)):
        channels, groups = ((6, 3), (4, 4), (33, 1))[i % 3] if positions < 4000 else (3, 3)
        dtypes = (torch.float32, FLOATING[1 + i % 3])
        for layout in ("contiguous", "channels_last"):
            shape = (2, channels, positions)
            cases.append(
                row(f"positions_{positions}_{layout}", shape, groups, layout=layout, grad_layout=layout, dtypes=dtypes)
            )
    return cases


EDGE_CASES = [
    # One value is its own mean: what is left of the gradient is the rounding of terms of the size 1 / sqrt(eps).
    row("one_value_a_group", (2, 6), 6, floor=300.0),
    row("one_value_a_group_images", (3, 5, 1, 1), 5, floor=300.0),
    row("groups_are_channels", (2, 7, 5, 3), 7),
    row("groups_are_channels_channels_last", (2, 7, 5, 3), 7, layout="channels_last"),
    row("one_group", (2, 7, 5, 3), 1),
    row("one_group_channels_last", (2, 7, 5, 3), 1, layout="channels_last"),
    row("batch_of_one", (1, 12, 9, 9), 4),
    row("batch_of_one_channels_last", (1, 12, 9, 9), 4, layout="channels_last"),
    row("one_position", (4, 12, 1, 1), 3),
    row("empty_batch", (0, 6, 4, 4), 3),
    row("empty_batch_channels_last", (0, 6, 4, 4), 3, layout="channels_last"),
    row("empty_space", (2, 6, 0, 4), 3),
    row("no_weight", BASIC, 3, weight=False),
    row("no_bias", BASIC, 3, bias=False, layout="channels_last"),
    row("no_parameters", BASIC, 3, weight=False, bias=False),
    row("no_parameters_channels_last", BASIC, 3, weight=False, bias=False, layout="channels_last"),
    row("float32_parameters", BASIC, 3, parameter_dtype=torch.float32, dtypes=HALF),
    row(
        "float32_parameters_channels_last", BASIC, 3, parameter_dtype=torch.float32, dtypes=HALF, layout="channels_last"
    ),
    row("eps_zero", BASIC, 3, eps=0.0),
    row("eps_large", BASIC, 3, eps=1e-3, layout="channels_last"),
    row("eps_one", BASIC, 3, eps=1.0),
]

VALUE_CASES = [
    row(f"{values}_{layout}_{groups}", (2, 12, 9, 11), groups, values=values, layout=layout, dtypes=dtypes, **options)
    for values, dtypes, options in (
        ("shifted", SINGLE_AND_DOUBLE, {"bounded": True}),
        ("shifted_little", HALF, {}),
        ("tiny", SINGLE_AND_DOUBLE, {"bias": False}),
        ("small", (*SINGLE_AND_DOUBLE, *HALF), {}),
        ("huge", SINGLE_AND_DOUBLE, {}),
        ("large", (*SINGLE_AND_DOUBLE, *HALF), {}),
        ("constant", (*SINGLE_AND_DOUBLE, *HALF), {}),
        ("zero", (*SINGLE_AND_DOUBLE, *HALF), {}),
        ("outlier", (*SINGLE_AND_DOUBLE, *HALF), {}),
        ("first_is_outlier", (*SINGLE_AND_DOUBLE, *HALF), {}),
    )
    for layout in ("contiguous", "channels_last")
    for groups in (1, 4, 12)
]
VALUE_CASES += [
    row("shifted_two_dimensions", (4, 30), 3, values="shifted", bounded=True, dtypes=SINGLE_AND_DOUBLE),
    row(
        "shifted_one_position",
        (4, 96, 1, 1),
        3,
        values="shifted",
        bounded=True,
        dtypes=SINGLE_AND_DOUBLE,
        layout="channels_last",
    ),
    row("shifted_larger", (2, 32, 32, 32), 8, values="shifted", bounded=True, dtypes=(torch.float32,)),
    row(
        "shifted_larger_channels_last",
        (2, 32, 32, 32),
        8,
        values="shifted",
        bounded=True,
        dtypes=(torch.float32,),
        layout="channels_last",
    ),
    row(
        "shifted_sliced",
        (2, 12, 9, 11),
        4,
        values="shifted",
        bounded=True,
        dtypes=SINGLE_AND_DOUBLE,
        layout="every_other_position",
    ),
]

ORDER_CASES = [
    row("residual", BASIC, 3, residual="contiguous"),
    row(
        "residual_channels_last",
        BASIC,
        3,
        residual="channels_last",
        layout="channels_last",
        grad_layout="channels_last",
    ),
    row("residual_of_the_other_layout", BASIC, 3, residual="channels_last"),
    row("residual_contiguous_input_channels_last", BASIC, 3, residual="contiguous", layout="channels_last"),
    row("residual_expanded", BASIC, 3, residual="expanded_space", activation="relu"),
    row("residual_sliced", BASIC, 3, residual="sliced_channels", activation="relu"),
    row("residual_two_dimensions", (4, 12), 3, residual="contiguous", activation="relu"),
    *(
        row(f"act_norm_{activation}_{layout}", BASIC, 3, order="act_norm", activation=activation, layout=layout)
        for activation in ACTIVATIONS
        for layout in ("contiguous", "channels_last")
    ),
    row("act_norm_residual", BASIC, 3, order="act_norm", activation="relu", residual="contiguous"),
    row(
        "act_norm_residual_channels_last", BASIC, 3, order="act_norm", residual="channels_last", layout="channels_last"
    ),
    row("act_norm_residual_mixed", BASIC, 3, order="act_norm", residual="sliced_space", layout="channels_last"),
    row("act_norm_sliced", (3, 12, 4, 6), 4, order="act_norm", layout="sliced_space", activation="gelu"),
]

LARGER_CASES = [
    row("unet_64x64", (2, 64, 32, 32), 32, dtypes=(torch.float32, torch.bfloat16)),
    row(
        "unet_64x64_channels_last", (2, 64, 32, 32), 32, layout="channels_last", dtypes=(torch.float32, torch.bfloat16)
    ),
    row("one_large_sample", (1, 32, 96, 96), 4, dtypes=(torch.float32,)),
    row("one_large_sample_channels_last", (1, 32, 96, 96), 4, layout="channels_last", dtypes=(torch.float32,)),
    row("many_channels", (2, 1030, 3, 3), 10, dtypes=(torch.float32, torch.bfloat16)),
    row(
        "many_channels_channels_last",
        (2, 1030, 3, 3),
        10,
        layout="channels_last",
        dtypes=(torch.float32, torch.bfloat16),
    ),
    row("many_samples", (300, 6, 2, 2), 2, dtypes=(torch.float32,)),
    row("imagenet", (32, 128, 56, 56), 32, dtypes=(torch.float32,), slow=True),
    row("imagenet_channels_last", (32, 128, 56, 56), 32, dtypes=(torch.float32,), layout="channels_last", slow=True),
]

OPERATOR = Operator(
    name="group_norm",
    cases=(
        *ACTIVATION_CASES,
        *LAYOUT_CASES,
        *RANK_CASES,
        *sweep(),
        *boundaries(),
        *EDGE_CASES,
        *VALUE_CASES,
        *ORDER_CASES,
        *LARGER_CASES,
    ),
    parameters=parameters,
    ours=ours,
    reference=by_reference,
    torch=by_torch,
    without_activation=without_activation,
    differentiable=("input", "weight", "bias", "residual"),
)
