"""One tiny case, truly measured; what cannot be timed is told."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import fastdl
from fastdl.bench import registry
from fastdl.bench.cases import Case
from fastdl.bench.harness import Settings, measure
from fastdl.bench.peers import Peer
from fastdl.bench.records import from_json, to_json
from fastdl.bench.timing import Effort

TINY = Effort(seconds=0.0, warm_up=0.0, batch=0.0, least_rounds=2)
GROUP = Case((2, 8, 4, 4), "channels_last", "float32", "silu", "a test", 4)
BATCH = Case((2, 8, 4, 4), "nchw", "float32", "relu", "a test")


class CountingTimer:
    """A clock on which the contenders cost what the test says, in the order in which they are warmed up."""

    def __init__(self, seconds):
        self.seconds, self.known = seconds, {}

    def time(self, call, start, count):
        call(start)
        position = self.known.setdefault(call, len(self.known))
        return count * self.seconds[position % len(self.seconds)]


@pytest.mark.parametrize(("name", "case"), [("group_norm", GROUP), ("batch_norm", BATCH)])
def test_a_case_is_measured_whole(name, case):
    with fastdl.use_backend("reference"):
        record = measure(registry.load(name), case, Settings(effort=TINY, compile=False))
    assert record.case == case
    assert record.backend == "reference"
    assert record.rejected == {}
    assert [m.pass_name for m in record.measurements] == ["forward", "forward+backward"]
    for m in record.measurements:
        assert list(m.times) == ["ours", "eager", "in place"]
        assert all(spread.median > 0 and spread.rounds == 2 for spread in m.times.values())
        assert m.floor == pytest.approx(m.work_bytes / m.copy_bandwidth)
    assert record.measurements[0].work_bytes < record.measurements[1].work_bytes
    assert record.saved_bytes["eager"] >= 2 * case.tensor_bytes


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize(("variant", "passes"), [("training", 2), ("inference", 1)])
def test_a_part_of_the_work_is_timed_beside_it(variant, passes, layout):
    case = Case((2, 8, 4, 4), layout, "float32", "relu", "batch of 2, 8x8", variant=variant)
    settings = Settings(effort=TINY, compile=False, matrix_rates={"float32": 1e11})
    with fastdl.use_backend("reference"):
        record = measure(registry.load("conv_norm_act"), case, settings)
    assert record.rejected == {}
    assert len(record.measurements) == passes
    assert bool(record.saved_bytes) == (variant == "training")
    for m in record.measurements:
        assert list(m.times) == ["ours", "eager", "in place"]
        assert list(m.parts) == ["convolution"]
        assert m.parts["convolution"].median > 0
    assert from_json(json.loads(json.dumps(to_json(record)))) == record


def test_times_and_floor_follow_the_clock():
    timer = CountingTimer([2.0, 6.0, 3.0, 0.5])  # ours, eager, in place, copy
    record = measure(registry.load("group_norm"), GROUP, Settings(effort=TINY, compile=False), timer=timer)
    forward = record.measurements[0]
    assert {name: spread.median for name, spread in forward.times.items()} == {
        "ours": 2.0,
        "eager": 6.0,
        "in place": 3.0,
    }
    assert forward.copy_bandwidth == pytest.approx(2 * GROUP.tensor_bytes / 0.5)
    assert forward.floor == pytest.approx(0.5, rel=0.2)  # the copy's time, and parameters and statistics


def test_forward_is_timed_without_gradients_and_the_other_pass_with_them():
    seen = []
    benchmark = registry.load("group_norm")

    def watching(case):
        def function(input, *parameters):
            output = benchmark.eager(case)(input, *parameters)
            seen.append(output.requires_grad)
            return output

        return function

    timer = CountingTimer([1.0])
    measure(replace(benchmark, ours=watching, peers=()), GROUP, Settings(effort=TINY, compile=False), timer=timer)
    assert seen[:2] == [True, True]  # the check of its answer, and the counting of saved bytes
    timed = seen[2:]
    assert timed == sorted(timed)
    assert not timed[0]
    assert timed[-1]


def test_a_wrong_answer_is_not_timed():
    benchmark = registry.load("group_norm")
    wrong = Peer("wrong", lambda: lambda case: lambda x, w, b: F.silu(F.group_norm(x, 2, w, b)))
    record = measure(replace(benchmark, peers=(wrong,)), GROUP, Settings(effort=TINY, compile=False))
    assert list(record.measurements[0].times) == ["ours", "eager"]
    assert record.rejected["wrong"].startswith("wrong answer: the output is off by")


def test_a_peer_that_fails_or_declines_leaves_the_others():
    def fails(case):
        raise NotImplementedError("only channels in eights\nand more")

    peers = (
        Peer("fails", lambda: fails),
        Peer("declines", lambda: lambda case: None),
        Peer(
            "missing", lambda: pytest.fail("a package that is not there must not be loaded"), package="no_such_package"
        ),
        Peer("elsewhere", lambda: pytest.fail("not for this device"), devices=frozenset({"cuda"})),
    )
    benchmark = replace(registry.load("group_norm"), peers=peers)
    record = measure(benchmark, GROUP, Settings(effort=TINY, compile=False))
    assert list(record.measurements[0].times) == ["ours", "eager"]
    assert record.rejected == {"fails": "NotImplementedError: only channels in eights"}


def test_the_pool_is_as_it_was_after_each_state_was_measured(monkeypatch):
    modes = []
    status = fastdl.memory.CpuPoolStatus(True, 10, 0, 0, 0, 0)

    def cpu_pool(mode=None):
        nonlocal status
        if mode is not None:
            modes.append(mode)
            status = replace(status, enabled=mode == "on")
        return status

    monkeypatch.setattr(fastdl, "cpu_pool", cpu_pool)
    large = replace(GROUP, size=(1, 8, 256, 128))
    settings = Settings(effort=TINY, compile=False, pools=("on", "off"))
    record = measure(registry.load("group_norm"), large, settings, timer=CountingTimer([1.0]))
    assert [(m.pool, m.pass_name) for m in record.measurements] == [
        ("on", "forward"), ("on", "forward+backward"), ("off", "forward"), ("off", "forward+backward"),
    ]  # fmt: skip
    assert modes == ["on", "on", "off", "on"]
    small = measure(registry.load("group_norm"), GROUP, settings, timer=CountingTimer([1.0]))
    assert [m.pool for m in small.measurements] == ["on", "on"]  # outputs below 1 MiB never come from the pool


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_compiling_with_every_kernel_chosen_by_timing_is_a_contender_if_asked_for():
    benchmark = replace(registry.load("group_norm"), peers=())
    record = measure(benchmark, GROUP, Settings(effort=TINY, autotune=True))
    names = list(record.measurements[0].times)
    assert names == ["ours", "eager", "compile", "compile max-autotune"]
    assert list(record.measurements[1].times) == names
    assert "compile max-autotune" not in measure(benchmark, GROUP, Settings(effort=TINY)).saved_bytes


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_compile_is_one_of_the_contenders():
    record = measure(registry.load("batch_norm"), BATCH, Settings(effort=TINY))
    assert "compile" in record.measurements[0].times or "compile" in record.rejected
    assert torch.is_grad_enabled()
