"""A sweep that is killed at random moments: ``python -m tests.experiments.killed_sweep FOLDER KILLS SEED``.

Everything is imported once, and each attempt is a fork of this process, so that an attempt begins at once.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from fastdl.experiments.conduct import conduct
from fastdl.experiments.sigmoid_vs_relu import DEFINITION, Options

OPTIONS = {
    "depths": (1, 2),
    "seeds": (0, 1),
    "epochs": 2,
    "batch_size": 50,
    "width": 4,
    "train_examples": 300,
    "backend": "reference",
    "checkpoint_seconds": 0.0,
    "jobs": 1,
    "threads": 1,
}


def attempt(folder: Path, seconds: float | None) -> int:
    """Run the sweep in a child, and kill it after so many seconds; returns the child's status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 (open as long as the child lives)
            conduct(DEFINITION, Options(output_dir=folder, **OPTIONS))  # type: ignore[arg-type]
            status = 0
        finally:
            os._exit(status)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def main() -> None:
    folder, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    import fastdl.training.run  # noqa: F401 (what is imported late otherwise)

    generator = random.Random(seed)
    killed = 0
    for _ in range(kills):
        killed += os.WIFSIGNALED(attempt(folder, generator.uniform(0.05, 0.9)))
        done = len(list(folder.glob("runs/*/result.json")))
        print(f"killed with {done} runs finished", flush=True)
    assert os.waitstatus_to_exitcode(attempt(folder, None)) == 0
    print(f"{killed} of {kills} attempts were killed", flush=True)


if __name__ == "__main__":
    main()
