"""The arithmetic from events to accounts and rows, on events whose times are chosen."""

from __future__ import annotations

from typing import Any

import pytest
from torch.autograd import DeviceType

from fastdl.profile.annotations import Call
from fastdl.profile.costs import Cost
from fastdl.profile.events import account
from fastdl.profile.limits import Limits
from fastdl.profile.records import Accounts, add_up
from tests.profile.watching import event, with_children

BACKWARD_NODE = 1


def call(direction: str = "forward", backend: str = "cpu", operator: str = "group_norm", **more: Any) -> Call:
    cost = more.pop("cost", Cost(1000, 0))
    return Call(operator, direction, backend, {"input": (2, 4)}, {"input": "float32"}, cost, **more)


def on_cpu(*roots: Any, calls: dict[int, Call], wall: float, **more: Any) -> Accounts:
    return account(with_children(*roots), calls, wall_seconds=wall * 1e-6, device="cpu", **more)


def test_time_is_divided_between_ours_others_and_nobody() -> None:
    """100 us: a range of 40 with 10 of torch's in it, an operator of 30 of which another takes 20, 30 nobody's."""
    copy = event("aten::copy_", 5, 15, event("aten::to", 6, 8))
    kernel = event("fastdl_cpu::group_norm_forward", 2, 38, copy)
    ours = event("fastdl::group_norm_forward[cpu]", 0, 40, kernel, number=7)
    outer = event("aten::linear", 50, 80, event("aten::addmm", 55, 75))
    found = on_cpu(ours, outer, calls={7: call()}, wall=100)
    (record,) = found.records
    assert record.seconds == pytest.approx(40e-6)
    assert record.self_seconds == pytest.approx(30e-6)
    assert {other.name: other.seconds for other in found.others} == pytest.approx(
        {"aten::addmm": 20e-6, "aten::linear": 10e-6}
    )
    assert [other.name for other in found.others] == ["aten::addmm", "aten::linear"]  # those that took longest first
    assert found.seconds_of_ops == pytest.approx(40e-6)
    assert found.rest == pytest.approx(30e-6)
    assert found.whole == pytest.approx(100e-6)


def test_a_nested_op_has_a_record_and_no_time_of_its_own() -> None:
    inner = event("fastdl::batch_norm_forward[cpu]", 10, 20, number=1)
    outer = event("fastdl::norm_act_conv_forward[cpu]", 0, 50, inner, number=0)
    calls = {0: call(operator="norm_act_conv"), 1: call(operator="batch_norm")}
    found = on_cpu(outer, calls=calls, wall=50)
    assert [(record.call.operator, record.nested) for record in found.records] == [
        ("norm_act_conv", False),
        ("batch_norm", True),
    ]
    assert found.records[0].self_seconds == pytest.approx(40e-6)
    assert found.seconds_of_ops == pytest.approx(50e-6)
    assert found.rest == pytest.approx(0)


def test_a_range_that_is_nobody_s_call_is_an_operator() -> None:
    """Of another profile, or of a program that uses such a name."""
    stranger = event("fastdl::group_norm_forward[cpu]", 0, 10, number=3)
    found = on_cpu(stranger, calls={4: call()}, wall=10)
    assert found.records == ()
    assert found.seconds_of_others == pytest.approx(10e-6)


def test_the_user_s_own_ranges_are_not_operators() -> None:
    """What they hold is counted; what lies between is Python's."""
    inner = event("aten::add", 10, 30)
    found = on_cpu(event("an epoch", 0, 100, inner, is_user_annotation=True), calls={}, wall=100)
    assert [other.name for other in found.others] == ["aten::add"]
    assert found.rest == pytest.approx(80e-6)


