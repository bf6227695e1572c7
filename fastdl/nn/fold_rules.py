"""What may be folded, and why something may not."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from fastdl.nn.batch_norm import AnyBatchNorm

Activation = tuple[str, float | None]


@dataclass
class FoldReport:
    """What `fold` did: the names of the norms that are gone, the reasons by name for those that stayed, and notes."""

    folded: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"folded {len(self.folded)}: {', '.join(self.folded) or 'nothing'}"]
        lines += [f"kept {name}: {reason}" for name, reason in self.refused.items()]
        return "\n".join(lines + self.notes)


def obstacle(conv: Any, norm: Any) -> str | None:
    """Why a norm cannot go into a convolution, or None where it can."""
    if conv.padding_mode != "zeros":
        return f"the convolution pads with padding_mode={conv.padding_mode!r}"
    for module in (conv, norm):
        if module is None:
            continue
        if parametrize.is_parametrized(module):
            return f"{type(module).__name__} is parametrized: its weight is computed anew at every call"
        if module._forward_hooks or module._forward_pre_hooks:
            return f"{type(module).__name__} has hooks, which folding would drop"
    if norm is None:
        return None
    if norm.running_mean is None or norm.running_var is None:
        return "the norm tracks no running statistics, and takes the batch's"
    if norm.num_features != conv.out_channels:
        return f"the norm has {norm.num_features} channels, the convolution {conv.out_channels}"
    if getattr(norm, "order", "norm_act") != "norm_act":
        return "the activation stands between convolution and norm"
    return None


def activation_of_norm(norm: nn.Module) -> Activation:
    """The one that a norm of fastdl's has of its own."""
    return getattr(norm, "activation", "identity"), getattr(norm, "activation_param", None)


def activation_of_module(module: nn.Module | None) -> Activation | None:
    """The name and parameter of an activation module, or None where it is none of fastdl's."""
    if module is None or module._forward_hooks or module._forward_pre_hooks:
        return None
    simple = {
        nn.ReLU: "relu", nn.Sigmoid: "sigmoid", nn.Tanh: "tanh", nn.SiLU: "silu", nn.Hardswish: "hardswish",
        nn.Mish: "mish", nn.Identity: "identity",
    }  # fmt: skip
    if type(module) in simple:
        return simple[type(module)], None
    if type(module) is nn.LeakyReLU:
        return "leaky_relu", module.negative_slope
    if type(module) is nn.ELU:
        return "elu", module.alpha
    if type(module) is nn.GELU:
        return ("gelu" if module.approximate == "none" else "gelu_tanh"), None
    if type(module) is nn.Softplus and (module.beta, module.threshold) == (1, 20):
        return "softplus", None
    return None


_FUNCTIONS: dict[Any, str] = {
    F.relu: "relu", torch.relu: "relu", torch.relu_: "relu", F.sigmoid: "sigmoid", torch.sigmoid: "sigmoid",
    F.tanh: "tanh", torch.tanh: "tanh", F.silu: "silu", F.hardswish: "hardswish", F.mish: "mish",
}  # fmt: skip
_METHODS = {
    "relu": "relu", "relu_": "relu", "sigmoid": "sigmoid", "sigmoid_": "sigmoid", "tanh": "tanh", "tanh_": "tanh",
}  # fmt: skip
_ONE_NUMBER: dict[Any, tuple[str, str, float]] = {
    F.leaky_relu: ("leaky_relu", "negative_slope", 0.01),
    F.elu: ("elu", "alpha", 1.0),
}


def activation_of_call(target: Any, arguments: Sequence[Any], options: Mapping[str, Any]) -> Activation | None:
    """The same of a function or a method's name, called with the tensor and ``arguments`` behind it."""
    options = {name: value for name, value in options.items() if name != "inplace"}
    name = _METHODS.get(target) if isinstance(target, str) else _FUNCTIONS.get(target)
    if name is not None:
        return None if options or len(arguments) > 1 else (name, None)
    if isinstance(target, str):
        return None
    if target is F.gelu and not arguments:
        approximate = options.get("approximate", "none")
        return ("gelu" if approximate == "none" else "gelu_tanh"), None
    if target in _ONE_NUMBER:
        name, keyword, default = _ONE_NUMBER[target]
        value = arguments[0] if arguments else options.get(keyword, default)
        return (name, float(value)) if isinstance(value, (int, float)) else None
    return None


ADDITIONS: frozenset[Callable[..., Any]] = frozenset({operator.add, operator.iadd, torch.add})
ADDING_METHODS = frozenset({"add", "add_"})


def changes_in_place(module: nn.Module | None, target: Any) -> bool:
    """Whether a call may change what it is given."""
    if module is not None:
        return bool(getattr(module, "inplace", False))
    if isinstance(target, str):
        return target.endswith("_") or target.startswith("__i")
    name = getattr(target, "__name__", "")
    return name.endswith("_") or (getattr(target, "__module__", "") == "_operator" and name.startswith("i"))


__all__ = [
    "ADDING_METHODS",
    "ADDITIONS",
    "AnyBatchNorm",
    "FoldReport",
    "activation_of_call",
    "activation_of_module",
    "activation_of_norm",
    "changes_in_place",
    "obstacle",
]
