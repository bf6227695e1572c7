"""Trials of sizes on a device: what does not compile or answers otherwise is passed over, the rest is timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor

import fastdl
from fastdl.bench import correctness
from fastdl.bench.cases import Benchmark, Case
from fastdl.bench.gpu import GPU, GPU_QUICK, replayed
from fastdl.bench.operands import Operands
from fastdl.bench.timing import Call, Effort, Spread, Timer, interleave
from fastdl.kernels import tuned
from fastdl.kernels.tuned import Sizes

from .subjects import Plan, call_of

# Sizes that take so many times as long as the plan's own in a first look, as those do whose registers spill, are not
# timed at length.
TOO_SLOW = 1.5
LOOKS = 3
# Another tile adds up in another order. In units in the last place of the answer's scale, and of that scale, for what a
# kink may move; see `fastdl.bench.correctness`, whose truth is float64 and which measures no two of our own.
UNITS_IN_THE_LAST_PLACE = correctness.UNITS_IN_THE_LAST_PLACE
OF_THE_SCALE = correctness.A_VALUE_AT_THE_KINK
SEED = 0


class DeviceLostError(RuntimeError):
    """A trial has left the GPU's context unusable, and nothing more can be measured in this process."""


Capture = Callable[[Call, int], tuple[Call, int]]


class Trials:
    """Measures sizes of one plan in one case.

    ``rejected`` says of each that was not timed why. ``capture`` puts a call into a CUDA graph, whose replay has no
    cost of launching (`fastdl.bench.gpu.replayed`); None times the calls as they are.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        case: Case,
        plan: Plan,
        operands: Operands,
        timer: Timer,
        *,
        quick: Effort = GPU_QUICK,
        thorough: Effort = GPU,
        capture: Capture | None = replayed,
    ) -> None:
        self.benchmark, self.case, self.plan, self.operands, self.timer = benchmark, case, plan, operands, timer
        self.quick, self.thorough, self.capture = quick, thorough, capture
        self.call = call_of(benchmark, case, operands, plan.pass_name)
        self.rejected: dict[Sizes, str] = {}
        self._expected: Mapping[str, Tensor] | None = None
        self._accepted = {plan.default}

    def trying(self, sizes: Sizes) -> AbstractContextManager[None]:
        return tuned.trying(self.plan.name, sizes, self.plan.key)

    def evaluate(self, sizes: Sequence[Sizes], confirm: bool = False) -> dict[Sizes, Spread]:
        """Times of those that are right, in turns with one another; the first of ``sizes`` is taken as it is."""
        try:
            return self._evaluate(sizes, confirm)
        except RuntimeError as error:
            self._check_device(error)
            raise

    def _evaluate(self, sizes: Sequence[Sizes], confirm: bool) -> dict[Sizes, Spread]:
        first, *others = sizes
        good = [first, *(one for one in others if self._is_good(one, first))]
        effort = self.thorough if confirm else self.quick
        # The effort is a comparison of a few contenders'; there are as many here as sizes.
        return self._times(good, replace(effort, seconds=effort.seconds * max(len(good) / 2, 1.0)))

    def _is_good(self, sizes: Sizes, first: Sizes) -> bool:
        if sizes in self._accepted:
            return True
        if sizes in self.rejected:
            return False
        complaint = self._complaint(sizes) or self._too_slow(sizes, first)
        if complaint:
            self.rejected[sizes] = complaint
        else:
            self._accepted.add(sizes)
        return not complaint

    def _complaint(self, sizes: Sizes) -> str:
        """Why these sizes cannot be taken: they do not compile, do not fit, or answer otherwise."""
        if self._expected is None:
            self._expected = self._outcomes(self.plan.default)
        try:
            found = self._outcomes(sizes)
        except Exception as error:  # the compiler's, the launcher's or the driver's
            self._check_device(error)
            return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:160]}"
        return difference(found, self._expected)

    def _outcomes(self, sizes: Sizes) -> dict[str, Tensor]:
        only_forward = self.benchmark.only_forward(self.case)
        ask = correctness.outputs if only_forward else correctness.outcomes
        with self.trying(sizes), fastdl.use_backend("triton"):
            torch.manual_seed(SEED)  # of dropout
            return ask(self.benchmark.ours(self.case), self.operands)

    def _check_device(self, error: Exception) -> None:
        """Raises DeviceLostError where the GPU does not answer any more, as after an access beyond its memory."""
        if isinstance(error, DeviceLostError):
            return
        if self.operands.inputs[0].is_cuda:
            try:
                torch.cuda.synchronize()
            except RuntimeError:
                raise DeviceLostError(f"a trial has stopped the GPU: {error}") from error

    def _too_slow(self, sizes: Sizes, first: Sizes) -> str:
        seconds = []
        for one in (first, sizes):
            with self.trying(one):
                self.timer.time(self.call, 0, 1)  # plans, and compiles
                seconds.append(self.timer.time(self.call, 1, LOOKS))
        ratio = seconds[1] / max(seconds[0], 1e-9)
        return f"slow at first sight: {ratio:.1f} times as long" if ratio > TOO_SLOW else ""

    def _times(self, sizes: Sequence[Sizes], effort: Effort) -> dict[Sizes, Spread]:
        names = {str(one): one for one in sizes}
        captured = self._captured(names)
        if captured is None:
            contenders = dict.fromkeys(names, self.call)
            times = interleave(contenders, self.timer, effort, lambda name: self.trying(names[name]))
            return {names[name]: spread for name, spread in times.items()}
        calls, count = captured
        times = interleave(calls, self.timer, replace(effort, batch=0.0))
        return {names[name]: spread.of_one(count) for name, spread in times.items()}

    def _captured(self, names: Mapping[str, Sizes]) -> tuple[dict[str, Call], int] | None:
        """Each call as a graph, and how many calls one holds; None where one of them cannot be captured."""
        if self.capture is None:
            return None
        calls: dict[str, Call] = {}
        count = 1
        for name, sizes in names.items():
            try:
                with self.trying(sizes):
                    calls[name], count = self.capture(self.call, len(self.operands.inputs))
            except RuntimeError as error:
                self._check_device(error)
                self.capture = None
                return None
        return calls, count


def difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """How answers differ by more than the order of additions explains; empty where they do not."""
    for name, error in correctness.errors(dict(found), dict(expected)).items():
        scale = float(expected[name].double().abs().max())
        eps = torch.finfo(expected[name].dtype).eps
        allowed = (UNITS_IN_THE_LAST_PLACE * eps + OF_THE_SCALE) * scale
        if not error <= allowed:  # a NaN is not
            return f"another answer: the {name} differs by {error:.2e}, at most {allowed:.2e} is allowed"
    return ""
