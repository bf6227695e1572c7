"""BatchNorm's CUDA kernels on the host: the parity tests' rows by every path, in every build and order of threads."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdl.reference.batch_norm import batch_norm_with_statistics
from tests.simt.norms import suite
from tests.simt.norms.calls import Call, results_of
from tests.support.batch_norm import BASIC, OPERATOR, row
from tests.support.problems import Expected, make_problem, solve

PARTS = 6

LAST: dict[str, Any] = {"layout": "channels_last", "grad_layout": "channels_last"}
FURTHER = [
    row("vectors_of_channels", (3, 24, 5, 7), **LAST),
    row("vectors_of_channels_evaluation", (3, 24, 5, 7), training=False, residual="channels_last", **LAST),
    row("more_channels_than_a_tile", (2, 88, 3, 3), residual="channels_last", order="act_norm", **LAST),
    row("samples_apart", (3, 16, 4, 5), layout="sliced_channels_last", grad_layout="sliced_channels_last"),
    row("rows_that_begin_anywhere", (40, 12), layout="storage_offset"),
    row("strips_that_begin_anywhere", (4, 6, 7, 7), residual="contiguous"),
    row("strips_in_pieces", (1, 2, 48, 50)),
]


@pytest.mark.parametrize("part", range(PARTS))
def test_parity(part: int) -> None:
    rows = suite.prepare(OPERATOR, suite.small_rows(OPERATOR, 12_000)[part::PARTS])
    for call in (suite.BLOCK, suite.CLUSTER, suite.SPLIT):
        suite.check_rows(OPERATOR, rows, call)
    suite.check_rows(OPERATOR, rows[::4], suite.BLOCK, order="reversed")
    suite.check_rows(OPERATOR, rows[::4], suite.CLUSTER, order="random")
    suite.check_rows(OPERATOR, rows[::4], suite.SPLIT, order="random")


@pytest.mark.parametrize("variant", ["plain", "race", pytest.param("address", marks=pytest.mark.slow)])
def test_every_kernel_and_path_is_right_in_every_build(variant: str) -> None:
    rows = suite.prepare(OPERATOR, suite.reaching_rows(OPERATOR, FURTHER))
    reached: Counter[str] = Counter()
    for call, order in ((suite.BLOCK, "random"), (suite.CLUSTER, "reversed"), (suite.SPLIT, "forward")):
        reached += suite.check_rows(OPERATOR, rows, call, variant, order)
    reached += suite.check_rows(OPERATOR, rows[::3], suite.CLUSTER, variant, "random")
    expected = suite.ALL_KERNELS | suite.ALL_STEPS | {"fastdl::cuda::batch_norm_statistics::update"}
    assert sorted(expected - reached.keys()) == []


def test_the_same_bits_in_every_order() -> None:
    rows = suite.prepare(OPERATOR, suite.reaching_rows(OPERATOR, FURTHER)[::3])
    for call in (suite.BLOCK, suite.CLUSTER, suite.SPLIT):
        suite.check_orders(OPERATOR, rows, call)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("wanted", [(), ("input",), ("weight",), ("bias", "residual"), ("input", "bias")])
def test_gradients_that_are_not_asked_for(wanted: tuple[str, ...], training: bool) -> None:
    cases = [
        row("wanted", BASIC, residual="contiguous", training=training),
        row("wanted_rows", BASIC, layout="channels_last", training=training),
    ]
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
    return batch_norm_with_statistics(x, None, None, None, None, True, case.eps, **options)[1]


@pytest.mark.parametrize("call", [suite.BLOCK, suite.CLUSTER, suite.SPLIT], ids=lambda call: call.path)
def test_values_far_from_zero(call: Call) -> None:
    cases = [
        row(f"far_{shape}_{layout}", shape, values="shifted", layout=layout)
        for shape in ((4, 12, 9, 11), (3, 4, 40, 40))
        for layout in ("contiguous", "channels_last")
    ]
    rows = suite.prepare(OPERATOR, [(case, torch.float32) for case in cases])
    suite.check_far_from_zero(OPERATOR, rows, call, definition)


@pytest.mark.parametrize("call", [suite.BLOCK, suite.CLUSTER, suite.SPLIT], ids=lambda call: call.path)
def test_nonfinite_values_stand_where_torch_has_them(call: Call) -> None:
    cases = [
        row(f"nonfinite_{activation}_{layout}_{training}", (3, 6, 5, 4), activation=activation, layout=layout, **mode)
        for layout in ("contiguous", "channels_last")
        for training in (True, False)
        for activation in ("identity", "relu", "silu", "softplus")
        for mode in ({"training": training},)
    ]
    cases.append(row("nonfinite_act_norm", (3, 6, 5, 4), order="act_norm", activation="silu"))
    cases.append(row("nonfinite_residual", (3, 6, 5, 4), residual="channels_last", activation="relu"))
    suite.check_nonfinite(OPERATOR, cases, call)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_running_statistics_of_any_dtype(dtype: torch.dtype) -> None:
    cases = [
        row("running_training", BASIC, parameter_dtype=dtype, momentum=1 / 3),
        row("running_evaluation", BASIC, parameter_dtype=dtype, training=False, layout="channels_last"),
    ]
    for case in cases:
        problem = make_problem(OPERATOR, case, torch.bfloat16)
        truth = solve(OPERATOR, OPERATOR.reference, case, problem, double=True)
        [result] = suite.run_rows(
            OPERATOR, [suite.Row(case, torch.bfloat16, Expected(problem, truth, truth, {}))], suite.BLOCK
        )  # fmt: skip
        ours = results_of(result, problem)
        tolerance = 4 * max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
        for name in ("running_mean", "running_var"):
            assert ours[name].dtype == dtype
            torch.testing.assert_close(ours[name].double(), truth[name], rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(ours["output"].double(), truth["output"], rtol=2**-7, atol=2**-7)
