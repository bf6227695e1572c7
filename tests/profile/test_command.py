"""``fastdl profile op|model|script``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fastdl import cli
from fastdl.ops import dispatch
from fastdl.profile import Limits
from fastdl.profile.subjects import OPS
from tests.support.backends import BACKENDS_UNDER_TEST

CHECKOUT = Path(__file__).parents[2]
SCRIPT = """
import sys
import torch
import helper
import fastdl

print("arguments:", sys.argv[1:], __name__, helper.NAME)
x = torch.randn(2, 8, 4, 4, requires_grad=True)
fastdl.ops.group_norm(x, 2).sum().backward()
"""


@pytest.fixture(autouse=True)
def no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    BACKENDS_UNDER_TEST["cpu"].device()
    monkeypatch.setattr("fastdl.profile.session.measure_limits", lambda device, calls: Limits(1e10, {"float32": 1e11}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "helper.py").write_text("NAME = 'beside it'\n")
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = cli.main(["profile", *words])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def small(op: str) -> str:
    if op == "attention":
        return "1,2,5,8"
    return "4x16" if OPS[op].dimensions is None else "2x16x4x4"


@pytest.mark.parametrize("op", OPS)
def test_an_op(op: str, capsys: pytest.CaptureFixture[str]) -> None:
    groups = ["--num-groups", "4"] if op == "group_norm" else []
    status, out, _ = run(capsys, "op", op, "--shape", small(op), "--steps", "2", "--warmup", "1", *groups)
    assert status == 0
    lines = out.splitlines()
    assert lines[0].startswith(f"{op} of {small(op).replace(',', 'x')}, float32")
    assert "ms a step without the profiler, the median of 2" in lines[1]
    assert "ms a step, the mean of 2, with the profiler" in lines[2]
    name = "batch_norm" if op == "conv_norm_act" else op
    words = {tuple(line.split()[:4]) for line in lines}
    assert {(name, "forward", "cpu", "1"), (name, "backward", "cpu", "1")} <= words
    assert max(map(len, lines)) <= 120


def test_an_op_as_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--shape", "2,8,4,4", "--dtype", "bfloat16", "--layout", "channels_last", "--activation", "gelu"]
    more = ["--residual", "--forward-only", "--backend", "reference", "--steps", "1", "--by-shape", "--memory"]
    status, out, _ = run(capsys, "op", "batch_norm", *words, *more)
    assert status == 0
    assert out.startswith("batch_norm of 2x8x4x4, bfloat16, channels_last, activation gelu, residual, forward, on cpu")
    (row,) = [line for line in out.splitlines() if line.startswith("batch_norm 2x8x4x4 ")]
    assert row.split()[2:5] == ["forward", "reference", "1"]
    assert "kept MB" in out
    assert dispatch.requested() == "auto"  # as it was before


def test_causal_attention_does_less(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    counted = []
    for words in ([], ["--causal", "--layout", "packed"]):
        path = tmp_path / "profile.json"
        run(capsys, "op", "attention", "--shape", "1,2,5,8", "--steps", "1", "--json", str(path), *words)
        counted.append(json.loads(path.read_text())["records"][0]["operations"])
    assert counted == [4 * 8 * 2 * 25, 4 * 8 * 2 * 15]


@pytest.mark.parametrize("step", ["train", "inference"])
def test_a_small_model(step: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    trace, content = tmp_path / "trace.json", tmp_path / "profile.json"
    words = ["--batch", "2", "--image-size", "8", "--steps", "2", "--warmup", "1", "--step", step]
    status, out, _ = run(
        capsys, "model", "conv_network", *words, "--trace", str(trace), "--json", str(content), "--others", "3"
    )
    assert status == 0
    kind = "a training step" if step == "train" else "inference"
    assert out.startswith(f"conv_network, 2 images of 8x8, float32, {kind}, on cpu")
    assert f"Trace: {trace}" in out
    profile = json.loads(content.read_text())
    assert profile["steps"] == 2
    directions = [(r["name"], r["least_bytes"]) for r in profile["records"] if "batch_norm" in r["name"]]
    forwards = 2 * 4  # blocks
    assert len(directions) == forwards * (2 if step == "train" else 1)
    assert any("Optimizer.step" in e["name"] for e in json.loads(trace.read_text())["traceEvents"]) == (step == "train")
    assert sum(line.startswith("aten::") for line in out.splitlines()) <= 3


@pytest.mark.parametrize(("name", "size"), [("vit", "8"), ("resnet18", "8")])
def test_models_of_every_kind(name: str, size: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--batch", "2", "--image-size", size, "--dtype", "bfloat16", "--steps", "1", "--warmup", "1"]
    status, out, _ = run(capsys, "model", name, *words)
    assert status == 0
    assert out.startswith(f"{name}, 2 images of {size}x{size}, bfloat16, by autocast, a training step")
    assert "fastdl's ops together" in out


def test_a_script(script: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Its arguments are its own, options of ours among them; its output stays alone on the standard output."""
    before = list(sys.path), sys.argv
    trace = tmp_path / "trace.json"
    status, out, err = run(capsys, "script", "--trace", str(trace), str(script), "--steps", "3", "a b", "--trace")
    assert status == 0
    assert out == "arguments: ['--steps', '3', 'a b', '--trace'] __main__ beside it\n"
    assert {("group_norm", "forward", "cpu"), ("group_norm", "backward", "cpu")} <= {
        tuple(line.split()[:3]) for line in err.splitlines()
    }
    assert "fastdl::group_norm_backward[cpu]" in trace.read_text()
    assert (list(sys.path), sys.argv) == before


