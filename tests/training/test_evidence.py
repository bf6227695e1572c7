"""What is measured beside the accuracy, against what it is computed from by hand, and that it changes no run."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fastdl.data import ImageDataset, Split
from fastdl.models import initialize_weights
from fastdl.models.conv_network import ConvNetwork
from fastdl.nn import ConvNormAct2d
from fastdl.training import CheckpointPolicy, ModelConfig, TimeLimitReached, train_classifier
from fastdl.training.batches import EvaluationBatches, TrainingBatches
from fastdl.training.evidence import EVIDENCE, batch_statistics, modes, saturation
from tests.training.conftest import make_config

CPU = torch.device("cpu")


def make_batches(dataset: ImageDataset, size: int) -> TrainingBatches:
    return TrainingBatches(
        dataset.train, batch_size=size, mean=dataset.mean, std=dataset.std, device=CPU, seed=0, crop_padding=1
    )


def test_evidence_changes_no_run(stripes: ImageDataset, tmp_path: Path) -> None:
    config = make_config(stripes)
    plain = train_classifier(config, stripes, tmp_path / "plain")
    watched = train_classifier(config, stripes, tmp_path / "watched", evidence=EVIDENCE, measure_speed=True)
    assert (watched.history, watched.test_accuracy) == (plain.history, plain.test_accuracy)
    assert watched.evidence.keys() == set(EVIDENCE)
    assert plain.evidence == {}
    assert 0 < watched.speed["fused_share"] < 1  # type: ignore[operator]
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("plain", "watched")]
    assert weights[0] == weights[1]


def test_an_unknown_evidence_is_refused(stripes: ImageDataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="evidence must be of gradients, batch_statistics, modes, got colour"):
        train_classifier(make_config(stripes), stripes, tmp_path, evidence=["colour"])


def test_gradients_are_those_of_the_step_before_clipping(stripes: ImageDataset, tmp_path: Path) -> None:
    """The first row, computed again from initial weights and first batch; the norm is clipped to next to nothing."""
    config = make_config(stripes, gradient_clip_norm=1e-6)
    result = train_classifier(config, stripes, tmp_path, evidence=["gradients"])
    rows = result.evidence["gradients"]
    assert [row["step"] for row in rows] == list(range(12))  # four steps an epoch, each looked at
    model = ConvNetwork(in_channels=1, num_classes=4, depth=2, width=8, activation="relu")
    initialize_weights(model, config.seed)
    from fastdl.data import hold_out_validation

    data = hold_out_validation(stripes, config.data.validation_fraction, config.data.validation_seed)
    batches = TrainingBatches(
        data.train, batch_size=18, mean=data.mean, std=data.std, device=CPU, seed=0, crop_padding=1, random_flip=True
    )
    images, labels = batches.training_batch(0, 0)
    outputs = [images]
    for block in model.blocks:
        outputs.append(block(outputs[-1]))
    F.cross_entropy(model(images), labels).backward()
    for index, block in enumerate(model.blocks):
        expected = torch.cat([parameter.grad.flatten() for parameter in block.parameters()]).norm()  # type: ignore[union-attr]
        assert rows[0]["gradient_norms"][index] == pytest.approx(float(expected), rel=1e-4)
        dead = (outputs[index + 1] == 0).float().mean()
        assert rows[0]["saturation"][index] == pytest.approx(float(dead), abs=1e-3)


def test_rows_are_neither_lost_nor_doubled_where_a_run_is_cut(stripes: ImageDataset, tmp_path: Path) -> None:
    config = make_config(stripes)
    whole = train_classifier(config, stripes, tmp_path / "whole", evidence=["gradients"])
    policy = CheckpointPolicy(deadline=0.0)
    cuts = 0
    while True:
        try:
            cut = train_classifier(config, stripes, tmp_path / "cut", policy=policy, evidence=["gradients"])
            break
        except TimeLimitReached:
            cuts += 1
    assert cuts == 11  # after every step but the last
    assert cut.evidence == whole.evidence
    assert cut.history == whole.history


@pytest.mark.parametrize(
    ("activation", "order", "values", "share"),
    [
        ("relu", "conv_norm_act", [0.0, 0.0, 0.5, 2.0], 0.5),
        # The derivative y (1 - y) is a twentieth of its maximum, 1/80, at y = 0.0127 and 0.9873.
        ("sigmoid", "conv_norm_act", [0.0126, 0.0128, 0.5, 0.9874], 0.5),
        ("silu", "conv_norm_act", [0.0, 1.0], None),
        ("relu", "conv_act_norm", [0.0, 1.0], None),
    ],
)
def test_saturation_is_where_hardly_a_gradient_passes(
    activation: str, order: str, values: list[float], share: float | None
) -> None:
    block = ConvNormAct2d(1, 1, 1, activation=activation, order=order)
    assert saturation(block, torch.tensor(values)) == share


class Wide:
    """Images of noise, so many that their statistics are known."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(1)
        images = torch.randint(0, 256, (count, 1, 4, 4), generator=generator, dtype=torch.uint8)
        self.split = Split(images, torch.arange(count) % 2)


