"""The command line: exit status, options, the file that a run writes."""

import json
from dataclasses import replace

import pytest
import torch

import fastdl
from fastdl.bench import __main__ as command
from fastdl.bench import machine, registry
from fastdl.bench.timing import Effort

SMALL = ((2, 64, 8, 8), (2, 2, 16, 16), (2, 16, 64))


@pytest.fixture
def tiny(monkeypatch):
    """Efforts and ceilings that take no time, and a case of each op so small that it takes none either."""
    monkeypatch.setattr(command, "QUICK", Effort(seconds=0.0, warm_up=0.0, batch=0.0, least_rounds=2))
    monkeypatch.setattr(command.ceilings, "memory_copy_bandwidth", lambda device, timer: 1e10)
    monkeypatch.setattr(command.ceilings, "matrix_rate", lambda device, dtype, timer: 1e11)
    monkeypatch.setattr(command, "select", lambda cases, **options: tuple(c for c in cases if c.size in SMALL))


OPTIONS = ["--shapes", "quick", "--no-compile", "--threads", "1"]


@pytest.mark.usefixtures("tiny")
def test_a_run_prints_and_writes(tmp_path, capsys):
    before = torch.get_num_threads()
    with fastdl.use_backend("reference"):
        assert command.main(["group_norm", *OPTIONS, "--output-dir", str(tmp_path)]) == 0
    assert torch.get_num_threads() == before
    (path,) = tmp_path.iterdir()
    assert path.name == f"{machine.slug(torch.device('cpu'))}-quick-no-compile-1-thread-reference.json"
    part = json.loads(path.read_text())["operators"]["group_norm"]
    assert part["run"]["threads"] == 1
    assert part["run"]["versions"]["torch"] == torch.__version__
    assert part["run"]["selection"] == {"shapes": "quick", "layout": "both", "dtype": "all", "pool": "both"}
    assert {case["backend"] for case in part["cases"]} == {"reference"}
    printed = capsys.readouterr()
    assert "2x64x8x8/32" in printed.out
    assert "microseconds over eager" in printed.out
    assert str(path) in printed.out
    assert "[2/2]" in printed.err


@pytest.mark.usefixtures("tiny")
def test_all_ops_go_into_one_file_and_a_second_run_replaces_only_its_own(tmp_path):
    with fastdl.use_backend("reference"):
        command.main([*OPTIONS, "--output-dir", str(tmp_path)])
        (path,) = tmp_path.iterdir()
        first = json.loads(path.read_text())["operators"]
        command.main(["batch_norm", *OPTIONS, "--output-dir", str(tmp_path)])
    second = json.loads(path.read_text())["operators"]
    assert sorted(first) == sorted(second) == registry.names()
    assert first["group_norm"] == second["group_norm"]
    assert first["batch_norm"] != second["batch_norm"]


@pytest.mark.usefixtures("tiny")
def test_status_tells_that_ours_is_wrong(tmp_path, monkeypatch, capsys):
    broken = replace(registry.load("group_norm"), ours=lambda case: lambda x, w, b: x * w.sum() * b.sum())
    monkeypatch.setattr(command.registry, "load", lambda name: broken)
    assert command.main(["group_norm", *OPTIONS, "--output-dir", str(tmp_path)]) == 1
    assert "not timed: ours" in capsys.readouterr().out


def test_an_unreadable_results_file_ends_the_command_before_it_measures(tmp_path, capsys):
    path = tmp_path / f"{machine.slug(torch.device('cpu'))}-quick.json"
    path.write_text("{torn")
    assert command.main(["group_norm", "--shapes", "quick", "--output-dir", str(tmp_path)]) == 1
    assert str(path) in capsys.readouterr().err
    assert path.read_text() == "{torn"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["softmax"], "no benchmark of 'softmax'"),
        (["--device", "tpu"], "--device must be cpu, cuda or cuda:N"),
        (["--device", "cuda:99"], "CUDA devices here"),
        (["--dtype", "int8"], "dtype='int8'"),
        (["--threads", "0"], "--threads must be at least 1; got 0"),
        (["--shapes", "some"], "invalid choice"),
    ],
)
def test_a_wrong_option_is_named(arguments, complaint, capsys):
    with pytest.raises(SystemExit) as caught:
        command.main(arguments)
    assert caught.value.code == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "suffix"),
    [
        ([], ""),
        (["--shapes", "quick"], "-quick"),
        (["--layout", "channels_last", "--dtype", "bfloat16"], "-channels-last-bfloat16"),
        (["--pool", "off", "--threads", "4"], "-pool-off-4-threads"),
        (["--time-limit", "60"], ""),
    ],
)
def test_a_narrower_run_has_a_file_of_its_own(arguments, suffix):
    options = command.make_parser().parse_args(arguments)
    with fastdl.use_backend("auto"):
        assert command.suffix(options, torch.device("cpu")) == suffix


def test_slug_names_processor_and_cores_and_nothing_else(monkeypatch):
    monkeypatch.setattr(machine, "cpu_name", lambda: "Intel(R) Xeon(R) Gold 6240 CPU @ 2.60GHz")
    monkeypatch.setattr(machine, "cores", lambda: 8)
    assert machine.slug(torch.device("cpu")) == "intel-xeon-gold-6240-8-cores"
    monkeypatch.setattr(machine, "cores", lambda: 1)
    assert machine.slug(torch.device("cpu")) == "intel-xeon-gold-6240-1-core"
