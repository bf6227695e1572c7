"""The network of equal blocks, its registry and its initial weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fastdl
from fastdl.models import MODELS, build_model, derive_seed, initialize_weights
from fastdl.models.conv_network import ConvNetwork

ACTIVATIONS = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU, "silu": nn.SiLU}


def plain_network(
    in_channels: int, classes: int, depth: int, width: int, stride: int, activation: str
) -> nn.Sequential:
    """The same network of torch's own modules."""
    channels = [in_channels, *[width] * depth]
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [
            nn.Conv2d(channels[index], channels[index + 1], 3, stride if index == 0 else 1, 1, bias=False),
            nn.BatchNorm2d(width),
            ACTIVATIONS[activation](),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("depth", "stride"), [(1, 1), (1, 2), (3, 2), (8, 1)])
def test_it_computes_what_torchs_modules_compute(activation: str, depth: int, stride: int) -> None:
    torch.manual_seed(depth)
    ours = ConvNetwork(
        in_channels=3, num_classes=5, depth=depth, width=6, stride=stride, activation=activation
    ).double()
    plain = plain_network(3, 5, depth, 6, stride, activation).double()
    # Both list their parameters and statistics in the same order.
    plain.load_state_dict(dict(zip(plain.state_dict(), ours.state_dict().values(), strict=True)))
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    with fastdl.use_backend("reference"):
        for mode in (True, False):
            ours.train(mode), plain.train(mode)
            torch.testing.assert_close(ours(images), plain(images))
    ours_state, plain_state = ours.state_dict().values(), plain.state_dict().values()
    for found, expected in zip(ours_state, plain_state, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("depth", [1, 2, 8])
def test_the_cost_is_the_documented_one(depth: int) -> None:
    width, stride, classes, size = 32, 2, 10, 32
    model = plain_network(3, classes, depth, width, stride, "relu")
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, size, size))
    multiply_adds = 9 * width * (size // stride) ** 2 * (3 + (depth - 1) * width) + width * classes
    assert counter.get_total_flops() == 2 * multiply_adds


def test_depth_adds_equal_blocks_and_changes_nothing_else() -> None:
    shallow, deep = (
        {
            name: value.shape
            for name, value in ConvNetwork(in_channels=3, num_classes=10, depth=depth).state_dict().items()
        }
        for depth in (2, 8)
    )
    assert all(deep[name] == shape for name, shape in shallow.items())
    added = {name: shape for name, shape in deep.items() if name not in shallow}
    for name, shape in added.items():
        assert shape == shallow["blocks.1." + name.split(".", 2)[2]]


def test_weights_of_a_seed_agree_across_activations_and_depths() -> None:
    networks = [
        ConvNetwork(in_channels=3, num_classes=10, depth=depth, activation=activation)
        for depth, activation in ((4, "relu"), (4, "sigmoid"), (8, "relu"))
    ]
    for network in networks:
        torch.manual_seed(hash(network))  # the global generator plays no part
        initialize_weights(network, seed=7)
    first, *others = (network.state_dict() for network in networks)
    for other in others:
        assert all(torch.equal(other[name], value) for name, value in first.items())
    initialize_weights(networks[1], seed=8)
    assert not torch.equal(first["blocks.0.conv.weight"], networks[1].state_dict()["blocks.0.conv.weight"])
    assert not torch.equal(first["blocks.1.conv.weight"], first["blocks.2.conv.weight"])


def test_initial_weights_have_the_documented_distribution() -> None:
    network = ConvNetwork(in_channels=3, num_classes=10, depth=2, width=64)
    network.train()
    network(torch.randn(4, 3, 8, 8))  # moves the running statistics, which must come back
    initialize_weights(network, seed=0)
    state = network.state_dict()
    weight = state["blocks.1.conv.weight"]
    assert weight.mean().abs() < 3e-3
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.02)
    classifier = state["classifier.weight"]
    assert classifier.abs().max() <= math.sqrt(6 / (64 + 10))
    assert classifier.std().item() == pytest.approx(math.sqrt(2 / (64 + 10)), rel=0.06)
    assert state["classifier.bias"].eq(0).all()
    assert state["blocks.0.norm.running_mean"].eq(0).all()
    assert state["blocks.0.norm.weight"].eq(1).all()


def test_initial_weights_do_not_depend_on_layout_or_precision() -> None:
    plain = ConvNetwork(in_channels=3, num_classes=10, depth=2)
    other = ConvNetwork(in_channels=3, num_classes=10, depth=2).to(memory_format=torch.channels_last)
    initialize_weights(plain, 3)
    initialize_weights(other, 3)
    assert torch.equal(plain.state_dict()["blocks.1.conv.weight"], other.state_dict()["blocks.1.conv.weight"])
    assert other.blocks[1].conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_module_without_a_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="no rule for the initial weights of '1', a PReLU"):
        initialize_weights(nn.Sequential(nn.Linear(2, 2), nn.PReLU()), 0)


def test_seeds_are_derived_from_what_they_are_for() -> None:
    assert derive_seed(0, "order", 3) == derive_seed(0, "order", 3) == 3421225812864122905
    seeds = [
        derive_seed(*parts)
        for parts in ((0, "order", 1), (1, "order", 0), (0, "augmentation", 1), (0, "order", "1"), (0, 1, 1), (0, 11))
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, "depth must be 1 to 8, got 0"),
        ({"depth": 9}, "depth must be 1 to 8, got 9"),
        ({"stride": 3}, "stride must be 1 or 2, got 3"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"activation": "step"}, "activation"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, int | str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model("conv_network", **{"in_channels": 3, "num_classes": 10, "depth": 2, **change})


def test_models_are_built_by_name() -> None:
    assert "conv_network" in MODELS
    assert isinstance(build_model("conv_network", in_channels=1, num_classes=2, depth=1), ConvNetwork)
    with pytest.raises(ValueError, match=r"name must be one of conv_network, .*, got 'resnet'"):
        build_model("resnet")
