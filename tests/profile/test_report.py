"""The table: what stands in each column, that all time is in it, and that it fits a terminal."""

from __future__ import annotations

import json

import pytest

from fastdl.profile.annotations import Call
from fastdl.profile.costs import Cost
from fastdl.profile.limits import Limits
from fastdl.profile.records import Accounts, Other, Record, add_up
from fastdl.profile.report import as_json, count, milliseconds, rate, report, shapes, shortened


def record(direction: str, seconds: float, cost: Cost | None, operator: str = "group_norm", **more: int) -> Record:
    shape = {"input": (2, 640, 32, 32), "weight": (640,)}
    made = Call(operator, direction, "cpu", shape, dict.fromkeys(shape, "float32"), cost)
    return Record(made, seconds, 0.5 * seconds, seconds, **more)


LIMITS = Limits(20e9, {"float32": 100e9})
RECORDS = (
    record("forward", 0.01, Cost(100_000_000, 0, 8_000_000), launches=3, allocated=5_000_000),
    record("backward", 0.02, Cost(200_000_000, 1_500_000_000), launches=5, allocated=3_000_000),
    record("forward", 0.01, Cost(100_000_000, 0, 8_000_000), launches=3, allocated=5_000_000),
)
OTHERS = (
    Other("aten::mm", 4, 0.03, 4),
    Other("aten::add", 8, 0.006),
    Other("aten::mul", 2, 0.002),
    Other("aten::t", 1, 0.002),
)
ACCOUNTS = Accounts(RECORDS, OTHERS, 0.1)


def lines(device: str = "cpu", limits: Limits | None = LIMITS, steps: int = 2, most_others: int = 2) -> list[str]:
    accounts = Accounts(RECORDS, OTHERS, 0.1, device)
    return report(accounts, add_up(RECORDS, limits), limits, None, steps, most_others=most_others).splitlines()


def cells(device: str = "cpu", limits: Limits | None = LIMITS) -> dict[str, list[str]]:
    """The words of each line, by its first two."""
    return {" ".join(line.split()[:2]): line.split() for line in lines(device, limits)}


def test_a_row_tells_of_one_step() -> None:
    """Of two steps: 10 ms and 20 of 100; 200 MB in 20 ms, 10 ms at 20 GB/s; 1.5 GFLOP in 20 ms, 15 at 100 GFLOP/s."""
    found = cells()
    assert lines()[1].split() == [
        "op", "pass", "backend", "calls", "ms", "self", "ms", "share", "GB/s", "GFLOP/s", "roofline", "kept", "MB",
    ]  # fmt: skip
    assert found["group_norm forward"][2:] == ["cpu", "1", "10.00", "5.00", "20.0%", "10.0", "0.80", "50%", "5.0"]
    assert found["group_norm backward"][2:] == ["cpu", "0.5", "10.00", "5.00", "20.0%", "10.0", "75.0", "75%", "1.5"]
    assert found["fastdl's ops"][2:] == ["together", "20.00", "40.0%"]
    assert lines()[0].startswith("50.00 ms a step, the mean of 2, with the profiler")
    assert lines()[-1] == "roofline, measured just now: copying memory 20.0 GB/s, float32 products 100 GFLOP/s"


def test_all_time_is_accounted_for() -> None:
    found = cells()
    assert found["aten::mm 2"] == ["aten::mm", "2", "15.00", "30.0%"]
    assert found["aten::add 4"] == ["aten::add", "4", "3.00", "6.0%"]
    assert found["2 other"] == ["2", "other", "operators", "1.5", "2.00", "4.0%"]
    assert found["Python, waiting,"][-2:] == ["10.00", "20.0%"]
    assert found["all 50.00"] == ["all", "50.00", "100.0%"]


def test_on_a_gpu_launches_are_told_and_the_rest_is_idle() -> None:
    found = cells("cuda")
    assert found["group_norm forward"][-2:] == ["3", "5.0"]
    assert found["group_norm backward"][-2:] == ["2.5", "1.5"]
    assert found["aten::mm 2"][-1] == "2"
    assert found["idle 10.00"] == ["idle", "10.00", "20.0%"]


