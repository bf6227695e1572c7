"""Values: one function a kind, from a shape and a generator to float64 values, which the case then rounds to its dtype.

A kind of value joins the parity tests by adding a row to ``VALUES``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

Shape = tuple[int, ...]


def normal(shape: Shape, generator: Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def varied(shape: Shape, generator: Generator) -> Tensor:
    """Another mean and deviation for every sample and channel: statistics of the wrong group show at once."""
    rows = shape[:2]
    broadcast = (*rows, *[1] * (len(shape) - len(rows)))
    mean = normal(rows, generator).view(broadcast)
    deviation = (0.5 + torch.rand(rows, generator=generator, dtype=torch.float64)).view(broadcast)
    return mean + deviation * normal(shape, generator)


def shifted(shape: Shape, generator: Generator) -> Tensor:
    """Mean 1e4, deviation 1: the difference of two sums of squares has no digit left here in float32."""
    return 1e4 + normal(shape, generator)


def shifted_little(shape: Shape, generator: Generator) -> Tensor:
    """Mean 30, deviation 1: as far off as half precision can resolve."""
    return 30 + normal(shape, generator)


def tiny(shape: Shape, generator: Generator) -> Tensor:
    return 1e-20 * normal(shape, generator)


def small(shape: Shape, generator: Generator) -> Tensor:
    return 1e-4 * normal(shape, generator)


def huge(shape: Shape, generator: Generator) -> Tensor:
    """Squares near 1e30: far from float32's 3e38, but not if a kernel sums too much of them before it scales."""
    return 1e15 * normal(shape, generator)


def large(shape: Shape, generator: Generator) -> Tensor:
    """As large as float16 lets the squares be where they are taken in float32, and far beyond where not."""
    return 1e3 * normal(shape, generator)


def constant(shape: Shape, generator: Generator) -> Tensor:
    return torch.full(shape, 3.0, dtype=torch.float64)


def zero(shape: Shape, generator: Generator) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)


def outlier(shape: Shape, generator: Generator) -> Tensor:
    """One element of a thousand deviations."""
    values = varied(shape, generator)
    if values.numel():
        values.view(-1)[values.numel() // 2] = 1e3
    return values


def first_is_outlier(shape: Shape, generator: Generator) -> Tensor:
    """The same at the very start, where a kernel may take its shift from."""
    values = varied(shape, generator)
    if values.numel():
        values.view(-1)[0] = 1e3
    return values


VALUES: dict[str, Callable[[Shape, Generator], Tensor]] = {
    function.__name__: function
    for function in (
        normal,
        varied,
        shifted,
        shifted_little,
        tiny,
        small,
        huge,
        large,
        constant,
        zero,
        outlier,
        first_is_outlier,
    )
}
