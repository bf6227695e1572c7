"""Who looks on while an op's kernels run: nobody, or `fastdl.profile`.

Every route looks at ``annotate`` where it calls a kernel, not where it chose it, so that the backward of a forward that
nobody watched is seen as well. While it is None that is all it costs: 10 ns, of 9 us for the smallest call of a norm
(Python 3.11, one thread of an AMD EPYC).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastdl.ops.dispatch import Implementation

FORWARD, BACKWARD = "forward", "backward"

Annotate = Callable[[Any, str, Implementation | None, Callable[..., Any]], Callable[..., Any]]
"""``annotate(op, direction, kernels, function)``: ``function``, announced each time that it runs.

It takes what the kernels of ``op`` take in that direction; ``kernels`` is what it is of, None for the reference.
"""

annotate: Annotate | None = None


def announced(
    op: Any, direction: str, kernels: Implementation, function: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """A kernel as ``annotate`` gives it; as it is where that was taken away meanwhile, in another thread.

    ``function`` is the kernel, where it is not the one of that direction.
    """
    if function is None:
        function = kernels.forward if direction == FORWARD else kernels.backward
    look_on = annotate
    return function if look_on is None else look_on(op, direction, kernels, function)


def announced_reference(op: Any, direction: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same for the reference's function, which takes what a kernel would."""
    look_on = annotate
    return function if look_on is None else look_on(op, direction, None, function)
