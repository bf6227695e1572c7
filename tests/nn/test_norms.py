"""fastdl.nn.GroupNorm and BatchNorm2d stand in for torch.nn's: weights, modes, buffers, errors, module tools."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdl import nn

pytestmark = pytest.mark.usefixtures("backend")

Make = Callable[..., torch.nn.Module]
PAIRS: dict[str, tuple[Make, Make]] = {
    "group_norm": (lambda **o: nn.GroupNorm(3, 6, **o), lambda **o: torch.nn.GroupNorm(3, 6, **o)),
    "batch_norm": (lambda **o: nn.BatchNorm2d(6, **o), lambda **o: torch.nn.BatchNorm2d(6, **o)),
}


def filled(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in module.state_dict().values():
            if value.is_floating_point():
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
    return module


def images(seed: int = 0) -> Tensor:
    return torch.randn(3, 6, 5, 4, generator=torch.Generator().manual_seed(seed)) * 2 + 1


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("affine", [True, False])
def test_state_dicts_are_interchangeable(pair: str, affine: bool) -> None:
    ours, theirs = (make(affine=affine) for make in PAIRS[pair])
    filled(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours.load_state_dict(theirs.state_dict()) == torch.nn.modules.module._IncompatibleKeys([], [])
    back = PAIRS[pair][1](affine=affine)
    back.load_state_dict(ours.state_dict())
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)
        assert torch.equal(back.state_dict()[name], value)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_and_gradients_are_torchs(pair: str, affine: bool, training: bool, dtype: torch.dtype) -> None:
    ours, theirs = (make(affine=affine).to(dtype).train(training) for make in PAIRS[pair])
    ours.load_state_dict(filled(theirs).state_dict())
    x = images().to(dtype)
    results = []
    for module in (ours, theirs):
        leaf = x.clone().requires_grad_()
        output = module(leaf)
        output.sin().sum().backward()
        results.append([output, leaf.grad, *(p.grad for p in module.parameters()), *module.state_dict().values()])
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("momentum", [0.1, 0.9, None])
@pytest.mark.parametrize("track", [True, False])
def test_batch_norm_tracks_as_torch_does(momentum: float | None, track: bool) -> None:
    ours = nn.BatchNorm2d(6, momentum=momentum, track_running_stats=track)
    theirs = torch.nn.BatchNorm2d(6, momentum=momentum, track_running_stats=track)
    for step in range(6):
        for module in (ours, theirs):
            module.train(step != 3)
        torch.testing.assert_close(ours(images(step)), theirs(images(step)))
        assert list(ours.state_dict()) == list(theirs.state_dict())
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value)
    if track:
        assert ours.num_batches_tracked.item() == 5
        ours.reset_running_stats()
        assert ours.running_var.eq(1).all()


def test_batch_norm_with_tracking_switched_off_later() -> None:
    """torch keeps the buffers but leaves them alone in training, and uses them in evaluation."""
    ours, theirs = nn.BatchNorm2d(6), torch.nn.BatchNorm2d(6)
    for module in (ours, theirs):
        module.track_running_stats = False
    for training in (True, False):
        for module in (ours, theirs):
            module.train(training)
        torch.testing.assert_close(ours(images()), theirs(images()))
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value)


def test_batch_norm_with_its_statistics_taken_away() -> None:
    ours, theirs = nn.BatchNorm2d(6).eval(), torch.nn.BatchNorm2d(6).eval()
    for module in (ours, theirs):
        module.running_mean = module.running_var = None
    torch.testing.assert_close(ours(images()), theirs(images()))


@pytest.mark.parametrize("activation", ["relu", "silu", "elu", "leaky_relu"])
def test_the_activation_is_inside(activation: str) -> None:
    apply = {"relu": F.relu, "silu": F.silu, "elu": F.elu, "leaky_relu": F.leaky_relu}[activation]
    x = images()
    torch.testing.assert_close(nn.GroupNorm(3, 6, activation=activation)(x), apply(F.group_norm(x, 3)))
    torch.testing.assert_close(
        nn.BatchNorm2d(6, activation=activation)(x), apply(F.batch_norm(x, None, None, training=True))
    )
    module = nn.BatchNorm2d(6, activation=activation, order="act_norm")
    torch.testing.assert_close(module(x), F.batch_norm(apply(x), None, None, training=True))


def test_the_activations_parameter_is_passed_on() -> None:
    x = images()
    ours = nn.GroupNorm(3, 6, activation="leaky_relu", activation_param=0.4)(x)
    torch.testing.assert_close(ours, F.leaky_relu(F.group_norm(x, 3), 0.4))
    ours = nn.BatchNorm2d(6, activation="elu", activation_param=0.4)(x)
    torch.testing.assert_close(ours, F.elu(F.batch_norm(x, None, None, training=True), 0.4))


def test_batch_norm_adds_its_residual_before_the_activation() -> None:
    x, residual = images(), images(1)
    ours = nn.BatchNorm2d(6, activation="relu")(x, residual)
    torch.testing.assert_close(ours, F.relu(F.batch_norm(x, None, None, training=True) + residual))


@pytest.mark.parametrize("make", [lambda **o: nn.GroupNorm(3, 6, **o), lambda **o: nn.BatchNorm2d(6, **o)])
def test_wrong_options_are_refused_when_the_module_is_made(make: Make) -> None:
    with pytest.raises(ValueError, match="activation must be one of identity, relu"):
        make(activation="swish")
    with pytest.raises(ValueError, match="activation_param is for"):
        make(activation="relu", activation_param=0.1)


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_channels .*must be divisible by num_groups"):
        nn.GroupNorm(4, 6)
    with pytest.raises(ValueError, match="order must be one of norm_act, act_norm"):
        nn.BatchNorm2d(6, order="both")
    with pytest.raises(ValueError, match="expected 4D input"):
        nn.BatchNorm2d(6)(torch.randn(2, 6, 3))
    with pytest.raises(ValueError, match="weight must have shape"):
        nn.GroupNorm(3, 6)(torch.randn(2, 9, 4))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        nn.BatchNorm2d(6)(torch.randn(1, 6, 1, 1))


@pytest.mark.parametrize("pair", PAIRS)
def test_copies_and_pickles_are_whole(pair: str) -> None:
    module = filled(PAIRS[pair][0](activation="silu")).eval()
    expected = module(images())
    saved = io.BytesIO()
    torch.save(module.state_dict(), saved)
    saved.seek(0)
    loaded = PAIRS[pair][0](activation="silu").eval()
    loaded.load_state_dict(torch.load(saved, weights_only=True))
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded):
        assert torch.equal(twin(images()), expected)
        assert repr(twin) == repr(module)


def test_repr_tells_what_is_fused() -> None:
    assert repr(nn.GroupNorm(3, 6)).replace("GroupNorm", "") == repr(torch.nn.GroupNorm(3, 6)).replace("GroupNorm", "")
    assert "activation=silu" in repr(nn.GroupNorm(3, 6, activation="silu"))
    assert "activation=elu(0.5)" in repr(nn.GroupNorm(3, 6, activation="elu", activation_param=0.5))
    assert "order=act_norm" in repr(nn.BatchNorm2d(6, activation="relu", order="act_norm"))
    assert "activation" not in repr(nn.BatchNorm2d(6))


def test_they_are_torchs_modules_to_tools_that_look_for_them() -> None:
    assert isinstance(nn.GroupNorm(3, 6), torch.nn.GroupNorm)
    assert isinstance(nn.BatchNorm2d(6), torch.nn.BatchNorm2d)
    averaged = torch.optim.swa_utils.AveragedModel(torch.nn.Sequential(nn.BatchNorm2d(6)))
    torch.optim.swa_utils.update_bn([images(seed) for seed in range(3)], averaged)
    expected = torch.nn.BatchNorm2d(6, momentum=None)
    for seed in range(3):
        expected(images(seed))
    torch.testing.assert_close(averaged.module[0].running_var, expected.running_var)


def test_parametrizations_and_vector_tools_work() -> None:
    model = torch.nn.Sequential(nn.GroupNorm(3, 6, activation="silu"), nn.BatchNorm2d(6))
    vector = torch.nn.utils.parameters_to_vector(model.parameters())
    torch.nn.utils.vector_to_parameters(vector * 2, model.parameters())
    assert model[0].weight.eq(2).all()
    torch.nn.utils.parametrize.register_parametrization(model[0], "weight", Positive())
    model(images()).sum().backward()
    assert model[0].parametrizations.weight.original.grad is not None
    assert torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).isfinite()


class Positive(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(x)


@pytest.mark.parametrize("pair", PAIRS)
def test_devices_and_dtypes_are_passed_to_the_parameters(pair: str) -> None:
    module = PAIRS[pair][0](device="meta", dtype=torch.bfloat16)
    assert {p.device.type for p in module.parameters()} == {"meta"}
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    empty = module.to_empty(device="cpu")
    assert next(empty.parameters()).device.type == "cpu"


@pytest.mark.parametrize("pair", PAIRS)
def test_half_precision_modules(pair: str) -> None:
    ours, theirs = (make().to(torch.bfloat16) for make in PAIRS[pair])
    ours.load_state_dict(filled(theirs).state_dict())
    x = images().to(torch.bfloat16)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0.02, atol=0.02)
