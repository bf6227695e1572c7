"""Whole training steps of a network, ours beside eager torch in both layouts and torch.compile; time, memory, losses.

``python -m bench training``, on a GPU with ``--device cuda``. Steps are timed in turns within one process, each
contender on a network of its own with the same weights and images. The memory is on a CPU that of a process that trains
one contender and nothing else, on a GPU what its tensors take there. The losses are
those of the first steps on real images, for two orders of them: what ours differs from eager by is to be seen beside
what one order differs from another by.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdl.models.conv_network import ConvNetwork
from fastdl.models.resnet import SIZES, resnet

from . import clocks, machine, results
from .options import checked_device
from .plain_conv_network import ARGUMENTS, PlainConvNetwork
from .plain_resnet import PlainResNet
from .table import print_table
from .timing import Effort, Spread, interleave, timer_for

SEED, CLASSES, IMAGE = 0, 10, 32
# A rate at which the loss falls from the first step on: where it blows up first, every rounding is blown up with it.
LEARNING_RATE, MOMENTUM, DECAY = 0.01, 0.9, 5e-4
EFFORT = Effort(seconds=60.0, warm_up=0.0, least_rounds=9, most_rounds=40)
CONV_NETWORK = "conv_network"
MODELS = (*SIZES, CONV_NETWORK)
CONTENDERS = ("ours", "eager NCHW", "eager NHWC", "compile NHWC")
MEMORY_STEPS = 3
CPU = torch.device("cpu")
# What a GPU is given where nothing else is asked for, so that the whole ends within two minutes.
GPU_BATCH, GPU_SECONDS = 256, 20.0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench training", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--model", choices=MODELS, default="resnet18", help="ResNets with the stem for 32 x 32 images, or "
        f"{CONV_NETWORK}, the experiments' network of 8 blocks",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="bfloat16: the forward pass under autocast"
    )
    parser.add_argument("--batch", type=int, help=f"images a step; 64 if not given, {GPU_BATCH} on a GPU")
    parser.add_argument(
        "--seconds", type=float, help=f"of timing, all contenders together; {EFFORT.seconds:.0f} if not given, "
        f"{GPU_SECONDS:.0f} on a GPU",
    )  # fmt: skip
    parser.add_argument(
        "--resume", action="store_true", help="do nothing where the results hold these steps of this commit already"
    )
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which takes minutes")
    parser.add_argument("--data-dir", type=Path, default=None, help="of cifar10; without it losses are not compared")
    parser.add_argument("--loss-steps", type=int, default=60, help="steps of each order in the comparison of losses")
    parser.add_argument("--output-dir", type=Path, default=None, help="where the JSON goes; bench/results if not given")
    parser.add_argument("--peak-of", choices=CONTENDERS, help=argparse.SUPPRESS)
    return parser


def network(contender: str, name: str, device: torch.device = CPU) -> tuple[nn.Module, torch.memory_format]:
    """A contender's network, with the same weights as every other's, and the layout of its images."""
    torch.manual_seed(SEED)
    ours: nn.Module
    plain: nn.Module
    if name == CONV_NETWORK:
        ours = ConvNetwork(in_channels=3, num_classes=CLASSES, **ARGUMENTS).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    else:
        ours = resnet(name, num_classes=CLASSES, stem="cifar")
    if contender == "ours":
        return ours.to(device), torch.channels_last
    if name == CONV_NETWORK:
        plain = PlainConvNetwork(CLASSES)
    else:
        block, depths = SIZES[name]
        plain = PlainResNet(block.expansion, depths, CLASSES, "cifar")
    plain.load_state_dict(ours.state_dict())
    plain = plain.to(device)
    if contender == "eager NCHW":
        return plain.to(memory_format=torch.contiguous_format), torch.contiguous_format  # type: ignore[call-overload]
    plain = plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return (torch.compile(plain) if contender.startswith("compile") else plain), torch.channels_last  # type: ignore[return-value]


def stepper(
    contender: str, name: str, device: torch.device = CPU, dtype: str = "float32"
) -> Callable[[Tensor, Tensor], Tensor]:
    """``step(images, labels)``: forward, loss, backward and the optimizer's step; returns the loss.

    In another ``dtype`` than float32 the forward pass runs under autocast; the weights stay float32.
    """
    model, layout = network(contender, name, device)
    lower = dtype != "float32"
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=DECAY)

    def step(images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(device.type, getattr(torch, dtype) if lower else None, enabled=lower):
            logits = model(images.contiguous(memory_format=layout))
        loss = F.cross_entropy(logits.float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def random_batch(batch: int, device: torch.device = CPU) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randn(batch, 3, IMAGE, IMAGE, generator=generator)
    return images.to(device), torch.randint(0, CLASSES, (batch,), generator=generator).to(device)


def time_steps(
    contenders: Sequence[str], name: str, batch: int, seconds: float, device: torch.device = CPU, dtype: str = "float32"
) -> tuple[dict[str, Spread], dict[str, int]]:
    """Seconds a step; and on a GPU the most bytes that each contender's network and steps held there."""
    images, labels = random_batch(batch, device)
    calls: dict[str, Callable[[int], object]] = {}
    peaks = {}
    for contender in contenders:
        if device.type == "cuda":
            step, peaks[contender] = step_and_peak(contender, name, images, labels, dtype)
        else:
            step = stepper(contender, name, device, dtype)
        calls[contender] = lambda index, step=step: step(images, labels)  # type: ignore[misc]
    effort = Effort(seconds, EFFORT.warm_up, EFFORT.batch, EFFORT.least_rounds, EFFORT.most_rounds)
    return interleave(calls, timer_for(device), effort), peaks


