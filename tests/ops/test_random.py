"""Random shapes, strides, groups, activations and gradients, shrunk to the smallest failure by hypothesis."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import fastdl
from fastdl.reference import ACTIVATIONS
from tests.support import batch_norm, group_norm
from tests.support.backends import BACKENDS_UNDER_TEST
from tests.support.layouts import LAYOUTS
from tests.support.problems import Case, Operator, Tensors, make_problem, solve

EXAMPLES = settings(max_examples=120, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
# Against float64, so that a wrong index shows and rounding does not: each is a few thousand units in the last place.
TOLERANCE = {torch.float32: 3e-4, torch.float64: 1e-11, torch.bfloat16: 6e-2, torch.float16: 1e-2}


@st.composite
def common(draw: st.DrawFn) -> dict[str, Any]:
    ndim = draw(st.integers(2, 5))
    space = draw(st.lists(st.integers(1, 19), min_size=ndim - 2, max_size=ndim - 2))
    assume(torch.Size(space).numel() <= 2000)
    activation = draw(st.sampled_from(sorted(ACTIVATIONS)))
    order = draw(st.sampled_from(["norm_act", "act_norm"]))
    return {
        "space": tuple(space),
        "layout": draw(st.sampled_from(sorted(LAYOUTS))),
        "grad_layout": draw(st.sampled_from(sorted(LAYOUTS))),
        "residual": draw(st.sampled_from([None, "contiguous", "channels_last", "sliced_channels", "expanded_space"])),
        "activation": activation,
        "order": order,
        "weight": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "values": draw(st.sampled_from(["varied", "normal", "small", "outlier"])),
        "eps": draw(st.sampled_from([1e-5, 1e-3])),
        "dtypes": (draw(st.sampled_from(sorted(TOLERANCE, key=str))),),
    }


@given(common(), st.integers(1, 5), st.integers(1, 7), st.integers(1, 9))
@EXAMPLES
def test_group_norm(options: dict[str, Any], batch: int, groups: int, width: int) -> None:
    space = options.pop("space")
    # One or two values a group make a gradient that cancels to nothing, which has tests of its own.
    assume(
        width * torch.Size(space).numel() >= 4 and options["layout"] not in ("expanded_space", "expanded_everywhere")
    )
    assume(width > 1 or options["layout"] != "overlapping")
    assume(options["layout"] != "expanded_channels" or torch.Size(space).numel() >= 4)
    check(group_norm.OPERATOR, group_norm.row("random", (batch, groups * width, *space), groups, **options))


@given(common(), st.integers(1, 6), st.integers(1, 40), st.booleans())
@EXAMPLES
def test_batch_norm(options: dict[str, Any], batch: int, channels: int, training: bool) -> None:
    space = options.pop("space")
    if training:
        assume(
            batch * torch.Size(space).numel() >= 4
            and options["layout"] not in ("expanded_space", "expanded_everywhere")
        )
        assume(options["layout"] != "expanded_batch" or torch.Size(space).numel() >= 4)
    check(batch_norm.OPERATOR, batch_norm.row("random", (batch, channels, *space), training=training, **options))


def check(operator: Operator, case: Case) -> None:
    (dtype,) = case.dtypes
    problem = make_problem(operator, case, dtype)
    truth = solve(operator, operator.reference, case, problem, double=True)
    for name, backend in BACKENDS_UNDER_TEST.items():
        if fastdl.backends()[name].available and backend.devices[0] == "cpu":
            with fastdl.use_backend(name):
                assert_close(solve(operator, operator.ours, case, problem), truth, TOLERANCE[dtype], name)


def assert_close(ours: Tensors, truth: Tensors, tolerance: float, backend: str) -> None:
    scale = max(1.0, *(float(result.abs().max()) for result in truth.values()))
    for name, result in ours.items():
        error = float((result.double() - truth[name]).abs().max())
        assert error <= tolerance * scale, f"{backend}: {name} is off by {error:.3g} at scale {scale:.3g}"