def test_what_stands_around_the_kernels_is_named() -> None:
    ours = event("fastdl::group_norm_forward[cpu]", 20, 40, number=0)
    function = event("GroupNorm", 0, 50, ours)
    node = event("EagerBackward", 62, 70)
    engine = event("autograd::engine::evaluate_function: EagerBackward", 60, 75, node)
    found = on_cpu(function, engine, calls={0: call()}, wall=75)
    assert {other.name: (other.calls, round(other.seconds * 1e6)) for other in found.others} == {
        "fastdl around its kernels": (2, 38),
        "autograd engine": (1, 7),
    }


def test_a_reference_s_backward_is_that_of_the_nodes_that_it_made() -> None:
    """Nodes 5 and 6 of thread 1; 7 was made behind it, and 5 of thread 2 by somebody else."""
    forward = event("fastdl::group_norm_forward[reference]", 0, 20, event("aten::mean", 1, 19), number=0, thread=1)
    cost = Cost(3000, 0)

    def node(number: int, start: float, fwd_thread: int) -> Any:
        inner = event(
            "MulBackward0", start + 1, start + 9, scope=BACKWARD_NODE, sequence_nr=number, fwd_thread=fwd_thread
        )
        name = "autograd::engine::evaluate_function: MulBackward0"
        return event(name, start, start + 10, inner, sequence_nr=number, fwd_thread=fwd_thread)

    nodes = [node(7, 30, 1), node(6, 40, 1), node(5, 50, 1), node(5, 60, 2)]
    calls = {0: call(backend="reference", nodes=(5, 7), cost_of_backward=cost)}
    found = on_cpu(forward, *nodes, calls=calls, wall=100)
    first, second = found.records
    assert (first.call.name, second.call.name) == (
        "fastdl::group_norm_forward[reference]",
        "fastdl::group_norm_backward[reference]",
    )
    assert second.seconds == pytest.approx(20e-6)
    assert second.call.cost == cost
    assert first.self_seconds == pytest.approx(20e-6)  # it is made of torch's operators
    assert found.seconds_of_others == pytest.approx(20e-6)


def test_memory_is_what_the_profiler_and_the_pool_tell() -> None:
    ours = event("fastdl::group_norm_forward[cpu]", 0, 40, number=0, cpu_memory_usage=300)
    freed = event("[memory]", 50, 50, cpu_memory_usage=-300)
    calls = {0: call(pooled=5000)}
    assert on_cpu(ours, freed, calls=calls, wall=50, memory=True).records[0].allocated == 5300
    assert on_cpu(ours, freed, calls=calls, wall=50).records[0].allocated is None


def test_on_a_gpu_the_time_is_the_kernels() -> None:
    """Of 1000 us: ours 200 in two kernels, of which a copy of torch's 50; torch's 300; unlinked 100; 400 idle."""
    copy = event("aten::copy_", 3, 4, kernels=(("copy", 50.0),))
    native = event("fastdl_cuda::group_norm_forward", 2, 8, copy, kernels=(("norm", 140.0), ("Memset (Device)", 10.0)))
    ours = event("fastdl::group_norm_forward[cuda]", 0, 10, native, number=0)
    other = event("aten::mm", 20, 25, kernels=(("gemm", 300.0),))
    on_host = event("aten::empty", 30, 40)
    device = [
        event(name, start, start + length, device_type=DeviceType.CUDA)
        for name, start, length in (
            ("copy", 100, 50), ("norm", 150, 140), ("Memset (Device)", 290, 10), ("gemm", 300, 300),
            ("replayed", 600, 100),
        )
    ]  # fmt: skip
    drawn = event("fastdl::group_norm_forward[cuda]", 100, 300, device_type=DeviceType.CUDA, is_user_annotation=True)
    found = account(
        [*with_children(ours, other, on_host), *device, drawn],
        {0: call(backend="cuda")},
        wall_seconds=1e-3,
        device="cuda",
    )
    (record,) = found.records
    assert record.seconds == pytest.approx(200e-6)
    assert record.self_seconds == pytest.approx(150e-6)
    assert record.cpu_seconds == pytest.approx(10e-6)
    assert record.launches == 2  # filling is no kernel
    assert {o.name: (round(o.seconds * 1e6), o.launches) for o in found.others} == {
        "aten::mm": (300, 1),
        "kernels that no operator launched": (100, 0),
    }
    assert found.rest == pytest.approx(400e-6)


