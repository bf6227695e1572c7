"""How right is right: an error against float64 of 1.5 times that of torch's own ops, plus one unit in the last."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# The error of torch's own composition is the yardstick, unless torch itself is badly off (its channels_last GroupNorm
# loses every digit at mean 1e4): then these bounds, relative to the largest value of the truth, hold in its place.
SANE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}

# In float64 the truth is itself rounded, so two right answers may differ by what each of them has lost.
FLOAT64_SLACK = 64


def unit_in_last_place(dtype: torch.dtype, value: float) -> float:
    """The distance between ``value`` and the next larger number of this dtype."""
    if not math.isfinite(value):
        return 0.0
    information = torch.finfo(dtype)
    if value < information.tiny:
        return information.tiny * information.eps
    return 2.0 ** math.floor(math.log2(value)) * information.eps


def assert_as_right_as_torch(
    name: str,
    ours: Tensor,
    truth: Tensor,
    baseline: Tensor,
    *,
    typical: float = 0.0,
    bounded: bool = False,
    floor: float = 0.0,
    factor: float = 1.5,
    units: float = 1.0,
) -> None:
    """Asserts DESIGN's rule for one output or gradient.

    Args:
        name: what is compared, for the message.
        ours: the result under test.
        truth: the same in float64.
        baseline: the same from torch's own ops, in the dtype of ``ours``.
        typical: torch's error relative to the scale, from other draws of the same problem. The largest error of a few
            numbers is a matter of luck, and torch's luck in one draw is no measure of the rounding in its method.
        bounded: whether ``SANE`` holds as well. Not where the truth is small by cancellation, as some gradients are.
        factor: how many times torch's error is allowed.
        units: how many units in the last place of the scale are allowed besides.
        floor: the least scale of the result; for gradients that are 0 but for the rounding of what cancels.
    """
    assert ours.shape == truth.shape, f"{name}: shape {tuple(ours.shape)}, expected {tuple(truth.shape)}"
    assert ours.dtype == baseline.dtype, f"{name}: dtype {ours.dtype}, torch gives {baseline.dtype}"
    assert ours.device == baseline.device, f"{name}: device {ours.device}, torch gives {baseline.device}"
    ours64, truth64, baseline64 = (t.detach().to("cpu", torch.float64) for t in (ours, truth, baseline))
    assert_nonfinite_like(name, ours64, baseline64)
    finite = baseline64.isfinite() & truth64.isfinite()
    if not finite.any():
        return
    scale = max(largest(truth64[finite]), floor)
    baseline_error = max(largest((baseline64 - truth64)[finite]), typical * scale)
    allowed = factor * baseline_error + units * unit_in_last_place(ours.dtype, scale)
    if ours.dtype == torch.float64:
        allowed += FLOAT64_SLACK * unit_in_last_place(ours.dtype, scale)
    if bounded:
        allowed = min(allowed, scale * SANE[ours.dtype])
    worst = largest((ours64 - truth64)[finite])
    assert worst <= allowed, (
        f"{name}: error {worst:.3g} at scale {scale:.3g} is over the allowed {allowed:.3g} (torch's own error is "
        f"{baseline_error:.3g}); {describe_worst(ours64, truth64, baseline64, finite)}"
    )


def relative_error(result: Tensor, truth: Tensor, scale_of: Tensor) -> float:
    """The largest error relative to the largest value of ``scale_of``, over what is finite in both; 0 for nothing."""
    result, truth, scale_of = (t.detach().to("cpu", torch.float64) for t in (result, truth, scale_of))
    finite = result.isfinite() & truth.isfinite()
    scale = largest(scale_of[scale_of.isfinite()]) if finite.any() else 0.0
    return largest((result - truth)[finite]) / scale if scale else 0.0


def largest(values: Tensor) -> float:
    return float(values.abs().max())


def assert_nonfinite_like(name: str, ours: Tensor, expected: Tensor) -> None:
    """NaN where NaN is expected, each infinity with its sign, and no more of either."""
    for kind, mask in (("NaN", torch.isnan), ("+inf", torch.isposinf), ("-inf", torch.isneginf)):
        wrong = mask(ours) != mask(expected)
        if wrong.any():
            index = tuple(wrong.nonzero()[0].tolist())
            raise AssertionError(
                f"{name}: {kind} at {int(wrong.sum())} wrong places, first at {index}: "
                f"got {ours[index].item()}, torch gives {expected[index].item()}"
            )


def describe_worst(ours: Tensor, truth: Tensor, baseline: Tensor, finite: Tensor) -> str:
    error = torch.where(finite, (ours - truth).abs(), torch.zeros_like(truth))
    index = tuple(int(i) for i in torch.unravel_index(error.argmax(), error.shape))
    return f"worst at {index}: ours {ours[index]:.9g}, truth {truth[index]:.9g}, torch {baseline[index]:.9g}"
