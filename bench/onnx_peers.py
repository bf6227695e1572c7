"""onnxruntime on the CPU, as it is deployed: inference in float32, weights inside the model, images in NCHW.

A model is written with ONNX's own operators, and onnxruntime optimises its graph as far as it can: a convolution's norm
is folded into it and its activation fused. Inputs and outputs are torch's memory, without a copy. Its threads are as
many as torch's, and stop spinning when a call returns, since the next contender's turn begins then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .cases import Case, Function
from .peers import Peer

OPSET, IR_VERSION = 23, 10
NORM_EPS, RMS_EPS = 1e-5, 1e-6
SERVED_LAYOUTS = ("nchw", "rows", "separate")
BOOLEAN, FLOAT = "bool", "float"

Nodes = Sequence[Any]


def peer(load: Callable[[Case], Function | None]) -> Peer:
    """onnxruntime as a contender of a benchmark."""
    return Peer("onnxruntime", lambda: load, "onnxruntime onnx", devices=frozenset({"cpu"}), only_forward=True)


def served(case: Case) -> bool:
    """Whether onnxruntime's CPU kernels take the case as it lies in memory."""
    return case.dtype == "float32" and case.layout in SERVED_LAYOUTS


def group_norm_silu(case: Case) -> Function | None:
    def nodes(node: Any) -> Nodes:
        return [
            node("GroupNormalization", ["x", "w0", "w1"], ["n"], num_groups=case.num_groups, epsilon=NORM_EPS),
            node("Sigmoid", ["n"], ["gate"]),
            node("Mul", ["n", "gate"], ["y"]),
        ]

    return _with_weights(case, nodes, inputs=("x",), outputs=("y",))


def layer_norm(case: Case) -> Function | None:
    return _row_norm(case, "LayerNormalization", NORM_EPS, weights=["w0", "w1"])


def rms_norm(case: Case) -> Function | None:
    return _row_norm(case, "RMSNormalization", RMS_EPS, weights=["w0"])


def _row_norm(case: Case, operator: str, eps: float, weights: list[str]) -> Function | None:
    """The norm alone, or the sum with the residual and the norm of that: onnxruntime may fuse them if it can."""
    added = bool(case.variant)

    def nodes(node: Any) -> Nodes:
        total = [node("Add", ["x", "r"], ["t"])] if added else []
        return [*total, node(operator, ["t" if added else "x", *weights], ["y"], axis=-1, epsilon=eps)]

    inputs, outputs = (("x", "r"), ("y", "t")) if added else (("x",), ("y",))
    return _with_weights(case, nodes, inputs=inputs, outputs=outputs)


def conv_norm_act(case: Case) -> Function | None:
    """Convolution, BatchNorm in evaluation and ReLU; for inference alone."""
    if case.variant != "inference":
        return None

    def nodes(node: Any) -> Nodes:
        return [
            node("Conv", ["x", "w0"], ["c"], auto_pad="SAME_UPPER"),
            node("BatchNormalization", ["c", "w1", "w2", "w3", "w4"], ["n"], epsilon=NORM_EPS),
            node("Relu", ["n"], ["y"]),
        ]

    return _with_weights(case, nodes, inputs=("x",), outputs=("y",))


def attention(case: Case) -> Function | None:
    """ONNX's own attention operator, whose key, value and mask are inputs."""
    if not served(case):
        return None
    sessions: list[Callable[..., tuple[Tensor, ...]]] = []

    def function(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        given = [query, key, value]
        if mask is not None:
            # A mask of keys alone is spelled out for every query, as the operator has it.
            samples, _, length, _ = query.shape
            whole = mask.expand(samples, -1, length, -1) if mask.dtype == torch.bool else mask
            given.append(whole.contiguous())
        if not sessions:
            names = ["q", "k", "v", "m"][: len(given)]
            sessions.append(
                _session(
                    lambda node: [node("Attention", names, ["y"], is_causal=int(case.variant == "causal"))],
                    dict(zip(names, given, strict=True)),
                    {},
                    {"y": query.shape},
                )
            )
        return sessions[0](*given)[0]

    return function


def _with_weights(
    case: Case, nodes: Callable[[Any], Nodes], inputs: tuple[str, ...], outputs: tuple[str, ...]
) -> Function | None:
    """A function of the benchmark's arguments, whose model is made at its first call with those weights."""
    if not served(case):
        return None
    made: dict[tuple[int, ...], tuple[Callable[..., tuple[Tensor, ...]], Sequence[Tensor]]] = {}

    def function(*arguments: Tensor) -> Any:
        given, weights = arguments[: len(inputs)], arguments[len(inputs) :]
        key = tuple(map(id, weights))
        if key not in made:
            shapes = dict.fromkeys(outputs, arguments[0].shape)
            named = {f"w{i}": weight for i, weight in enumerate(weights)}
            # The weights are kept, so that no other tensor can be given the identity of one that is gone.
            made[key] = _session(nodes, dict(zip(inputs, given, strict=True)), named, shapes), weights
        results = made[key][0](*given)
        return results if len(results) > 1 else results[0]

    return function


def _session(
    nodes: Callable[[Any], Nodes], inputs: dict[str, Tensor], weights: dict[str, Tensor], outputs: dict[str, torch.Size]
) -> Callable[..., tuple[Tensor, ...]]:
    """A function of the inputs that runs the graph of these nodes, on tensors of these shapes."""
    import numpy
    import onnxruntime  # type: ignore[import-not-found]
    from onnx import TensorProto, helper, numpy_helper  # type: ignore[import-not-found]

    def info(name: str, shape: Sequence[int], kind: str = FLOAT) -> Any:
        element = TensorProto.BOOL if kind == BOOLEAN else TensorProto.FLOAT
        return helper.make_tensor_value_info(name, element, list(shape))

    kinds = {name: BOOLEAN if tensor.dtype == torch.bool else FLOAT for name, tensor in inputs.items()}
    graph = helper.make_graph(
        nodes(helper.make_node),
        "case",
        [info(name, tensor.shape, kinds[name]) for name, tensor in inputs.items()],
        [info(name, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(weight.detach().numpy(), name) for name, weight in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    elements = {name: numpy.bool_ if kind == BOOLEAN else numpy.float32 for name, kind in kinds.items()}

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        for (name, element), tensor in zip(elements.items(), tensors, strict=True):
            if not tensor.is_contiguous():
                raise ValueError(f"onnxruntime reads contiguous memory; {name} has strides {tensor.stride()}")
            binding.bind_input(name, "cpu", 0, element, list(tensor.shape), tensor.data_ptr())
        results = tuple(torch.empty(shape) for shape in outputs.values())
        for (name, shape), result in zip(outputs.items(), results, strict=True):
            binding.bind_output(name, "cpu", 0, numpy.float32, list(shape), result.data_ptr())
        session.run_with_iobinding(binding)
        return results

    return run
