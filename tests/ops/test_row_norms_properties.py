"""layer_norm and rms_norm beside their parity: gradients, tracing, transforms, what is kept, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastdl
from fastdl.ops import OPERATORS, layer_norm, rms_norm
from tests.support.backends import BACKENDS_UNDER_TEST
from tests.support.layouts import LAYOUTS
from tests.support.measure import saved_bytes

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

NORMS = ("layer_norm", "rms_norm")
KERNELS = [name for name in BACKENDS_UNDER_TEST if name != "reference"]
every_norm = pytest.mark.parametrize("norm", NORMS)
with_and_without = pytest.mark.parametrize("added", [False, True], ids=["alone", "added"])
every_backend = pytest.mark.parametrize("backend", BACKENDS_UNDER_TEST)


def apply(norm: str, x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None = None) -> Any:
    shape = x.shape[-1:]
    if norm == "layer_norm":
        return layer_norm(x, shape, weight, bias, residual=residual)
    return rms_norm(x, shape, weight, residual=residual)


def apply_torch(norm: str, x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> Any:
    sum = x if residual is None else x + residual
    shape = tuple(x.shape[-1:])
    output = F.layer_norm(sum, shape, weight, bias) if norm == "layer_norm" else F.rms_norm(sum, shape, weight)
    return output if residual is None else (output, sum)


def tensors_of(
    norm: str, added: bool, shape: tuple[int, ...] = (3, 5, 12), dtype: torch.dtype = torch.float32, device: Any = "cpu"
) -> list[Tensor | None]:
    x, residual = (torch.randn(shape, dtype=dtype, device=device, requires_grad=True) for _ in range(2))
    weight, bias = (torch.randn(shape[-1], dtype=dtype, device=device, requires_grad=True) for _ in range(2))
    return [x, residual if added else None, weight, bias if norm == "layer_norm" else None]


# -- gradients --------------------------------------------------------------------------------------------------------


@every_norm
@with_and_without
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_gradcheck_and_gradgradcheck(norm: str, added: bool, backend: str) -> None:
    BACKENDS_UNDER_TEST[backend].device()
    tensors = tensors_of(norm, added, (2, 3, 5), torch.float64)
    given = [t for t in tensors if t is not None]

    def function(*primals: Tensor) -> Any:
        rest = iter(primals)
        return apply(norm, *(None if t is None else next(rest) for t in tensors))  # type: ignore[arg-type]

    with fastdl.use_backend(backend):
        assert torch.autograd.gradcheck(function, given)
        assert torch.autograd.gradgradcheck(function, given)


@every_norm
@every_backend
def test_the_gradient_of_one_output_alone(norm: str, backend: str) -> None:
    device = BACKENDS_UNDER_TEST[backend].device()
    tensors = tensors_of(norm, True, device=device)
    given = [t for t in tensors if t is not None]
    with fastdl.use_backend(backend):
        output, sum = apply(norm, *tensors)  # type: ignore[arg-type]
        grad = torch.randn_like(sum)
        found = torch.autograd.grad(sum, given, grad, retain_graph=True, allow_unused=True)
        assert torch.equal(found[0], grad)
        assert torch.equal(found[1], grad)
        assert all(gradient is None or not gradient.any() for gradient in found[2:])
        of_output = torch.autograd.grad(output, given, grad)
    theirs = torch.autograd.grad(apply_torch(norm, *tensors)[0], given, grad)  # type: ignore[arg-type]
    for gradient, expected in zip(of_output, theirs, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=2e-5, atol=1e-5)


@every_norm
@with_and_without
@every_backend
def test_only_what_is_asked_for_is_computed(norm: str, added: bool, backend: str) -> None:
    device = BACKENDS_UNDER_TEST[backend].device()
    whole = tensors_of(norm, added, device=device)
    places = [i for i, t in enumerate(whole) if t is not None]
    with fastdl.use_backend(backend):
        results = apply(norm, *whole)  # type: ignore[arg-type]
        results = results if added else (results,)
        grads = [torch.randn_like(result) for result in results]
        expected = torch.autograd.grad(results, [whole[i] for i in places], grads)  # type: ignore[misc]
        for place, gradient in zip(places, expected, strict=True):
            tensors = [t if t is None else t.detach().requires_grad_(i == place) for i, t in enumerate(whole)]
            results = apply(norm, *tensors)  # type: ignore[arg-type]
            results = results if added else (results,)
            needed = [(r, g) for r, g in zip(results, grads, strict=True) if r.requires_grad]
            found = torch.autograd.grad([r for r, _ in needed], tensors[place], [g for _, g in needed])  # type: ignore[arg-type]
            torch.testing.assert_close(found[0], gradient, rtol=1e-5, atol=1e-6)


@every_norm
@with_and_without
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_second_derivatives_are_torchs(norm: str, added: bool, backend: str) -> None:
    BACKENDS_UNDER_TEST[backend].device()

    def penalty(function: Callable[..., Any], tensors: list[Any]) -> tuple[Tensor, ...]:
        given = [t for t in tensors if t is not None]
        results = function(norm, *tensors)
        loss = sum(r.pow(3).sum() for r in (results if added else (results,)))
        gradients = torch.autograd.grad(loss, given, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in gradients), given)

    tensors = tensors_of(norm, added, dtype=torch.float64)
    with fastdl.use_backend(backend):
        ours = penalty(apply, tensors)
    for found, expected in zip(ours, penalty(apply_torch, tensors), strict=True):
        torch.testing.assert_close(found, expected)


# -- tracing and transforms -------------------------------------------------------------------------------------------

CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@every_norm
@with_and_without
@every_backend
@pytest.mark.parametrize("layout", ["contiguous", "channels_outermost", "sliced_space"])
def test_registered_ops_pass_opcheck(norm: str, added: bool, layout: str, backend: str) -> None:
    device = BACKENDS_UNDER_TEST[backend].device()
    operator = OPERATORS[norm]
    tensors = [t if t is None else t.detach() for t in tensors_of(norm, added, device=device)]
    tensors[0] = LAYOUTS[layout]((3, 5, 12), torch.randn).to(device)
    given = [t if t is None else t.clone().requires_grad_() for t in tensors[: operator.count]]
    statics = (1, 1e-5)
    torch.library.opcheck(operator.forward_op, (*given, *statics, backend), test_utils=CHECKS)
    output, sum, statistics = operator.forward_op(*tensors[: operator.count], *statics, backend)
    kept = operator.kept(tuple(tensors[: operator.count]), sum if added else None)
    grad_sum = torch.randn_like(output) if added else None
    for needs in ([True, False, True, True], [False, False, True, False], [True, False, False, False]):
        arguments = (torch.randn_like(output), grad_sum, *kept, statistics, *statics, needs[: operator.count], backend)
        torch.library.opcheck(operator.backward_op, arguments, test_utils=CHECKS)


@every_norm
@with_and_without
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_break(norm: str, added: bool, dynamic: bool, one_thread: None) -> None:
    torch._dynamo.reset()

    def step(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None) -> Any:
        results = apply(norm, x * 2, residual, weight, bias)
        return results[0].sin() + results[1] if added else results.sin()

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for rows in (4, 7):
        tensors = tensors_of(norm, added, (2, rows, 12))
        given = [t for t in tensors if t is not None]
        ours, expected = compiled(*tensors), step(*tensors)  # type: ignore[arg-type]
        torch.testing.assert_close(ours, expected)
        grad = torch.randn_like(ours)
        for found, other in zip(
            torch.autograd.grad(ours, given, grad), torch.autograd.grad(expected, given, grad), strict=True
        ):
            torch.testing.assert_close(found, other)


@every_norm
@with_and_without
def test_exports(norm: str, added: bool) -> None:
    class Module(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> Any:
            rest = iter(tensors)
            return apply(norm, *(None if t is None else next(rest) for t in given))  # type: ignore[arg-type]

    given = tensors_of(norm, added)
    tensors = tuple(t.detach() for t in given if t is not None)
    program = torch.export.export(Module(), tensors)
    torch.testing.assert_close(program.module()(*tensors), Module()(*tensors))


@every_norm
@with_and_without
@every_backend
def test_function_transforms(norm: str, added: bool, backend: str) -> None:
    device = BACKENDS_UNDER_TEST[backend].device()
    tensors = [t if t is None else t.detach() for t in tensors_of(norm, added, device=device)]

    def loss(function: Callable[..., Any], x: Tensor) -> Tensor:
        results = function(norm, x, *tensors[1:])
        return sum((r.pow(2) * r.cos()).sum() for r in (results if added else (results,)))  # type: ignore[return-value]

    x, direction = torch.randn(3, 5, 12, device=device), torch.randn(3, 5, 12, device=device)
    with fastdl.use_backend(backend):
        gradient = torch.func.grad(lambda x: loss(apply, x))(x)
        along = torch.func.jvp(lambda x: loss(apply, x), (x,), (direction,))[1]
        batched = torch.func.vmap(lambda x: apply(norm, x, tensors[1], *tensors[2:]))(torch.stack([x, direction]))
    torch.testing.assert_close(gradient, torch.func.grad(lambda x: loss(apply_torch, x))(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(along, (gradient * direction).sum(), rtol=1e-4, atol=1e-3)
    one, other = (apply_torch(norm, x, *tensors[1:]) for x in (x, direction))  # type: ignore[arg-type]
    for i, expected in enumerate((one, other)):
        found = tuple(result[i] for result in batched) if added else batched[i]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# -- what is kept, and of which dtype ---------------------------------------------------------------------------------


@every_norm
@pytest.mark.parametrize("backend", KERNELS)
def test_keeps_the_sum_and_a_number_or_two_a_row(norm: str, backend: str) -> None:
    device = BACKENDS_UNDER_TEST[backend].device()
    tensors = tensors_of(norm, True, (64, 96), device=device)
    with fastdl.use_backend(backend):
        kept = saved_bytes(lambda: apply(norm, *tensors)[0])  # type: ignore[arg-type]
    parameters = sum(t.nbytes for t in tensors[2:] if t is not None)
    assert kept == 64 * 96 * 4 + 64 * 4 * (2 if norm == "layer_norm" else 1) + parameters


@every_norm
@every_backend
def test_a_residual_of_another_dtype_is_added_as_torch_adds(norm: str, backend: str) -> None:
    device = BACKENDS_UNDER_TEST[backend].device()
    x, weight = torch.randn(3, 8, device=device, requires_grad=True), torch.randn(8, device=device)
    residual = torch.randn(3, 8, device=device, dtype=torch.bfloat16, requires_grad=True)
    with fastdl.use_backend(backend):
        output, sum = apply(norm, x, residual, weight)
    assert output.dtype == sum.dtype == torch.float32
    assert torch.equal(sum, x + residual)
    for gradient, tensor in zip(torch.autograd.grad(output.sum(), (x, residual)), (x, residual), strict=True):
        assert gradient.dtype == tensor.dtype


@every_norm
@every_backend
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_what_is_not_finite_stays_in_its_row(norm: str, poison: float, backend: str) -> None:
    device = BACKENDS_UNDER_TEST[backend].device()
    x, residual = torch.randn(2, 9, 40, device=device)
    x[3, 17] = poison
    with fastdl.use_backend(backend):
        output, sum = apply(norm, x, residual, None)
    expected = apply_torch(norm, x, residual, None, None)[0]
    assert torch.equal(sum, x + residual) or math.isnan(poison)
    torch.testing.assert_close(output, expected, equal_nan=True)
    assert output[[0, 1, 2, 4, 5, 6, 7, 8]].isfinite().all()


@every_norm
def test_sums_of_parameters_do_not_depend_on_the_number_of_threads(norm: str) -> None:
    BACKENDS_UNDER_TEST["cpu"].device()
    threads = torch.get_num_threads()
    tensors = tensors_of(norm, True, (5003, 24))
    given = [t for t in tensors if t is not None]
    found = []
    try:
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            with fastdl.use_backend("cpu"):
                results = apply(norm, *tensors)  # type: ignore[arg-type]
            torch.manual_seed(1)
            found.append(torch.autograd.grad(results, given, [torch.randn(5003, 24) for _ in results]))
    finally:
        torch.set_num_threads(threads)
    for gradients in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(gradients, found[0], strict=True))


@pytest.mark.slow
@every_norm
def test_more_than_two_to_the_31_values(norm: str) -> None:
    """In bfloat16, with rows that are expanded from one: only the output and the gradient are that large."""
    BACKENDS_UNDER_TEST["cpu"].device()
    row = torch.randn(1, 4096, dtype=torch.bfloat16)
    x = row.expand(2**19 + 8, 4096)
    with fastdl.use_backend("cpu"):
        output = apply(norm, x, None, None)
    expected = apply_torch(norm, row, None, None, None)
    torch.testing.assert_close(output[-1:], expected, rtol=0.02, atol=0.01)
    torch.testing.assert_close(output[:1], expected, rtol=0.02, atol=0.01)


# -- what is refused --------------------------------------------------------------------------------------------------


@every_norm
def test_wrong_arguments_are_named(norm: str) -> None:
    function: Callable[..., Any] = {"layer_norm": layer_norm, "rms_norm": rms_norm}[norm]
    x = torch.randn(2, 3, 4)
    for arguments, options, error, words in (
        (("x", 4), {}, TypeError, "input must be a torch.Tensor; got str"),
        ((x.long(), 4), {}, TypeError, "input must be float32"),
        ((x, 5), {}, ValueError, r"normalized_shape must be the last dimensions of input; got \(5,\)"),
        ((x, (2, 4)), {}, ValueError, r"got \(2, 4\) with input of shape \(2, 3, 4\)"),
        ((x, (1, 2, 3, 4)), {}, ValueError, "normalized_shape"),
        ((x, ()), {}, TypeError, "normalized_shape must be an int or ints"),
        ((x, 4.0), {}, TypeError, "normalized_shape must be an int or ints"),
        ((x, 4, torch.ones(3)), {}, ValueError, r"weight must have the normalized shape \(4,\); got \(3,\)"),
        ((x, 4, torch.ones(4).int()), {}, TypeError, "weight must be float32"),
        ((x, 4, [1.0] * 4), {}, TypeError, "weight must be a torch.Tensor or None; got list"),
        ((x, 4), {"eps": -1.0}, ValueError, "eps must be a number of at least 0; got -1.0"),
        ((x, 4), {"residual": x[0]}, ValueError, "residual must have"),
        ((x, 4), {"residual": x.long()}, TypeError, "residual must be float32"),
        ((x, 4), {"residual": 1.0}, TypeError, "residual must be a torch.Tensor or None; got float"),
    ):
        with pytest.raises(error, match=f"{norm}: .*{words}"):
            function(*arguments, **options)


@every_norm
def test_one_dimension_may_be_given_as_a_number(norm: str) -> None:
    function: Callable[..., Any] = {"layer_norm": layer_norm, "rms_norm": rms_norm}[norm]
    x = torch.randn(2, 3, 4)
    for shape in ((4,), [4], torch.Size([4])):
        assert torch.equal(function(x, 4), function(x, shape))
