"""Every wrong argument is the same exception in the same words on every backend, and is named with what it got."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import fastdl
from fastdl.ops import batch_norm, conv_norm_act, group_norm
from tests.support.backends import BACKENDS_UNDER_TEST

X = torch.randn(2, 6, 4, 4)
META = torch.empty(6, device="meta")


@dataclass(frozen=True)
class Mistake:
    """``arguments`` are laid over a right call's; ``message`` is a pattern of the exception's text."""

    name: str
    arguments: dict[str, Any]
    error: type[Exception]
    message: str
    op: str = field(default="")


RIGHT: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
    "group_norm": (group_norm, {"input": X, "num_groups": 3}),
    "batch_norm": (batch_norm, {"input": X, "running_mean": None, "running_var": None, "training": True}),
    "conv_norm_act": (
        conv_norm_act,
        {"input": X, "weight": torch.randn(4, 6, 3, 3), "norm": "batch", "training": True},
    ),
}

EVERY = ("group_norm", "batch_norm", "conv_norm_act")
NORMS = ("group_norm", "batch_norm")

COMMON = [
    (EVERY, Mistake("input_is_a_list", {"input": [[1.0, 2.0]]}, TypeError, r"input must be a torch\.Tensor; got list")),
    (EVERY, Mistake("input_is_none", {"input": None}, TypeError, r"input must be a torch\.Tensor; got NoneType")),
    (EVERY, Mistake("input_of_integers", {"input": X.long()}, TypeError, r"input must be float32.*got torch\.int64")),
    (
        EVERY,
        Mistake("input_complex", {"input": X.to(torch.complex64)}, TypeError, r"input must be.*got torch\.complex64"),
    ),
    (
        NORMS,
        Mistake(
            "input_of_one_dimension", {"input": X[0, :, 0, 0]}, ValueError, r"input must have at least 2 dim.*\(6,\)"
        ),
    ),
    (
        NORMS,
        Mistake(
            "input_of_no_dimension", {"input": X.sum()}, ValueError, r"input must have at least 2 dim.*got shape \(\)"
        ),
    ),
    (
        NORMS,
        Mistake("weight_too_long", {"weight": torch.ones(7)}, ValueError, r"weight must have shape \(6,\).*got \(7,\)"),
    ),
    (
        NORMS,
        Mistake(
            "weight_of_two_dimensions", {"weight": torch.ones(6, 1)}, ValueError, r"weight must have shape.*\(6, 1\)"
        ),
    ),
    (
        NORMS,
        Mistake(
            "weight_of_integers", {"weight": torch.ones(6).int()}, TypeError, r"weight must be float32.*torch\.int32"
        ),
    ),
    (
        NORMS,
        Mistake("weight_is_a_number", {"weight": 2.0}, TypeError, r"weight must be a torch\.Tensor or None; got float"),
    ),
    (
        NORMS,
        Mistake(
            "weight_elsewhere", {"weight": META}, ValueError, r"weight must be on the input's device cpu; got meta"
        ),
    ),
    (NORMS, Mistake("bias_too_short", {"bias": torch.ones(5)}, ValueError, r"bias must have shape \(6,\).*got \(5,\)")),
    (NORMS, Mistake("bias_scalar", {"bias": torch.tensor(1.0)}, ValueError, r"bias must have shape \(6,\).*got \(\)")),
    (NORMS, Mistake("bias_elsewhere", {"bias": META}, ValueError, r"bias must be on the input's device cpu; got meta")),
    (EVERY, Mistake("eps_negative", {"eps": -1e-5}, ValueError, r"eps must be a number of at least 0; got -1e-05")),
    (EVERY, Mistake("eps_nan", {"eps": float("nan")}, ValueError, r"eps must be a number of at least 0; got nan")),
    (EVERY, Mistake("eps_text", {"eps": "small"}, ValueError, r"eps must be a number of at least 0; got 'small'")),
    (
        EVERY,
        Mistake(
            "activation_unknown",
            {"activation": "swish"},
            ValueError,
            r"activation must be one of identity, relu.*'swish'",
        ),
    ),
    (
        EVERY,
        Mistake(
            "activation_spelled_large", {"activation": "ReLU"}, ValueError, r"activation must be one of.*got 'ReLU'"
        ),
    ),
    (EVERY, Mistake("activation_none", {"activation": None}, ValueError, r"activation must be one of.*got None")),
    (
        EVERY,
        Mistake(
            "parameter_for_relu",
            {"activation": "relu", "activation_param": 0.1},
            ValueError,
            r"activation_param is for .*leaky_relu.*elu.*; got 0\.1 with 'relu'",
        ),
    ),
    (
        EVERY,
        Mistake(
            "parameter_is_text",
            {"activation": "elu", "activation_param": "1"},
            TypeError,
            r"activation_param must be a number or None; got str",
        ),
    ),
]

OWN = [
    Mistake(
        "groups_do_not_divide",
        {"num_groups": 4},
        ValueError,
        r"num_groups must be a positive divisor of the 6.*got 4",
        "group_norm",
    ),
    Mistake(
        "groups_zero", {"num_groups": 0}, ValueError, r"num_groups must be a positive divisor.*got 0", "group_norm"
    ),
    Mistake(
        "groups_negative",
        {"num_groups": -3},
        ValueError,
        r"num_groups must be a positive divisor.*got -3",
        "group_norm",
    ),
    Mistake(
        "groups_more_than_channels",
        {"num_groups": 12},
        ValueError,
        r"num_groups must be a positive.*got 12",
        "group_norm",
    ),
    Mistake("groups_fractional", {"num_groups": 3.0}, TypeError, r"num_groups must be an int; got float", "group_norm"),
    Mistake("groups_bool", {"num_groups": True}, TypeError, r"num_groups must be an int; got bool", "group_norm"),
    Mistake("groups_none", {"num_groups": None}, TypeError, r"num_groups must be an int; got NoneType", "group_norm"),
    Mistake(
        "one_value_in_all",
        {"input": torch.randn(1, 6), "num_groups": 6},
        ValueError,
        r"input must have more than one value a group.*\(1, 6\)",
        "group_norm",
    ),
    Mistake(
        "order_unknown",
        {"order": "act"},
        ValueError,
        r"order must be one of norm_act, act_norm; got 'act'",
        "batch_norm",
    ),
    Mistake(
        "order_of_conv",
        {"order": "conv_norm_act"},
        ValueError,
        r"order must be one of norm_act, act_norm",
        "batch_norm",
    ),
    Mistake(
        "batch_of_one",
        {"input": torch.randn(1, 6)},
        ValueError,
        r"Expected more than 1 value per channel",
        "batch_norm",
    ),
    Mistake(
        "batch_of_one_image",
        {"input": torch.randn(1, 6, 1, 1)},
        ValueError,
        r"Expected more than 1 value per",
        "batch_norm",
    ),
    Mistake(
        "no_statistics",
        {"training": False},
        ValueError,
        r"running_mean and running_var must be tensors when",
        "batch_norm",
    ),
    Mistake(
        "no_variance",
        {"training": False, "running_mean": torch.zeros(6)},
        ValueError,
        r"running_mean and running_var must be tensors",
        "batch_norm",
    ),
    Mistake(
        "mean_too_long",
        {"running_mean": torch.zeros(7)},
        ValueError,
        r"running_mean must have shape \(6,\)",
        "batch_norm",
    ),
    Mistake(
        "variance_of_integers",
        {"running_var": torch.ones(6).long()},
        TypeError,
        r"running_var must be float32",
        "batch_norm",
    ),
    Mistake(
        "variance_elsewhere",
        {"running_var": META},
        ValueError,
        r"running_var must be on the input's device",
        "batch_norm",
    ),
    Mistake(
        "residual_is_a_number",
        {"residual": 1.0},
        TypeError,
        r"residual must be a torch\.Tensor or None; got float",
        "batch_norm",
    ),
    Mistake(
        "residual_broadcasts",
        {"residual": torch.ones(1, 6, 1, 1)},
        ValueError,
        r"residual must have the output's shape \(2, 6, 4, 4\); got \(1, 6, 1, 1\)",
        "batch_norm",
    ),
    Mistake(
        "residual_of_integers",
        {"residual": X.int()},
        TypeError,
        r"residual must be float32.*torch\.int32",
        "batch_norm",
    ),
    Mistake(
        "residual_elsewhere",
        {"residual": X.to("meta")},
        ValueError,
        r"residual must be on the input's device",
        "batch_norm",
    ),
    Mistake(
        "weight_is_none", {"weight": None}, TypeError, r"weight must be a torch\.Tensor; got NoneType", "conv_norm_act"
    ),
    Mistake(
        "weight_of_integers",
        {"weight": torch.ones(4, 6, 3, 3).int()},
        TypeError,
        r"weight must be float32",
        "conv_norm_act",
    ),
    Mistake(
        "weight_of_three_dimensions",
        {"weight": torch.ones(4, 6, 3)},
        ValueError,
        r"input and weight must both have 3, 4 or 5 dimensions.*\(2, 6, 4, 4\).*\(4, 6, 3\)",
        "conv_norm_act",
    ),
    Mistake(
        "input_of_two_dimensions",
        {"input": X[:, :, 0, 0]},
        ValueError,
        r"input must have at least 3 dim",
        "conv_norm_act",
    ),
    Mistake(
        "norm_unknown",
        {"norm": "bn"},
        ValueError,
        r"norm must be one of batch, group, layer.*got 'bn'",
        "conv_norm_act",
    ),
    Mistake(
        "norm_none", {"norm": None}, ValueError, r"norm must be one of batch, group, layer.*got None", "conv_norm_act"
    ),
    Mistake(
        "group_without_number",
        {"norm": "group"},
        ValueError,
        r"num_groups must be given for norm='group'",
        "conv_norm_act",
    ),
    Mistake(
        "number_without_group",
        {"num_groups": 2},
        ValueError,
        r"num_groups must be given for norm='group'.*2",
        "conv_norm_act",
    ),
    Mistake(
        "groups_do_not_divide",
        {"norm": "group", "num_groups": 3},
        ValueError,
        r"conv_norm_act: num_groups must be a positive divisor of the 4 channels; got 3",
        "conv_norm_act",
    ),
    Mistake(
        "order_unknown",
        {"order": "norm_act"},
        ValueError,
        r"order must be one of conv_norm_act, conv_act_norm",
        "conv_norm_act",
    ),
    Mistake(
        "one_running_statistic",
        {"running_mean": torch.zeros(4)},
        ValueError,
        r"running_mean and running_var must be given together",
        "conv_norm_act",
    ),
    Mistake(
        "statistics_of_layer_norm",
        {"norm": "layer", "running_mean": torch.zeros(4), "running_var": torch.ones(4)},
        ValueError,
        r"running_mean and running_var are for norm='batch' and 'instance'; got norm='layer'",
        "conv_norm_act",
    ),
    Mistake("no_statistics", {"training": False}, ValueError, r"running_mean and running_var must be", "conv_norm_act"),
    Mistake(
        "residual_of_the_inputs_shape",
        {"residual": X},
        ValueError,
        r"residual must have the output's shape \(2, 4, 2, 2\); got \(2, 6, 4, 4\)",
        "conv_norm_act",
    ),
    Mistake(
        "norm_weight_too_long",
        {"norm_weight": torch.ones(6)},
        ValueError,
        r"norm_weight must have shape \(4,\)",
        "conv_norm_act",
    ),
    Mistake("channels_do_not_fit", {"weight": torch.ones(4, 5, 3, 3)}, RuntimeError, r"channels", "conv_norm_act"),
]


def rows() -> list[Any]:
    mistakes = [(op, mistake) for ops, mistake in COMMON for op in ops] + [(mistake.op, mistake) for mistake in OWN]
    return [
        pytest.param(op, mistake, backend, id=f"{op}-{mistake.name}-{backend}")
        for op, mistake in mistakes
        for backend in ("auto", *BACKENDS_UNDER_TEST)
    ]


def refusal(op: str, mistake: Mistake, backend: str) -> Exception:
    function, arguments = RIGHT[op]
    with fastdl.use_backend(backend), pytest.raises(mistake.error, match=mistake.message) as raised:
        function(**arguments | mistake.arguments)
    return raised.value


@pytest.mark.parametrize(("op", "mistake", "backend"), rows())
def test_a_wrong_argument_is_refused_in_the_same_words(op: str, mistake: Mistake, backend: str) -> None:
    if backend != "auto" and BACKENDS_UNDER_TEST[backend].device().type != "cpu":
        pytest.skip("this table's tensors are on the CPU")
    ours, reference = refusal(op, mistake, backend), refusal(op, mistake, "reference")
    assert type(ours) is type(reference)
    assert str(ours) == str(reference)
    if mistake.error is not RuntimeError:  # torch's convolution speaks for itself
        assert str(ours).startswith(f"{op}: ")


@pytest.mark.parametrize("op", RIGHT)
def test_the_right_call_is_right(op: str) -> None:
    """Every mistake of the table is laid over these."""
    function, arguments = RIGHT[op]
    assert function(**arguments).shape[1] == (4 if op == "conv_norm_act" else 6)


def test_a_refused_call_leaves_running_statistics_alone() -> None:
    mean, variance = torch.zeros(6), torch.ones(6)
    with pytest.raises(ValueError, match="order"):
        batch_norm(X, mean, variance, training=True, order="sideways")
    with pytest.raises(ValueError, match="residual"):
        batch_norm(X, mean, variance, training=True, residual=X[:1])
    with pytest.raises(ValueError, match="activation"):
        batch_norm(X, mean, variance, training=True, activation="none")
    assert torch.equal(mean, torch.zeros(6))
    assert torch.equal(variance, torch.ones(6))


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_eight_bit_floats_are_refused_by_name(name: str) -> None:
    with pytest.raises(TypeError, match=rf"group_norm: input must be.*torch\.{name}"):
        group_norm(X.to(getattr(torch, name)), 3)