def step_and_peak(
    contender: str, name: str, images: Tensor, labels: Tensor, dtype: str
) -> tuple[Callable[[Tensor, Tensor], Tensor], int]:
    """A GPU's step, and the bytes by which its allocations grew at most from before the network was made."""
    device = images.device
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    step = stepper(contender, name, device, dtype)
    step(images, labels)  # compiles, and lets libraries choose their kernels by trying them
    torch.cuda.reset_peak_memory_stats(device)
    for _ in range(MEMORY_STEPS):
        step(images, labels)
    torch.cuda.synchronize(device)
    return step, int(torch.cuda.max_memory_allocated(device)) - before


def peak_of(contender: str, name: str, batch: int, dtype: str = "float32") -> int:
    """Bytes that this process has grown by at most while it trained; the network and its gradients included."""
    images, labels = random_batch(batch)
    F.conv2d(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3))  # what libraries take for themselves
    before = resident_bytes("VmRSS")
    step = stepper(contender, name, CPU, dtype)
    for _ in range(MEMORY_STEPS):
        step(images, labels)
    return resident_bytes("VmHWM") - before


def resident_bytes(which: str) -> int:
    """``VmRSS``, what this process holds now, or ``VmHWM``, the most that it ever did.

    Not by ``getrusage``, whose maximum a process inherits from the one that started it.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{which}:")[2].split()[0]) * 1024


def measure_peak(contender: str, name: str, batch: int, dtype: str = "float32") -> int:
    """`peak_of`, in a process of its own."""
    command = [sys.executable, "-m", "fastdl.bench.training", "--model", name, "--batch", str(batch), "--dtype", dtype]
    done = subprocess.run([*command, "--peak-of", contender], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def losses(
    contender: str, name: str, batch: int, steps: int, order: int, data_dir: Path, device: torch.device, dtype: str
) -> list[float]:
    """Of the first steps on CIFAR-10, with the images in the order of this number."""
    from fastdl.data import load_dataset

    data = load_dataset("cifar10", data_dir=data_dir, allow_download=False)
    split = data.splits["train"]
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (data.mean, data.std))
    chosen = torch.randperm(len(split), generator=torch.Generator().manual_seed(order))[: batch * steps]
    step = stepper(contender, name, device, dtype)
    found = []
    for first in range(0, batch * steps, batch):
        part = split.select(chosen[first : first + batch])
        images = (part.images.float() / 255 - mean) / std
        found.append(float(step(images.to(device), part.labels.to(device))))
    return found


def smoothed(values: Sequence[float], window: int = 10) -> list[float]:
    return [sum(values[i : i + window]) / window for i in range(len(values) - window + 1)]


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest difference of two curves of losses, each the mean of ten steps."""
    return max(abs(a - b) for a, b in zip(smoothed(one), smoothed(other), strict=True))


