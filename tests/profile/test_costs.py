"""The least that a call must move and compute: as the benchmarks count it, and by hand."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import pytest
import torch

import fastdl
from fastdl.bench import registry
from fastdl.bench.bench_attention import BIAS, PADDING
from fastdl.bench.counting import (
    Work,
    convolution_backward,
    convolution_forward,
    norm_backward,
    norm_forward,
)
from fastdl.bench.harness import forward_backward_call
from fastdl.bench.operands import make_operands
from fastdl.ops import OPERATORS
from fastdl.profile.costs import COUNTERS, Cost, band
from tests.profile.watching import calls_of
from tests.support.backends import BACKENDS_UNDER_TEST

SMALL = 200_000
CPU = torch.device("cpu")


def cases_of(*names: str) -> list[Any]:
    """Each benchmark's small cases, and its first one made small, in every layout, dtype and variant that it has."""
    found = []
    for name in names:
        benchmark = registry.load(name)
        chosen: dict[Any, Any] = {}
        for case in sorted(benchmark.cases, key=lambda case: case.elements):
            if len(case.size) >= 3 and case.elements > SMALL:
                case = dataclasses.replace(case, size=(2, *case.size[1:]))
            if case.elements <= SMALL:
                chosen.setdefault((case.layout, case.dtype, case.variant), case)
        found += [pytest.param(benchmark, case, id=f"{name}-{case.key}") for case in chosen.values()]
    return found


def work_of(cost: Cost | None) -> Work:
    assert cost is not None
    assert cost.matrix_operations is not None
    return Work(cost.bytes, cost.matrix_operations, cost.vector_operations)


def forward_and_backward(benchmark: Any, case: Any) -> tuple[Work, Work, Any]:
    operands = make_operands(benchmark, case, CPU, sets=1)
    call = forward_backward_call(benchmark.ours(case), operands)
    forward, backward = calls_of(lambda: call(0))
    assert (forward.direction, backward.direction) == ("forward", "backward")
    return work_of(forward.cost), work_of(backward.cost), operands


def test_every_op_is_counted() -> None:
    assert set(COUNTERS) == set(OPERATORS)


@pytest.fixture(autouse=True)
def own_kernels() -> None:
    BACKENDS_UNDER_TEST["cpu"].device()


@pytest.mark.parametrize(("benchmark_of_op", "case"), cases_of("group_norm", "layer_norm", "rms_norm"))
def test_norms_as_the_benchmarks_count(benchmark_of_op: Any, case: Any) -> None:
    forward, backward, _ = forward_and_backward(benchmark_of_op, case)
    assert forward == benchmark_of_op.forward_work(case)
    assert backward == benchmark_of_op.backward_work(case)


@pytest.mark.parametrize(("benchmark_of_op", "case"), cases_of("batch_norm"))
def test_batch_norm_leaves_the_running_statistics_to_their_kernel(benchmark_of_op: Any, case: Any) -> None:
    forward, backward, _ = forward_and_backward(benchmark_of_op, case)
    running = Work(2 * 2 * 4 * case.size[1])  # mean and variance, float32, read and written
    assert forward + running == benchmark_of_op.forward_work(case)
    assert backward == benchmark_of_op.backward_work(case)


@pytest.mark.parametrize(("benchmark_of_op", "case"), cases_of("attention"))
def test_attention_as_the_benchmark_counts_and_the_mask(benchmark_of_op: Any, case: Any) -> None:
    forward, backward, operands = forward_and_backward(benchmark_of_op, case)
    mask = Work(0)
    gradient = Work(0)
    if case.variant in (PADDING, BIAS):
        values = operands.parameters[2]
        mask = Work(values.numel() * values.element_size())
        gradient = mask if case.variant == BIAS else Work(0)
    assert forward == benchmark_of_op.forward_work(case) + mask
    assert backward == benchmark_of_op.backward_work(case) + mask + gradient


