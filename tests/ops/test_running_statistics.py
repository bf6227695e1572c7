"""Running statistics: updated as torch updates them, in place, in whatever dtype and strides they have."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import fastdl
from fastdl.ops import batch_norm, conv_norm_act
from fastdl.reference import batch_norm as reference
from tests.support.backends import BACKENDS_UNDER_TEST, short
from tests.support.layouts import LAYOUTS

SHAPE = (4, 6, 5, 3)


@pytest.fixture(params=["reference", "cpu"])
def backend(request: pytest.FixtureRequest):
    BACKENDS_UNDER_TEST[request.param].device()
    with fastdl.use_backend(request.param):
        yield request.param


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced_space"])
@pytest.mark.parametrize("momentum", [0.0, 0.1, 1 / 3, 1.0])
def test_many_updates_stay_with_torch(layout: str, momentum: float) -> None:
    ours = torch.randn(6, dtype=torch.float64), torch.rand(6, dtype=torch.float64)
    theirs = ours[0].clone(), ours[1].clone()
    for _ in range(20):
        x = LAYOUTS[layout](SHAPE, lambda shape: torch.randn(shape, dtype=torch.float64)) * 3 + 2
        batch_norm(x, *ours, training=True, momentum=momentum, activation="relu")
        F.batch_norm(x, *theirs, training=True, momentum=momentum)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=short)
@pytest.mark.parametrize("running_dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=short)
def test_statistics_of_any_dtype(dtype: torch.dtype, running_dtype: torch.dtype) -> None:
    x = torch.randn(SHAPE).to(dtype)
    mean, variance = torch.zeros(6, dtype=running_dtype), torch.ones(6, dtype=running_dtype)
    batch_norm(x, mean, variance, training=True)
    expected_mean, expected_variance = torch.zeros(6, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
    reference(x.double(), expected_mean, expected_variance, training=True)
    tolerance = 4 * max(torch.finfo(running_dtype).eps, torch.finfo(torch.float32).eps)
    assert (mean.dtype, variance.dtype) == (running_dtype, running_dtype)
    torch.testing.assert_close(mean.double(), expected_mean, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(variance.double(), expected_variance, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("training", [True, False])
def test_statistics_that_are_views(training: bool) -> None:
    x = torch.randn(SHAPE)
    storage = torch.zeros(2, 6, 3)
    storage[1] = 1
    mean, variance = storage[0, :, 1], storage[1, :, 2]
    dense = mean.clone(), variance.clone()
    ours = batch_norm(x, mean, variance, training=training, activation="silu")
    expected = F.silu(F.batch_norm(x, *dense, training=training))
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(mean, dense[0])
    torch.testing.assert_close(variance, dense[1])
    assert torch.equal(storage[0, :, [0, 2]], torch.zeros(6, 2))  # the neighbours in memory


@pytest.mark.usefixtures("backend")
def test_either_statistic_may_be_absent_in_training() -> None:
    x = torch.randn(SHAPE)
    mean, variance = torch.zeros(6), torch.ones(6)
    batch_norm(x, mean, None, training=True)
    batch_norm(x, None, variance, training=True)
    expected = torch.zeros(6), torch.ones(6)
    F.batch_norm(x, *expected, training=True)
    torch.testing.assert_close(mean, expected[0])
    torch.testing.assert_close(variance, expected[1])


@pytest.mark.usefixtures("backend")
def test_evaluation_changes_nothing() -> None:
    x = torch.randn(SHAPE)
    mean, variance = torch.randn(6), torch.rand(6)
    before = mean.clone(), variance.clone()
    versions = mean._version, variance._version
    batch_norm(x, mean, variance, activation="silu", residual=x)
    assert torch.equal(mean, before[0])
    assert torch.equal(variance, before[1])
    assert (mean._version, variance._version) == versions


@pytest.mark.usefixtures("backend")
def test_an_update_is_visible_to_autograd() -> None:
    """Else an evaluation whose statistics change afterwards would take a second derivative with the new ones."""
    mean, variance = torch.zeros(6), torch.ones(6)
    versions = mean._version, variance._version
    batch_norm(torch.randn(SHAPE), mean, variance, training=True)
    assert mean._version > versions[0]
    assert variance._version > versions[1]


@pytest.mark.usefixtures("backend")
def test_gradients_do_not_pass_through_statistics() -> None:
    x = torch.randn(SHAPE, requires_grad=True)
    mean, variance = torch.zeros(6), torch.ones(6)
    batch_norm(x, mean, variance, training=True).square().sum().backward()
    assert not mean.requires_grad
    assert mean.grad_fn is None
    assert not variance.requires_grad


@pytest.mark.usefixtures("backend")
def test_two_values_a_channel_have_an_unbiased_variance() -> None:
    """The factor n / (n - 1) is 2 here: the biased variance would be half."""
    x = torch.tensor([[1.0], [3.0]])
    mean, variance = torch.zeros(1), torch.zeros(1)
    batch_norm(x, mean, variance, training=True, momentum=1.0)
    assert mean.item() == pytest.approx(2.0)
    assert variance.item() == pytest.approx(2.0)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("order", ["norm_act", "act_norm"])
def test_statistics_are_of_what_is_normalised(order: str) -> None:
    x, residual = torch.randn(SHAPE), torch.randn(SHAPE)
    mean, variance = torch.zeros(6), torch.zeros(6)
    batch_norm(x, mean, variance, training=True, momentum=1.0, activation="relu", order=order, residual=residual)
    normalised = x if order == "norm_act" else F.relu(x) + residual
    torch.testing.assert_close(mean, normalised.mean((0, 2, 3)))
    torch.testing.assert_close(variance, normalised.var((0, 2, 3)))


@pytest.mark.usefixtures("backend")
def test_an_empty_batch_leaves_statistics_alone() -> None:
    mean, variance = torch.full((6,), 0.5), torch.full((6,), 2.0)
    assert batch_norm(torch.randn(0, 6, 4, 4), mean, variance, training=True).shape == (0, 6, 4, 4)
    assert batch_norm(torch.randn(2, 6, 0, 4), mean, variance, training=True).shape == (2, 6, 0, 4)
    assert torch.equal(mean, torch.full((6,), 0.5))
    assert torch.equal(variance, torch.full((6,), 2.0))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_no_channels(layout: str) -> None:
    """torch refuses this; an empty result is the plain reading of it."""
    x = LAYOUTS[layout]((2, 0, 3, 3), torch.randn).requires_grad_()
    weight = torch.ones(0, requires_grad=True)
    output = batch_norm(x, torch.zeros(0), torch.ones(0), weight, training=True, activation="relu")
    gradients = torch.autograd.grad(output, (x, weight), torch.ones_like(output))
    assert [tuple(t.shape) for t in (output, *gradients)] == [(2, 0, 3, 3), (2, 0, 3, 3), (0,)]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("momentum", [0.1, 0.7])
def test_instance_norm_averages_its_statistics_over_the_batch(momentum: float) -> None:
    x, weight = torch.randn(SHAPE), torch.eye(6).view(6, 6, 1, 1)
    ours, theirs = (torch.zeros(6), torch.ones(6)), (torch.zeros(6), torch.ones(6))
    output = conv_norm_act(
        x,
        weight,
        norm="instance",
        running_mean=ours[0],
        running_var=ours[1],
        training=True,
        momentum=momentum,
        activation="tanh",
    )
    expected = F.instance_norm(x, *theirs, use_input_stats=True, momentum=momentum).tanh()
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1])


@pytest.mark.usefixtures("backend")
def test_inference_mode() -> None:
    x, mean, variance = torch.randn(SHAPE), torch.zeros(6), torch.ones(6)
    with torch.inference_mode():
        output = batch_norm(x, mean, variance, activation="relu")
    assert output.is_inference()
    torch.testing.assert_close(output.clone(), F.relu(F.batch_norm(x, mean, variance)))
