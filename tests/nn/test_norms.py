"""The norm modules of (N, C, *) stand in for torch.nn's: weights, modes, buffers, errors, module tools."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdl import nn
from tests.support.accuracy import assert_as_right_as_torch

pytestmark = pytest.mark.usefixtures("backend")

Make = Callable[..., torch.nn.Module]


@dataclass(frozen=True)
class Pair:
    """A module of ours and torch's, of six features, and the shape of input that both take."""

    ours: Make
    theirs: Make
    shape: tuple[int, ...]

    def input(self, seed: int = 0) -> Tensor:
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(seed)) * 2 + 1

    def make(self, seed: int = 0, **options: object) -> tuple[torch.nn.Module, torch.nn.Module]:
        """Both modules with the same random numbers in every parameter and buffer."""
        ours, theirs = self.ours(**options), filled(self.theirs(**options), seed)
        ours.load_state_dict(theirs.state_dict())
        return ours, theirs


IMAGES = (3, 6, 5, 4)
BATCH_NORMS = {
    "batch_norm_1d": Pair(partial(nn.BatchNorm1d, 6), partial(torch.nn.BatchNorm1d, 6), (3, 6, 7)),
    "batch_norm_1d_without_length": Pair(partial(nn.BatchNorm1d, 6), partial(torch.nn.BatchNorm1d, 6), (5, 6)),
    "batch_norm_2d": Pair(partial(nn.BatchNorm2d, 6), partial(torch.nn.BatchNorm2d, 6), IMAGES),
    "batch_norm_3d": Pair(partial(nn.BatchNorm3d, 6), partial(torch.nn.BatchNorm3d, 6), (2, 6, 3, 1, 4)),
    "sync_batch_norm": Pair(partial(nn.SyncBatchNorm, 6), partial(torch.nn.SyncBatchNorm, 6), IMAGES),
}
PAIRS = {
    "group_norm": Pair(partial(nn.GroupNorm, 3, 6), partial(torch.nn.GroupNorm, 3, 6), IMAGES),
    "instance_norm_1d": Pair(partial(nn.InstanceNorm1d, 6), partial(torch.nn.InstanceNorm1d, 6), (3, 6, 7)),
    "instance_norm_2d": Pair(partial(nn.InstanceNorm2d, 6), partial(torch.nn.InstanceNorm2d, 6), IMAGES),
    "instance_norm_3d": Pair(partial(nn.InstanceNorm3d, 6), partial(torch.nn.InstanceNorm3d, 6), (2, 6, 3, 1, 4)),
    **BATCH_NORMS,
}
EVERY = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
EVERY_BATCH_NORM = pytest.mark.parametrize("pair", BATCH_NORMS.values(), ids=BATCH_NORMS)


def filled(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in module.state_dict().values():
            if value.is_floating_point():
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
    return module


def images(seed: int = 0) -> Tensor:
    return PAIRS["batch_norm_2d"].input(seed)


def assert_same_state(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)


@EVERY
@pytest.mark.parametrize("affine", [True, False])
def test_state_dicts_are_interchangeable(pair: Pair, affine: bool) -> None:
    ours, theirs = pair.ours(affine=affine), filled(pair.theirs(affine=affine))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours.load_state_dict(theirs.state_dict()) == torch.nn.modules.module._IncompatibleKeys([], [])
    back = pair.theirs(affine=affine)
    back.load_state_dict(ours.state_dict())
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)
        assert torch.equal(back.state_dict()[name], value)


@EVERY_BATCH_NORM
def test_the_count_of_batches_is_loaded_and_goes_on(pair: Pair) -> None:
    ours, theirs = pair.make(momentum=None)
    for seed in range(3):
        theirs(pair.input(seed))
    ours.load_state_dict(theirs.state_dict())
    for module in (ours, theirs):
        module(pair.input(3))
    assert ours.num_batches_tracked.item() == 4
    assert_same_state(ours, theirs)


@EVERY
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_and_gradients_are_torchs(pair: Pair, affine: bool, training: bool, dtype: torch.dtype) -> None:
    ours, theirs = (module.to(dtype).train(training) for module in pair.make(affine=affine))
    x = pair.input().to(dtype)
    results = []
    for module in (ours, theirs):
        leaf = x.clone().requires_grad_()
        output = module(leaf)
        output.sin().sum().backward()
        results.append([output, leaf.grad, *(p.grad for p in module.parameters())])
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other)
    assert_same_state(ours, theirs)


