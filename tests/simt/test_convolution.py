"""CUDA kernels of conv(act(norm(x))) on the host: parity with the definition in every build and order of threads."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from tests.simt.convolution import suite
from tests.simt.convolution.calls import GRADIENTS, Call, make_case, results_of, runner, sizes_of
from tests.simt.convolution.cases import CASES, FLOATS, LAST, REACHING, depthwise, pointwise
from tests.simt.convolution.suite import HALF
from tests.simt.harness import Case, Machine, run
from tests.support.accuracy import assert_nonfinite_like
from tests.support.norm_act_conv import NormActConvCase, row
from tests.support.problems import Expected, Problem, make_problem, solve

# One multiprocessor: each block has many tiles. A whole GPU's: no block has more than it must.
NARROW, USUAL, WIDE = Call(Machine(multiprocessors=1)), Call(), Call(Machine(multiprocessors=132))
NAMES = {
    torch.float32: "float",
    torch.float16: "fastdl::device::half_bits",
    torch.bfloat16: "fastdl::device::bfloat16_bits",
}
WIDTHS = {torch.float32: 4, torch.float16: 8, torch.bfloat16: 8}
PARTS = 4
# The second is one that a stride of two passes over.
NONFINITE_PLACES = {
    "input": (1, 2, 2, 4),
    "input unread": (1, 2, 3, 1),
    "convolution_weight": (2, 0, 0, 0),
    "gradient": (1, 2, 1, 1),
}


def kernels_of(dtypes: tuple[torch.dtype, ...]) -> set[str]:
    found = {
        f"convolution_merge::{name}"
        for name in ("coefficients", "totals", "feedback", "norm_parameters", "sum_of_ranks")
    }
    for dtype in dtypes:
        name = NAMES[dtype]
        found |= {f"pointwise_{step}::kernel<{name}>" for step in ("forward", "input", "weight")}
        for step in ("depthwise_forward", "depthwise_input", "depthwise_weight", "convolution_feedback"):
            found |= {f"{step}::kernel<{name}, {width}>" for width in (1, WIDTHS[dtype])}
    return {f"fastdl::cuda::{name}" for name in found} | {"fastdl::cuda::norm_merge::moments"}


def rows_of(cases: Any, every: int = 2) -> list[tuple[NormActConvCase, torch.dtype]]:
    """Each case in float32, and every other one in half precision, by turns."""
    rows = []
    for i, case in enumerate(cases):
        halves = [dtype for dtype in HALF if dtype in case.dtypes]
        rows += [(case, torch.float32)] * (torch.float32 in case.dtypes)
        if halves and (i % every == 0 or torch.float32 not in case.dtypes):
            rows.append((case, halves[i // every % len(halves)]))
    return rows


@cache
def reaching_rows(dtypes: tuple[torch.dtype, ...]) -> list[suite.Row]:
    return suite.prepare((case, dtype) for dtype in dtypes for case in REACHING)


@pytest.mark.parametrize("part", range(PARTS))
def test_parity(part: int) -> None:
    rows = suite.prepare(rows_of(CASES)[part::PARTS])
    suite.check_rows(rows, USUAL)
    suite.check_rows(rows[::3], NARROW, order="random")
    suite.check_rows(rows[1::3], WIDE, order="reversed")


@pytest.mark.parametrize("variant", ["plain", "race", pytest.param("address", marks=pytest.mark.slow)])
def test_every_kernel_is_right_in_every_build(variant: str) -> None:
    """A sanitizer sees one of the half precisions: their kernels differ in how a value is widened."""
    dtypes = FLOATS if variant == "plain" else FLOATS[:2]
    reached = suite.check_rows(reaching_rows(dtypes), NARROW, variant, "random")
    assert sorted(kernels_of(dtypes) - reached.keys()) == []


def test_the_same_bits_in_every_order() -> None:
    rows = reaching_rows(FLOATS[:2])
    suite.check_orders(rows, NARROW)
    suite.check_orders(rows[::3], WIDE)


@pytest.mark.parametrize("wanted", [(), *((name,) for name in GRADIENTS), ("input", "weight"), ("norm_weight", "bias")])
@pytest.mark.parametrize("training", [True, False])
def test_gradients_that_are_not_asked_for(wanted: tuple[str, ...], training: bool) -> None:
    options: dict[str, Any] = {"training": training, "tracked": True}
    cases = [
        pointwise("wanted", (2, 8, 5, 4), 8, **options),
        pointwise("wanted_stride", (2, 8, 5, 4), 8, stride=2, **options),
        depthwise("wanted", (2, 8, 5, 4), (3, 3), **options),
    ]
    rows = suite.prepare((case, torch.float32) for case in cases)
    suite.check_rows(rows, dataclasses.replace(USUAL, wanted=wanted))


@pytest.mark.parametrize("variant", ["plain", pytest.param("address", marks=pytest.mark.slow)])
@pytest.mark.parametrize("offset", [2, 4, 8])
def test_tensors_that_begin_anywhere(offset: int, variant: str) -> None:
    """No vector may be read of an input or a gradient that does not begin at a multiple of 16 bytes."""
    cases = [
        pointwise("offset", (2, 24, 5, 4), 16),
        pointwise("offset_stride", (2, 24, 5, 4), 16, stride=2),
        depthwise("offset", (2, 24, 5, 4), (3, 3), padding=1),
    ]
    rows = suite.prepare((case, dtype) for case in cases for dtype in FLOATS if offset >= dtype.itemsize)
    suite.check_rows(rows, dataclasses.replace(USUAL, offset=offset), variant)


def test_nothing_is_collected_unless_asked_for() -> None:
    suite.check_rows(reaching_rows(FLOATS[:1]), dataclasses.replace(USUAL, collect=False))


@pytest.mark.parametrize(
    "case", [pointwise("known", (3, 24, 5, 4), 16), depthwise("known", (3, 24, 5, 4), (3, 3))], ids=str
)
def test_known_statistics_are_taken_as_they_are(case: NormActConvCase) -> None:
    """The same bits as with computed ones, gradients through them included, and no kernel that computes them."""
    for one in suite.prepare((case, dtype) for dtype in FLOATS):
        [computed] = suite.run_rows([one], USUAL)
        computed.check()
        known = torch.from_numpy(computed.arrays["statistics"][: 2 * case.shape[1]]).view(2, -1)
        [result] = suite.run_rows([one], dataclasses.replace(USUAL, known=known))
        results_of(result, one.expected.problem)
        for name, array in computed.arrays.items():
            assert array.tobytes() == result.arrays[name].tobytes(), name
        gathering = [kernel for kernel in computed.kernels if "rows_forward" in kernel]
        assert len(gathering) == 1
        assert not [kernel for kernel in result.kernels if "rows_forward" in kernel]
        # Others than its own, so that what is given is what is used.
        moved = dataclasses.replace(USUAL, known=known + torch.tensor([[0.5], [1.0]]))
        [other] = suite.run_rows([one], moved)
        other.check()
        assert moved.known is not None
        assert (other.arrays["statistics"][: known.numel()] == moved.known.flatten().numpy()).all()
        assert other.arrays["output"].tobytes() != computed.arrays["output"].tobytes()


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("kind", ["pointwise", "depthwise"])
def test_values_far_from_zero(kind: str, norm: str) -> None:
    """With mean 1e4 and deviation 1 torch's own results are off by 1e-4 and more, which the rule allows."""
    shape, options = (4, 12, 9, 11), {"norm": norm, "num_groups": 3 if norm == "group" else None, "values": "shifted"}
    case = (
        pointwise(f"far_{norm}", shape, 16, **options)
        if kind == "pointwise"
        else depthwise(f"far_{norm}", shape, (3, 3), padding=1, **options)
    )
    [one] = suite.prepare([(case, torch.float32)])
    [result] = suite.run_rows([one], USUAL)
    ours, truth = results_of(result, one.expected.problem), one.expected.truth
    for name, bound in (
        ("output", 2e-6),
        ("gradient of input", 4e-6),
        ("gradient of weight", 3e-6),
        ("gradient of convolution_weight", 3e-6),
    ):
        scale = float(truth[name].abs().max())
        worst = float((ours[name].double() - truth[name]).abs().max())
        assert worst <= bound * scale, f"{name} is off by {worst:.3g} at scale {scale:.3g}"


