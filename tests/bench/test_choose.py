"""The table of what ``auto`` takes on a GPU: from times that a test chooses to the module and back."""

import importlib.util
from dataclasses import replace

import pytest

from fastdl.bench import choose, results
from fastdl.bench.records import GRAPH
from fastdl.bench.timing import Spread
from fastdl.ops import dispatch, measured
from tests.bench.samples import make_record, make_run

H100 = {"device": "cuda", "name": "NVIDIA H100", "capability": "9.0"}
SMALL, LARGE = (2, 64, 8, 8), (8, 512, 128, 128)


def record(size, triton, cuda, *, backend="triton", layout="nchw", pool=None):
    made = make_record(size=size)
    other = "cuda" if backend == "triton" else "triton"
    seconds = {"triton": triton, "cuda": cuda}
    times = {"ours": seconds.get(backend, 99.0), "eager": 9.0, f"ours/{other}": seconds[other]}
    if backend == dispatch.BY_MEASUREMENT:
        times = {"ours": 99.0, "eager": 9.0, "ours/triton": triton, "ours/cuda": cuda}
    spreads = {name: Spread(value, value, value, 5, 1) for name, value in times.items() if value is not None}
    measurements = tuple(replace(m, pool=pool, times=spreads) for m in made.measurements)
    return replace(made, case=replace(made.case, layout=layout), backend=backend, measurements=measurements)


def test_each_size_and_layout_has_its_own_fastest():
    found = choose.choices(
        "group_norm", "9.0",
        [record(SMALL, 2.0, 1.0), record(LARGE, 1.0, 2.0), record(LARGE, 2.0, 1.0, layout="channels_last")],
    )  # fmt: skip
    assert found == {
        "9.0 float32 nchw small": "cuda",
        "9.0 float32 nchw large": "triton",
        "9.0 float32 channels_last large": "cuda",
    }


@pytest.mark.parametrize(("triton", "cuda", "best"), [(1.01, 1.0, "triton"), (1.03, 1.0, "cuda"), (1.0, 2.0, "triton")])
@pytest.mark.parametrize("backend", ["triton", "cuda", dispatch.BY_MEASUREMENT])
def test_the_usual_one_stays_unless_another_gains(triton, cuda, best, backend):
    found = choose.choices("group_norm", "9.0", [record(SMALL, triton, cuda, backend=backend)])
    assert list(found.values()) == [best]


def test_what_says_nothing_is_left_out():
    assert choose.choices("group_norm", "9.0", [record(SMALL, 1.0, None)]) == {}
    assert choose.choices("group_norm", "9.0", [record(SMALL, 2.0, 1.0, pool=GRAPH)]) == {}


def test_other_gpus_and_ops_are_kept():
    table = {"batch_norm": {"9.0 x": "cuda"}, "group_norm": {"8.0 x": "cuda", "9.0 gone": "cuda"}}
    merged = choose.merged(table, "group_norm", "9.0", {"9.0 new": "triton"})
    assert merged == {"batch_norm": {"9.0 x": "cuda"}, "group_norm": {"8.0 x": "cuda", "9.0 new": "triton"}}


def load(path):
    spec = importlib.util.spec_from_file_location("written", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_module_is_written_and_read_back(tmp_path, monkeypatch, capsys):
    path = tmp_path / "nvidia-h100.json"
    results.save(path, H100, make_run(), [record(SMALL, 2.0, 1.0)], finished=False)
    table = tmp_path / "measured_choices.py"
    table.write_text(choose.TABLE.read_text())
    monkeypatch.setattr(choose, "TABLE", table)
    assert choose.main([str(path), "--print"]) == 0
    assert "'9.0 float32 nchw small': 'cuda'" in capsys.readouterr().out
    assert load(table).CHOICES == load(dispatch.measured.__file__.replace("measured.py", "measured_choices.py")).CHOICES
    assert choose.main([str(path)]) == 0
    assert load(table).CHOICES["group_norm"] == {"9.0 float32 nchw small": "cuda"}
    assert load(table).__doc__ == load(choose.measured_choices.__file__).__doc__
    table.write_text(choose.module_text({}))
    assert load(table).CHOICES == {}


def test_results_of_a_cpu_are_refused(tmp_path, capsys):
    path = tmp_path / "cpu.json"
    results.save(path, {"device": "cpu", "name": "A Processor"}, make_run(), [], finished=True)
    assert choose.main([str(path)]) == 1
    assert "no results of a GPU" in capsys.readouterr().err


def test_sizes_fall_into_classes():
    names = [measured.size_class(size) for size in (1, 1 << 20, (1 << 20) + 1, 16 << 20, (16 << 20) + 1, 1 << 40)]
    assert names == ["small", "small", "medium", "medium", "large", "large"]


def test_whose_rows_a_benchmark_fills():
    """The op's that serves it: a chain's are norm_act_conv's. One that only uses another benchmark's op fills none."""
    assert choose.operator_of("group_norm") == "group_norm"
    assert choose.operator_of("conv_norm_act_chain") == "norm_act_conv"
    assert choose.operator_of("conv_norm_act") is None
    assert choose.operator_of("of_a_later_version") == "of_a_later_version"


def test_the_vendors_convolutions_stay_unless_ours_gain():
    def group(vendor, triton):
        return [{dispatch.VENDOR: vendor, "triton": triton}] * 3

    assert choose.fastest(group(1.0, 0.99)) == dispatch.VENDOR
    assert choose.fastest(group(1.0, 0.9)) == "triton"