@EVERY
@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded", "channels_last"])
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_views_and_a_large_mean_come_out_right(pair: Pair, layout: str, shift: float) -> None:
    """Against float64, as right as torch is with a contiguous copy."""
    ours, theirs = pair.make(affine=True)
    wide = torch.randn([2 * n for n in pair.shape], generator=torch.Generator().manual_seed(1)) + shift
    halves = tuple(slice(None, None, 2) for _ in pair.shape)
    x = {
        "sliced": lambda: wide[halves],
        "transposed": lambda: wide.transpose(0, -1).contiguous().transpose(0, -1)[tuple(slice(n) for n in pair.shape)],
        "expanded": lambda: (
            wide[tuple(slice(n) for n in pair.shape)][:, :, ..., :1].expand(pair.shape)
            if len(pair.shape) > 2
            else wide[:5, :6]
        ),
        "channels_last": lambda: wide[halves].movedim(1, -1).contiguous().movedim(-1, 1),
    }[layout]()
    assert x.shape == pair.shape
    exact = copy.deepcopy(theirs).double()
    outputs = ours(x), exact(x.double()), theirs(x.contiguous())
    assert_as_right_as_torch("output", *outputs)
    for name, value in exact.named_buffers():
        if value.is_floating_point():
            assert_as_right_as_torch(name, ours.get_buffer(name), value, theirs.get_buffer(name))


@EVERY_BATCH_NORM
@pytest.mark.parametrize("momentum", [0.1, 0.9, None])
@pytest.mark.parametrize("track", [True, False])
def test_batch_norm_tracks_as_torch_does(pair: Pair, momentum: float | None, track: bool) -> None:
    ours, theirs = pair.make(momentum=momentum, track_running_stats=track)
    for step in range(6):
        for module in (ours, theirs):
            module.train(step != 3)
        torch.testing.assert_close(ours(pair.input(step)), theirs(pair.input(step)))
        assert_same_state(ours, theirs)
    if track:
        assert ours.num_batches_tracked.item() == 5
        ours.reset_running_stats()
        assert ours.running_var.eq(1).all()


@EVERY_BATCH_NORM
def test_batch_norm_with_tracking_switched_off_later(pair: Pair) -> None:
    """torch keeps the buffers but leaves them alone in training, and uses them in evaluation."""
    ours, theirs = pair.make()
    for module in (ours, theirs):
        module.track_running_stats = False
    for training in (True, False):
        for module in (ours, theirs):
            module.train(training)
        torch.testing.assert_close(ours(pair.input()), theirs(pair.input()))
        assert_same_state(ours, theirs)


@EVERY_BATCH_NORM
def test_batch_norm_with_its_statistics_taken_away(pair: Pair) -> None:
    ours, theirs = (module.eval() for module in pair.make())
    for module in (ours, theirs):
        module.running_mean = module.running_var = None
    torch.testing.assert_close(ours(pair.input()), theirs(pair.input()))


@EVERY_BATCH_NORM
def test_a_batch_without_samples_counts_and_changes_nothing_else(pair: Pair) -> None:
    ours, theirs = pair.make()
    for module in (ours, theirs):
        assert module(pair.input()[:0]).shape == (0, *pair.shape[1:])
    assert_same_state(ours, theirs)


@pytest.mark.parametrize("activation", ["relu", "silu", "elu", "leaky_relu"])
def test_the_activation_is_inside(activation: str) -> None:
    apply = {"relu": F.relu, "silu": F.silu, "elu": F.elu, "leaky_relu": F.leaky_relu}[activation]
    x = images()
    torch.testing.assert_close(nn.GroupNorm(3, 6, activation=activation)(x), apply(F.group_norm(x, 3)))
    for pair in BATCH_NORMS.values():
        x = pair.input()
        normalized = F.batch_norm(x, None, None, training=True)
        torch.testing.assert_close(pair.ours(activation=activation)(x), apply(normalized))
        module = pair.ours(activation=activation, order="act_norm")
        torch.testing.assert_close(module(x), F.batch_norm(apply(x), None, None, training=True))


def test_the_activations_parameter_is_passed_on() -> None:
    x = images()
    ours = nn.GroupNorm(3, 6, activation="leaky_relu", activation_param=0.4)(x)
    torch.testing.assert_close(ours, F.leaky_relu(F.group_norm(x, 3), 0.4))
    ours = nn.BatchNorm2d(6, activation="elu", activation_param=0.4)(x)
    torch.testing.assert_close(ours, F.elu(F.batch_norm(x, None, None, training=True), 0.4))


@EVERY_BATCH_NORM
def test_batch_norm_adds_its_residual_before_the_last_step(pair: Pair) -> None:
    x, residual = pair.input(), pair.input(1)
    ours = pair.ours(activation="relu")(x, residual)
    torch.testing.assert_close(ours, F.relu(F.batch_norm(x, None, None, training=True) + residual))
    ours = pair.ours(activation="relu", order="act_norm")(x, residual)
    torch.testing.assert_close(ours, F.batch_norm(F.relu(x) + residual, None, None, training=True))


