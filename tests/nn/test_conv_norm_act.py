"""fastdl.nn.ConvNormAct1d, 2d and 3d beside the nn.Sequential that they replace: weights, results, gradients."""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import torch
from torch import Tensor

from fastdl import nn

pytestmark = pytest.mark.usefixtures("backend")

NORMS = ("batch", "group", "layer", "instance", "none")
ORDERS = ("conv_norm_act", "conv_act_norm")


RANKS = pytest.mark.parametrize("rank", [1, 2, 3])


def plain_norm(norm: str, rank: int) -> torch.nn.Module:
    if norm == "instance":
        return torch.nn.GroupNorm(8, 8)
    return {
        "batch": getattr(torch.nn, f"BatchNorm{rank}d")(8),
        "group": torch.nn.GroupNorm(4, 8),
        "layer": torch.nn.GroupNorm(1, 8),
        "none": torch.nn.Identity(),
    }[norm]


def plain(norm: str, order: str, bias: bool = True, rank: int = 2, **convolution: int) -> torch.nn.Sequential:
    conv = getattr(torch.nn, f"Conv{rank}d")(3, 8, 3, bias=bias, **convolution)
    norm_module, act = plain_norm(norm, rank), torch.nn.SiLU()
    model = torch.nn.Sequential(conv, *((norm_module, act) if order == "conv_norm_act" else (act, norm_module)))
    source = generator(1)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.copy_(0.3 + 0.5 * torch.rand(value.shape, generator=source))
    return model


def fused(norm: str, order: str, bias: bool = True, rank: int = 2, **convolution: int) -> nn.ConvNormAct2d:
    groups = 4 if norm == "group" else None
    return getattr(nn, f"ConvNormAct{rank}d")(
        3, 8, 3, norm=norm, num_groups=groups, order=order, activation="silu", bias=bias, **convolution
    )


def images(seed: int = 0, rank: int = 2) -> Tensor:
    return torch.randn({1: (4, 3, 9), 2: (4, 3, 9, 8), 3: (2, 3, 5, 6, 4)}[rank], generator=generator(seed))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@RANKS
@pytest.mark.parametrize(("norm", "order"), list(itertools.product(NORMS, ORDERS)))
def test_the_state_dict_of_the_sequential_loads_unchanged(norm: str, order: str, rank: int) -> None:
    sequential, module = plain(norm, order, rank=rank), fused(norm, order, rank=rank)
    state = sequential.state_dict()
    keys = list(state)
    assert module.load_state_dict(state) == torch.nn.modules.module._IncompatibleKeys([], [])
    assert list(state) == keys, "the caller's dictionary was changed"
    x = images(rank=rank)
    torch.testing.assert_close(module.eval()(x), sequential.eval()(x))


def test_the_state_dict_loads_inside_a_larger_model() -> None:
    """A whole network of Sequentials, nested, onto one whose blocks are fused."""
    theirs = torch.nn.ModuleDict(
        {"stem": plain("batch", "conv_norm_act"), "stages": torch.nn.ModuleList([plain("group", "conv_act_norm")])}
    )
    ours = torch.nn.ModuleDict(
        {"stem": fused("batch", "conv_norm_act"), "stages": torch.nn.ModuleList([fused("group", "conv_act_norm")])}
    )
    ours.load_state_dict(theirs.state_dict())
    for mine, other in ((ours["stem"], theirs["stem"]), (ours["stages"][0], theirs["stages"][0])):
        torch.testing.assert_close(mine.eval()(images()), other.eval()(images()))


@pytest.mark.parametrize(("norm", "order"), list(itertools.product(NORMS, ORDERS)))
def test_its_own_state_dict_round_trips(norm: str, order: str) -> None:
    module, twin = fused(norm, order), fused(norm, order)
    state = module.state_dict()
    assert {key.split(".")[0] for key in state} == ({"conv"} if norm == "none" else {"conv", "norm"})
    twin.load_state_dict(state)
    assert torch.equal(twin.eval()(images()), module.eval()(images()))