def test_nonfinite_values_stand_where_torch_has_them() -> None:
    rows, places = [], []
    options: dict[str, Any] = {"tracked": True, "training": False}
    cases = [
        each
        for activation in ("relu", "silu", "identity")
        for order in ("norm_act_conv", "act_norm_conv")
        for each in (
            pointwise(
                f"nonfinite_{activation}_{order}", (3, 4, 5, 6), 5, activation=activation, order=order, **options
            ),
            pointwise(
                f"nonfinite_stride_{activation}_{order}",
                (3, 4, 5, 6),
                5,
                stride=2,
                activation=activation,
                order=order,
                **options,
            ),
            depthwise(
                f"nonfinite_padded_{activation}_{order}",
                (3, 4, 5, 6),
                (3, 3),
                padding=1,
                activation=activation,
                order=order,
                **options,
            ),
        )
    ]
    cases += [
        pointwise("nonfinite_batch", (3, 4, 5, 6), 5),
        depthwise("nonfinite_batch", (3, 4, 5, 6), (2, 3), stride=2),
    ]
    for case in cases:
        for where in NONFINITE_PLACES:
            # On the CPU torch leaves out the taps that meet padding; these kernels multiply them by 0.
            if where == "convolution_weight" and "padded" in case.name:
                continue
            for value in (float("nan"), float("inf"), float("-inf")):
                problem = make_problem(suite.KERNELS_OWN, case, torch.float32)
                tensors = {name: tensor.clone() for name, tensor in problem.tensors.items()}
                problem = Problem(tensors, problem.grad_output.clone())
                target = problem.grad_output if where == "gradient" else tensors[where.removesuffix(" unread")]
                target[NONFINITE_PLACES[where]] = value
                baseline = solve(suite.KERNELS_OWN, suite.KERNELS_OWN.torch, case, problem)
                rows.append(suite.Row(case, torch.float32, Expected(problem, baseline, baseline, {})))
                places.append(f"{case.name} {value} in {where}")
    for one, place, result in zip(rows, places, suite.run_rows(rows, USUAL), strict=True):
        for name, ours in results_of(result, one.expected.problem).items():
            # A sum over positions leaves out those that no output reads, where torch adds 0 times what stands there.
            if place.endswith("unread") and "stride" in place and name in ("gradient of weight", "gradient of bias"):
                continue
            assert_nonfinite_like(f"{place}: {name}", ours, one.expected.truth[name])