@pytest.mark.parametrize("size", [2, 8, 32])
def test_the_noise_of_a_batch_is_that_of_a_mean_of_so_many_values(size: int) -> None:
    """For independent values: 1 / sqrt(n) of the mean, and of the variance sqrt((kurtosis - 1) / n) about."""
    split = Wide(2048).split
    batches = TrainingBatches(split, batch_size=size, mean=(0.5,), std=(0.29,), device=CPU, seed=0)
    model = ConvNetwork(in_channels=1, num_classes=2, depth=1, width=8)
    with torch.no_grad():  # the convolution passes each pixel on: values are uniform, of kurtosis 1.8
        weight = torch.zeros(8, 1, 3, 3)
        weight[:, 0, 1, 1] = 1
        model.blocks[0].conv.weight.copy_(weight)  # type: ignore[union-attr, operator]
    found = batch_statistics(model, batches, epoch=0)
    values = size * 16
    assert found["batch_size"] == size
    assert found["mean_noise"][0] == pytest.approx(values**-0.5, rel=0.15)
    assert found["variance_noise"][0] == pytest.approx((0.8 / values) ** 0.5, rel=0.25)


def test_channels_that_are_constant_make_no_noise(stripes: ImageDataset) -> None:
    model = ConvNetwork(in_channels=1, num_classes=4, depth=1, width=8)
    with torch.no_grad():
        model.blocks[0].conv.weight[:4].zero_()  # type: ignore[union-attr, index]
    found = batch_statistics(model, make_batches(stripes, 8), epoch=0)
    assert 0 < found["mean_noise"][0] < 1


def test_measuring_leaves_the_network_as_it_was(stripes: ImageDataset) -> None:
    model = ConvNetwork(in_channels=1, num_classes=4, depth=2, width=8).train()
    before = copy.deepcopy(model.state_dict())
    batches = make_batches(stripes, 8)
    batch_statistics(model, batches, epoch=0)
    modes(model, batches, 8)
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert not any(part._forward_hooks for part in model.modules())


def test_modes_differ_by_the_statistics_alone(stripes: ImageDataset) -> None:
    """Running statistics that are far off cost accuracy in evaluation mode and nothing in training mode."""
    config = make_config(stripes)
    model = ConvNetwork(in_channels=1, num_classes=4, depth=2, width=8)
    initialize_weights(model, config.seed)
    batches = EvaluationBatches(stripes.train, batch_size=20, mean=stripes.mean, std=stripes.std, device=CPU)
    images, labels = batches.examples(80)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    found = modes(model, batches, 40)
    assert found["training_mode_accuracy"] > 0.9
    for block in model.blocks:
        block.norm.running_mean.add_(100)  # type: ignore[union-attr, operator]
    spoilt = modes(model, batches, 40)
    assert spoilt["training_mode_accuracy"] == found["training_mode_accuracy"]
    assert spoilt["evaluation_mode_accuracy"] < 0.6


def test_a_group_norm_has_one_mode(stripes: ImageDataset, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"depth": 2, "width": 8, "norm": "group", "num_groups": 4}
    config = dataclasses.replace(make_config(stripes), model=ModelConfig("conv_network", arguments))
    found = train_classifier(config, stripes, tmp_path, evidence=["modes"]).evidence["modes"]
    assert found["training_mode_accuracy"] == found["evaluation_mode_accuracy"]
