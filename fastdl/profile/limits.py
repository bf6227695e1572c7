"""The machine's own limits, measured in the run that they are compared with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from fastdl.profile.annotations import Call

MEASUREMENTS = 3


@dataclass(frozen=True)
class Limits:
    """Bytes/s of copying from main memory, read and written; and by dtype operations/s of torch's matrix product."""

    bandwidth: float
    matrix_rates: dict[str, float] = field(default_factory=dict)

    def floor(self, call: Call) -> float | None:
        """Seconds below which this machine cannot go for a call, moving and computing at the same time.

        None where its cost is not known, or the rate of its dtype was not measured.
        """
        if call.cost is None or call.cost.matrix_operations is None:
            return None
        moving = call.cost.bytes / self.bandwidth
        if not call.cost.matrix_operations:
            return moving
        rate = self.matrix_rates.get(dtype_of(call))
        return None if rate is None else max(moving, call.cost.matrix_operations / rate)


def dtype_of(call: Call) -> str:
    """Of the first tensor, which the products are of."""
    return next(iter(call.dtypes.values()), "")


def measure_limits(device: torch.device, calls: Iterable[Call]) -> Limits:
    """Measures what the calls need: the copy for all, products in each dtype that has some; half a second each.

    The best of three medians: whatever else runs on the machine makes a limit look lower, and nothing higher.
    """
    from fastdl.bench import ceilings
    from fastdl.bench.timing import Effort, timer_for

    timer, effort = timer_for(device), Effort(seconds=0.15, warm_up=0.02, least_rounds=5)
    dtypes = {dtype_of(call) for call in calls if call.cost is not None and call.cost.matrix_operations}

    def product(name: str) -> float:
        return ceilings.matrix_rate(device, getattr(torch, name), timer, effort=effort)

    return Limits(
        max(ceilings.memory_copy_bandwidth(device, timer, effort=effort) for _ in range(MEASUREMENTS)),
        {name: max(product(name) for _ in range(MEASUREMENTS)) for name in sorted(dtypes)},
    )