def test_missing_and_unexpected_keys_are_still_told() -> None:
    module = fused("batch", "conv_norm_act")
    state = plain("batch", "conv_norm_act").state_dict()
    del state["1.weight"]
    state["7.weight"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match=r"Missing key.*norm\.weight"):
        module.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*7\.weight"):
        module.load_state_dict(state)


@pytest.mark.parametrize(("norm", "order", "training"), list(itertools.product(NORMS, ORDERS, (True, False))))
@pytest.mark.parametrize("layout", ["conv1d", "conv2d", "channels_last", "conv3d"])
def test_results_are_those_of_the_sequential(norm: str, order: str, training: bool, layout: str) -> None:
    rank = 2 if layout == "channels_last" else int(layout[-2])
    sequential = plain(norm, order, rank=rank, stride=2, padding=1)
    module = fused(norm, order, rank=rank, stride=2, padding=1)
    module.load_state_dict(sequential.state_dict())
    results = []
    for model in (module, sequential):
        model.train(training)
        x = images(rank=rank)
        if layout == "channels_last":
            model.to(memory_format=torch.channels_last)
            x = x.contiguous(memory_format=torch.channels_last)
        output = model(x.requires_grad_())
        output.sin().sum().backward()
        gradients = {tuple(p.shape): p.grad for p in model.parameters() if p.ndim > 1}
        results.append([output, x.grad, *gradients.values(), *(b for b in model.buffers())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_residual_is_added_before_the_last_step() -> None:
    for order in ORDERS:
        sequential, module = plain("batch", order, padding=1), fused("batch", order, padding=1)
        module.load_state_dict(sequential.state_dict())
        residual = torch.randn(4, 8, 9, 8)
        conv, second, third = sequential
        expected = third(second(conv(images())) + residual)
        torch.testing.assert_close(module(images(), residual), expected)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, False),
        ({"order": "conv_act_norm"}, True),
        ({"norm": "none"}, True),
        ({"norm": "layer"}, False),
        ({"bias": True}, True),
        ({"norm": "none", "bias": False}, False),
    ],
    ids=str,
)
def test_the_convolution_has_a_bias_where_nothing_takes_it_away(options: dict[str, object], expected: bool) -> None:
    assert (nn.ConvNormAct2d(3, 8, 3, **options).conv.bias is not None) == expected  # type: ignore[arg-type]


def test_options_of_the_convolution_reach_it() -> None:
    module = nn.ConvNormAct2d(4, 8, (3, 5), stride=(2, 1), padding="valid", dilation=(1, 2), groups=2, norm="instance")
    x = torch.randn(2, 4, 11, 13)
    expected = torch.relu(torch.nn.functional.instance_norm(module.conv(x)))
    torch.testing.assert_close(module(x), expected)
    same = nn.ConvNormAct2d(4, 8, 3, padding="same", norm="none", activation="identity")
    assert same(x).shape == (2, 8, 11, 13)


@pytest.mark.parametrize("momentum", [0.3, None])
def test_statistics_accumulate_as_torchs(momentum: float | None) -> None:
    module = nn.ConvNormAct2d(3, 8, 3, momentum=momentum, eps=1e-3)
    norm = torch.nn.BatchNorm2d(8, momentum=momentum, eps=1e-3)
    for seed in range(4):
        torch.testing.assert_close(module(images(seed)), torch.relu(norm(module.conv(images(seed)))))
    for name, buffer in norm.named_buffers():
        torch.testing.assert_close(module.norm.get_buffer(name), buffer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "bn"}, "norm must be one of batch, group"),
        ({"norm": "group"}, "num_groups must be given for norm='group'"),
        ({"num_groups": 2}, "num_groups must be given for norm='group'"),
        ({"norm": "group", "num_groups": 3}, "divisible"),
        ({"activation": "swish"}, "activation must be one of"),
        ({"activation": "relu", "activation_param": 0.1}, "activation_param is for"),
        ({"order": "norm_act"}, "order must be one of conv_norm_act, conv_act_norm"),
    ],
    ids=str,
)
def test_wrong_options_are_refused_when_the_module_is_made(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nn.ConvNormAct2d(3, 8, 3, **options)  # type: ignore[arg-type]


def test_copies_pickles_and_repr() -> None:
    module = fused("batch", "conv_act_norm").eval()
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(images()), module(images()))
        assert repr(twin) == repr(module)
    assert "order=conv_act_norm, activation=silu" in repr(module)


