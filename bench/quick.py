"""A comparison that takes seconds, for `fastdl demo`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastdl.ops import dispatch

from .bench_group_norm import BENCHMARK
from .cases import Case
from .correctness import errors, outcomes
from .harness import forward_backward_call
from .operands import make_operands
from .timing import CpuTimer, Effort, interleave


@dataclass(frozen=True)
class QuickComparison:
    """GroupNorm + SiLU, forward and backward, float32, NCHW.

    Attributes:
        shape, num_groups: the input, (N, C, H, W), and its groups.
        backend: what served ours; threads: how many both used.
        seconds_ours, seconds_eager: median of one forward and backward.
        error_ours, error_eager: the largest error against the definition in float64, over the output and all gradients,
            each as a share of that tensor's largest value.
        repetitions: rounds that the medians are of.
    """

    shape: tuple[int, int, int, int]
    num_groups: int
    backend: str
    threads: int
    seconds_ours: float
    seconds_eager: float
    error_ours: float
    error_eager: float
    repetitions: int

    @property
    def speedup(self) -> float:
        """eager / ours."""
        return self.seconds_eager / self.seconds_ours


def compare_group_norm(
    shape: tuple[int, int, int, int] = (8, 128, 32, 32), num_groups: int = 32, repetitions: int = 60
) -> QuickComparison:
    """Checks and times GroupNorm + SiLU beside eager torch on the CPU, in turns, for at most about three seconds.

    Raises ValueError where ``repetitions`` is below 1.
    """
    if repetitions < 1:
        raise ValueError(f"repetitions must be at least 1; got {repetitions}")
    case = Case(shape, "nchw", "float32", "silu", "demonstration", num_groups)
    operands = make_operands(BENCHMARK, case, torch.device("cpu"), sets=2)
    truth = outcomes(BENCHMARK.truth(case), operands, torch.float64)
    functions = {"ours": BENCHMARK.ours(case), "eager": BENCHMARK.eager(case)}
    worst = {}
    for name, function in functions.items():
        found = errors(outcomes(function, operands), truth)
        worst[name] = max(error / max(float(truth[tensor].abs().max()), 1e-30) for tensor, error in found.items())
    effort = Effort(seconds=2.5, warm_up=0.05, batch=0.0, least_rounds=min(repetitions, 3), most_rounds=repetitions)
    calls = {name: forward_backward_call(function, operands) for name, function in functions.items()}
    times = interleave(calls, CpuTimer(), effort)
    return QuickComparison(
        shape,
        num_groups,
        dispatch.choose("group_norm", dispatch.requested(), "cpu", torch.float32),
        torch.get_num_threads(),
        times["ours"].median,
        times["eager"].median,
        worst["ours"],
        worst["eager"],
        times["ours"].rounds,
    )