@pytest.mark.parametrize(("benchmark_of_op", "case"), cases_of("conv_norm_act_chain"))
def test_norm_act_conv_as_a_convolution_and_what_the_norm_adds(benchmark_of_op: Any, case: Any) -> None:
    """Of the norm the channels' parameters and statistics; its tensors are never in memory."""
    operands = make_operands(benchmark_of_op, case, CPU, sets=1)
    call = forward_backward_call(benchmark_of_op.ours(case), operands)
    calls = [found for found in calls_of(lambda: call(0)) if found.operator == "norm_act_conv"]
    channels = case.size[1]
    forward = convolution_forward(case.tensor_bytes, case.size, 3) + norm_forward(
        0, 4 * channels, channels, case.elements
    )
    backward = convolution_backward(case.tensor_bytes, case.size, 3) + norm_backward(
        0, 4 * channels, channels, case.elements
    )
    assert [work_of(found.cost) for found in calls] == [forward] * 7 + [backward] * 7


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_convolution_alone_and_its_shape(backend: str) -> None:
    """Stride, padding, dilation and groups: 2x8x9x11 by 3x3 to 6 channels in two groups."""
    x = torch.randn(2, 8, 9, 11, requires_grad=True)
    weight = torch.randn(6, 4, 3, 3, requires_grad=True)
    op = partial(
        fastdl.ops.norm_act_conv, x, weight, norm="none", activation="relu", stride=2, padding=1, dilation=2, groups=2
    )
    with fastdl.use_backend(backend):
        (forward, *_) = calls_of(lambda: op().sum().backward())
    rows, columns = (9 + 2 - 4 - 1) // 2 + 1, (11 + 2 - 4 - 1) // 2 + 1
    assert op().shape == (2, 6, rows, columns)
    outputs = 2 * 6 * rows * columns
    assert forward.cost == Cost(4 * (x.numel() + weight.numel() + outputs), 2 * outputs * 4 * 9, x.numel())


@pytest.mark.parametrize(
    ("needs", "inner"),
    [
        ((True, True, True), 5),
        ((True, False, False), 3),  # the weights, their gradient, the query's
        ((False, False, True), 2),  # the weights, the value's
    ],
)
def test_backward_of_attention_counts_what_is_asked_for(needs: tuple[bool, ...], inner: int) -> None:
    size = (1, 2, 5, 16)
    tensors = [torch.randn(size, requires_grad=needed) for needed in needs]
    attend = fastdl.ops.scaled_dot_product_attention
    _, backward = calls_of(lambda: attend(*tensors).backward(torch.ones(size)))
    assert work_of(backward.cost).matrix_operations == inner * 2 * 16 * 2 * 5 * 5
    tensor = 4 * torch.Size(size).numel()
    assert work_of(backward.cost).bytes == (5 + sum(needs)) * tensor + 4 * 2 * 5


@pytest.mark.parametrize("left", [-1, 0, 2])
@pytest.mark.parametrize("right", [-1, 0, 1])
@pytest.mark.parametrize("offset", [-3, 0, 4])
def test_seen_pairs_are_those_of_the_mask(left: int, right: int, offset: int) -> None:
    queries, keys = 6, 5
    position = torch.arange(queries)[:, None] + offset
    key = torch.arange(keys)
    seen = torch.ones(queries, keys, dtype=torch.bool)
    if left >= 0:
        seen &= key >= position - left
    if right >= 0:
        seen &= key <= position + right
    assert band(queries, keys, left, right, offset) == int(seen.sum())


def test_varlen_attention_counts_the_pairs_of_each_sequence() -> None:
    query = torch.randn(7, 2, 8)
    bounds = torch.tensor([0, 3, 7])
    varlen = partial(fastdl.ops.varlen_attention, query, query, query, bounds, bounds, 4, 4)
    (plain,) = calls_of(lambda: varlen())
    (causal,) = calls_of(lambda: varlen(is_causal=True))
    assert work_of(plain.cost).matrix_operations == 4 * 8 * 2 * (9 + 16)
    assert work_of(causal.cost).matrix_operations == 4 * 8 * 2 * (6 + 10)


