"""``fastdl demo``: on the digits that come with scikit-learn, in a few minutes on two cores."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

import fastdl

__all__ = ["main"]


def main(words: list[str] | None = None) -> int:
    """Show the backends, parity and speed of a fused op, and a small experiment with its table and plot."""
    parser = argparse.ArgumentParser(
        prog="fastdl demo",
        description="Shows the backends of this machine, GroupNorm + SiLU beside eager torch, and the experiment "
        "sigmoid_vs_relu on the digits that come with scikit-learn. Run again, it begins anew.",
    )
    parser.add_argument(
        "--output-dir", type=Path, default=Path("runs/demo"), help="where results go (default: runs/demo)"
    )
    options = parser.parse_args(words)
    started = time.monotonic()
    print(f"fastdl {fastdl.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    _show_backends()
    _show_group_norm()
    folder = _run_experiment(options.output_dir)
    print(f"\nPlot: {(folder / 'accuracy_by_depth.png').resolve()}")
    print(f"All of this took {time.monotonic() - started:.0f} s.")
    return 0


def _show_backends() -> None:
    print("Backends")
    for name, status in fastdl.backends().items():
        print(f"  {name:9}  {'ready' if status.available else status.reason}")


def _show_group_norm() -> None:
    from fastdl.bench.quick import compare_group_norm

    found = compare_group_norm()
    print(f"\nGroupNorm + SiLU, shape {found.shape}, {found.num_groups} groups, float32, backend {found.backend}")
    print("  largest error of output and gradients against float64, as a share of the largest value:")
    print(f"    fastdl {found.error_ours:.2e}, eager torch {found.error_eager:.2e}")
    print(f"  forward and backward, median of {found.repetitions} rounds in turns:")
    print(
        f"    fastdl {1e3 * found.seconds_ours:.2f} ms, eager torch {1e3 * found.seconds_eager:.2f} ms, "
        f"so {found.speedup:.2f} times the speed\n"
    )


def _run_experiment(output_dir: Path) -> Path:
    from fastdl.experiments.sigmoid_vs_relu import Options, run

    folder = run(Options(protocol="smoke", output_dir=output_dir, resume=False))
    lines = (folder / "report.md").read_text(encoding="utf-8").splitlines()
    # Claims with their verdicts and arms with their accuracies: the first two columns of two tables.
    rows = [line.split("|")[1:3] for line in lines if line.startswith("|")]
    first = next(number for number, row in enumerate(rows) if row[0].strip() == "Claim")
    print("\n" + "\n".join(f"|{'|'.join(row)}|" for row in rows[first:]))
    return folder
