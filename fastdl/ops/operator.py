"""The life of a call, the same for every op: choose a backend, run its forward kernel, and remember both for the backward.

An op is a reference and a schema (`FusedOperator`). From these come three routes to the same kernels:

- eager: an ``autograd.Function`` straight onto the kernel. A registered Python op costs tens of microseconds a call, which at
  small sizes is more than the kernel.
- traced (``torch.compile``, ``torch.export``, fake and dispatch-mode tensors): the ops ``fastdl::<name>_forward`` and
  ``fastdl::<name>_backward``, with fake implementations and registered autograd.
- transformed (``torch.func``): an ``autograd.Function`` with ``setup_context``, ``jvp`` and ``vmap``.

Second derivatives are the reference's on every route: the reference is ordinary differentiable torch code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastdl.ops import dispatch

Tensors = tuple[Any, ...]  # a Tensor, then Tensors or None
Statics = tuple[Any, ...]
Observer = Callable[[str, Tensor], None]


class FusedOperator:
    """One op of tensors and static arguments, differentiable in its first ``differentiable`` tensors.

    Args:
        name: the op's name on every floor.
        tensors: schema of the tensor arguments, ``"Tensor input, Tensor? weight"``; the first is never None.
        statics: schema of the other arguments, ``"int num_groups, float eps"``.
        differentiable: how many of the tensors, from the first, have a gradient.
        reference: ``reference(*tensors, *statics)`` in differentiable torch code: the output, and the statistics that a
            kernel saves for its backward, which have no gradient.
        empty_statistics: statistics of the right shape and dtype with no values, from fake tensors.
    """

    def __init__(
        self,
        name: str,
        *,
        tensors: str,
        statics: str,
        differentiable: int,
        reference: Callable[..., tuple[Tensor, Tensor]],
        empty_statistics: Callable[..., Tensor],
    ) -> None:
        self.name = name
        self.count = tensors.count("Tensor")
        self.differentiable = differentiable
        self.reference = reference
        self.empty_statistics = empty_statistics
        # The C++ apply beneath Function.apply, whose Python part (2 us) only serves torch.func, which takes another route here.
        self.apply_eager = super(torch.autograd.Function, _eager_function(self)).apply
        self.transformed_function = _transformed_function(self)
        self._register(tensors, statics)

    def __call__(self, tensors: Tensors, statics: Statics, observe: Observer | None = None) -> Tensor:
        """The op's output, on the backend that was asked for; ``observe(backend, statistics)`` is called on the way."""
        if torch.compiler.is_compiling():
            output, statistics = self._trace(tensors, statics)
            if observe is not None:
                observe("reference", statistics)
            return output
        input = tensors[0]
        request = dispatch.requested()
        backend = dispatch.choose(self.name, request, input.device.type, input.dtype)
        direct = type(input) in _PLAIN_TENSORS and not torch._C._len_torch_dispatch_stack() and not _is_transformed()
        if direct and backend != "reference":
            kernels = dispatch.implementation(self.name, backend)
            if torch.is_grad_enabled():
                for tensor in tensors:
                    if tensor is not None and tensor.requires_grad:
                        return self.apply_eager(kernels, observe, statics, *tensors)
            output, statistics = kernels.forward(*tensors, *statics)
        elif backend == "reference" or torch.autograd.forward_ad._current_level >= 0:
            output, statistics = self.reference(*tensors, *statics)
        elif torch._C._are_functorch_transforms_active():
            output, statistics = self.transformed_function.apply(*tensors, *statics, backend)
        else:
            output, statistics = self.forward_op(*tensors, *statics, request)
        if observe is not None:
            observe(backend if direct else "reference", statistics)
        return output

    def _trace(self, tensors: Tensors, statics: Statics) -> tuple[Tensor, Tensor]:
        input = tensors[0]
        request = dispatch.requested_view.backend
        if _choose_while_tracing(self.name, request, input.device.type, input.dtype) == "reference":
            return self.reference(*tensors, *statics)
        return self.forward_op(*tensors, *statics, request)

    def differentiate(
        self, grad_output: Tensor, tensors: Tensors, statics: Statics, needs: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        """The first derivatives by the reference, themselves differentiable: the backward pass under ``create_graph``."""
        wanted = [i for i in range(self.differentiable) if needs[i] and tensors[i] is not None]
        gradients: list[Tensor | None] = [None] * self.differentiable

        def reference(*primals: Tensor) -> Tensor:
            arguments = list(tensors)
            for position, primal in zip(wanted, primals, strict=True):
                arguments[position] = primal
            return self.reference(*arguments, *statics)[0]

        _, pull_back = torch.func.vjp(reference, *(tensors[i] for i in wanted))
        for position, gradient in zip(wanted, pull_back(grad_output), strict=True):
            gradients[position] = gradient
        return tuple(gradients)

    def _register(self, tensors: str, statics: str) -> None:
        """Defines ``fastdl::<name>_forward`` and ``fastdl::<name>_backward``, which trace, export and pass opcheck."""
        outputs = ", ".join(["Tensor"] * self.differentiable)
        forward = torch.library.custom_op(
            f"fastdl::{self.name}_forward",
            partial(_run_forward, self),
            mutates_args=(),
            schema=f"({tensors}, {statics}, str backend) -> (Tensor, Tensor)",
        )
        backward = torch.library.custom_op(
            f"fastdl::{self.name}_backward",
            partial(_run_backward, self),
            mutates_args=(),
            schema=f"(Tensor grad_output, {tensors}, Tensor statistics, {statics}, bool[] needs, str backend) -> ({outputs})",
        )
        forward.register_fake(partial(_fake_forward, self))
        backward.register_fake(partial(_fake_backward, self))
        forward.register_autograd(partial(_traced_backward, self), setup_context=partial(_save_traced, self))
        backward.register_autograd(partial(_traced_double_backward, self), setup_context=partial(_save_traced_backward, self))
        self.forward_op = getattr(torch.ops.fastdl, f"{self.name}_forward").default
        self.backward_op = getattr(torch.ops.fastdl, f"{self.name}_backward").default


_PLAIN_TENSORS = frozenset({Tensor, torch.nn.Parameter})


def _is_transformed() -> bool:
    """Whether forward-mode differentiation or a ``torch.func`` transform is under way."""
    return torch.autograd.forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


@torch.compiler.assume_constant_result
def _choose_while_tracing(op: str, request: str, device: str, dtype: torch.dtype) -> str:
    return dispatch.choose(op, request, device, dtype)


# -- eager ----------------------------------------------------------------------------------------------------------------


def _eager_function(op: FusedOperator) -> type[torch.autograd.Function]:
    differentiable = op.differentiable
    rest = (None,) * (op.count - differentiable)

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any, kernels: dispatch.Implementation, observe: Observer | None, statics: Statics, *tensors: Any
        ) -> Tensor:
            output, statistics = kernels.forward(*tensors, *statics)
            if observe is not None:
                observe(kernels.backend, statistics)
            ctx.save_for_backward(statistics, *tensors)
            ctx.kernels = kernels
            ctx.statics = statics
            return output

        @staticmethod
        def backward(ctx: Any, grad_output: Tensor) -> Any:  # type: ignore[override]
            statistics, *tensors = ctx.saved_tensors
            needs = ctx.needs_input_grad[3 : differentiable + 3]
            if torch.is_grad_enabled():
                gradients = op.differentiate(grad_output, tuple(tensors), ctx.statics, needs)
            else:
                gradients = ctx.kernels.backward(grad_output, *tensors, statistics, *ctx.statics, needs)
            return (None, None, None, *gradients, *rest)

    Eager.__name__ = Eager.__qualname__ = "".join(word.title() for word in op.name.split("_"))
    return Eager


