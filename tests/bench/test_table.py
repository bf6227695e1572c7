"""The printed table: right numbers, right units, 120 columns."""

import io

import pytest

from fastdl.bench import table
from fastdl.bench.cases import Case
from fastdl.bench.records import CaseRecord, Measurement
from fastdl.bench.summary import summarise
from fastdl.bench.timing import Spread


def make_record(size=(16, 1024, 112, 112)):
    times = {"ours": 0.1234, "eager": 0.2468, "compile": 0.1851, "in place": 0.21}
    spreads = {name: Spread(t, 0.95 * t, 1.05 * t, 7, 1) for name, t in times.items()}
    measurements = tuple(
        Measurement(pass_name, pool, spreads, 100, 1.0, 0.0617)
        for pool in ("on", "off")
        for pass_name in ("forward", "forward+backward")
    )
    case = Case(size, "channels_last", "bfloat16", "silu", "a network", 32)
    return CaseRecord(case, "cpu", 2, {"ours": 50, "eager": 100}, {}, measurements)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.5, "1.50s"), (0.0124, "12.4ms"), (0.9996e-3, "1.00ms"), (0.83e-3, "830us"), (1.234e-6, "1.23us"),
        (0.0999999, "100ms"), (12.34, "12.3s"), (None, "-"),
    ],
)  # fmt: skip
def test_seconds(value, text):
    assert table.seconds(value) == text


def test_row():
    rows = table.case_rows(make_record())
    assert rows[0] == [
        "16x1024x112x112/32", "NHWC", "bf16", "fwd", "on", "123ms", "10%", "247ms", "185ms", "210ms", "61.7ms",
        "2.00x", "1.50x", "1.50x", "50%", "-",
    ]  # fmt: skip
    assert rows[1][:5] == ["", "", "", "fwd+bwd", "on"]
    assert rows[1][-1] == "50%"
    assert len(rows) == 4


@pytest.mark.parametrize("plain", [True, False])
def test_the_widest_table_fits(plain):
    if not plain:
        pytest.importorskip("rich")
    stream = io.StringIO()
    record = make_record()
    table.print_table(table.HEADER, table.case_rows(record), stream, plain=plain)
    table.print_table(table.SUMMARY_HEADER, table.summary_rows(summarise([record])), stream, plain=plain)
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= table.WIDTH
    assert "…" not in text
    for cell in ("16x1024x112x112/32", "fwd+bwd", "61.7ms", "2.00x", "forward+backward"):
        assert cell in text


def test_columns_stand_under_each_other():
    lines = table.plain_table(("shape/groups", "eager/ours"), [["a", "10.0x"], ["abc", "2.00x"]]).splitlines()
    assert lines == [
        "shape/groups eager",
        "             /ours",
        "------------------",
        "a            10.0x",
        "abc          2.00x",
    ]
