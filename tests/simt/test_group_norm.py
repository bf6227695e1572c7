"""GroupNorm's CUDA kernels on the host: the parity tests' rows by every path, in every build and order of threads."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdl.reference.group_norm import group_norm_with_statistics
from tests.simt.norms import suite
from tests.simt.norms.calls import Call
from tests.support.group_norm import BASIC, OPERATOR, row

PARTS = 6

LAST: dict[str, Any] = {"layout": "channels_last", "grad_layout": "channels_last"}
FURTHER = [
    row("groups_across_vectors", (2, 24, 5, 7), 4, **LAST),
    row("groups_of_a_vector", (3, 32, 6, 6), 4, residual="channels_last", activation="relu", **LAST),
    row("groups_joined_by_a_warp", (2, 40, 9, 5), 2, residual="channels_last", order="act_norm", **LAST),
    row("fewer_groups_in_the_last_tile", (2, 72, 4, 4), 9, **LAST),
    row("a_group_in_parts", (2, 1030, 2, 2), 1, **LAST),
    row("a_group_in_parts_of_vectors", (2, 2056, 1, 2), 1, **LAST),
    row("rows_that_begin_anywhere", (5, 24), 3, layout="storage_offset"),
    row("strips_that_begin_anywhere", (2, 6, 7, 7), 2, residual="contiguous"),
    row("strips_in_pieces", (1, 2, 48, 50), 2),
]


@pytest.mark.parametrize("part", range(PARTS))
def test_parity(part: int) -> None:
    rows = suite.prepare(OPERATOR, suite.small_rows(OPERATOR, 12_000)[part::PARTS])
    for call in (suite.BLOCK, suite.CLUSTER, suite.SPLIT):
        suite.check_rows(OPERATOR, rows, call)
    suite.check_rows(OPERATOR, rows[::4], suite.BLOCK, order="reversed")
    suite.check_rows(OPERATOR, rows[::4], suite.CLUSTER, order="random")
    suite.check_rows(OPERATOR, rows[::4], suite.SPLIT, order="random")


@pytest.mark.parametrize("variant", ["plain", "race", "address"])
def test_every_kernel_and_path_is_right_in_every_build(variant: str) -> None:
    rows = suite.prepare(OPERATOR, suite.reaching_rows(OPERATOR, FURTHER))
    reached: Counter[str] = Counter()
    for call, order in ((suite.BLOCK, "random"), (suite.CLUSTER, "reversed"), (suite.SPLIT, "forward")):
        reached += suite.check_rows(OPERATOR, rows, call, variant, order)
    reached += suite.check_rows(OPERATOR, rows[::3], suite.CLUSTER, variant, "random")
    expected = suite.ALL_KERNELS | suite.ALL_STEPS | {"fastdl::cuda::norm_merge::parameter_gradients"}
    assert sorted(expected - reached.keys()) == []


def test_the_same_bits_in_every_order() -> None:
    rows = suite.prepare(OPERATOR, suite.reaching_rows(OPERATOR, FURTHER)[::3])
    for call in (suite.BLOCK, suite.CLUSTER, suite.SPLIT):
        suite.check_orders(OPERATOR, rows, call)


@pytest.mark.parametrize("wanted", [(), ("input",), ("weight",), ("bias", "residual"), ("input", "bias")])
def test_gradients_that_are_not_asked_for(wanted: tuple[str, ...]) -> None:
    cases = [row("wanted", BASIC, 3, residual="contiguous"), row("wanted_rows", BASIC, 3, layout="channels_last")]
    rows = suite.prepare(OPERATOR, [(case, torch.float32) for case in cases])
    for like in (suite.BLOCK, suite.CLUSTER, suite.SPLIT):
        suite.check_rows(OPERATOR, rows, Call(like.path, like.machine, wanted))


def definition(case: Any, x: Tensor) -> Tensor:
    options: dict[str, Any] = {
        "activation": "identity",
        "activation_param": None,
        "order": "norm_act",
        "residual": None,
    }
    return group_norm_with_statistics(x, case.num_groups, None, None, case.eps, **options)[1]


@pytest.mark.parametrize("call", [suite.BLOCK, suite.CLUSTER, suite.SPLIT], ids=lambda call: call.path)
def test_values_far_from_zero(call: Call) -> None:
    cases = [
        row(f"far_{shape}_{layout}", shape, groups, values="shifted", layout=layout)
        for shape, groups in (((2, 12, 9, 11), 4), ((2, 16, 16, 24), 2))
        for layout in ("contiguous", "channels_last")
    ]
    rows = suite.prepare(OPERATOR, [(case, torch.float32) for case in cases])
    suite.check_far_from_zero(OPERATOR, rows, call, definition)


@pytest.mark.parametrize("call", [suite.BLOCK, suite.CLUSTER, suite.SPLIT], ids=lambda call: call.path)
def test_nonfinite_values_stand_where_torch_has_them(call: Call) -> None:
    cases = [
        row(f"nonfinite_{activation}_{layout}", (3, 6, 5, 4), groups, activation=activation, layout=layout)
        for layout in ("contiguous", "channels_last")
        for activation, groups in (
            ("identity", 3), ("relu", 3), ("leaky_relu", 1), ("sigmoid", 6), ("tanh", 2), ("silu", 3), ("gelu", 3),
            ("gelu_tanh", 3), ("mish", 1), ("softplus", 3),
        )
    ]  # fmt: skip
    cases.append(row("nonfinite_act_norm", (3, 6, 5, 4), 3, order="act_norm", activation="relu"))
    cases.append(row("nonfinite_residual", (3, 6, 5, 4), 3, residual="contiguous", activation="silu"))
    suite.check_nonfinite(OPERATOR, cases, call)
