"""`fastdl.profile.profile` around real calls."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import fastdl
from fastdl.ops import annotation, batch_norm, group_norm, layer_norm, norm_act_conv
from fastdl.profile import Limits, Profile, profile
from fastdl.profile.annotations import ANNOTATOR
from tests.support.backends import BACKENDS_UNDER_TEST

LIMITS = Limits(1e10, {"float32": 1e11})


@pytest.fixture(autouse=True)
def no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's limits take a second to measure, which one test does."""
    BACKENDS_UNDER_TEST["cpu"].device()
    monkeypatch.setattr("fastdl.profile.session.measure_limits", lambda device, calls: LIMITS)


def image(*shape: int) -> torch.Tensor:
    return torch.randn(shape, requires_grad=True)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_every_call_has_a_record(backend: str) -> None:
    x, y = image(2, 8, 4, 4), image(3, 16)
    with fastdl.use_backend(backend), profile(device="cpu") as taken:
        for _ in range(3):
            group_norm(x, 2).sum().backward()
            layer_norm(y, 16, residual=y)[0].sum().backward()
            taken.step()
    found = [(r.call.operator, r.call.direction, r.call.backend) for r in taken.records]
    for op in ("group_norm", "layer_norm"):
        for direction in ("forward", "backward"):
            assert found.count((op, direction, backend)) == 3
    assert len(found) == 12
    assert all(record.seconds > 0 and record.call.cost is not None for record in taken.records)
    assert taken.steps == 3
    assert [row.calls for row in taken.rows()] == [3] * 4
    costs = {
        r.call.cost.bytes for r in taken.records if (r.call.operator, r.call.direction) == ("group_norm", "forward")
    }
    assert costs == {2 * 4 * x.numel() + 2 * 2 * 2 * 8}


def test_all_time_is_accounted_for() -> None:
    """Ours, torch's and the rest make the wall time, none is below nothing, and the reference's parts are its own."""
    x = image(4, 8, 16, 16)
    with fastdl.use_backend("reference"), profile(device="cpu") as taken:
        group_norm(x, 2, activation="silu").square().sum().backward()
    accounts = taken.accounts
    assert accounts.seconds_of_ops + accounts.seconds_of_others + accounts.rest == pytest.approx(accounts.whole)
    assert accounts.whole == pytest.approx(accounts.wall_seconds)
    assert min(accounts.rest, accounts.seconds_of_ops, accounts.seconds_of_others) > 0
    names = {other.name for other in accounts.others}
    assert {"aten::pow", "aten::sum"} <= names  # of square and sum
    assert not {"aten::silu", "aten::silu_backward", "aten::mean"} & names  # the definition's


def test_the_vendor_s_convolution_is_in_the_total_and_not_in_self() -> None:
    x, weight = image(2, 4, 8, 8), image(4, 4, 3, 3)
    with fastdl.use_backend("cpu"), profile(device="cpu") as taken:
        norm_act_conv(x, weight, norm="none", activation="relu")
    (record,) = taken.records
    assert record.call.cost.matrix_operations == 2 * 2 * 4 * 36 * 36
    assert 0 < record.self_seconds < record.seconds


def test_what_an_op_keeps_is_seen_whether_torch_or_the_pool_allocates_it() -> None:
    """Above 1 MiB outputs come from the pool, of which torch's profiler knows nothing."""
    fastdl.cpu_pool(clear=True)  # a block that comes back may be an eighth larger
    for side in (16, 128):
        x = torch.randn(2, 16, side, side)
        output = 4 * x.numel()
        with fastdl.use_backend("cpu"), profile(device="cpu", memory=True) as taken:
            held = batch_norm(x, None, None, training=True)
        (record,) = taken.records
        assert record.allocated is not None
        assert output <= record.allocated <= output + 4096
        del held
    assert "kept MB" in taken.table()


