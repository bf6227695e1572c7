"""Folding a whole network for inference: norms into convolutions, activations and residuals into their epilogue."""

from __future__ import annotations

import copy
import itertools
from typing import Any

from torch import fx, nn

from fastdl.nn.batch_norm import AnyBatchNorm
from fastdl.nn.conv_norm_act import ConvNormAct1d, ConvNormAct2d, ConvNormAct3d
from fastdl.nn.fold_graph import CONVOLUTION_OF, fold_graph
from fastdl.nn.fold_rules import FoldReport, activation_of_module, activation_of_norm, obstacle
from fastdl.nn.folded_conv import FoldedConvAct, folded

__all__ = ["FoldReport", "fold"]


def fold(model: nn.Module) -> nn.Module:
    """A copy of the network in which every convolution has taken in the batch norm behind it.

    ``gamma (W x + b - mean) / sqrt(var + eps) + beta`` is a convolution itself, once the statistics are fixed (Jacob et
    al. 2018, arXiv:1712.05877, section 3.2). An activation behind it, and a residual that is added in between, are
    computed in the convolution's epilogue. The result differs from the network's by rounding alone.

    Found are `fastdl.nn.ConvNormAct1d/2d/3d`, and a ``torch.nn.Conv`` whose only reader is a ``BatchNorm`` of torch or
    of fastdl: anywhere in a network that ``torch.fx`` can trace, which is then a ``torch.fx.GraphModule``; in any other
    within each ``torch.nn.Sequential``. What cannot be folded without changing the result stays as it is.

    Args:
        model: in evaluation mode; it is not changed.

    Returns:
        The copy, with a `FoldReport` as its attribute ``fold_report``: what was folded, and why the rest was not.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: the model or one of its norms is in training mode, where statistics are those of the batch.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"fold: model must be a torch.nn.Module; got {type(model).__name__}")
    training = [name or type(module).__name__ for name, module in model.named_modules() if module.training]
    if training:
        raise ValueError(
            f"fold: model must be in evaluation mode, since norms in training take the batch's statistics: call "
            f"model.eval() first; {training[0]!r} is in training mode"
        )
    copied = copy.deepcopy(model)
    report = FoldReport()
    copied = _fold_own(copied, report)
    try:
        traced = _trace(copied)
    except Exception as error:  # whatever a network's own code raises when it meets a proxy
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        report.notes.append(f"torch.fx cannot trace the network, so only its nn.Sequential were searched ({reason})")
        _fold_sequentials(copied, report)
    else:
        if fold_graph(traced, report):
            copied = traced
    copied.fold_report = report  # type: ignore[assignment]
    return copied.eval()


class _Tracer(fx.Tracer):
    """Goes into modules that are made of others, and not into layers."""

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return type(module).__module__.startswith("fastdl.nn") or super().is_leaf_module(module, qualified_name)


def _trace(model: nn.Module) -> fx.GraphModule:
    tracer = _Tracer()
    return fx.GraphModule(model, tracer.trace(model), type(model).__name__)


def _fold_own(model: nn.Module, report: FoldReport) -> nn.Module:
    """`ConvNormAct` modules, which hold all that is needed themselves."""
    made: dict[int, FoldedConvAct] = {}  # a module that is used in two places stays one
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if not isinstance(module, (ConvNormAct1d, ConvNormAct2d, ConvNormAct3d)):
            continue
        reason = _obstacle_of_own(module)
        if reason is not None:
            report.refused[name] = reason
            continue
        if id(module) not in made:
            norm: Any = module.norm
            made[id(module)] = folded(module.conv, norm, module.activation, module.activation_param)
        report.folded.append(name)
        if name == "":
            return made[id(module)]
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, made[id(module)])
    return model


def _obstacle_of_own(module: ConvNormAct1d | ConvNormAct2d | ConvNormAct3d) -> str | None:
    if module.norm is not None and not isinstance(module.norm, AnyBatchNorm):
        return f"{module.norm_name} norm takes its statistics from the input"
    if module.order != "conv_norm_act":
        return "the activation stands between convolution and norm"
    return obstacle(module.conv, module.norm) or (
        "it has hooks, which folding would drop" if module._forward_hooks or module._forward_pre_hooks else None
    )


def _fold_sequentials(model: nn.Module, report: FoldReport) -> None:
    for prefix, sequence in list(model.named_modules()):
        if type(sequence) is not nn.Sequential:
            continue
        names = list(sequence._modules)
        for i, (first, second) in enumerate(itertools.pairwise(names)):
            conv, norm = sequence._modules[first], sequence._modules[second]
            if not isinstance(norm, AnyBatchNorm) or type(conv) is not CONVOLUTION_OF.get(_base_of(norm)):
                continue
            name = f"{prefix}.{second}" if prefix else second
            reason = obstacle(conv, norm) or _shared(model, conv, norm)
            if reason is not None:
                report.refused[name] = reason
                continue
            own = activation_of_norm(norm)
            following = sequence._modules[names[i + 2]] if i + 2 < len(names) else None
            found = activation_of_module(following) if own[0] == "identity" else None
            sequence._modules[first] = folded(conv, norm, *(found or own))  # type: ignore[arg-type]
            sequence._modules[second] = nn.Identity()
            if found is not None:
                sequence._modules[names[i + 2]] = nn.Identity()
            report.folded.append(name)


def _base_of(norm: nn.Module) -> Any:
    return next((base for base in CONVOLUTION_OF if isinstance(norm, base)), None)


def _shared(model: nn.Module, *modules: nn.Module) -> str | None:
    """Whether one of the modules is registered twice: its other use would be folded as well."""
    seen = [id(module) for _, module in model.named_modules(remove_duplicate=False)]
    return "it is used in several places" if any(seen.count(id(module)) > 1 for module in modules) else None
