"""Folding within a traced network: from a norm forwards to its activation, and back to its convolution."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from fastdl.nn.batch_norm import AnyBatchNorm
from fastdl.nn.fold_rules import (
    ADDING_METHODS,
    ADDITIONS,
    Activation,
    FoldReport,
    activation_of_call,
    activation_of_module,
    activation_of_norm,
    changes_in_place,
    obstacle,
)
from fastdl.nn.folded_conv import FoldedConvAct, folded

CONVOLUTION_OF: dict[Any, Any] = {nn.BatchNorm1d: nn.Conv1d, nn.BatchNorm2d: nn.Conv2d, nn.BatchNorm3d: nn.Conv3d}


def fold_graph(traced: fx.GraphModule, report: FoldReport) -> bool:
    """Folds in place what can be folded; whether anything was."""
    modules = dict(traced.named_modules())
    changed = False
    for node in list(traced.graph.nodes):
        norm = _module_of(node, modules)
        if not isinstance(norm, AnyBatchNorm):
            continue
        conv_node = node.args[0] if node.args else None
        conv = _module_of(conv_node, modules)
        name = str(node.target)
        reason = _obstacle(traced.graph, node, conv_node, conv, norm, modules)
        if reason is not None:
            report.refused[name] = reason
            continue
        _replace(traced, node, conv_node, conv, norm, modules)
        report.folded.append(name)
        changed = True
    if changed:
        traced.delete_all_unused_submodules()
        traced.graph.lint()
        traced.recompile()
    return changed


def _module_of(node: Any, modules: dict[str, nn.Module]) -> nn.Module | None:
    return modules.get(str(node.target)) if isinstance(node, fx.Node) and node.op == "call_module" else None


def _obstacle(
    graph: fx.Graph,
    node: fx.Node,
    conv_node: Any,
    conv: nn.Module | None,
    norm: AnyBatchNorm,
    modules: dict[str, nn.Module],
) -> str | None:
    base = next(base for base in (*CONVOLUTION_OF, AnyBatchNorm) if isinstance(norm, base))
    if conv is None or type(conv) is not CONVOLUTION_OF.get(base):
        return "no convolution of as many dimensions is right before it"
    if len(conv_node.users) > 1:
        return "the convolution's output is read by others as well"
    residual = _own_residual(node)
    if len(node.args) + len(node.kwargs) > 2 or not isinstance(residual, (fx.Node, type(None))):
        return "it is called with arguments of its own"
    if residual is not None and _changes_between(conv_node, node, modules):
        return "what the convolution reads is changed before the residual is there"
    for one in (node, conv_node):
        if sum(other.op == "call_module" and other.target == one.target for other in graph.nodes) > 1:
            return f"{one.target} is called several times"
    return obstacle(conv, norm)


def _replace(
    traced: fx.GraphModule, node: fx.Node, conv_node: Any, conv: Any, norm: Any, modules: dict[str, nn.Module]
) -> None:
    activation = activation_of_norm(norm)
    last, residual = node, _own_residual(node)
    if residual is None and activation[0] == "identity":
        last, residual, activation = _what_follows(node, conv_node, modules)
    made: FoldedConvAct = folded(conv, norm, *activation)
    target = str(conv_node.target)
    parent, _, child = target.rpartition(".")
    traced.get_submodule(parent)._modules[child] = made
    modules[target] = made
    # The convolution stays where it is, in front of whatever changes its input; only a residual has to be waited for.
    with traced.graph.inserting_before(conv_node if residual is None else last):
        new = traced.graph.call_module(target, (conv_node.args[0], *([] if residual is None else [residual])))
    chain = dict.fromkeys([last, *_between(node, last), node, conv_node])
    last.replace_all_uses_with(new)
    for one in chain:
        traced.graph.erase_node(one)


def _own_residual(node: fx.Node) -> Any:
    """The residual that a norm of fastdl is called with; None where it has none."""
    given = [*node.args[1:], *node.kwargs.values()]
    return given[0] if given else None


def _between(node: fx.Node, last: fx.Node) -> list[fx.Node]:
    """The addition between a norm and its activation, if there is one."""
    return [] if last is node else [user for user in node.users if user is not last]


def _what_follows(
    node: fx.Node, conv_node: fx.Node, modules: dict[str, nn.Module]
) -> tuple[fx.Node, fx.Node | None, Activation]:
    """The last node that goes into the epilogue, the residual, and the activation."""
    user = _only_user(node)
    found = _activation(user, node, modules)
    if user is not None and found is not None:
        return user, None, found
    residual = _added(user, node)
    if user is None or residual is None or _changes_between(conv_node, user, modules):
        return node, None, ("identity", None)
    after = _only_user(user)
    found = _activation(after, user, modules)
    if after is not None and found is not None and not _changes_between(conv_node, after, modules, skip=user):
        return after, residual, found
    return user, residual, ("identity", None)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _activation(user: fx.Node | None, of: fx.Node, modules: dict[str, nn.Module]) -> Activation | None:
    if user is None or not user.args or user.args[0] is not of:
        return None
    if user.op == "call_module":
        return activation_of_module(_module_of(user, modules)) if len(user.args) == 1 and not user.kwargs else None
    if user.op in ("call_function", "call_method"):
        return activation_of_call(user.target, user.args[1:], user.kwargs)
    return None


def _added(user: fx.Node | None, of: fx.Node) -> fx.Node | None:
    """The other summand where ``user`` is an addition of two tensors of the graph."""
    if user is None or user.kwargs or len(user.args) != 2:
        return None
    is_addition = (user.op == "call_function" and user.target in ADDITIONS) or (
        user.op == "call_method" and user.target in ADDING_METHODS
    )
    others = [argument for argument in user.args if argument is not of]
    return others[0] if is_addition and len(others) == 1 and isinstance(others[0], fx.Node) else None


def _changes_between(begin: fx.Node, end: fx.Node, modules: dict[str, nn.Module], skip: fx.Node | None = None) -> bool:
    """Whether something before ``end`` may change what the convolution reads, which would then run after the change."""
    node = begin.next
    while node is not end:
        if node is not skip and changes_in_place(_module_of(node, modules), node.target) and node.op != "placeholder":
            return True
        node = node.next
    return False
