"""batch_norm as the tests see it: its cases, and torch's composition."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdl.ops import batch_norm
from fastdl.reference import ACTIVATIONS
from fastdl.reference import batch_norm as reference
from tests.support.backends import FLOATING
from tests.support.layouts import LAYOUTS
from tests.support.problems import Case, Operator, Tensors, compose

SINGLE_AND_DOUBLE = (torch.float32, torch.float64)
HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class BatchNormCase(Case):
    """``tracked``: whether there are running statistics; ``training=False`` needs them."""

    training: bool = True
    tracked: bool = True
    momentum: float = 0.1
    activation: str = "relu"


def parameters(case: BatchNormCase, fill: Callable[..., Tensor], dtype: torch.dtype) -> Tensors:
    channels, parameter_dtype = (case.shape[1],), case.parameter_dtype or dtype
    tensors: Tensors = {}
    for name, given in (("weight", case.weight), ("bias", case.bias)):
        if given:
            tensors[name] = fill(channels, to=parameter_dtype)
    if case.tracked:
        # Near the batch's own, so that evaluation normalises what comes; far from 0 and 1, so that an update shows.
        centre = fill((1, channels[0], 1000), case.values, torch.float64).mean((0, 2))
        tensors["running_mean"] = (centre + 0.3 * fill(channels, to=torch.float64)).to(parameter_dtype)
        tensors["running_var"] = (0.5 + fill(channels, to=torch.float64).square()).to(parameter_dtype)
    return tensors


def ours(case: BatchNormCase, t: Tensors) -> Tensor:
    return call(batch_norm, case, t)


def by_reference(case: BatchNormCase, t: Tensors) -> Tensor:
    return call(reference, case, t)


def call(function: Callable[..., Tensor], case: BatchNormCase, t: Tensors) -> Tensor:
    return function(
        t["input"],
        t.get("running_mean"),
        t.get("running_var"),
        t.get("weight"),
        t.get("bias"),
        case.training,
        case.momentum,
        case.eps,
        activation=case.activation,
        activation_param=case.activation_param,
        order=case.order,
        residual=t.get("residual"),
    )


def by_torch(case: BatchNormCase, t: Tensors) -> Tensor:
    def normalize(x: Tensor) -> Tensor:
        running = (t.get("running_mean"), t.get("running_var"))
        return F.batch_norm(x, *running, t.get("weight"), t.get("bias"), case.training, case.momentum, case.eps)

    return compose(case, normalize, t["input"], t.get("residual"))


def without_activation(case: BatchNormCase) -> BatchNormCase | None:
    if case.order == "act_norm":
        return None  # the activation's argument is an input, which nobody rounds
    return dataclasses.replace(case, activation="identity", activation_param=None)


def row(name: str, shape: tuple[int, ...], **options: Any) -> BatchNormCase:
    return BatchNormCase(name, shape, **options)


def both_modes(name: str, shape: tuple[int, ...], **options: Any) -> list[BatchNormCase]:
    return [row(f"{mode}_{name}", shape, training=mode == "training", **options) for mode in ("training", "evaluation")]


BASIC = (3, 12, 5, 7)

ACTIVATION_CASES = [
    case
    for activation in ACTIVATIONS
    for layout in ("contiguous", "channels_last")
    for case in both_modes(f"{activation}_{layout}", BASIC, activation=activation, layout=layout, grad_layout=layout)
] + [
    row("leaky_relu_slope", BASIC, activation="leaky_relu", activation_param=0.2),
    row("leaky_relu_slope_negative", BASIC, activation="leaky_relu", activation_param=-0.5, layout="channels_last"),
    row("elu_alpha", BASIC, activation="elu", activation_param=0.5),
]

LAYOUT_CASES = [case for layout in LAYOUTS for case in both_modes(f"input_{layout}", (3, 12, 4, 6), layout=layout)]
LAYOUT_CASES += [
    row(f"gradient_{layout}", (3, 12, 4, 6), grad_layout=layout, layout=input_layout, training=i % 3 > 0)
    for i, (layout, input_layout) in enumerate(
        zip(LAYOUTS, ["contiguous", "channels_last"] * len(LAYOUTS), strict=False)
    )
]
LAYOUT_CASES += [
    row("channels_last_gradient_contiguous", (2, 20, 3, 5), layout="channels_last"),
    row("channels_last_gradient_expanded", (2, 20, 3, 5), layout="channels_last", grad_layout="expanded_everywhere"),
    row("contiguous_gradient_channels_last", (2, 20, 3, 5), grad_layout="channels_last"),
    row("sliced_channels_last_both", (2, 20, 3, 5), layout="sliced_channels_last", grad_layout="sliced_channels_last"),
]

RANK_CASES = [
    *both_modes("two_dimensions", (9, 12)),
    row("two_dimensions_transposed", (9, 12), layout="reversed_dimensions"),
    row("two_dimensions_wide", (3, 514), activation="gelu"),
    *both_modes("three_dimensions", (3, 10, 17)),
    row("three_dimensions_channels_last", (3, 10, 17), layout="channels_last", grad_layout="channels_last"),
    *both_modes("five_dimensions", (2, 6, 3, 4, 5)),
    row("five_dimensions_channels_last", (2, 6, 3, 4, 5), layout="channels_last", grad_layout="channels_last"),
]


def sweep() -> list[BatchNormCase]:
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
        c, size, activation = (
            channels[i % len(channels)],
            sizes[i * 7 % len(sizes)],
            activations[i * 5 % len(activations)],
        )
        batch = 2 + i % 3
        for layout in ("contiguous", "channels_last"):
            name = f"sweep_{batch}x{c}x{size[0]}x{size[1]}_{activation}_{layout}"
            training = i % 4 > 0
            options = {"layout": layout, "grad_layout": layout, "activation": activation, "training": training}
            cases.append(row(name, (batch, c, *size), **options))
    return cases


def boundaries() -> list[BatchNormCase]:
    """Positions around the sizes at which kernels go over to another loop: vectors, blocks of rows, chunks of a sum."""
    near = (8, 16, 32, 64, 128, 256, 512, 1024, 4096)
    cases = []
    for i, positions in enumerate(p for size in near for p in (size - 1, size, size + 1)):
        channels = (6, 4, 33)[i % 3] if positions < 4000 else 3
        dtypes = (torch.float32, FLOATING[1 + i % 3])
        options: dict[str, Any] = {"dtypes": dtypes, "activation": "silu", "training": i % 4 > 0}
        for layout in ("contiguous", "channels_last"):
            shape = (2, channels, positions)
            cases.append(row(f"positions_{positions}_{layout}", shape, layout=layout, grad_layout=layout, **options))
    return cases


EDGE_CASES = [
    row("batch_of_one_with_positions", (1, 12, 3, 3)),
    row("batch_of_one_in_evaluation", (1, 12), training=False),
    row("two_values_a_channel", (2, 5), activation="silu"),
    *both_modes("empty_batch", (0, 6, 4, 4)),
    *both_modes("empty_space", (2, 6, 0, 4)),
    row("empty_batch_channels_last", (0, 6, 4, 4), layout="channels_last"),
    *both_modes("no_weight", BASIC, weight=False),
    *both_modes("no_bias", BASIC, bias=False, layout="channels_last"),
    *both_modes("no_parameters", BASIC, weight=False, bias=False),
    row("not_tracked", BASIC, tracked=False),
    row("not_tracked_channels_last", BASIC, tracked=False, layout="channels_last"),
    row("momentum_zero", BASIC, momentum=0.0),
    row("momentum_one", BASIC, momentum=1.0),
    row("momentum_third", BASIC, momentum=1 / 3),
    *both_modes("float32_parameters", BASIC, parameter_dtype=torch.float32, dtypes=HALF),
    row("float32_parameters_channels_last", BASIC, parameter_dtype=torch.float32, dtypes=HALF, layout="channels_last"),
    row("eps_zero", BASIC, eps=0.0, training=False),  # torch takes no eps of 0 in training
    row("eps_tiny", BASIC, eps=1e-20),
    *both_modes("eps_large", BASIC, eps=1e-3, layout="channels_last"),
]

VALUE_CASES = [
    case
    for values, dtypes, activation, bias in (
        ("shifted", SINGLE_AND_DOUBLE, "silu", True),
        ("shifted_little", HALF, "silu", True),
        ("tiny", SINGLE_AND_DOUBLE, "silu", False),
        ("small", (*SINGLE_AND_DOUBLE, *HALF), "silu", True),
        ("huge", SINGLE_AND_DOUBLE, "silu", True),
        ("large", (*SINGLE_AND_DOUBLE, *HALF), "silu", True),
        ("constant", (*SINGLE_AND_DOUBLE, *HALF), "silu", True),
        ("zero", (*SINGLE_AND_DOUBLE, *HALF), "silu", True),
        ("outlier", (*SINGLE_AND_DOUBLE, *HALF), "silu", True),
        ("first_is_outlier", (*SINGLE_AND_DOUBLE, *HALF), "silu", True),
    )
    for layout in ("contiguous", "channels_last")
    for case in both_modes(
        f"{values}_{layout}",
        (4, 12, 9, 11),
        values=values,
        layout=layout,
        dtypes=dtypes,
        activation=activation,
        bias=bias,
        bounded=values == "shifted",
    )
]
VALUE_CASES += [
    row(
        "shifted_two_dimensions", (40, 30), values="shifted", bounded=True, dtypes=SINGLE_AND_DOUBLE, activation="gelu"
    ),
    row("shifted_larger", (8, 32, 32, 32), values="shifted", bounded=True, dtypes=(torch.float32,), activation="gelu"),
    row(
        "shifted_larger_channels_last",
        (8, 32, 32, 32),
        values="shifted",
        bounded=True,
        dtypes=(torch.float32,),
        activation="gelu",
        layout="channels_last",
    ),
    row(
        "shifted_sliced",
        (2, 12, 9, 11),
        values="shifted",
        bounded=True,
        dtypes=SINGLE_AND_DOUBLE,
        activation="silu",
        layout="sliced_space",
    ),
]

ORDER_CASES = [
    *both_modes("residual", BASIC, residual="contiguous"),
    *both_modes(
        "residual_channels_last", BASIC, residual="channels_last", layout="channels_last", grad_layout="channels_last"
    ),
    row("residual_of_the_other_layout", BASIC, residual="channels_last"),
    row("residual_contiguous_input_channels_last", BASIC, residual="contiguous", layout="channels_last"),
    row("residual_expanded", BASIC, residual="expanded_space", activation="silu"),
    row("residual_sliced", BASIC, residual="sliced_channels", activation="silu"),
    row("residual_two_dimensions", (9, 12), residual="contiguous"),
    *(
        case
        for activation in ACTIVATIONS
        for layout in ("contiguous", "channels_last")
        for case in both_modes(
            f"act_norm_{activation}_{layout}", BASIC, order="act_norm", activation=activation, layout=layout
        )
    ),
    *both_modes("act_norm_residual", BASIC, order="act_norm", residual="contiguous"),
    *both_modes(
        "act_norm_residual_channels_last", BASIC, order="act_norm", residual="channels_last", layout="channels_last"
    ),
    row("act_norm_residual_mixed", BASIC, order="act_norm", residual="sliced_space", layout="channels_last"),
    row("act_norm_sliced", (3, 12, 4, 6), order="act_norm", layout="sliced_space", activation="gelu"),
]

LARGER_CASES = [
    *both_modes("cifar", (16, 64, 16, 16), dtypes=(torch.float32, torch.bfloat16)),
    *both_modes(
        "cifar_channels_last", (16, 64, 16, 16), layout="channels_last", dtypes=(torch.float32, torch.bfloat16)
    ),
    row("one_large_sample", (1, 8, 192, 192), dtypes=(torch.float32,)),
    row("one_large_sample_channels_last", (1, 8, 192, 192), layout="channels_last", dtypes=(torch.float32,)),
    row("many_channels", (2, 1030, 3, 3), dtypes=(torch.float32, torch.bfloat16)),
    row("many_channels_channels_last", (2, 1030, 3, 3), layout="channels_last", dtypes=(torch.float32, torch.bfloat16)),
    row("many_samples", (700, 6), dtypes=(torch.float32,)),
    row("imagenet", (32, 128, 56, 56), dtypes=(torch.float32,), activation="silu", slow=True),
    row(
        "imagenet_channels_last",
        (32, 128, 56, 56),
        dtypes=(torch.float32,),
        activation="silu",
        layout="channels_last",
        slow=True,
    ),
]

OPERATOR = Operator(
    name="batch_norm",
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
    updated=("running_mean", "running_var"),
)