@pytest.mark.parametrize("order", ORDERS)
def test_a_frozen_norm_stays_frozen_in_training(order: str) -> None:
    """Fine-tuning calls the norms' `eval` inside of a network that trains: their statistics are used and not moved."""
    sequential, module = plain("batch", order), fused("batch", order)
    module.load_state_dict(sequential.state_dict())
    for model in (module, sequential):
        model.train()
        for part in model.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.eval()
    torch.testing.assert_close(module(images()), sequential(images()))
    norm = sequential[1 if order == "conv_norm_act" else 2]
    for name, buffer in norm.named_buffers():
        assert torch.equal(module.norm.get_buffer(name), buffer)


@pytest.mark.parametrize("training", [True, False])
def test_a_norm_whose_tracking_is_switched_off(training: bool) -> None:
    sequential, module = plain("batch", "conv_norm_act"), fused("batch", "conv_norm_act")
    module.load_state_dict(sequential.state_dict())
    for model, norm in ((module, module.norm), (sequential, sequential[1])):
        norm.track_running_stats = False
        model.train(training)
    torch.testing.assert_close(module(images()), sequential(images()))
    for name, buffer in sequential[1].named_buffers():
        assert torch.equal(module.norm.get_buffer(name), buffer)


def test_messages_name_the_module() -> None:
    for rank in (1, 2, 3):
        with pytest.raises(ValueError, match=f"^ConvNormAct{rank}d: norm must be one of"):
            getattr(nn, f"ConvNormAct{rank}d")(3, 8, 3, norm="bn")
        with pytest.raises(ValueError, match="input and weight must both have 3, 4 or 5 dimensions"):
            fused("batch", "conv_norm_act", rank=rank)(torch.randn(2, 3, *[5] * (rank % 3 + 1)))


@RANKS
def test_devices_and_dtypes_are_passed_to_the_parameters(rank: int) -> None:
    module = getattr(nn, f"ConvNormAct{rank}d")(3, 8, 3, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in module.parameters()} == {("meta", torch.bfloat16)}


@RANKS
def test_half_precision_modules(rank: int) -> None:
    sequential, module = plain("batch", "conv_norm_act", rank=rank), fused("batch", "conv_norm_act", rank=rank)
    module.load_state_dict(sequential.state_dict())
    x = images(rank=rank)
    output = module.bfloat16()(x.bfloat16())
    assert output.dtype == torch.bfloat16
    # The convolution's output is rounded to bfloat16 before the norm, in torch's as in ours.
    torch.testing.assert_close(output, sequential.bfloat16()(x.bfloat16()), rtol=0.02, atol=0.02)


@RANKS
@pytest.mark.parametrize("training", [True, False])
def test_they_compile_whole(rank: int, training: bool, backend: str) -> None:
    if backend == "cpu":
        pytest.skip("one backend shows it; compiling takes seconds")
    module = fused("batch", "conv_norm_act", rank=rank).train(training)
    twin = copy.deepcopy(module)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images(rank=rank)), twin(images(rank=rank)))
    for name, buffer in twin.named_buffers():
        torch.testing.assert_close(module.get_buffer(name), buffer)
    torch._dynamo.reset()
