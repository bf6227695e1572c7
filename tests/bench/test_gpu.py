"""What a GPU's benchmark does, as far as it shows without one: order, budget, backends, graphs, by a fake clock."""

import argparse
import json
from dataclasses import replace

import pytest
import torch

import fastdl
from fastdl.bench import __main__ as command
from fastdl.bench import gpu, harness, registry, results, training
from fastdl.bench.harness import Settings, measure
from fastdl.bench.records import GRAPH, by_backend, from_json, is_ours, to_json
from fastdl.bench.run import state_text
from fastdl.bench.summary import best_other, best_peer, call_overhead, summarise
from fastdl.bench.table import backend_rows, case_rows
from fastdl.bench.timing import Effort, interleave
from fastdl.ops import dispatch

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TINY = Effort(seconds=0.0, warm_up=0.0, batch=0.0, least_rounds=2, settle=0.0)
LARGE = 100 * 10**6


class WallClock:
    """Each call costs what the test says of it, by the contender that is at work."""

    def time(self, call, start, count):
        for index in range(start, start + count):
            call(index)
        return 1e-3 * count


@pytest.mark.parametrize("name", ["batch_norm", "group_norm"])
def test_a_run_that_ends_early_has_seen_every_size_the_largest_first(name):
    cases = registry.load(name).cases_on("cuda")
    assert len({case.key for case in cases}) == len(cases)
    kinds = {(case.dtype, case.layout) for case in cases}
    assert kinds == {(d, layout) for d in ("float32", "bfloat16") for layout in ("nchw", "channels_last")}
    sizes = {case.size for case in cases}
    first_round = cases[: 2 * len(sizes)]
    assert {case.size for case in first_round} == sizes
    assert {(c.dtype, c.layout) for c in first_round} == {("bfloat16", "channels_last"), ("float32", "nchw")}
    assert all(case.tensor_bytes > LARGE for case in cases[:2])
    for dtype in ("float32", "bfloat16"):
        for layout in ("nchw", "channels_last"):
            assert any(c.tensor_bytes > LARGE for c in cases if (c.dtype, c.layout) == (dtype, layout))
    assert (2, 64, 8, 8) in sizes
    assert registry.load(name).cases_on("cpu") == registry.load(name).cases


def test_the_time_is_shared_among_the_ops():
    options = argparse.Namespace(time_limit=None, shapes="full")
    assert command.time_limit_of(options, CPU) is None
    assert command.time_limit_of(options, CUDA) == gpu.TIME_LIMIT < 480 - 120
    assert command.time_limit_of(argparse.Namespace(time_limit=60.0), CUDA) == 60.0
    assert command.time_limit_of(argparse.Namespace(time_limit=None, shapes="default"), CPU) < 900
    assert command.share_of_time(400.0, [500.0, 500.0]) == 200.0
    assert command.share_of_time(400.0, [600.0, 200.0]) == 300.0
    assert command.share_of_time(400.0, [100.0, 150.0]) == 250.0  # there is time for all: the slack is the first one's
    assert command.share_of_time(250.0, [50.0]) == 250.0
    assert command.share_of_time(90.0, [0.0, 0.0, 0.0]) == 90.0
    assert command.share_of_time(-3.0, [10.0, 10.0]) == 0.0
    assert command.effort_for(CUDA, quick=False) == gpu.GPU
    assert command.effort_for(CPU, quick=True) == command.QUICK


def test_our_backends_are_contenders_but_no_others():
    record = a_record({"ours": 2.0, "ours/cuda": 1.0, "eager": 4.0, "apex": 3.0}, backend="triton")
    (m, *_) = record.measurements
    assert [name for name in m.times if is_ours(name)] == ["ours", "ours/cuda"]
    assert (best_other(m), best_peer(m)) == ("apex", "apex")
    assert by_backend(record, m) == {"triton": 2.0, "cuda": 1.0}
    rows = backend_rows([record])
    assert rows[0][:3] == ["2x64x8x8/32", "NCHW", "f32"]
    assert rows[0][-3:] == ["2.00s", "1.00s", "2.00x"]
    assert backend_rows([a_record({"ours": 2.0, "eager": 4.0})]) == []


def a_record(times, backend="triton"):
    from tests.bench.samples import make_record

    record = make_record()
    spreads = {name: replace(record.measurements[0].times["ours"], median=seconds) for name, seconds in times.items()}
    measurements = tuple(replace(m, pool=pool, times=spreads) for m in record.measurements for pool in (None, GRAPH))
    return replace(record, backend=backend, measurements=measurements)