def test_limits_are_measured_for_what_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, at the first time of asking."""
    asked: list[Any] = []

    def measure(device: torch.device, calls: Any) -> Limits:
        asked.append((device.type, [call.operator for call in calls]))
        return LIMITS

    monkeypatch.setattr("fastdl.profile.session.measure_limits", measure)
    with fastdl.use_backend("cpu"), profile(device="cpu") as taken:
        group_norm(torch.randn(2, 4, 3), 2)
    assert asked == []
    taken.table()
    taken.to_dict()
    assert asked == [("cpu", ["group_norm"])]


def test_the_machine_s_limits() -> None:
    from fastdl.profile.annotations import Call
    from fastdl.profile.costs import Cost
    from fastdl.profile.limits import measure_limits

    def call(dtype: str, operations: int) -> Call:
        return Call("op", "forward", "cpu", {"input": (1,)}, {"input": dtype}, Cost(1, operations))

    found = measure_limits(torch.device("cpu"), [call("float32", 5), call("float64", 0)])
    assert found.bandwidth > 1e8
    assert set(found.matrix_rates) == {"float32"}  # nothing was multiplied in float64
    assert found.matrix_rates["float32"] > 1e8


def test_a_limit_is_the_best_of_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastdl.bench import ceilings
    from fastdl.profile.annotations import Call
    from fastdl.profile.costs import Cost
    from fastdl.profile.limits import measure_limits

    copies, products = iter([2e9, 5e9, 3e9]), iter([7e9, 1e9, 4e9])
    monkeypatch.setattr(ceilings, "memory_copy_bandwidth", lambda device, timer, effort: next(copies))
    monkeypatch.setattr(ceilings, "matrix_rate", lambda device, dtype, timer, effort: next(products))
    call = Call("op", "forward", "cpu", {"input": (1,)}, {"input": "bfloat16"}, Cost(1, 5))
    assert measure_limits(torch.device("cpu"), [call]) == Limits(5e9, {"bfloat16": 7e9})


def test_the_trace_holds_our_ranges(tmp_path: Path) -> None:
    x = image(2, 8, 4, 4)
    with fastdl.use_backend("cpu"), profile(device="cpu") as taken:
        group_norm(x, 2).sum().backward()
    taken.export_chrome_trace(tmp_path / "trace.json")
    taken.export_chrome_trace(tmp_path / "trace.json.gz")
    content = json.loads((tmp_path / "trace.json").read_text())
    with gzip.open(tmp_path / "trace.json.gz", "rt") as file:
        packed = json.load(file)
    for trace in (content, packed):
        ranges = {e["name"]: e for e in trace["traceEvents"] if e["name"].startswith("fastdl::")}
        assert set(ranges) == {"fastdl::group_norm_forward[cpu]", "fastdl::group_norm_backward[cpu]"}
        told = ranges["fastdl::group_norm_forward[cpu]"]["args"]
        assert told["backend"] == "cpu"
        assert told["shapes"] == "input 2x8x4x4"
        assert told["dtypes"] == "input float32"
        assert told["least_bytes"] == taken.records[0].call.cost.bytes
        assert told["operations"] == taken.records[0].call.cost.operations
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trace.json", "trace.json.gz"]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with profile(device="cpu") as taken:
        pass
    for path in (tmp_path / "missing" / "trace.json", tmp_path):
        with pytest.raises(OSError, match=f"{path}: there is no folder for such a file"):
            taken.export_chrome_trace(path)
        with pytest.raises(OSError, match=f"{path}: there is no folder for such a file"):
            taken.export_json(path)


def test_json_tells_what_the_table_tells(tmp_path: Path) -> None:
    with fastdl.use_backend("cpu"), profile(device="cpu") as taken:
        group_norm(torch.randn(2, 4, 3), 2)
        group_norm(torch.randn(2, 4, 5), 2)
    taken.export_json(tmp_path / "profile.json")
    content = json.loads((tmp_path / "profile.json").read_text())
    assert [row["shapes"]["input"] for row in content["rows"]] in ([[2, 4, 3], [2, 4, 5]], [[2, 4, 5], [2, 4, 3]])
    assert content["limits"]["bandwidth"] == 1e10
    assert content["versions"]["torch"] == torch.__version__


def test_the_exception_of_the_block_is_its_own_and_what_was_seen_is_kept() -> None:
    taken = profile(device="cpu")
    x = torch.randn(2, 4, 3)

    def fails() -> None:
        with fastdl.use_backend("cpu"), taken:
            group_norm(x, 2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert [record.call.name for record in taken.records] == ["fastdl::group_norm_forward[cpu]"]
    assert annotation.annotate is None
    assert ANNOTATOR.calls is None


def test_one_profile_at_a_time() -> None:
    """In this thread and in every other; afterwards the next one may be taken."""
    failures: list[str] = []

    def another() -> None:
        try:
            with profile(device="cpu"):
                pass
        except RuntimeError as error:
            failures.append(str(error))

    with profile(device="cpu") as taken:
        another()
        thread = threading.Thread(target=another)
        thread.start()
        thread.join()
    assert failures == ["profile: another profile is being taken in this process; end it first"] * 2
    another()
    assert len(failures) == 2
    with pytest.raises(RuntimeError, match="this profile has been taken; make a new one"), taken:
        pass


def test_within_torch_s_own_profiler_it_would_end_that() -> None:
    """And so refuses, and leaves that one and itself as they were."""
    taken = profile(device="cpu")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as outer:
        with pytest.raises(RuntimeError, match="torch's profiler is on already and would end"):
            taken.__enter__()
        torch.ones(3).neg()
    assert annotation.annotate is None
    assert "aten::neg" in {event.name for event in outer.events() or []}
    with taken:
        torch.ones(3)


def test_a_profiler_that_ends_ours_is_told() -> None:
    with pytest.warns(RuntimeWarning, match="another profiler was used in the block"), profile(device="cpu") as taken:  # noqa: SIM117
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
            group_norm(torch.randn(2, 4, 3), 2)
    assert taken.records == ()
    assert annotation.annotate is None


def test_other_threads_go_on_and_are_left_alone() -> None:
    """Their ops are right, and in no record."""
    x = torch.randn(2, 4, 3)
    expected = group_norm(x, 2)
    results: list[torch.Tensor] = []
    with fastdl.use_backend("cpu"), profile(device="cpu") as taken:
        thread = threading.Thread(target=lambda: results.extend(group_norm(x, 2) for _ in range(10)))
        thread.start()
        layer_norm(x, 3)
        thread.join()
    assert len(results) == 10
    assert all(torch.allclose(result, expected) for result in results)
    assert [record.call.operator for record in taken.records] == ["layer_norm"]


def test_nothing_to_tell_before_the_end() -> None:
    with (
        profile(device="cpu") as taken,
        pytest.raises(RuntimeError, match="there is no trace before the block is left"),
    ):
        taken.export_chrome_trace("trace.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "tpu"}, "device must be 'cpu', 'cuda' or None; got 'tpu'"),
        ({"device": "cuda"}, "device must be 'cpu' where torch sees no CUDA GPU; got 'cuda'"),
        ({"nvtx": True}, "nvtx must be False where torch sees no CUDA GPU; got True"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        profile(**arguments)


def test_a_number_of_others_below_nothing_is_refused() -> None:
    with profile(device="cpu") as taken:
        pass
    assert isinstance(taken, Profile)
    with pytest.raises(ValueError, match="most_others must be at least 0; got -1"):
        taken.table(most_others=-1)


@pytest.mark.gpu
def test_on_a_gpu_the_time_of_kernels_is_told() -> None:
    x = torch.randn(32, 64, 32, 32, device="cuda", requires_grad=True)

    def step() -> None:
        group_norm(x, 8, activation="silu").square().sum().backward()

    step()
    with profile() as taken:
        for _ in range(3):
            step()
            taken.step()
    assert taken.accounts.device == "cuda"
    assert [row.calls for row in taken.rows()] == [3, 3]
    for record in taken.records:
        assert record.launches >= 1
        assert 0 < record.self_seconds <= record.seconds
        assert record.seconds < taken.accounts.wall_seconds
    accounts = taken.accounts
    assert accounts.seconds_of_ops + accounts.seconds_of_others + accounts.rest == pytest.approx(accounts.whole)
    assert not any(other.name == "kernels that no operator launched" for other in accounts.others)
    assert taken.readings is not None


def test_importing_fastdl_imports_no_profiler_of_ours() -> None:
    code = "import sys, fastdl; print([name for name in sys.modules if name.startswith('fastdl.profile')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