# -- torch.func -----------------------------------------------------------------------------------------------------------


def _transformed_function(op: FusedOperator) -> type[torch.autograd.Function]:
    count, differentiable = op.count, op.differentiable

    class Transformed(torch.autograd.Function):
        @staticmethod
        def forward(*arguments: Any) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            *arguments, backend = arguments
            return dispatch.implementation(op.name, backend).forward(*arguments)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.mark_non_differentiable(output[1])
            ctx.save_for_backward(*inputs[:count])
            ctx.save_for_forward(*inputs[:count])
            ctx.statics = inputs[count:-1]

        @staticmethod
        def backward(ctx: Any, grad_output: Tensor, _: Any) -> Any:  # type: ignore[override]
            # Always the differentiable one: a transform may be nested in another, and torch.func has no create_graph.
            gradients = op.differentiate(grad_output, ctx.saved_tensors, ctx.statics, ctx.needs_input_grad)
            return (*gradients, *[None] * (count - differentiable + len(ctx.statics) + 1))

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            tensors = ctx.saved_tensors
            wanted = [i for i in range(differentiable) if tangents[i] is not None]

            def reference(*primals: Tensor) -> Tensor:
                arguments = list(tensors)
                for position, primal in zip(wanted, primals, strict=True):
                    arguments[position] = primal
                return op.reference(*arguments, *ctx.statics)[0]

            primals = tuple(tensors[i] for i in wanted)
            return torch.func.jvp(reference, primals, tuple(tangents[i] for i in wanted))[1], None

        @staticmethod
        def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
            tensors, statics = arguments[:count], arguments[count:-1]

            def reference(*batched: Tensor | None) -> tuple[Tensor, Tensor]:
                return op.reference(*batched, *statics)

            return torch.vmap(reference, in_dims=in_dims[:count], randomness=info.randomness)(*tensors), (0, 0)

    return Transformed


# -- traced ---------------------------------------------------------------------------------------------------------------


def output_like(input: Tensor) -> Tensor:
    """An empty tensor with the memory layout that every backend gives its output: channels last or contiguous."""
    if has_channels_last(input):
        order = [0, *range(2, input.ndim), 1]
        dense = torch.empty([input.shape[i] for i in order], dtype=input.dtype, device=input.device)
        return dense.permute(0, -1, *range(1, input.ndim - 1))
    return torch.empty(input.shape, dtype=input.dtype, device=input.device)


