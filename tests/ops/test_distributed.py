"""Two processes: DistributedDataParallel and fully_shard train a network of the modules as one process does."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch.distributed is not in this build"),
]

# Each rank trains on its half of the batch; group norm does not mix samples, so both halves together are one batch.
PROGRAM = """
import sys
import torch, fastdl
import torch.distributed as dist
import torch.multiprocessing as mp
from fastdl import nn

def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        nn.ConvNormAct2d(3, 8, 3, norm="group", num_groups=2, activation="silu"),
        nn.ConvNormAct2d(8, 8, 3, norm="layer", order="conv_act_norm", activation="gelu"),
        nn.GroupNorm(4, 8, activation="relu"),
        torch.nn.Flatten(), torch.nn.Linear(8 * 16, 4),
    )

def train(model, x, target):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), target).backward()
        optimizer.step()
    return model

def batch():
    torch.manual_seed(1)
    return torch.randn(8, 3, 8, 8), torch.randint(0, 4, (8,))

def wrap(kind, model):
    if kind == "ddp":
        return torch.nn.parallel.DistributedDataParallel(model)
    from torch.distributed.fsdp import fully_shard
    for module in model:
        if any(True for _ in module.parameters()):
            fully_shard(module)
    return fully_shard(model)

def whole(parameter):
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter

def work(rank, kind, file):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method="file://" + file, rank=rank, world_size=2)
    x, target = batch()
    model = train(wrap(kind, network()), x[rank::2], target[rank::2])
    parameters = [whole(p).detach().clone() for p in model.parameters()]
    expected = train(network(), x, target)
    for ours, one in zip(parameters, expected.parameters(), strict=True):
        torch.testing.assert_close(ours, one.detach(), rtol=1e-4, atol=1e-5)
    assert fastdl.backends()["cpu"].available == AVAILABLE
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.start_processes(work, (sys.argv[1], sys.argv[2]), nprocs=2, start_method="fork")
    print("equal")
"""


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_train_as_one(kind: str, tmp_path) -> None:
    import fastdl

    program = tmp_path / "program.py"
    available = fastdl.backends()["cpu"].available
    program.write_text(textwrap.dedent(PROGRAM).replace("AVAILABLE", str(available)))
    result = subprocess.run(
        [sys.executable, str(program), kind, str(tmp_path / "store")],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
        cwd=tmp_path,
    )
    assert result.stdout.split()[-1:] == ["equal"], result.stderr[-3000:]