@pytest.mark.parametrize(
    ("end", "status", "message"),
    [
        ("sys.exit()", 0, ""),
        ("sys.exit(7)", 7, ""),
        ("sys.exit('that was wrong')", 1, "that was wrong"),
        ("raise ValueError('of the script')", 1, "ValueError: of the script"),
        ("raise KeyboardInterrupt", 130, "Interrupted; what was seen until then:"),
    ],
)
def test_how_a_script_ends_is_how_it_ends(
    end: str, status: int, message: str, script: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script.write_text(SCRIPT + f"\n{end}\nprint('not reached')\n")
    found, out, err = run(capsys, "script", str(script))
    assert found == status
    assert "not reached" not in out
    assert message in err
    assert "group_norm" in err  # what was seen until then


def test_the_traceback_of_a_script_begins_with_the_script(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script.write_text("def inner():\n    raise ValueError('deep')\ninner()\n")
    _, _, err = run(capsys, "script", str(script))
    frames = [line for line in err.splitlines() if line.startswith("  File ")]
    assert frames == [f'  File "{script}", line 3, in <module>', f'  File "{script}", line 2, in inner']


def test_files_lie_where_the_command_was_given(
    script: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (script.parent / "elsewhere").mkdir()
    monkeypatch.chdir(script.parent)
    script.write_text("import os\nos.chdir('elsewhere')\n")
    assert run(capsys, "script", "--json", "profile.json", "--trace", "trace.json", "script.py")[0] == 0
    assert {"profile.json", "trace.json"} <= {path.name for path in script.parent.iterdir()}


def test_a_script_may_configure_its_log(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script.write_text(
        "import logging, sys\n"
        "logging.basicConfig(level=logging.INFO, stream=sys.stdout, format='log: %(message)s')\n"
        "logging.info('heard')\n"
    )
    assert run(capsys, "script", str(script))[1] == "log: heard\n"


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(CHECKOUT)}


def test_python_m_fastdl_profile(script: Path) -> None:
    """In a process of its own, with the limits truly measured."""
    command = [sys.executable, "-m", "fastdl.profile", str(script), "--word"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(), cwd=script.parent, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "arguments: ['--word'] __main__ beside it\n"
    assert "roofline, measured just now: copying memory" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_still_tells_what_was_seen(script: Path) -> None:
    ready = script.parent / "ready"
    script.write_text(
        SCRIPT
        + f"\nimport pathlib, time\npathlib.Path({str(ready)!r}).touch()\nfor _ in range(1200): time.sleep(0.05)\n"
    )
    command = [sys.executable, "-m", "fastdl.profile", str(script)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), cwd=script.parent
    ) as process:
        deadline = time.monotonic() + 60
        while not ready.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted; what was seen until then:" in err
    assert "group_norm" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["op", "nope"], "there is no op 'nope' to profile; there are: attention, batch_norm"),
        (["op", "group_norm", "--shape", "2,3"], "shape must have 4 dimensions for group_norm; got 2,3"),
        (["op", "group_norm", "--shape", "1,6,2,2"], "num_groups must be a positive divisor of the 6 channels; got 32"),
        (["op", "group_norm", "--layout", "packed"], "layout must be one of nchw, channels_last for group_norm"),
        (["op", "layer_norm", "--layout", "nchw"], "layout cannot be chosen for layer_norm; got 'nchw'"),
        (["op", "layer_norm", "--activation", "relu"], "activation is not for layer_norm; got 'relu'"),
        (["op", "group_norm", "--residual"], "residual is not for group_norm; got True"),
        (["op", "batch_norm", "--causal"], "causal is not for batch_norm; got True"),
        (["op", "batch_norm", "--num-groups", "8"], "num_groups is not for batch_norm; got 8"),
        (["op", "attention", "--kernel", "5"], "kernel is not for attention; got 5"),
        (["op", "batch_norm", "--activation", "step"], "activation must be one of identity"),
        (
            ["op", "batch_norm", "--dtype", "int8"],
            "dtype must be one of float32, bfloat16, float16, float64; got 'int8'",
        ),
        (["op", "batch_norm", "--steps", "0"], "--steps must be at least 1; got 0"),
        (["op", "batch_norm", "--warmup", "0"], "--warmup must be at least 1; got 0"),
        (["op", "batch_norm", "--others", "-1"], "--others must be at least 0; got -1"),
        (["op", "batch_norm", "--device", "cuda"], "device must be 'cpu' where torch sees no CUDA GPU; got 'cuda'"),
        (["op", "batch_norm", "--nvtx"], "nvtx must be False where torch sees no CUDA GPU; got True"),
        (
            ["op", "batch_norm", "--backend", "mkl"],
            "backend must be one of auto, reference, cpu, triton, cuda; got 'mkl'",
        ),
        (["op", "batch_norm", "--trace", "/no/such/folder/t.json"], "--trace must be a file in a folder that is there"),
        (["op", "batch_norm", "--json", "/"], "--json must be a file in a folder that is there; got /"),
        (["model", "nope"], "there is no model 'nope' to profile; there are: conv_network, vit"),
        (["model", "resnet18", "--batch", "0"], "batch must be at least 1; got 0"),
        (["model", "resnet18", "--image-size", "0"], "image_size must be at least 1; got 0"),
        (["model", "resnet18", "--dtype", "int8"], "dtype must be one of float32"),
        (["model", "resnet18", "--step", "test"], "step must be train or inference; got 'test'"),
        (["script", "/no/such/script.py"], "No such file or directory"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, *words)
    assert status == 2
    assert err.startswith("fastdl: ")
    assert message in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("text", ["", "2,x", "2,0,4"])
def test_a_shape_that_is_none_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["profile", "op", "group_norm", "--shape", text])
    assert caught.value.code == 2
    assert f"argument --shape: must be sizes of at least 1, such as 8,64,32,32; got {text!r}" in capsys.readouterr().err


def test_options_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("op", "model", "script"):
        with pytest.raises(SystemExit) as caught:
            cli.main(["profile", kind, "--help"])
        assert caught.value.code == 0
        text = capsys.readouterr().out
        assert all(f"--{name}" in text for name in ("trace", "json", "memory", "device", "nvtx", "backend"))
        assert ("--steps" in text) == ("--warmup" in text) == (kind != "script")


def test_the_command_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["--help"])
    assert "  profile " in capsys.readouterr().out