def has_channels_last(input: Tensor) -> bool:
    """Whether channels are innermost in memory and the rest lies in order, as ``torch.channels_last`` has it; any slice too."""
    if input.ndim < 3 or input.is_contiguous() or input.stride(1) != 1:
        return False
    innermost = input.shape[1]
    for dimension in (*range(input.ndim - 1, 1, -1), 0):
        if input.shape[dimension] == 1:
            continue
        if input.stride(dimension) < innermost:
            return False
        innermost = input.stride(dimension) * input.shape[dimension]
    return True


def _run_forward(op: FusedOperator, *arguments: Any) -> tuple[Tensor, Tensor]:
    *arguments, request = arguments
    input = arguments[0]
    backend = dispatch.choose(op.name, request, input.device.type, input.dtype)
    if backend == "reference":
        output, statistics = op.reference(*arguments)
        return output_like(input).copy_(output), statistics
    return dispatch.implementation(op.name, backend).forward(*arguments)


def _run_backward(op: FusedOperator, grad_output: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    *arguments, needs, request = arguments
    tensors, statistics, statics = tuple(arguments[: op.count]), arguments[op.count], tuple(arguments[op.count + 1 :])
    input = tensors[0]
    backend = dispatch.choose(op.name, request, input.device.type, input.dtype)
    if backend == "reference":
        with torch.enable_grad():
            primals = tuple(None if t is None else t.detach() for t in tensors)
            gradients = op.differentiate(grad_output, primals, statics, needs)
    else:
        kernels = dispatch.implementation(op.name, backend)
        gradients = kernels.backward(grad_output, *tensors, statistics, *statics, needs)
    return tuple(_in_layout(tensors[i], g) for i, g in enumerate(gradients))


def _in_layout(tensor: Tensor | None, gradient: Tensor | None) -> Tensor:
    """A gradient in the layout that the fake implementation promises; an empty tensor stands for "not asked for"."""
    if gradient is None or tensor is None:
        return torch.empty(0) if tensor is None else tensor.new_empty(0)
    promised = output_like(tensor)
    if promised.stride() == gradient.stride():
        return gradient.detach()
    return promised.copy_(gradient.detach())


def _fake_forward(op: FusedOperator, *arguments: Any) -> tuple[Tensor, Tensor]:
    return output_like(arguments[0]), op.empty_statistics(*arguments[:-1])


def _fake_backward(op: FusedOperator, grad_output: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    needs = arguments[-2]
    return tuple(
        output_like(t) if wanted and t is not None else (torch.empty(0) if t is None else t.new_empty(0))
        for t, wanted in zip(arguments[: op.differentiable], needs, strict=True)
    )


def _save_traced(op: FusedOperator, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[: op.count], output[1])
    ctx.statics = inputs[op.count : -1]
    ctx.request = inputs[-1]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])


def _traced_backward(op: FusedOperator, ctx: Any, grad_output: Tensor | None, _: Any) -> Any:
    *tensors, statistics = ctx.saved_tensors
    rest = [None] * (op.count - op.differentiable + len(ctx.statics) + 1)
    if grad_output is None:
        return (*[None] * op.differentiable, *rest)
    needs = [bool(needed) for needed in ctx.needs_input_grad[: op.differentiable]]
    gradients = op.backward_op(grad_output, *tensors, statistics, *ctx.statics, needs, ctx.request)
    return (*(g if needed else None for g, needed in zip(gradients, needs, strict=True)), *rest)


def _save_traced_backward(op: FusedOperator, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[: op.count + 1])
    ctx.statics = inputs[op.count + 2 : -2]
    ctx.needs = inputs[-2]


def _traced_double_backward(op: FusedOperator, ctx: Any, *grad_gradients: Tensor | None) -> Any:
    """The backward op differentiated through the reference: by the gradient of the output and by each tensor."""
    grad_output, *tensors = ctx.saved_tensors
    wanted = [i for i in range(op.differentiable) if tensors[i] is not None]
    returned = [i for i in wanted if ctx.needs[i] and grad_gradients[i] is not None]

    def first_derivatives(grad: Tensor, *primals: Tensor) -> tuple[Tensor, ...]:
        arguments = list(tensors)
        for position, primal in zip(wanted, primals, strict=True):
            arguments[position] = primal
        gradients = op.differentiate(grad, tuple(arguments), ctx.statics, ctx.needs)
        return tuple(g for i, g in enumerate(gradients) if i in returned and g is not None)

    _, pull_back = torch.func.vjp(first_derivatives, grad_output, *(tensors[i] for i in wanted))
    by_grad, *by_tensor = pull_back(tuple(grad_gradients[i] for i in returned))
    result: list[Tensor | None] = [None] * op.count
    for position, gradient in zip(wanted, by_tensor, strict=True):
        result[position] = gradient
    return (by_grad, *result, *[None] * (1 + len(ctx.statics) + 2))
