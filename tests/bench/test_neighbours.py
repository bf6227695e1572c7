"""Neighbours of the ops: what is written, and that contenders of one answer give one."""

import json

import pytest
import torch

from fastdl.bench import neighbours
from fastdl.bench.timing import Effort

TINY = Effort(seconds=0.0, warm_up=0.0, batch=0.0, least_rounds=2)


def test_bias_and_gelu_fused_are_what_torch_computes():
    passes = neighbours.bias_gelu(6, 8, 16, dtype=torch.float32)
    torch.testing.assert_close(passes["forward"]["fused"](), passes["forward"]["torch"]())
    for ours, theirs in zip(*(passes["forward+backward"][name]() for name in ("fused", "torch")), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_both_forms_of_cross_entropy_agree():
    calls = neighbours.linear_cross_entropy(4, 8, 10)["forward+backward"]
    if len(calls) < 2:
        pytest.skip("this torch has no linear_cross_entropy")
    for one, other in zip(*(call() for call in calls.values()), strict=True):
        torch.testing.assert_close(one, other)


def test_the_command_writes_its_part_and_keeps_the_rest(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(neighbours, "LINEAR", ((4, 8, 16),))
    monkeypatch.setattr(neighbours, "STREAMS", ((2, 3, 8),))
    monkeypatch.setattr(neighbours, "WORDS", (4, 8, 10))
    path = tmp_path / f"{neighbours.machine.slug(torch.device('cpu'))}.json"
    path.write_text(json.dumps({"format": 1, "machine": {"name": "here"}, "operators": {"kept": {}}}))
    assert neighbours.main(["--output-dir", str(tmp_path)], TINY) == 0
    content = json.loads(path.read_text())
    assert content["operators"] == {"kept": {}}
    assert len(content["neighbours"]["times"]) == 5
    assert content["neighbours"]["times"]["dropout+residual+norm 2x3x8 bfloat16"]["forward"]["without"]["median"] > 0
    assert "bias+gelu 4x8x16 float32" in capsys.readouterr().out
    path.write_text("not JSON")
    assert neighbours.main(["--output-dir", str(tmp_path)], TINY) == 1
    assert path.read_text() == "not JSON"