def test_what_is_served() -> None:
    """Every row of this file, and none that has no kernel."""
    no, yes = [], [*CASES]
    base = {"padding": 1, **LAST}
    no += [
        row("full", (2, 6, 7, 8), kernel=(6, 6, 3, 3), **base),
        row("grouped", (2, 6, 7, 8), kernel=(6, 2, 1, 1), groups=3, **LAST),
        row("padded_down", (2, 6, 7, 8), kernel=(6, 6, 1, 1), padding=(1, 0), **LAST),
        row("padded_across", (2, 6, 7, 8), kernel=(6, 6, 1, 1), padding=(0, 1), **LAST),
        row("large", (2, 6, 9, 9), kernel=(6, 1, 8, 3), groups=6, **LAST),
        row("wide", (2, 6, 9, 9), kernel=(6, 1, 3, 8), groups=6, **LAST),
        row("no_outputs", (2, 6, 2, 9), kernel=(6, 1, 3, 3), groups=6, **LAST),
        row("huge_image", (1, 6, 40_000, 40_000), kernel=(6, 1, 3, 3), groups=6, **LAST),
        row("huge_stride", (1, 6, 9, 9), kernel=(6, 1, 3, 3), groups=6, stride=1 << 20, **LAST),
        row("partly_depthwise", (1, 6, 9, 9), kernel=(6, 1, 3, 3), groups=3, **LAST),
    ]
    asked = [(case, expected) for expected, cases in ((0, no), (1, yes)) for case in cases]
    results = run(runner("plain"), [Case("is_convolution_served", {}, sizes_of(case)) for case, _ in asked])
    for (case, expected), result in zip(asked, results, strict=True):
        result.check()
        assert result.reports["served"] == expected, case.name


@pytest.mark.parametrize("dtype", [0, 2])
def test_plans_of_real_networks(dtype: int) -> None:
    """Enough blocks for the machine, tiles of several positions, and three blocks of a multiprocessor at a time."""
    shapes = {
        "mobilenet": depthwise("plan", (64, 144, 56, 56), (3, 3), padding=1),
        "convnext": depthwise("plan", (64, 96, 56, 56), (7, 7), padding=3),
        "downsample": depthwise("plan", (64, 240, 28, 28), (5, 5), padding=2, stride=2),
        "dilated": depthwise("plan", (8, 512, 65, 65), (7, 7), padding=54, dilation=18),
        "resnet": pointwise("plan", (64, 256, 56, 56), 64),
        "resnet_end": pointwise("plan", (64, 512, 7, 7), 2048),
    }
    asked = [
        Case(
            "convolution_plan",
            {},
            sizes_of(case) | {"dtype": dtype, "vector": 1, "by_sample": by_sample},
            Machine(multiprocessors=132, shared_bytes=shared),
        )
        for case in shapes.values()
        for by_sample in (0, 1)
        for shared in (99 * 1024, 227 * 1024)
    ]
    for case, result in zip(asked, run(runner("plain"), asked), strict=True):
        result.check()
        reports = result.reports
        for step in ("forward", "weight"):
            if f"{step}.shared_bytes" in reports:
                assert 3 * reports[f"{step}.shared_bytes"] <= case.machine.shared_bytes, case.scalars
                assert reports[f"{step}.outputs"] >= 2, case.scalars
                assert reports[f"{step}.vectors"] >= 4, case.scalars
        assert reports["forward.blocks"] * (1 if "forward.shared_bytes" in reports else 32) >= 132, case.scalars
        # What each leaves is a whole weight's sums.
        assert reports["weight.blocks"] <= 2 * 8 * 132, case.scalars


def test_a_batch_of_nothing_leaves_zeros() -> None:
    for case in (pointwise("nothing", (0, 8, 5, 4), 8), depthwise("nothing", (0, 8, 5, 4), (3, 3), norm="none")):
        problem = make_problem(suite.KERNELS_OWN, case, torch.float32)
        [result] = run(runner("plain"), [make_case(case, problem, USUAL)])
        result.check()
        assert result.kernels == []
        for name in ("grad_weight", "grad_bias", "statistics"):
            assert result.arrays[name].size
            assert not np.any(result.arrays[name]), name
