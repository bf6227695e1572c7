"""The tensors of a case, and how many sets of them calls go through in turn.

Timing one tensor again and again would measure the cache. In training a layer's input was written by the layer before
it, so a small one is in the cores' own caches and a large one is not. Hence:

- a case whose input, output and their gradients together fit in the cores' own caches (L2) uses one set of inputs;
- any other goes through so many sets that inputs and output gradients together are twice the last-level cache, so that
  either alone fills it before a set comes round again; bounded by an eighth of the free memory and by `MOST_SETS`.

On a GPU the L2 is shared by all cores, and nothing stays in it from layer to layer: every case rotates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from . import machine
from .cases import DTYPES, Benchmark, Case

MOST_SETS = 128
SMALL_MACHINE_SETS = 2


@dataclass(frozen=True)
class Operands:
    """``inputs`` are leaves that need a gradient, ``grads`` the gradients of the outputs, one each a set."""

    inputs: list[Tensor]
    grads: list[Tensor]
    parameters: tuple[Tensor, ...]

    @property
    def differentiable(self) -> tuple[Tensor, ...]:
        return tuple(tensor for tensor in self.parameters if tensor.requires_grad)


def count_sets(tensor_bytes: int, device: torch.device, threads: int) -> int:
    """How many sets of input and output gradient a case goes through, by the rule above."""
    if device.type == "cuda":
        shared = machine.cuda_l2_bytes(device)
        free = torch.cuda.mem_get_info(device)[0]
    else:
        caches = machine.cpu_caches()
        if 4 * tensor_bytes <= caches.private_bytes * threads:
            return 1
        shared, free = caches.shared_bytes, machine.available_memory()
    wanted = math.ceil(shared / tensor_bytes)
    affordable = free // 8 // (2 * tensor_bytes)
    return max(SMALL_MACHINE_SETS, min(wanted, affordable, MOST_SETS))


def make_operands(benchmark: Benchmark, case: Case, device: torch.device, sets: int) -> Operands:
    """Normally distributed inputs; all sets hold the same values, each at its own address."""
    generator = torch.Generator(device=device).manual_seed(0)

    def draw() -> Tensor:
        values = torch.randn(case.size, generator=generator, device=device)
        return benchmark.arrange(case, values.to(DTYPES[case.dtype]))

    first_input, first_grad = draw(), draw()
    inputs = [first_input, *(benchmark.arrange(case, first_input.clone()) for _ in range(sets - 1))]
    grads = [first_grad, *(first_grad.clone() for _ in range(sets - 1))]
    return Operands([x.requires_grad_() for x in inputs], grads, benchmark.parameters(case, device))
