"""Whole training steps: the same network for every contender, what is written, and the comparison of losses."""

import json

import pytest
import torch

from fastdl.bench import training


def test_contenders_begin_with_the_same_weights_in_their_layouts():
    states = {}
    for contender in training.CONTENDERS[:3]:
        model, layout = training.network(contender, "resnet18")
        states[contender] = model.state_dict()
        assert model.layer1[0].conv1.weight.is_contiguous(memory_format=layout)
    for state in states.values():
        assert state.keys() == states["ours"].keys()
        assert all(torch.equal(value, states["ours"][name]) for name, value in state.items())


def test_their_first_losses_agree():
    images, labels = training.random_batch(4)
    losses = [
        [float(step(images, labels)) for _ in range(3)]
        for step in (training.stepper(contender, "resnet18") for contender in training.CONTENDERS[:3])
    ]
    for other in losses[1:]:
        assert losses[0][0] == pytest.approx(other[0], rel=1e-5)
        # Four images, learned by heart in a step of this size: rounding is at a hundredth by then.
        assert losses[0] == pytest.approx(other, rel=0.1)
    assert losses[0][0] != losses[0][2]


def test_in_lower_precision_the_weights_stay_float32_and_the_loss_is_near():
    images, labels = training.random_batch(4)
    lower, full = (training.stepper("ours", "resnet18", training.CPU, dtype) for dtype in ("bfloat16", "float32"))
    first, expected = float(lower(images, labels)), float(full(images, labels))
    assert first != expected
    assert first == pytest.approx(expected, rel=0.05)


def test_a_wrong_device_is_named(capsys):
    with pytest.raises(SystemExit) as caught:
        training.main(["--device", "cuda:99"])
    assert caught.value.code == 2
    assert "CUDA devices here" in capsys.readouterr().err


def test_curves_are_compared_by_means_of_ten():
    flat, stepped = [1.0] * 20, [1.0] * 10 + [3.0] * 10
    assert training.distance(flat, flat) == 0
    assert training.distance(flat, stepped) == 2
    noisy = [1.0 + 0.5 * (-1) ** i for i in range(20)]
    assert training.distance(flat, noisy) < 1e-9


def test_the_command_writes_its_part_and_keeps_the_rest(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "IMAGE", 8)
    monkeypatch.setattr(training, "measure_peak", lambda contender, name, batch, dtype: 1_000_000)
    path = tmp_path / f"{training.machine.slug(torch.device('cpu'))}.json"
    path.write_text(json.dumps({"format": 1, "machine": {"name": "here"}, "operators": {"kept": {}}}))
    options = ["--batch", "2", "--seconds", "0", "--no-compile", "--output-dir", str(tmp_path)]
    assert training.main(options) == 0
    content = json.loads(path.read_text())
    assert content["operators"] == {"kept": {}}
    [[key, part]] = content["training"].items()
    assert key == "resnet18, CIFAR stem, 2 images a step"
    assert set(part["times"]) == {"ours", "eager NCHW", "eager NHWC"}
    assert part["peak_bytes"]["ours"] == 1_000_000
    assert all(row["median"] > 0 for row in part["times"].values())
    assert part["threads"] == torch.get_num_threads()
    assert "eager NHWC" in capsys.readouterr().out
    monkeypatch.setattr(training, "time_steps", lambda *arguments: pytest.fail("these steps are there already"))
    assert training.main([*options, "--resume"]) == 0
    assert "measured on" in capsys.readouterr().out
    assert json.loads(path.read_text()) == content
    monkeypatch.setattr(training.machine, "commit", lambda: "another")
    with pytest.raises(pytest.fail.Exception, match="there already"):
        training.main([*options, "--resume"])
    path.write_text("not JSON")
    assert training.main(options) == 1
    assert path.read_text() == "not JSON"


def test_memory_is_that_of_a_process_of_its_own():
    """And not of the one that started it, however large that was."""
    ballast = torch.ones(1_000_000_000, dtype=torch.uint8)
    small, large = (training.measure_peak("eager NHWC", "resnet18", batch) for batch in (1, 32))
    del ballast
    # The network, its gradients and its optimizer's state are 134 MB; 31 images more keep 4.5 MB each and more.
    assert 11_000_000 * 4 < small < 700_000_000
    assert large - small > 100_000_000
