"""The cases of test_sync_batch_norm.py, and the program of its processes.

``python -m tests.nn.sync_batch_norm_processes FOLDER`` runs every case in two of three processes, over gloo, on every
backend that is here, and leaves the results in FOLDER. The third process takes part in nothing that the first two share
by their group: what is sent to all processes instead of the group never arrives.
"""

from __future__ import annotations

import datetime
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastdl
from fastdl import nn
from fastdl.reference import activate
from tests.support.layouts import LAYOUTS
from tests.support.values import shifted, varied

BACKENDS = ("reference", "cpu")


@dataclass(frozen=True)
class Case:
    """A module, and the batch that the processes share: ``sizes`` are their numbers of samples."""

    sizes: tuple[int, int] = (3, 5)
    rest: tuple[int, ...] = (5, 3, 4)
    options: dict[str, Any] = field(default_factory=dict)
    residual: bool = False
    dtype: torch.dtype = torch.float32
    parameters: torch.dtype = torch.float32
    values: Any = varied
    layout: str = "contiguous"
    steps: int = 1
    frozen: tuple[str, ...] = ()
    seed: int = 0

    @property
    def channels(self) -> int:
        return self.rest[0]

    def module(self, group: Any = None) -> nn.SyncBatchNorm:
        module = nn.SyncBatchNorm(self.channels, dtype=self.parameters, process_group=group, **self.options)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for value in module.state_dict().values():
                if value.is_floating_point():
                    value.copy_(0.5 + torch.rand(value.shape, generator=generator))
        for name in self.frozen:
            if name != "input":
                module.get_parameter(name).requires_grad_(False)
        return module

    def operands(self, step: int = 0) -> list[Tensor]:
        """Input, residual and gradient of the whole batch."""
        generator = torch.Generator().manual_seed(1 + step + self.seed)
        shape = (sum(self.sizes), *self.rest)
        return [
            LAYOUTS[self.layout](shape, lambda larger, kind=kind: kind(larger, generator).to(self.dtype))
            for kind in (self.values, varied, varied)
        ]

    def share(self, rank: int) -> slice:
        return slice(0, self.sizes[0]) if rank == 0 else slice(self.sizes[0], sum(self.sizes))


WHOLE = slice(None)
THIRDS = (slice(0, 2), slice(2, 7), slice(7, 8))
SILU = {"activation": "silu"}
ACT_NORM = {"activation": "silu", "order": "act_norm"}
CASES = {
    "plain": Case((4, 4)),
    "uneven": Case((1, 7)),
    "one_is_empty": Case((0, 8), options={"activation": "relu"}, residual=True),
    "the_other_is_empty": Case((8, 0), options=ACT_NORM, residual=True),
    "both_are_empty": Case((0, 0), options=SILU),
    "one_value_a_channel_each": Case((1, 1), rest=(5,)),
    "silu": Case(options=SILU),
    "silu_residual": Case(options=SILU, residual=True),
    "elu_with_parameter": Case(options={"activation": "elu", "activation_param": 0.3, "eps": 0.1}),
    "identity_residual": Case(residual=True),
    "act_norm": Case(options={"activation": "gelu", "order": "act_norm"}),
    "act_norm_residual": Case(options=ACT_NORM, residual=True),
    "act_norm_of_identity_with_residual": Case(options={"order": "act_norm"}, residual=True),
    "channels_last": Case(options=SILU, residual=True, layout="channels_last"),
    "transposed": Case(options=SILU, residual=True, layout="reversed_dimensions"),
    "sliced": Case(options=ACT_NORM, residual=True, layout="every_other_channel"),
    "expanded": Case(options=SILU, layout="expanded_space"),
    "without_positions": Case((3, 9), rest=(7,), options=SILU, residual=True),
    "one_position_dimension": Case(rest=(3, 11), options=SILU),
    "three_position_dimensions": Case(rest=(3, 2, 5, 3), options=SILU, layout="channels_last"),
    "one_channel": Case(rest=(1, 3, 3), options=SILU),
    "float64": Case(dtype=torch.float64, parameters=torch.float64, options=SILU, residual=True),
    "bfloat16": Case(dtype=torch.bfloat16, options=SILU, residual=True),
    "bfloat16_act_norm": Case(dtype=torch.bfloat16, options=ACT_NORM, residual=True),
    "bfloat16_parameters": Case(dtype=torch.bfloat16, parameters=torch.bfloat16, options=SILU),
    "float16": Case(dtype=torch.float16, options=SILU, layout="channels_last"),
    "large_mean": Case((1, 7), values=shifted),
    "large_mean_silu": Case(values=shifted, options=SILU, residual=True),
    "without_parameters": Case(options={"affine": False, **SILU}, residual=True),
    "without_parameters_act_norm": Case(options={"affine": False, **ACT_NORM}),
    "cumulative": Case(options={"momentum": None}, steps=3),
    "other_momentum": Case(options={"momentum": 0.7}, steps=2),
    "untracked": Case(options={"track_running_stats": False, **SILU}),
    "frozen_parameters": Case(options=SILU, frozen=("weight", "bias")),
    "frozen_weight": Case(options=ACT_NORM, frozen=("weight",), residual=True),
    "input_without_gradient": Case(options=SILU, frozen=("input",), residual=True),
}