def test_more_work_than_time_is_all_there_is() -> None:
    """Two streams at once: shares are of their sum, and nothing is idle."""
    found = account(
        with_children(event("aten::mm", 0, 1, kernels=(("a", 80.0), ("b", 70.0)))), {}, wall_seconds=1e-4, device="cuda"
    )
    assert found.whole == pytest.approx(150e-6)
    assert found.rest == pytest.approx(0)


LIMITS = Limits(1e9, {"float32": 1e10})


def rows_of(*costs: Cost | None, limits: Limits | None = LIMITS, by_shape: bool = False) -> list[Any]:
    """Rows of calls of 10 us each."""
    roots = [event("fastdl::group_norm_forward[cpu]", 20 * i, 20 * i + 10, number=i) for i in range(len(costs))]
    calls = {i: call(cost=cost) for i, cost in enumerate(costs)}
    for i, made in calls.items():
        made.shapes = {"input": (2, 4 + i // 2)}
    return add_up(on_cpu(*roots, calls=calls, wall=100).records, limits, by_shape=by_shape)


def test_rates_and_the_roofline_of_a_row() -> None:
    """Moving 4000 bytes takes 4 us at 1 GB/s; 60000 operations 6 us at 10 GFLOP/s, the vector's not among them."""
    (row,) = rows_of(Cost(4000, 0, 30_000), Cost(1000, 60_000))
    assert (row.calls, row.bytes, row.operations) == (2, 5000, 90_000)
    assert row.seconds == pytest.approx(20e-6)
    assert row.bandwidth == pytest.approx(2.5e8)
    assert row.operation_rate == pytest.approx(4.5e9)
    assert row.floor_seconds == pytest.approx(10e-6)
    assert row.of_roofline == pytest.approx(0.5)


def test_what_is_not_known_of_one_call_is_not_told_of_the_row() -> None:
    (row,) = rows_of(Cost(4000, 0), None)
    assert (row.bytes, row.operations, row.bandwidth, row.of_roofline) == (None, None, None, None)
    (row,) = rows_of(Cost(4000, None))
    assert (row.bytes, row.operations, row.of_roofline) == (4000, None, None)
    assert row.bandwidth == pytest.approx(4e8)
    (row,) = rows_of(Cost(4000, 0), limits=None)
    assert (row.bytes, row.of_roofline) == (4000, None)


def test_a_rate_that_was_not_measured_gives_no_roofline() -> None:
    (row,) = rows_of(Cost(4000, 10), limits=Limits(1e9, {"bfloat16": 1e10}))
    assert row.of_roofline is None


def test_rows_by_shape() -> None:
    costs = [Cost(1000, 0), Cost(2000, 0), Cost(3000, 0)]
    assert [row.calls for row in rows_of(*costs)] == [3]
    rows = rows_of(*costs, by_shape=True)
    assert [(row.shapes, row.calls, row.bytes) for row in rows] == [
        ((("input", (2, 4)),), 2, 3000),
        ((("input", (2, 5)),), 1, 3000),
    ]


def test_directions_and_backends_have_rows_of_their_own() -> None:
    roots = [
        event("fastdl::group_norm_forward[cpu]", 0, 10, number=0),
        event("fastdl::group_norm_backward[cpu]", 20, 50, number=1),
        event("fastdl::group_norm_forward[triton]", 60, 80, number=2),
    ]
    calls = {0: call(), 1: call("backward"), 2: call(backend="triton")}
    rows = add_up(on_cpu(*roots, calls=calls, wall=100).records, None)
    assert [(row.direction, row.backend) for row in rows] == [
        ("backward", "cpu"), ("forward", "triton"), ("forward", "cpu"),
    ]  # fmt: skip