def test_replays_are_told_and_summed_up_apart():
    record = a_record({"ours": 2.0, "eager": 4.0})
    assert from_json(json.loads(json.dumps(to_json(record)))) == record
    assert [row[4] for row in case_rows(record)] == ["-", "graph", "-", "graph"]
    assert [(s.pass_name, s.pool) for s in summarise([record])] == [
        ("forward", None), ("forward", "graph"), ("forward+backward", None), ("forward+backward", "graph"),
    ]  # fmt: skip


def test_the_call_s_overhead_is_that_of_calls_and_not_of_replays():
    record = a_record({"ours": 2.0, "eager": 4.0})
    assert [m.pool for _, m, _ in call_overhead([record], (2, 64, 8, 8))] == [None, None]
    assert [state_text(pool) for pool in (None, "on", GRAPH)] == ["", " (pool on)", " (graph)"]


def test_a_turn_is_taken_on_the_contenders_own_backend():
    seen = []

    def call(index):
        seen.append(dispatch.requested())

    interleave({"ours": call, "ours/reference": call}, WallClock(), TINY, gpu.context_of)
    assert seen[:4] == ["auto"] * 2 + ["reference"] * 2  # warm-up, and then two rounds in any order
    assert sorted(seen[4:6]) == sorted(seen[6:]) == ["auto", "reference"]
    assert dispatch.requested() == "auto"


def test_backends_that_are_there_are_timed_beside_the_one_that_auto_takes(monkeypatch):
    there = dispatch.BackendStatus(True)
    monkeypatch.setattr(dispatch, "status", lambda name: there)
    assert gpu.own_backends("triton") == {"ours/cuda": "cuda"}
    assert gpu.own_backends(dispatch.BY_MEASUREMENT) == {"ours/triton": "triton", "ours/cuda": "cuda"}
    with fastdl.use_backend("triton"):
        assert gpu.own_backends("triton") == {}
    monkeypatch.setattr(dispatch, "status", lambda name: dispatch.BackendStatus(name == "triton", "no nvcc"))
    assert gpu.own_backends("triton") == {}


def test_a_replay_s_time_is_divided_and_what_cannot_be_captured_is_told():
    seen = []

    def capture(call, sets):
        if call(0) == "waits":
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        return (lambda index: seen.append(index)), 4

    calls = {"ours": lambda index: "runs", "eager": lambda index: "waits"}
    times, failed = gpu.time_replayed(calls, 8, WallClock(), TINY, capture)
    assert times["ours"].median == pytest.approx(1e-3 / 4)
    assert times["ours"].calls_per_round == 4
    assert failed == {"eager": "not captured: operation not permitted when stream is capturing"}
    assert gpu.time_replayed({"eager": calls["eager"]}, 8, WallClock(), TINY, capture)[0] == {}


@pytest.fixture
def a_pretended_gpu(monkeypatch):
    """The whole of a GPU's measurement on the CPU: its contenders, turns and replays, of tensors on the CPU."""

    class Pretended:
        type = "cuda"

    real = harness.make_operands
    monkeypatch.setattr(
        harness, "make_operands", lambda benchmark, case, device, sets: real(benchmark, case, CPU, sets)
    )
    monkeypatch.setattr(harness, "count_sets", lambda *arguments: 2)
    monkeypatch.setattr(harness, "served_by", lambda *arguments: "cpu")
    monkeypatch.setattr(harness, "own_backends", lambda served_by: {"ours/reference": "reference"})
    monkeypatch.setattr(harness, "peak_bytes", lambda name, call, device: len(name) * len(call(0)))
    states = iter(range(1000, 2000))
    monkeypatch.setattr(harness.clocks, "read", lambda device: {"graphics_mhz": next(states)})
    monkeypatch.setattr(
        harness,
        "time_replayed",
        lambda calls, sets, timer, effort: gpu.time_replayed(calls, sets, timer, effort, lambda call, sets: (call, 5)),
    )
    return Pretended()


