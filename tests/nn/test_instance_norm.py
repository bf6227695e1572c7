"""fastdl.nn.InstanceNorm1d, 2d and 3d beside torch.nn's: tracked statistics, unbatched input, what is around the norm.

What they have in common with the other norms is tested in test_norms.py.
"""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdl import nn
from tests.support.accuracy import assert_as_right_as_torch
from tests.support.measure import copies, count_operators

pytestmark = pytest.mark.usefixtures("backend")

SHAPES = {1: (3, 6, 7), 2: (3, 6, 5, 4), 3: (2, 6, 3, 1, 4)}
RANKS = pytest.mark.parametrize("rank", SHAPES)


def images(rank: int = 2, seed: int = 0, shift: float = 1.0) -> Tensor:
    return torch.randn(SHAPES[rank], generator=torch.Generator().manual_seed(seed)) * 2 + shift


def pair(rank: int, **options: object) -> tuple[torch.nn.Module, torch.nn.Module]:
    ours = getattr(nn, f"InstanceNorm{rank}d")(6, **options)
    theirs = getattr(torch.nn, f"InstanceNorm{rank}d")(6, **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in theirs.state_dict().values():
            if value.is_floating_point():
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def assert_same_state(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)


@RANKS
def test_by_default_there_is_nothing_to_learn_and_nothing_tracked(rank: int) -> None:
    ours, _ = pair(rank)
    assert not ours.state_dict()
    assert not ours.affine
    assert not ours.track_running_stats


@RANKS
@pytest.mark.parametrize("momentum", [0.1, 0.9, 1.0, 0.0, None])
@pytest.mark.parametrize("affine", [True, False])
def test_statistics_are_tracked_as_torch_tracks_them(rank: int, momentum: float | None, affine: bool) -> None:
    ours, theirs = pair(rank, momentum=momentum, affine=affine, track_running_stats=True)
    for step in range(4):
        for module in (ours, theirs):
            module.train(step != 2)
        leaves = [images(rank, step).requires_grad_() for _ in range(2)]
        outputs = [module(leaf) for module, leaf in zip((ours, theirs), leaves, strict=True)]
        for output in outputs:
            output.sin().sum().backward()
        torch.testing.assert_close(*outputs)
        torch.testing.assert_close(*(leaf.grad for leaf in leaves))
        assert_same_state(ours, theirs)


def test_tracking_switched_off_later() -> None:
    """torch then takes the sample's own statistics in either mode, and goes on moving what it has."""
    ours, theirs = pair(2, track_running_stats=True)
    for module in (ours, theirs):
        module.track_running_stats = False
    for training in (True, False):
        torch.testing.assert_close(*(module.train(training)(images()) for module in (ours, theirs)))
        assert_same_state(ours, theirs)


def test_a_large_mean_is_tracked_to_the_last_place() -> None:
    ours, theirs = pair(2, track_running_stats=True, momentum=1.0)
    exact = torch.nn.InstanceNorm2d(6, track_running_stats=True, momentum=1.0, dtype=torch.float64)
    x = images(shift=1e4)
    outputs = ours(x), exact(x.double()), theirs(x)
    assert_as_right_as_torch("output", *outputs)
    torch.testing.assert_close(ours.running_mean.double(), exact.running_mean, rtol=1e-7, atol=0)
    torch.testing.assert_close(ours.running_var.double(), exact.running_var, rtol=1e-5, atol=0)


def test_a_batch_without_samples_leaves_the_statistics_alone() -> None:
    ours, _ = pair(2, track_running_stats=True)
    before = ours.running_mean.clone(), ours.running_var.clone()
    assert ours(images()[:0]).shape == (0, 6, 5, 4)
    assert torch.equal(ours.running_mean, before[0])
    assert torch.equal(ours.running_var, before[1])
    assert ours(images()[:, :, :0]).shape == (3, 6, 0, 4)
    assert torch.equal(ours.running_var, before[1])


@RANKS
@pytest.mark.parametrize("track", [True, False])
def test_one_sample_without_its_dimension(rank: int, track: bool) -> None:
    ours, theirs = pair(rank, affine=True, track_running_stats=track)
    for training in (True, False):
        for module in (ours, theirs):
            module.train(training)
        x, residual = images(rank)[0], images(rank, 1)[0]
        output = ours(x)
        assert output.shape == x.shape
        torch.testing.assert_close(output, theirs(x))
        assert_same_state(ours, theirs)
        if not track:
            torch.testing.assert_close(ours(x, residual), theirs(x) + residual)


@RANKS
@pytest.mark.parametrize("activation", ["relu", "silu", "elu"])
@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_activation_and_residual_in_either_order(rank: int, activation: str, track: bool, training: bool) -> None:
    apply = {"relu": F.relu, "silu": F.silu, "elu": F.elu}[activation]
    x, residual = images(rank), images(rank, 1)
    for order in ("norm_act", "act_norm"):
        ours, theirs = pair(rank, affine=True, track_running_stats=track)
        ours = type(ours)(6, affine=True, track_running_stats=track, activation=activation, order=order)
        ours.load_state_dict(theirs.state_dict())
        leaves = [[t.clone().requires_grad_() for t in (x, residual)] for _ in range(2)]
        mine = ours.train(training)(*leaves[0])
        theirs.train(training)
        first, second = leaves[1]
        other = apply(theirs(first) + second) if order == "norm_act" else theirs(apply(first) + second)
        for output in (mine, other):
            output.sin().sum().backward()
        torch.testing.assert_close(mine, other)
        for leaf, expected in zip(*leaves, strict=True):
            torch.testing.assert_close(leaf.grad, expected.grad)
        assert_same_state(ours, theirs)


@pytest.mark.parametrize("track", [True, False])
def test_channels_last_stays_so_without_a_copy(track: bool, backend: str) -> None:
    ours, theirs = pair(2, track_running_stats=track)
    x = images().contiguous(memory_format=torch.channels_last)
    output = ours(x)
    assert output.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(output, theirs(x))
    if backend == "cpu":
        found = copies(count_operators(lambda: ours(x)))
        # The running statistics, of six numbers, are converted and copied into.
        assert not {name for name in found if not (track and name in ("aten::copy_", "aten::_to_copy"))}


def test_the_parameters_dtype_is_not_the_inputs() -> None:
    ours, theirs = pair(2, affine=True, track_running_stats=True)
    x = images().bfloat16()
    output = ours(x)
    assert output.dtype == torch.bfloat16
    assert ours.running_mean.dtype == torch.float32
    torch.testing.assert_close(output.float(), theirs(x.float()), rtol=0.01, atol=0.01)  # one bfloat16 rounding
    torch.testing.assert_close(ours.running_var, theirs.running_var)


@pytest.mark.parametrize(
    ("rank", "shape"), [(1, (6,)), (1, (2, 6, 3, 3)), (2, (6, 3)), (2, (2, 6, 3, 3, 3)), (3, (6, 3, 3))]
)
def test_other_ranks_are_refused_in_torchs_words(rank: int, shape: tuple[int, ...]) -> None:
    ours, theirs = pair(rank)
    with pytest.raises(ValueError, match=r"expected .*D input") as found:
        ours(torch.randn(shape))
    with pytest.raises(ValueError) as expected:
        theirs(torch.randn(shape))
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("shape", [(2, 6, 1, 1), (1, 6, 1, 1), (6, 1, 1)])
@pytest.mark.parametrize("track", [True, False])
def test_one_value_a_channel_is_refused_as_torch_refuses_it(shape: tuple[int, ...], track: bool) -> None:
    for module in pair(2, track_running_stats=track):
        with pytest.raises(ValueError, match="Expected more than 1 spatial element when training"):
            module(torch.randn(shape))
    if track:
        torch.testing.assert_close(*(module.eval()(torch.ones(shape)) for module in pair(2, track_running_stats=True)))


def test_other_channels_are_refused_where_there_are_parameters_and_else_warned_of() -> None:
    x = torch.randn(2, 4, 3, 3)
    for module in pair(2, affine=True):
        with pytest.raises(ValueError, match=r"expected input's size at dim=1 to match num_features \(6\), but got: 4"):
            module(x)
        with pytest.raises(ValueError, match=r"at dim=0 to match num_features \(6\), but got: 4"):
            module(x[0])
    ours, theirs = pair(2)
    with pytest.warns(UserWarning, match="to match num_features"):
        output = ours(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(output, theirs(x))


def test_a_residual_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="residual must have the output's shape"):
        nn.InstanceNorm2d(6)(images(), images()[:1])


def test_second_derivatives() -> None:
    module = nn.InstanceNorm1d(2, affine=True, track_running_stats=True, activation="silu", dtype=torch.float64)
    x = torch.randn(2, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(module, (x,))


def test_tracking_compiles_whole(backend: str) -> None:
    if backend == "cpu":
        pytest.skip("one backend shows it; compiling takes seconds")
    ours, theirs = pair(2, affine=True, track_running_stats=True)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for step in range(2):
        torch.testing.assert_close(compiled(images(seed=step)), theirs(images(seed=step)))
    assert_same_state(ours, theirs)
    torch._dynamo.reset()