def run_case(case: Case, samples: slice, module: torch.nn.Module, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """Output and gradients of the last step for some of the samples, and what is in the module's buffers."""
    for step in range(case.steps):
        module.zero_grad()
        input, residual, gradient = (t[samples].detach().to(dtype or case.dtype) for t in case.operands(step))
        input.requires_grad_("input" not in case.frozen)
        leaves = [input, residual.requires_grad_()] if case.residual else [input]
        output = module(*leaves)
        output.backward(gradient)
    names = ("input", "residual")
    gradients = {name: leaf.grad for name, leaf in zip(names, leaves, strict=False)}
    gradients |= {name: p.grad for name, p in module.named_parameters()}
    return {"output": output.detach(), "gradients": gradients, "buffers": dict(module.named_buffers())}


class WholeBatch(torch.nn.Module):
    """The module under test written with torch's own ops, for one process that has the whole batch."""

    def __init__(self, case: Case, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm = case.module().to(dtype)
        self.options = case.options

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        norm = self.norm

        def act(x: Tensor) -> Tensor:
            return activate(x, self.options.get("activation", "identity"), self.options.get("activation_param"))

        def plain(x: Tensor) -> Tensor:
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked += 1
            momentum = 1 / int(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
            return F.batch_norm(
                x, norm.running_mean, norm.running_var, norm.weight, norm.bias, True, momentum, norm.eps
            )  # fmt: skip

        added = torch.zeros_like(input) if residual is None else residual
        if self.options.get("order") == "act_norm":
            return plain(act(input) + added)
        return act(plain(input) + added)


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        nn.ConvNormAct2d(3, 4, 3, activation="silu"),
        torch.nn.Conv2d(4, 4, 3),
        nn.BatchNorm2d(4, activation="relu"),
        torch.nn.Flatten(),
        torch.nn.Linear(64, 3),
    )


def samples() -> Tensor:
    return torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def train(model: torch.nn.Module, part: slice) -> dict[str, Tensor]:
    x, target = samples()[part], torch.arange(8)[part] % 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(x), target).backward()
        optimizer.step()
    return {name.removeprefix("module."): value.detach() for name, value in model.state_dict().items()}


def run_others(rank: int, group: Any) -> dict[str, Any]:
    """What is not a case: networks, modes, and errors."""
    found: dict[str, Any] = {}
    case = CASES["silu"]
    model = nn.SyncBatchNorm.convert_sync_batchnorm(network(), group)
    parallel = torch.nn.parallel.DistributedDataParallel(model, process_group=group)
    found["network"] = train(parallel, slice(rank, None, 2))
    torchs = torch.nn.SyncBatchNorm.convert_sync_batchnorm(torch.nn.Sequential(network()[0]), group)
    found["torchs_module_inside"] = torchs(samples()[rank::2]).detach()
    if rank == 0:  # in evaluation nobody waits for the other
        found["evaluation"] = case.module(group).eval()(case.operands()[0]).detach()
    spoilt = case.operands()[0][case.share(rank)].clone()
    if rank == 0:
        spoilt[0, 2] = torch.nan
    found["spoilt"] = case.module(group)(spoilt).detach()
    module = case.module(group)
    module.compile(backend="aot_eager")
    found["compiled"] = run_case(case, case.share(rank), module)
    torch._dynamo.reset()
    leaf = case.operands()[0][case.share(rank)].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(case.module(group)(leaf).sin().sum(), leaf, create_graph=True)
    try:
        gradient.sum().backward()
    except RuntimeError as error:
        found["second_derivative"] = str(error)
    return found


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=3, timeout=datetime.timedelta(seconds=90)
    )
    pair = torch.distributed.new_group([0, 1])
    alone = [torch.distributed.new_group([other]) for other in range(3)]
    case = CASES["silu"]
    results: dict[str, Any] = {}
    for backend in BACKENDS:
        if fastdl.backends()[backend].available:
            with fastdl.use_backend(backend):
                found = {
                    "alone": run_case(case, THIRDS[rank], case.module(alone[rank])),
                    "everyone": run_case(case, THIRDS[rank], case.module()),
                }
                if rank < 2:
                    found |= {name: run_case(c, c.share(rank), c.module(pair)) for name, c in CASES.items()}
                    found |= run_others(rank, pair)
                results[backend] = found
    torch.save(results, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    # Forked, so that torch is imported once; nothing has run in this process yet.
    torch.multiprocessing.start_processes(work, (sys.argv[1],), nprocs=3, start_method="fork")