@EVERY
def test_wrong_options_are_refused_when_the_module_is_made(pair: Pair) -> None:
    with pytest.raises(ValueError, match=r"^[A-Z]\w*Norm\w*: activation must be one of identity, relu"):
        pair.ours(activation="swish")
    with pytest.raises(ValueError, match="activation_param is for"):
        pair.ours(activation="relu", activation_param=0.1)


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_channels .*must be divisible by num_groups"):
        nn.GroupNorm(4, 6)
    with pytest.raises(ValueError, match="order must be one of norm_act, act_norm"):
        nn.BatchNorm2d(6, order="both")
    with pytest.raises(ValueError, match="weight must have shape"):
        nn.GroupNorm(3, 6)(torch.randn(2, 9, 4))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        nn.BatchNorm2d(6)(torch.randn(1, 6, 1, 1))


@pytest.mark.parametrize("kind", ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm"])
@pytest.mark.parametrize(
    "shape", [(6,), (2, 6), (2, 6, 3), (2, 6, 3, 2), (2, 6, 3, 2, 2), (2, 6, 3, 2, 2, 1), (1, 6), (1, 6, 1), (2, 5, 3)]
)
def test_input_is_refused_where_torch_refuses_it(kind: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    try:
        getattr(torch.nn, kind)(6)(x)
    except (ValueError, RuntimeError):
        with pytest.raises(ValueError, match=r"expected|Expected|must have shape"):
            getattr(nn, kind)(6)(x)
    else:
        assert getattr(nn, kind)(6)(x).shape == shape


@EVERY
def test_copies_and_pickles_are_whole(pair: Pair) -> None:
    module = filled(pair.ours(activation="silu")).eval()
    expected = module(pair.input())
    saved = io.BytesIO()
    torch.save(module.state_dict(), saved)
    saved.seek(0)
    loaded = pair.ours(activation="silu").eval()
    loaded.load_state_dict(torch.load(saved, weights_only=True))
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded):
        assert torch.equal(twin(pair.input()), expected)
        assert repr(twin) == repr(module)


@EVERY
def test_repr_tells_what_is_fused(pair: Pair) -> None:
    assert repr(pair.ours()) == repr(pair.theirs())
    assert repr(pair.ours(activation="silu")) == repr(pair.theirs())[:-1] + ", activation=silu)"
    assert "activation=elu(0.5)" in repr(pair.ours(activation="elu", activation_param=0.5))


@EVERY_BATCH_NORM
def test_repr_tells_the_order(pair: Pair) -> None:
    assert repr(pair.ours(activation="relu", order="act_norm")).endswith("activation=relu, order=act_norm)")


@EVERY
def test_without_a_bias_as_torch_has_it(pair: Pair) -> None:
    """``bias=False`` is an argument of torch's norms in 2.13, and not of every version that is served."""
    try:
        theirs = pair.theirs(affine=True, bias=False)
    except TypeError:
        pytest.skip("this torch has no norms without a bias")
    ours = pair.ours(affine=True, bias=False)
    ours.load_state_dict(filled(theirs).state_dict())
    assert ours.bias is None
    torch.testing.assert_close(ours(pair.input()), theirs(pair.input()))


def test_they_are_torchs_modules_to_tools_that_look_for_them() -> None:
    for name, pair in PAIRS.items():
        kind = torch.nn.modules.batchnorm._BatchNorm if name == "sync_batch_norm" else type(pair.theirs())
        assert isinstance(pair.ours(), kind)
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


@EVERY
def test_devices_and_dtypes_are_passed_to_the_parameters(pair: Pair) -> None:
    module = pair.ours(affine=True, device="meta", dtype=torch.bfloat16)
    assert {p.device.type for p in module.parameters()} == {"meta"}
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    empty = module.to_empty(device="cpu")
    assert next(empty.parameters()).device.type == "cpu"


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_modules(pair: Pair, dtype: torch.dtype) -> None:
    ours, theirs = (module.to(dtype) for module in pair.make())
    exact = copy.deepcopy(theirs).double()
    x = pair.input().to(dtype)
    assert_as_right_as_torch("output", ours(x), exact(x.double()), theirs(x))
    for name, value in exact.named_buffers():
        if value.is_floating_point():
            assert_as_right_as_torch(name, ours.get_buffer(name), value, theirs.get_buffer(name))


@EVERY
@pytest.mark.parametrize("training", [True, False])
def test_they_compile_whole(pair: Pair, training: bool, backend: str) -> None:
    if backend == "cpu":
        pytest.skip("one backend shows it; compiling takes seconds")
    module = filled(pair.ours(activation="silu")).train(training)
    twin = copy.deepcopy(module)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    results = []
    for call in (compiled, twin):
        leaf = pair.input().requires_grad_()
        output = call(leaf)
        output.sin().sum().backward()
        results.append((output, leaf.grad))
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other)
    assert_same_state(module, twin)
    torch._dynamo.reset()