def compare_losses(
    name: str, batch: int, steps: int, data_dir: Path, device: torch.device, dtype: str
) -> dict[str, Any]:
    curves = {
        f"{contender} {order}": losses(contender, name, batch, steps, order, data_dir, device, dtype)
        for contender in ("ours", "eager NHWC")
        for order in (1, 2)
    }
    return {
        "steps": steps,
        "curves": curves,
        "between_ours_and_eager": max(distance(curves[f"ours {o}"], curves[f"eager NHWC {o}"]) for o in (1, 2)),
        "between_two_orders": distance(curves["eager NHWC 1"], curves["eager NHWC 2"]),
    }


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, 1 where a results file cannot be used, 2 for a wrong option."""
    parser = make_parser()
    options = parser.parse_args(argv)
    try:
        device = checked_device(options.device)
    except ValueError as error:
        parser.error(str(error))
    gpu = device.type == "cuda"
    batch: int = options.batch or (GPU_BATCH if gpu else 64)
    seconds: float = options.seconds if options.seconds is not None else (GPU_SECONDS if gpu else EFFORT.seconds)
    if options.peak_of:
        print(peak_of(options.peak_of, options.model, batch, options.dtype))
        return 0
    contenders = [c for c in CONTENDERS if not (options.no_compile and c.startswith("compile"))]
    path = (options.output_dir or machine.BENCH / "results") / f"{machine.slug(device)}.json"
    try:
        content = results.read(path)
    except results.ResultsError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    kind = "8 blocks" if options.model == CONV_NETWORK else "CIFAR stem"
    title = f"{options.model}, {kind}, {batch} images a step" + (
        "" if options.dtype == "float32" else f", {options.dtype}"
    )
    done = content.get("training", {}).get(title)
    circumstances = {"commit": machine.commit(), "versions": machine.versions(), "threads": torch.get_num_threads()}
    if options.resume and done and all(done[name] == value for name, value in circumstances.items()):
        print(f"{title}: measured on {done['date']}")
        return 0
    print(f"{title}: {machine.describe(device)['name']}", flush=True)
    before = clocks.read(device)
    times, peaks = time_steps(contenders, options.model, batch, seconds, device, options.dtype)
    if not gpu:
        peaks = {c: measure_peak(c, options.model, batch, options.dtype) for c in contenders}
    compared = None
    if options.data_dir is not None:
        compared = compare_losses(options.model, batch, options.loss_steps, options.data_dir, device, options.dtype)
    print_table(["step", "ms", "±", "ours faster", "peak MB"], rows(times, peaks), sys.stdout)
    if compared:
        print(
            f"losses of {options.loss_steps} steps, means of ten: ours and eager differ by at most "
            f"{compared['between_ours_and_eager']:.3f}, two orders of the images by "
            f"{compared['between_two_orders']:.3f}"
        )
    content.setdefault("training", {})[title] = {
        "operator": "training",
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **circumstances,
        "times": {name: asdict(spread) for name, spread in times.items()},
        "peak_bytes": peaks,
        "losses": compared,
        "clocks": {"before": before, "after": clocks.read(device)} if before else {},
    }
    content["machine"] = content["machine"] or machine.describe(device)
    results.write(path, content)
    print(f"Results: {path}")
    return 0


def rows(times: dict[str, Spread], peaks: dict[str, int]) -> list[list[str]]:
    ours = times["ours"].median
    return [
        [
            name,
            f"{spread.median * 1e3:.4g}",
            f"{spread.relative:.0%}",
            f"{spread.median / ours:.2f}x",
            f"{peaks[name] / 1e6:.0f}",
        ]
        for name, spread in times.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
