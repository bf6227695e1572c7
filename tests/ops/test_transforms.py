"""torch.func over the ops, as over torch's own: grad, vjp, jvp, jacrev, hessians, vmap, and one inside another."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import fastdl
from fastdl import nn
from fastdl.ops import batch_norm, group_norm
from tests.support.backends import BACKENDS_UNDER_TEST

# Forward-mode AD of torch 2.13 scripts its own decompositions, which it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

Function = Callable[[Tensor, Tensor, Tensor], Tensor]

FUNCTIONS: dict[str, tuple[Function, Function]] = {
    "group_norm": (
        lambda x, w, b: group_norm(x, 2, w, b, activation="silu"),
        lambda x, w, b: F.silu(F.group_norm(x, 2, w, b)),
    ),
    "batch_norm": (
        lambda x, w, b: batch_norm(x, None, None, w, b, True, activation="tanh"),
        lambda x, w, b: torch.tanh(F.batch_norm(x, None, None, w, b, True)),
    ),
    "batch_norm_evaluation": (
        lambda x, w, b: batch_norm(x, x.new_zeros(4), x.new_ones(4), w, b, activation="gelu"),
        lambda x, w, b: F.gelu(F.batch_norm(x, x.new_zeros(4), x.new_ones(4), w, b)),
    ),
}
SHAPE = (3, 4, 2, 3)


@pytest.fixture(params=list(FUNCTIONS))
def pair(request: pytest.FixtureRequest) -> tuple[Function, Function]:
    return FUNCTIONS[request.param]


@pytest.fixture(params=list(BACKENDS_UNDER_TEST))
def device(request: pytest.FixtureRequest):
    device = BACKENDS_UNDER_TEST[request.param].device()
    if torch.float64 not in BACKENDS_UNDER_TEST[request.param].dtypes():
        pytest.skip("compared in float64")
    with fastdl.use_backend(request.param):
        yield device


@pytest.fixture
def primals(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(  # type: ignore[return-value]
        torch.randn(shape, generator=generator, dtype=torch.float64).to(device) for shape in (SHAPE, (4,), (4,))
    )


def total(function: Function) -> Function:
    """A scalar of it that is not zero by symmetry."""
    return lambda *arguments: (
        (function(*arguments) * torch.arange(1, 1 + torch.Size(SHAPE).numel()).view(SHAPE)).sin().sum()
    )


def close(ours: object, theirs: object) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("argument", [0, 1, 2, (0, 1, 2)], ids=["input", "weight", "bias", "all"])
def test_grad(pair: tuple[Function, Function], primals: tuple[Tensor, ...], argument: int | tuple[int, ...]) -> None:
    close(grad(total(pair[0]), argument)(*primals), grad(total(pair[1]), argument)(*primals))


def test_vjp(pair: tuple[Function, Function], primals: tuple[Tensor, ...]) -> None:
    cotangent = torch.randn(SHAPE, dtype=torch.float64)
    (ours, pull_ours), (theirs, pull_theirs) = vjp(pair[0], *primals), vjp(pair[1], *primals)
    close(ours, theirs)
    close(pull_ours(cotangent), pull_theirs(cotangent))


def test_jvp(pair: tuple[Function, Function], primals: tuple[Tensor, ...]) -> None:
    tangents = tuple(torch.randn_like(primal) for primal in primals)
    close(jvp(pair[0], primals, tangents), jvp(pair[1], primals, tangents))


def test_jvp_by_one_argument(pair: tuple[Function, Function], primals: tuple[Tensor, ...]) -> None:
    x, weight, bias = primals
    tangent = (torch.randn_like(x),)
    ours, theirs = (jvp(lambda x, f=f: f(x, weight, bias), (x,), tangent) for f in pair)
    close(ours, theirs)


def test_dual_tensors_outside_of_torch_func(pair: tuple[Function, Function], primals: tuple[Tensor, ...]) -> None:
    x, weight, bias = primals
    tangent = torch.randn_like(x)
    results = []
    for function in pair:
        with torch.autograd.forward_ad.dual_level():
            output = function(torch.autograd.forward_ad.make_dual(x, tangent), weight, bias)
            results.append(torch.autograd.forward_ad.unpack_dual(output).tangent)
    close(*results)


def test_jacrev_and_jacfwd(pair: tuple[Function, Function], primals: tuple[Tensor, ...]) -> None:
    x, weight, bias = (primal[:2] if primal.ndim == 4 else primal for primal in primals)
    ours, theirs = ((lambda x, f=f: f(x, weight, bias)) for f in pair)
    expected = jacrev(theirs)(x)
    close(jacrev(ours)(x), expected)
    close(jacfwd(ours)(x), expected)


def test_hessian(pair: tuple[Function, Function], primals: tuple[Tensor, ...]) -> None:
    x, weight, bias = primals
    ours, theirs = ((lambda w, f=f: total(f)(x, w, bias)) for f in pair)
    expected = jacrev(jacrev(theirs))(weight)
    close(jacrev(jacrev(ours))(weight), expected)
    close(hessian(ours)(weight), expected)


def test_grad_of_grad(pair: tuple[Function, Function], primals: tuple[Tensor, ...]) -> None:
    x, weight, bias = primals
    ours, theirs = (grad(lambda x, f=f: grad(lambda x: total(f)(x, weight, bias))(x).square().sum()) for f in pair)
    close(ours(x), theirs(x))


@pytest.mark.parametrize("in_dims", [(0, None, None), (0, 0, 0), (2, None, 0), (None, 0, None)])
def test_vmap(pair: tuple[Function, Function], primals: tuple[Tensor, ...], in_dims: tuple[int | None, ...]) -> None:
    batched = tuple(
        primal if dim is None else torch.randn(5, *primal.shape, dtype=torch.float64).movedim(0, dim)
        for primal, dim in zip(primals, in_dims, strict=True)
    )
    close(vmap(pair[0], in_dims=in_dims)(*batched), vmap(pair[1], in_dims=in_dims)(*batched))


def test_per_sample_gradients(pair: tuple[Function, Function], primals: tuple[Tensor, ...]) -> None:
    _, weight, bias = primals
    samples = torch.randn(5, *SHAPE, dtype=torch.float64)
    ours, theirs = (
        vmap(grad(lambda w, x, f=f: total(f)(x, w, bias)), in_dims=(None, 0))(weight, samples) for f in pair
    )
    close(ours, theirs)


def test_functional_call_of_a_module(device: torch.device) -> None:
    module = nn.GroupNorm(2, 4, activation="silu").to(device, torch.float64)
    parameters = {name: torch.randn_like(parameter) for name, parameter in module.named_parameters()}
    x = torch.randn(SHAPE, dtype=torch.float64, device=device)
    ours = grad(lambda p: functional_call(module, p, (x,)).square().sum())(parameters)
    theirs = grad(lambda p: F.silu(F.group_norm(x, 2, p["weight"], p["bias"])).square().sum())(parameters)
    close(ours, theirs)
