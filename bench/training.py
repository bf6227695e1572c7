"""Whole training steps of a network, ours beside eager torch in both layouts and torch.compile; time, memory, losses.

``python -m bench training``. Steps are timed in turns within one process, each contender on a network of its own with
the same weights and images. The memory is that of a process that trains one contender and nothing else. The losses are
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

from fastdl.models.resnet import SIZES, resnet

from . import machine, results
from .plain_resnet import PlainResNet
from .table import print_table
from .timing import Effort, Spread, interleave, timer_for

SEED, CLASSES, IMAGE = 0, 10, 32
# A rate at which the loss falls from the first step on: where it blows up first, every rounding is blown up with it.
LEARNING_RATE, MOMENTUM, DECAY = 0.01, 0.9, 5e-4
EFFORT = Effort(seconds=60.0, warm_up=0.0, least_rounds=9, most_rounds=40)
CONTENDERS = ("ours", "eager NCHW", "eager NHWC", "compile NHWC")
MEMORY_STEPS = 3


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench training", description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=tuple(SIZES), default="resnet18", help="with the stem for 32 x 32 images")
    parser.add_argument("--batch", type=int, default=64, help="images a step")
    parser.add_argument("--seconds", type=float, default=EFFORT.seconds, help="of timing, all contenders together")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which takes minutes")
    parser.add_argument("--data-dir", type=Path, default=None, help="of cifar10; without it losses are not compared")
    parser.add_argument("--loss-steps", type=int, default=60, help="steps of each order in the comparison of losses")
    parser.add_argument("--output-dir", type=Path, default=None, help="where the JSON goes; bench/results if not given")
    parser.add_argument("--peak-of", choices=CONTENDERS, help=argparse.SUPPRESS)
    return parser


def network(contender: str, name: str) -> tuple[nn.Module, torch.memory_format]:
    """A contender's network, with the same weights as every other's, and the layout of its images."""
    torch.manual_seed(SEED)
    ours = resnet(name, num_classes=CLASSES, stem="cifar")
    if contender == "ours":
        return ours, torch.channels_last
    block, depths = SIZES[name]
    plain = PlainResNet(block.expansion, depths, CLASSES, "cifar")
    plain.load_state_dict(ours.state_dict())
    if contender == "eager NCHW":
        return plain.to(memory_format=torch.contiguous_format), torch.contiguous_format  # type: ignore[call-overload]
    plain = plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return (torch.compile(plain) if contender.startswith("compile") else plain), torch.channels_last  # type: ignore[return-value]


def stepper(contender: str, name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """``step(images, labels)``: forward, loss, backward and the optimizer's step; returns the loss."""
    model, layout = network(contender, name)
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=DECAY)

    def step(images: Tensor, labels: Tensor) -> Tensor:
        loss = F.cross_entropy(model(images.contiguous(memory_format=layout)), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def random_batch(batch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randn(batch, 3, IMAGE, IMAGE, generator=generator)
    return images, torch.randint(0, CLASSES, (batch,), generator=generator)


def time_steps(contenders: Sequence[str], name: str, batch: int, seconds: float) -> dict[str, Spread]:
    images, labels = random_batch(batch)
    calls: dict[str, Callable[[int], object]] = {}
    for contender in contenders:
        step = stepper(contender, name)
        calls[contender] = lambda index, step=step: step(images, labels)  # type: ignore[misc]
    effort = Effort(seconds, EFFORT.warm_up, EFFORT.batch, EFFORT.least_rounds, EFFORT.most_rounds)
    return interleave(calls, timer_for(torch.device("cpu")), effort)


def peak_of(contender: str, name: str, batch: int) -> int:
    """Bytes that this process has grown by at most while it trained; the network and its gradients included."""
    images, labels = random_batch(batch)
    F.conv2d(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3))  # what libraries take for themselves
    before = resident_bytes("VmRSS")
    step = stepper(contender, name)
    for _ in range(MEMORY_STEPS):
        step(images, labels)
    return resident_bytes("VmHWM") - before


def resident_bytes(which: str) -> int:
    """``VmRSS``, what this process holds now, or ``VmHWM``, the most that it ever did.

    Not by ``getrusage``, whose maximum a process inherits from the one that started it.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{which}:")[2].split()[0]) * 1024


def measure_peak(contender: str, name: str, batch: int) -> int:
    """`peak_of`, in a process of its own."""
    command = [sys.executable, "-m", "fastdl.bench.training", "--model", name, "--batch", str(batch)]
    done = subprocess.run([*command, "--peak-of", contender], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def losses(contender: str, name: str, batch: int, steps: int, order: int, data_dir: Path) -> list[float]:
    """Of the first steps on CIFAR-10, with the images in the order of this number."""
    from fastdl.data import load_dataset

    data = load_dataset("cifar10", data_dir=data_dir, allow_download=False)
    split = data.splits["train"]
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (data.mean, data.std))
    chosen = torch.randperm(len(split), generator=torch.Generator().manual_seed(order))[: batch * steps]
    step = stepper(contender, name)
    found = []
    for first in range(0, batch * steps, batch):
        part = split.select(chosen[first : first + batch])
        found.append(float(step((part.images.float() / 255 - mean) / std, part.labels)))
    return found


def smoothed(values: Sequence[float], window: int = 10) -> list[float]:
    return [sum(values[i : i + window]) / window for i in range(len(values) - window + 1)]


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest difference of two curves of losses, each the mean of ten steps."""
    return max(abs(a - b) for a, b in zip(smoothed(one), smoothed(other), strict=True))


def compare_losses(name: str, batch: int, steps: int, data_dir: Path) -> dict[str, Any]:
    curves = {
        f"{contender} {order}": losses(contender, name, batch, steps, order, data_dir)
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
    """Runs the command and returns its exit status: 0, or 1 where a results file cannot be used."""
    options = make_parser().parse_args(argv)
    if options.peak_of:
        print(peak_of(options.peak_of, options.model, options.batch))
        return 0
    contenders = [c for c in CONTENDERS if not (options.no_compile and c.startswith("compile"))]
    path = (options.output_dir or machine.BENCH / "results") / f"{machine.slug(torch.device('cpu'))}.json"
    try:
        content = results.read(path)
    except results.ResultsError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(
        f"{options.model} on {machine.describe(torch.device('cpu'))['name']}, {options.batch} images a step", flush=True
    )
    times = time_steps(contenders, options.model, options.batch, options.seconds)
    peaks = {contender: measure_peak(contender, options.model, options.batch) for contender in contenders}
    compared = None
    if options.data_dir is not None:
        compared = compare_losses(options.model, options.batch, options.loss_steps, options.data_dir)
    print_table(["step", "ms", "±", "ours faster", "peak MB"], rows(times, peaks), sys.stdout)
    if compared:
        print(
            f"losses of {options.loss_steps} steps, means of ten: ours and eager differ by at most "
            f"{compared['between_ours_and_eager']:.3f}, two orders of the images by "
            f"{compared['between_two_orders']:.3f}"
        )
    title = f"{options.model}, CIFAR stem, {options.batch} images a step"
    content.setdefault("training", {})[title] = {
        "operator": "training",
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": machine.commit(),
        "versions": machine.versions(),
        "threads": torch.get_num_threads(),
        "times": {name: asdict(spread) for name, spread in times.items()},
        "peak_bytes": peaks,
        "losses": compared,
    }
    content["machine"] = content["machine"] or machine.describe(torch.device("cpu"))
    results.write(path, content)
    print(f"Results: {path}")
    return 0


def rows(times: dict[str, Spread], peaks: dict[str, int]) -> list[list[str]]:
    ours = times["ours"].median
    return [
        [
            name,
            f"{spread.median * 1e3:.0f}",
            f"{spread.relative:.0%}",
            f"{spread.median / ours:.2f}x",
            f"{peaks[name] / 1e6:.0f}",
        ]
        for name, spread in times.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
