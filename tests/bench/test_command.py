"""The command line: exit status, options, the file that a run writes."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

import fastdl
from fastdl.bench import __main__ as command
from fastdl.bench import machine, registry
from fastdl.bench.timing import Effort
from tests.bench.samples import make_record

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
        (["--max-autotune", "--no-compile"], "exclude each other"),
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
        ([], "-default"),
        (["--shapes", "full"], ""),
        (["--shapes", "quick"], "-quick"),
        (["--shapes", "full", "--layout", "channels_last", "--dtype", "bfloat16"], "-channels-last-bfloat16"),
        (["--shapes", "full", "--pool", "off", "--threads", "4"], "-pool-off-4-threads"),
        (["--pool", "on"], "-default"),
        (["--pool", "both"], "-default-pool-both"),
        (["--shapes", "full", "--time-limit", "60", "--resume"], ""),
        (["--shapes", "full", "--max-autotune"], "-max-autotune"),
    ],
)
def test_a_narrower_run_has_a_file_of_its_own(arguments, suffix):
    cpu = torch.device("cpu")
    options = command.completed(command.make_parser().parse_args(arguments), cpu)
    with fastdl.use_backend("auto"):
        assert command.suffix(options, cpu) == suffix


def test_on_a_gpu_every_shape_is_the_default():
    options = command.completed(command.make_parser().parse_args([]), torch.device("cuda"))
    assert (options.shapes, options.pool) == ("full", "both")
    with fastdl.use_backend("auto"):
        assert command.suffix(options, torch.device("cuda")) == ""


@pytest.mark.usefixtures("tiny")
def test_the_time_is_told_before_it_is_spent(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command.estimate, "from_folder", lambda *arguments: {})
    with fastdl.use_backend("reference"):
        command.main(["group_norm", "batch_norm", *OPTIONS, "--output-dir", str(tmp_path), "--time-limit", "120"])
    told = capsys.readouterr().err
    assert "bench: 4 cases, about 32 s by earlier results; ends within 2 min: group_norm 16 s, batch_norm 16 s" in told
    assert told.index("about 32 s") < told.index("[1/2]")


@pytest.mark.usefixtures("tiny")
def test_an_interrupted_run_is_resumed_where_it_stopped(tmp_path, monkeypatch, capsys):
    """Ctrl-C in the third case; then the first two are not measured again, nor is an op that is done."""
    measured = []
    real = command.run_cases

    def run_cases(benchmark, cases, *arguments, stop_at=None, **options):
        def measure(benchmark, case, settings, say):
            if stop_at == (benchmark.name, case.key):
                raise KeyboardInterrupt
            measured.append((benchmark.name, case.key))
            return replace(make_record(), case=case)

        return real(benchmark, cases, *arguments, measure=measure, **options)

    keys = [case.key for case in command.select(registry.load("group_norm").cases)]
    assert len(keys) == 2
    stop = ("group_norm", keys[1])
    arguments = ["batch_norm", "group_norm", *OPTIONS, "--output-dir", str(tmp_path)]
    with fastdl.use_backend("reference"):
        monkeypatch.setattr(command, "run_cases", partial(run_cases, stop_at=stop))
        assert command.main(arguments) == command.INTERRUPTED
        assert "--resume goes on from there" in capsys.readouterr().out
        (path,) = tmp_path.iterdir()
        before = json.loads(path.read_text())
        assert list(before["operators"]) == ["batch_norm"]
        assert len(before["unfinished"]["group_norm"]["cases"]) == 1
        assert len(measured) == 3
        measured.clear()
        monkeypatch.setattr(command, "run_cases", run_cases)
        assert command.main([*arguments, "--resume"]) == 0
        assert measured == [stop]
        told = capsys.readouterr().err
        assert "batch_norm: measured on" in told
        assert "group_norm: 1 of 2 cases were measured on" in told
        assert "bench: 1 cases" in told
        after = json.loads(path.read_text())
        assert after["unfinished"] == {}
        assert after["operators"]["batch_norm"] == before["operators"]["batch_norm"]
        part = after["operators"]["group_norm"]
        assert [case["case"]["layout"] for case in part["cases"]] == ["nchw", "channels_last"]
        assert part["run"]["date"] == before["unfinished"]["group_norm"]["run"]["date"]
        assert len(part["run"]["continued"]) == 1
        measured.clear()
        assert command.main([*arguments, "--resume"]) == 0
        assert measured == []
        assert "nothing is left to measure" in capsys.readouterr().err
        assert command.main(arguments) == 0  # without the option everything is measured anew
        assert len(measured) == 4


def test_slug_names_processor_and_cores_and_nothing_else(monkeypatch):
    monkeypatch.setattr(machine, "cpu_name", lambda: "Intel(R) Xeon(R) Gold 6240 CPU @ 2.60GHz")
    monkeypatch.setattr(machine, "cores", lambda: 8)
    assert machine.slug(torch.device("cpu")) == "intel-xeon-gold-6240-8-cores"
    monkeypatch.setattr(machine, "cores", lambda: 1)
    assert machine.slug(torch.device("cpu")) == "intel-xeon-gold-6240-1-core"
