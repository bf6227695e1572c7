"""Training with Lightning: typed configurations, exact resume, results as files.

Needs the extra "train": ``pip install 'fastdl[train]'``. Importing this package does not import Lightning yet, which
takes seconds; using one of its names does, configurations excepted.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastdl.training.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, TrainingConfig

if TYPE_CHECKING:
    from fastdl.training.checkpoint import CheckpointPolicy, TimeLimitReached
    from fastdl.training.result import RunResult, load_result
    from fastdl.training.run import train_classifier

__all__ = [
    "CheckpointPolicy",
    "DataConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RunConfig",
    "RunResult",
    "TimeLimitReached",
    "TrainingConfig",
    "load_result",
    "train_classifier",
]

_LAZY = {
    "CheckpointPolicy": "fastdl.training.checkpoint",
    "TimeLimitReached": "fastdl.training.checkpoint",
    "RunResult": "fastdl.training.result",
    "load_result": "fastdl.training.result",
    "train_classifier": "fastdl.training.run",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
