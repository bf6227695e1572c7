"""The life of a call, the same for every op: choose a backend, run its forward kernel, remember it for the backward.

An op is a reference and a schema (`FusedOperator`). From these come three routes to the same kernels:

- eager (`fastdl.ops.eager`): an ``autograd.Function`` straight onto the kernel. A registered Python op costs tens of
  microseconds a call, which at small sizes is more than the kernel.
- traced (`fastdl.ops.traced`), for ``torch.compile``, ``torch.export``, fake and dispatch-mode tensors: the ops
  ``fastdl::<name>_forward`` and ``fastdl::<name>_backward``, with fake implementations and registered autograd.
- transformed (`fastdl.ops.transformed`), for ``torch.func``: an ``autograd.Function`` with ``jvp`` and ``vmap``.

Second derivatives are the reference's on every route: the reference is ordinary differentiable torch code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers

from fastdl.ops import annotation, dispatch
from fastdl.ops.annotation import BACKWARD, FORWARD, announced, announced_reference
from fastdl.ops.eager import Observer, eager_apply
from fastdl.ops.layout import gradient_like_input, image_layout, output_like_input
from fastdl.ops.traced import register_ops
from fastdl.ops.transformed import transformed_function

_PLAIN_TENSORS = frozenset({Tensor, torch.nn.Parameter})


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
        output_like: an uninitialised output from the tensors, and gradient_like: an uninitialised gradient from its own
            tensor and the first one, both in the layout of every backend's.
        differentiable_statistics: whether the statistics have a gradient: the op then returns them beside its output,
            and backward is given their gradient, or None, after the output's, and the output before the statistics.
        adds_residual: whether the second tensor, where it is given, is added to the first: the sum is then a second
            output, in front of the statistics (None where nothing is added). Of the three only the sum is kept:
            backward finds it in the first tensor's place and None in the second's, is given its gradient, or None,
            after the output's, and what it gives the first is the second's gradient as well. The reference gives the
            sum in any case.
        layout_of: the name of the input's layout in the table of what was measured on GPUs.
    """

    def __init__(
        self,
        name: str,
        *,
        tensors: str,
        statics: str,
        differentiable: int,
        reference: Callable[..., tuple[Tensor, ...]],
        empty_statistics: Callable[..., Tensor],
        output_like: Callable[..., Tensor] = output_like_input,
        gradient_like: Callable[[Tensor, Tensor], Tensor] = gradient_like_input,
        differentiable_statistics: bool = False,
        adds_residual: bool = False,
        layout_of: Callable[[Tensor], str] = image_layout,
    ) -> None:
        self.name = name
        self.count = tensors.count("Tensor")
        self.differentiable = differentiable
        self.reference = reference
        self.empty_statistics = empty_statistics
        self.output_like = output_like
        self.gradient_like = gradient_like
        self.differentiable_statistics = differentiable_statistics
        self.adds_residual = adds_residual
        self.outputs = 2 if differentiable_statistics or adds_residual else 1
        self.layout_of = layout_of
        self.apply_eager = eager_apply(self)
        self.transformed_function = transformed_function(self)
        self.forward_op, self.backward_op = register_ops(self, tensors, statics)

    def __call__(
        self,
        tensors: tuple[Any, ...],
        statics: tuple[Any, ...],
        observe: Observer | None = None,
        adapt: Callable[[dispatch.Implementation], dispatch.Implementation] | None = None,
    ) -> Any:
        """The op's output, on the backend that was asked for; ``observe(kernels, statistics)`` is called on the way.

        ``adapt`` may make a backend's kernels quicker by what the caller knows; where others than these serve the call,
        it is not asked.
        With ``differentiable_statistics``, the output and the statistics; with a residual that is added, the output
        and the sum.
        """
        if torch.compiler.is_compiling():
            results = self._trace(tensors, statics)
            if observe is not None:
                observe(None, results[-1])
            return self._returned(results, tensors)
        input = tensors[0]
        kernels: dispatch.Implementation | None = None
        request = dispatch.requested()
        backend = dispatch.choose(self.name, request, input.device.type, input.dtype)
        if backend != "reference" and is_direct(input):
            kernels = dispatch.implementation(self.name, backend)
            if adapt is not None:
                kernels = adapt(kernels)
            if torch.is_grad_enabled():
                for tensor in tensors:
                    if tensor is not None and tensor.requires_grad:
                        return self.apply_eager(kernels, observe, statics, *tensors)
            forward = kernels.forward if annotation.annotate is None else announced(self, FORWARD, kernels)
            results = forward(*tensors, *statics)
        elif backend == "reference" or torch.autograd.forward_ad._current_level >= 0:
            results = announced_reference(self, FORWARD, self.reference)(*tensors, *statics)
        elif torch._C._are_functorch_transforms_active():
            results = self.transformed_function.apply(*tensors, *statics, backend)
        else:
            results = self.forward_op(*tensors, *statics, request)
        if observe is not None:
            observe(kernels, results[-1])
        return self._returned(results, tensors)

    def _returned(self, results: tuple[Any, ...], tensors: tuple[Any, ...]) -> Any:
        return results[:2] if self.outputs == 2 and not (self.adds_residual and tensors[1] is None) else results[0]

    def _trace(self, tensors: tuple[Any, ...], statics: tuple[Any, ...]) -> tuple[Tensor, ...]:
        input = tensors[0]
        request = dispatch.requested_view.backend
        if dispatch.choose_while_tracing(self.name, request, input.device.type, input.dtype) == "reference":
            return self.reference(*tensors, *statics)  # plain torch code, which the compiler may fuse
        return self.forward_op(*tensors, *statics, request)

    def kept(self, tensors: tuple[Any, ...], sum: Tensor | None) -> tuple[Any, ...]:
        """What backward needs of the tensors: with a residual that was added, the sum for both."""
        return tensors if sum is None else (sum, None, *tensors[2:])

    def outputs_of(
        self, positions: Sequence[int], tensors: Sequence[Any], statics: tuple[Any, ...], count: int
    ) -> Callable[..., tuple[Tensor, ...]]:
        """The reference's first ``count`` outputs as a function of the tensors at ``positions``, the others held."""

        def outputs(*primals: Tensor) -> tuple[Tensor, ...]:
            arguments = list(tensors)
            for position, primal in zip(positions, primals, strict=True):
                arguments[position] = primal
            return self.reference(*arguments, *statics)[:count]

        return outputs

    def differentiate(
        self, grad_outputs: Sequence[Any], tensors: Sequence[Any], statics: tuple[Any, ...], needs: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        """The first derivatives by the reference, themselves differentiable: the backward under ``create_graph``."""
        if annotation.annotate is None or torch.compiler.is_compiling():
            return self._differentiate(grad_outputs, tensors, statics, needs)

        def differentiate(*_: Any) -> tuple[Tensor | None, ...]:
            return self._differentiate(grad_outputs, tensors, statics, needs)

        gradients = (*grad_outputs, *[None] * (self.outputs - len(grad_outputs)))
        kept = (None,) * (2 if self.differentiable_statistics else 1)  # which only kernels use
        return announced_reference(self, BACKWARD, differentiate)(*gradients, *tensors, *kept, *statics, needs)

    def _differentiate(
        self, grad_outputs: Sequence[Any], tensors: Sequence[Any], statics: tuple[Any, ...], needs: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        wanted = [i for i in range(self.differentiable) if needs[i] and tensors[i] is not None]
        gradients: list[Tensor | None] = [None] * self.differentiable
        function = self.outputs_of(wanted, tensors, statics, len(grad_outputs))
        outputs, pull_back = torch.func.vjp(function, *(tensors[i] for i in wanted))[:2]
        cotangents = tuple(
            torch.zeros_like(output) if grad is None else grad
            for output, grad in zip(outputs, grad_outputs, strict=True)
        )
        # Outside of vjp its results may still be wrapped for the level that has ended; numpy() needs them bare.
        for position, gradient in zip(wanted, unwrap_dead_wrappers(pull_back(cotangents)), strict=True):
            gradients[position] = gradient
        return tuple(gradients)


def is_direct(input: Tensor) -> bool:
    """Whether a kernel may be called as it is: on a plain tensor, which nobody traces or transforms."""
    return type(input) in _PLAIN_TENSORS and not torch._C._len_torch_dispatch_stack() and not is_transformed()


def is_transformed() -> bool:
    """Whether forward-mode differentiation or a ``torch.func`` transform is under way."""
    return torch.autograd.forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()
