"""Controlled experiments: each one file with its claims, its protocols and the configurations of its runs.

An experiment joins by a module with a frozen dataclass ``Options``, which is its command line, an
`ExperimentDefinition` called ``DEFINITION``, and a function ``run(options)``, and by a line in ``EXPERIMENTS``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["EXPERIMENTS", "Experiment", "load_experiment"]

EXPERIMENTS = {
    "sigmoid_vs_relu": "accuracy of Sigmoid and ReLU networks of 1 to 8 conv-norm-act blocks",
    "batchnorm_vs_groupnorm": "accuracy of BatchNorm and GroupNorm networks with batches of 2 to 128",
    "conv_activation_norm_position": "accuracy by the order of convolution, norm and activation in 8 blocks",
}
"""Experiments by name, each with a line that says what it measures."""


@dataclass(frozen=True)
class Experiment:
    """An experiment: the dataclass of its options, the function that takes an instance and runs it, and what it is."""

    name: str
    options: type[Any]
    run: Callable[[Any], Any]
    definition: Any


def load_experiment(name: str) -> Experiment:
    """Return the experiment called ``name``; raises ValueError for an unknown one."""
    if name not in EXPERIMENTS:
        raise ValueError(f"there is no experiment {name!r}; there is {', '.join(EXPERIMENTS)}")
    module = importlib.import_module(f"fastdl.experiments.{name}")
    return Experiment(name, module.Options, module.run, module.DEFINITION)