def test_query_offsets_count_for_each_sample() -> None:
    query, key = torch.randn(2, 1, 1, 8), torch.randn(2, 1, 6, 8)
    attend = fastdl.ops.scaled_dot_product_attention
    (found,) = calls_of(lambda: attend(query, key, key, is_causal=True, query_offset=torch.tensor([1, 4])))
    assert work_of(found.cost).matrix_operations == 4 * 8 * (2 + 5)


def test_lengths_on_a_gpu_are_not_read() -> None:
    """A meta tensor stands for one whose values cannot be had without waiting."""
    from fastdl.profile.arguments import Arguments
    from fastdl.profile.costs import attention

    query = torch.randn(1, 2, 7, 8)
    bounds = torch.tensor([0, 3, 7], device="meta")
    tensors = (query, query, query, None, None, bounds, bounds, None)
    given = Arguments("forward", (), tensors, (1.0, 0.0, -1, -1, 0, 0.0, 4, 4))
    found = attention(given)
    assert found.matrix_operations is None
    assert found.operations is None
    assert found.bytes == 4 * 4 * query.numel() + 4 * 2 * 7 + 2 * 3 * 8


def test_an_expanded_mask_is_read_once() -> None:
    query = torch.randn(4, 2, 6, 8)
    mask = torch.ones(6, 6, dtype=torch.bool)
    attend = fastdl.ops.scaled_dot_product_attention
    (without,) = calls_of(lambda: attend(query, query, query))
    (with_mask,) = calls_of(lambda: attend(query, query, query, mask))
    assert work_of(with_mask.cost).bytes - work_of(without.cost).bytes == 36


def test_batch_norm_in_evaluation_reads_its_running_statistics() -> None:
    x = torch.randn(3, 4, 5)
    mean, variance = torch.zeros(4), torch.ones(4)
    (found,) = calls_of(lambda: fastdl.ops.batch_norm(x, mean, variance))
    assert found.cost == Cost(2 * 4 * 60 + 2 * 4 * 4, 0, 2 * 60)  # the mean taken away, and the scaling


@pytest.mark.parametrize("residual", [False, True])
def test_dropout_reads_and_writes_each_tensor_once(residual: bool) -> None:
    x = torch.randn(3, 40, requires_grad=True)
    r = torch.randn(3, 40, requires_grad=True) if residual else None
    forward, backward = calls_of(lambda: fastdl.ops.dropout(x, 0.5, residual=r).sum().backward())
    assert forward.cost == Cost((2 + residual) * 480, 0, (1 + residual) * 120)
    assert backward.cost == Cost(4 + 480, 0, 120)  # the gradient of a sum is one number, expanded


def test_a_backward_by_the_reference_is_counted_with_its_forward() -> None:
    """As the kernels' own would be."""
    x = torch.randn(2, 4, 6, requires_grad=True)
    weight, bias = torch.ones(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    calls = {}
    for backend in ("reference", "cpu"):
        with fastdl.use_backend(backend):
            output = lambda: fastdl.ops.group_norm(x, 2, weight, bias, activation="silu")  # noqa: E731
            calls[backend] = calls_of(lambda: output().backward(torch.ones(2, 4, 6)))  # noqa: B023
    assert calls["reference"][0].cost_of_backward == calls["cpu"][1].cost
    assert calls["reference"][0].cost == calls["cpu"][0].cost


def test_a_sum_s_backward_by_the_reference_is_counted_with_its_forward() -> None:
    x, residual = (torch.randn(4, 6, requires_grad=True) for _ in range(2))
    weight = torch.ones(6, requires_grad=True)
    calls = {}
    for backend in ("reference", "cpu"):
        with fastdl.use_backend(backend):

            def both() -> None:
                torch.autograd.backward(
                    fastdl.ops.rms_norm(x, 6, weight, residual=residual), [torch.ones(4, 6), torch.ones(4, 6)]
                )

            calls[backend] = calls_of(both)
    assert calls["reference"][0].cost_of_backward == calls["cpu"][1].cost