def test_a_case_is_measured_as_calls_and_replayed(a_pretended_gpu):
    case = registry.load("group_norm").cases_on("cuda")[4]
    assert case.size == (2, 64, 8, 8)
    settings = Settings(device=a_pretended_gpu, effort=TINY, compile=False)
    record = measure(registry.load("group_norm"), case, settings, timer=WallClock())
    assert record.rejected == {}
    assert [(m.pass_name, m.pool) for m in record.measurements] == [
        ("forward", None), ("forward", GRAPH), ("forward+backward", None), ("forward+backward", GRAPH),
    ]  # fmt: skip
    for calls, replays in zip(record.measurements[::2], record.measurements[1::2], strict=True):
        assert list(calls.times) == list(replays.times) == ["ours", "eager", "ours/reference", "in place"]
        assert replays.times["ours"].median == pytest.approx(calls.times["ours"].median / 5)
        assert replays.floor == calls.floor
    # Input, weight and bias: the pass whose memory is told ends with three gradients.
    assert record.peak_bytes == {name: 3 * len(name) for name in record.measurements[0].times}
    assert record.clocks == {"before": {"graphics_mhz": 1000}, "after": {"graphics_mhz": 1001}}
    assert from_json(json.loads(json.dumps(to_json(record)))) == record


class Allocator:
    """A GPU's allocator: what is held, and the most that was since the last reset."""

    def __init__(self, monkeypatch, held=0):
        self.held = self.peak = held
        for name in ("synchronize", "reset_peak_memory_stats", "memory_allocated", "max_memory_allocated"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))

    def synchronize(self, device=None):
        pass

    def reset_peak_memory_stats(self, device=None):
        self.peak = self.held

    def memory_allocated(self, device=None):
        return self.held

    def max_memory_allocated(self, device=None):
        return self.peak

    def take(self, size):
        self.held += size
        self.peak = max(self.peak, self.held)


def test_the_peak_is_that_of_a_call_beyond_what_was_held(monkeypatch):
    gpu_memory = Allocator(monkeypatch, held=1000)
    backends, calls = [], []

    def call(index):
        backends.append(dispatch.requested())
        calls.append(index)
        gpu_memory.take(500 if len(calls) == 1 else 0)  # a workspace that the library keeps
        gpu_memory.take(70)
        gpu_memory.take(-70)

    assert gpu.peak_bytes("ours/reference", call, CUDA) == 70
    assert calls == [0, 1]
    assert backends == ["reference"] * 2


def test_a_networks_peak_holds_its_weights(monkeypatch):
    gpu_memory = Allocator(monkeypatch, held=1000)
    steps = []

    def stepper(contender, name, device, dtype):
        gpu_memory.take(300)  # the network and its optimizer

        def step(images, labels):
            steps.append((contender, dtype))
            gpu_memory.take(900 if len(steps) == 1 else 50)  # the first one tries kernels, with large workspaces
            gpu_memory.take(-900 if len(steps) == 1 else -50)

        return step

    monkeypatch.setattr(training, "stepper", stepper)
    _, peak = training.step_and_peak("ours", "resnet18", torch.ones(1), torch.ones(1), "bfloat16")
    assert peak == 350
    assert steps == [("ours", "bfloat16")] * (1 + training.MEMORY_STEPS)


@pytest.mark.parametrize("name", registry.names())
def test_a_gpu_has_cases_of_its_own_of_every_op(name):
    benchmark = registry.load(name)
    cases = benchmark.cases_on("cuda")
    assert cases == benchmark.gpu_cases
    assert len({case.key for case in cases}) == len(cases)
    assert max(case.tensor_bytes for case in cases) >= 2 * max(case.tensor_bytes for case in benchmark.cases)
    assert any(case.quick for case in cases)
    for case in cases:
        assert benchmark.forward_work(case).operations > 0


def test_a_large_case_is_not_replayed(a_pretended_gpu, monkeypatch):
    case = registry.load("group_norm").cases_on("cuda")[4]
    monkeypatch.setattr(harness, "GRAPH_BYTES", case.tensor_bytes - 1)
    settings = Settings(device=a_pretended_gpu, effort=TINY, compile=False)
    record = measure(registry.load("group_norm"), case, settings, timer=WallClock())
    assert [m.pool for m in record.measurements] == [None, None]


def test_results_of_a_gpu_are_kept_after_every_case(tmp_path, monkeypatch):
    """Ours and theirs as a GPU's run leaves them when its time is over: under "unfinished", whole."""
    from tests.bench.test_run import Bench

    bench = Bench(tmp_path / "nvidia-h100.json", seconds=100.0)
    outcome = bench.run(time_limit=250.0)
    assert outcome.stopped
    assert len(results.read(bench.path)["unfinished"]["group_norm"]["cases"]) == 2
