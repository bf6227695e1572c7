"""Settings of the process that a run needs, taken back when it ends."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["deterministic", "quiet_lightning"]

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def deterministic(seed: int, threads: int | None = None) -> Iterator[None]:
    """Make torch choose deterministic algorithms, on so many CPU threads, with its random numbers starting at ``seed``.

    Settings and random numbers are afterwards as they were. ``threads=None`` leaves their number.
    """
    cudnn = torch.backends.cudnn
    debugging: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill, benchmark, threads_before = debugging.fill_uninitialized_memory, cudnn.benchmark, torch.get_num_threads()
    workspace = os.environ.get(_WORKSPACE)
    os.environ.setdefault(_WORKSPACE, ":4096:8")
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True)
        # Filling every fresh tensor with NaN costs a pass over memory and serves debugging alone.
        debugging.fill_uninitialized_memory = False
        cudnn.benchmark = False
        torch.set_num_threads(threads or threads_before)
        try:
            yield
        finally:
            torch.set_num_threads(threads_before)
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            debugging.fill_uninitialized_memory = fill
            cudnn.benchmark = benchmark
            if workspace is None:
                os.environ.pop(_WORKSPACE, None)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence what Lightning says of every trainer, which in an experiment of dozens of runs hides what matters."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="GPU available but not used")
            # Lightning 2.6.6 with torch 2.13: its own use of a class that torch is about to rename.
            warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