def test_what_is_not_known_is_a_dash() -> None:
    rows = add_up((record("forward", 0.01, None),), LIMITS)
    text = report(Accounts((record("forward", 0.01, None),), (), 0.02), rows, None, None, 1, most_others=2)
    assert text.splitlines()[3].split() == [
        "group_norm",
        "forward",
        "cpu",
        "1",
        "10.00",
        "5.00",
        "50.0%",
        "-",
        "-",
        "-",
    ]
    assert text.startswith("20.00 ms in all, with the profiler")
    assert "roofline, measured" not in text


def test_a_profile_without_any_op_still_tells_of_the_rest() -> None:
    text = report(Accounts((), OTHERS, 0.1), [], None, None, 1, most_others=10)
    assert "fastdl's ops" not in text
    assert "aten::t " in text


@pytest.mark.parametrize("by_shape", [False, True])
def test_the_widest_table_fits_a_terminal(by_shape: bool) -> None:
    """Long names, long shapes, and every column there is."""
    shape = {"input": (128, 2048, 1024, 1024), "weight": (2048, 2048, 7, 7), "residual": (128, 2048, 1024, 1025)}
    made = Call("norm_act_conv", "backward", "reference", shape, dict.fromkeys(shape, "bfloat16"), Cost(10**15, 10**18))
    records = (Record(made, 123.0, 123.0, 1.0, 99999, 10**12),) * 3
    others = (Other("autograd::engine::evaluate_function: " + "A" * 150, 99999, 12.0, 12345),)
    accounts = Accounts(records, others, 1000.0, "cuda")
    text = report(accounts, add_up(records, LIMITS, by_shape=by_shape), LIMITS, None, 1, most_others=3)
    assert max(map(len, text.splitlines())) <= 120
    assert "…" in text
    header, _, row, *_ = text.splitlines()[1:]
    assert header.index("backend") == row.index("reference")  # columns stand under one another


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.23e-5, "0.0123"), (1.23e-4, "0.123"), (1.234e-3, "1.23"), (0.12345, "123")]
)
def test_milliseconds_have_three_digits(seconds: float, text: str) -> None:
    assert milliseconds(seconds) == text


def test_small_texts() -> None:
    assert [rate(value) for value in (None, 1.234e9, 12.34e9, 123.4e9)] == ["-", "1.23", "12.3", "123"]
    assert (count(10, 5), count(11, 5)) == ("2", "2.2")
    assert shapes((("input", (2, 3)), ("residual", (2, 3)), ("weight", (3,)), ("kernel", (4, 3)))) == "2x3 4x3"


def test_the_list_of_others_is_cut_where_that_shortens_it() -> None:
    assert shortened(OTHERS, 10) == list(OTHERS)
    assert shortened(OTHERS, 3) == list(OTHERS)  # one line for one line
    assert shortened(OTHERS, 2)[-1] == Other("2 other operators", 3, 0.004, 0)
    assert shortened(OTHERS, 0) == [Other("4 other operators", 15, 0.04, 4)]


def test_json_holds_everything() -> None:
    content = json.loads(json.dumps(as_json(ACCOUNTS, add_up(RECORDS, LIMITS, by_shape=True), LIMITS, None, 2)))
    assert content["wall_seconds"] == 0.1
    assert content["seconds_of_ops"] + content["seconds_of_others"] + content["seconds_of_the_rest"] == pytest.approx(
        0.1
    )
    forward = next(row for row in content["rows"] if row["direction"] == "forward")
    assert forward["shapes"] == {"input": [2, 640, 32, 32], "weight": [640]}
    assert forward["bytes_per_second"] == pytest.approx(10e9)
    assert forward["of_roofline"] == pytest.approx(0.5)
    assert len(content["records"]) == 3
    assert content["records"][1]["name"] == "fastdl::group_norm_backward[cpu]"
    assert content["records"][1]["operations"] == 1_500_000_000
    assert content["limits"] == {"bandwidth": 20e9, "matrix_rates": {"float32": 100e9}}
