"""Runs rows of norm_act_conv's tables on the host SIMT harness, and holds the results to the rule of the tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdl.reference.norm_act_conv import NO_NORM, norm_act_conv_with_statistics
from tests.simt.convolution.calls import PARAMETERS, Call, groups_of, make_case, pair, results_of, runner
from tests.simt.harness import Result, run
from tests.simt.norms.suite import expect
from tests.support.norm_act_conv import OPERATOR, NormActConvCase
from tests.support.problems import Expected, Tensors, assert_solution, draws_of

HALF = (torch.bfloat16, torch.float16)
# The running statistics are moved elsewhere (batch_norm.cu).
KERNELS_OWN = replace(OPERATOR, updated=())


@dataclass(frozen=True)
class Row:
    """A case in one dtype, and what is expected of it."""

    case: NormActConvCase
    dtype: torch.dtype
    expected: Expected

    def __str__(self) -> str:
        return f"{self.case.name} {self.dtype}"


def prepare(rows: Iterable[tuple[NormActConvCase, torch.dtype]]) -> list[Row]:
    """The rows with their truth, which every machine, build and order is then held to."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # problems this small only wait for each other's threads
    try:
        return [Row(case, dtype, expect(KERNELS_OWN, case, dtype)) for case, dtype in rows]
    finally:
        torch.set_num_threads(threads)


def run_rows(rows: Sequence[Row], call: Call, variant: str = "plain", order: str = "forward") -> list[Result]:
    cases = [make_case(row.case, row.expected.problem, call) for row in rows]
    return run(runner(variant), cases, order, seed=len(rows))


def check_rows(rows: Sequence[Row], call: Call, variant: str = "plain", order: str = "forward") -> Counter[str]:
    """Parity of each row, and of its statistics; those that are wrong are named in one error.

    Returns how often each kernel was launched.
    """
    failures: list[str] = []
    reached: Counter[str] = Counter()
    for row, result in zip(rows, run_rows(rows, call, variant, order), strict=True):
        try:
            ours = results_of(result, row.expected.problem)
            check_statistics(row, call, result, ours["output"])
            try:
                check(row, call, ours)
            except AssertionError:
                expected = expect(KERNELS_OWN, row.case, row.dtype, draws_of(row.case))
                check(replace(row, expected=expected), call, ours)
        except AssertionError as error:
            failures.append(f"{row} {variant} {order}: {error}")
        reached.update(result.kernels)
    assert not failures, f"{len(failures)} of {len(rows)} rows are wrong:\n" + "\n".join(failures[:20])
    return reached


def check(row: Row, call: Call, ours: Tensors) -> None:
    """The rule of the table, but for gradients that were not asked for, which must not be there."""
    wanted = {PARAMETERS.get(name, name) for name in call.wanted}
    asked = {
        name: value
        for name, value in row.expected.truth.items()
        if not name.startswith("gradient of ") or name.removeprefix("gradient of ") in wanted
    }
    baseline = {name: row.expected.baseline[name] for name in asked}
    expected = Expected(row.expected.problem, asked, baseline, row.expected.typical)
    assert_solution(OPERATOR, row.case, ours, expected)


def check_statistics(row: Row, call: Call, result: Result, output: Tensor) -> None:
    """The norm's as the definition has them, and those of the output that the kernel wrote, both in float64."""
    ours, truth = result.arrays["statistics"], statistics_of(row)
    if not output.numel() and row.case.training:
        truth = np.zeros_like(truth)  # where the definition divides by no values
    if call.collect and output.numel():
        moments = output.double().transpose(0, 1).flatten(1)
        collected = torch.stack([moments.mean(1), moments.var(1, unbiased=False)])
        truth = np.concatenate([truth, collected.flatten().numpy()])
    elif call.collect:
        truth = np.concatenate([truth, np.zeros(2 * row.case.kernel[0])])
    assert ours.shape == truth.shape
    own = ours.size - 2 * row.case.kernel[0] * call.collect
    parts = [(0, own // 2, own)] + [(own, own + row.case.kernel[0], ours.size)] * call.collect
    for begin, middle, end in parts:
        mean, variance = slice(begin, middle), slice(middle, end)
        # A mean of 1e4 in one float32 would lack 5e-4.
        allowed = 2e-6 * np.sqrt(np.abs(truth[variance])) + 2e-9 * np.abs(truth[mean])
        assert_close("means", ours[mean], truth[mean], allowed)
        # Deviations are rounded where values lie far from 0: 1e4 is given to 5e-4.
        assert_close("variances", ours[variance], truth[variance], 3e-6 * truth[variance] + 1e-13 * truth[mean] ** 2)


def assert_close(
    what: str, ours: NDArray[np.float64], truth: NDArray[np.float64], allowed: NDArray[np.float64]
) -> None:
    assert (np.isfinite(ours) == np.isfinite(truth)).all(), f"{what} are {ours}, and not {truth}"
    wrong = np.abs(ours - truth) > allowed
    assert not wrong.any(), f"{what} are {ours[wrong]}, and not {truth[wrong]}"


def statistics_of(row: Row) -> NDArray[np.float64]:
    """The norm's own, in float64."""
    case, tensors = row.case, row.expected.problem.tensors
    groups = groups_of(case)
    if groups == NO_NORM:
        return np.zeros(0)
    running = [None if case.training else tensors[name].double() for name in ("running_mean", "running_var")]
    arguments = (
        groups, case.eps, case.activation, case.activation_param, case.order == "act_norm_conv", *(
            list(pair(value)) for value in (case.stride, case.padding, case.dilation) if not isinstance(value, str)
        ), case.groups, False,
    )  # fmt: skip
    weight = tensors["convolution_weight"].double()
    return (
        norm_act_conv_with_statistics(tensors["input"].double(), None, None, weight, None, *running, None, *arguments)[
            1
        ]
        .detach()
        .numpy()
    )


def check_orders(rows: Sequence[Row], call: Call) -> None:
    """The same bits in every order of blocks, warps and lanes: nothing is summed in the order of arrival."""
    results = [run_rows(rows, call, order=order) for order in ("forward", "reversed", "random")]
    for row, *each in zip(rows, *results, strict=True):
        for result in each:
            result.check()
            for name, array in result.arrays.items():
                assert array.tobytes() == each[0].arrays[name].tobytes(), f"{row}: {name}"
