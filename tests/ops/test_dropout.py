"""Dropout: the definition's choices on every backend, and torch's manners: generator, transforms, compiler, errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, jvp, vmap
from torch.utils.checkpoint import checkpoint

import fastdl
from fastdl import nn
from fastdl.ops import dropout
from fastdl.reference.dropout import dropout as reference
from tests.support.backends import BACKENDS_UNDER_TEST, short
from tests.support.dropout import CASES, Case, check_parity, factors, seed_after
from tests.support.measure import copies, count_operators, saved_bytes

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


@pytest.fixture(params=list(BACKENDS_UNDER_TEST))
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    found = BACKENDS_UNDER_TEST[request.param].device()
    with fastdl.use_backend(request.param):
        yield found


def rows() -> Iterator[Any]:
    for backend, under_test in BACKENDS_UNDER_TEST.items():
        for case in CASES:
            for dtype in case.dtypes:
                if dtype in under_test.dtypes():
                    yield pytest.param(case, dtype, backend, id=f"{backend}-{case.name}-{short(dtype)}")


@pytest.mark.parametrize(("case", "dtype", "backend"), list(rows()))
def test_parity(case: Case, dtype: torch.dtype, backend: str) -> None:
    check_parity(case, dtype, backend)


def test_choices_are_those_of_the_layout_that_is_counted(device: torch.device) -> None:
    """The same choices whatever the strides: a place is a matter of shape."""
    x = torch.randn(2, 20, 5, 9, device=device)
    outputs = []
    for form in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(1)
        outputs.append(dropout(x.contiguous(memory_format=form), 0.4))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_share_of_what_is_dropped(p: float, device: torch.device) -> None:
    dropped = (dropout(torch.ones(300, 400, device=device), p) == 0).double()
    deviation = (p * (1 - p) / dropped.numel()) ** 0.5
    assert abs(float(dropped.mean()) - p) <= 5 * deviation + 2.0**-16
    for shifted in (dropped.roll(1, 0), dropped.roll(1, 1), dropped.roll(8, 1)):
        correlation = float(((dropped - p) * (shifted - p)).mean()) / (p * (1 - p))
        assert abs(correlation) <= 5 / dropped.numel() ** 0.5


def test_the_expectation_is_the_input(device: torch.device) -> None:
    x = torch.full((200, 500), 3.0, device=device)
    assert abs(float(dropout(x, 0.25).double().mean()) - 3) < 5 * 3 * (0.25 / 0.75 / x.numel()) ** 0.5


def test_the_generator_is_torchs(device: torch.device) -> None:
    x = torch.ones(10, 50, device=device)
    torch.manual_seed(4)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(4)
    assert torch.equal(dropout(x), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("words", [0, -1, 1 << 32, -(1 << 63), (1 << 63) - 1])
def test_both_words_of_the_seed_count(words: int, device: torch.device) -> None:
    seed = torch.tensor([words], dtype=torch.int64)
    x = torch.ones(4, 200, dtype=torch.float32, device=device)
    ours = fastdl.ops.dropout.__globals__["DROPOUT"](x, None, seed, 0.5)
    assert torch.equal(ours.double().cpu(), factors((4, 200), seed, 0.5))


@pytest.mark.parametrize("call", [{"training": False}, {"p": 0.0}, {"p": 2.0**-18}], ids=str)
def test_nothing_to_drop(call: dict[str, Any], device: torch.device) -> None:
    """No number is drawn, and the input itself comes back, as from torch."""
    x, residual = torch.randn(2, 3, 7, device=device)
    before = torch.get_rng_state()
    assert dropout(x, **call) is x
    assert torch.equal(dropout(x, **call, residual=residual), x + residual)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("left", "right"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float16)], ids=short
)
def test_dtypes_are_promoted_as_torch_adds(left: torch.dtype, right: torch.dtype, device: torch.device) -> None:
    x = torch.randn(5, 40, device=device).to(left).requires_grad_()
    residual = torch.randn(5, 40, device=device).to(right).requires_grad_()
    seed = seed_after(3)
    torch.manual_seed(3)
    output = dropout(x, 0.4, residual=residual)
    assert output.dtype == torch.promote_types(left, right)
    torch.testing.assert_close(output, reference(x.float(), residual.float(), seed, 0.4))
    gradients = torch.autograd.grad(output.sum(), (x, residual))
    assert [g.dtype for g in gradients] == [left, right]


def seeded(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(*tensors: Tensor) -> Tensor:
        torch.manual_seed(7)
        return function(*tensors)

    return call


def test_derivatives_of_every_order(device: torch.device) -> None:
    if device.type != "cpu" or torch.float64 not in BACKENDS_UNDER_TEST[fastdl.ops.dispatch.requested()].dtypes():
        pytest.skip("gradcheck is in float64")
    x, residual = (torch.randn(3, 11, dtype=torch.float64, requires_grad=True) for _ in range(2))
    plain = seeded(lambda x, r: dropout(x, 0.3, residual=r))
    nonlinear = seeded(lambda x, r: dropout(x * x, 0.3, residual=r).sin())
    assert torch.autograd.gradcheck(plain, (x, residual), check_undefined_grad=False)
    assert torch.autograd.gradcheck(nonlinear, (x, residual))
    assert torch.autograd.gradgradcheck(nonlinear, (x, residual))
    (first,) = torch.autograd.grad(nonlinear(x, residual).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
    (third,) = torch.autograd.grad(second.sum(), x)
    assert third.abs().max() > 0


def test_a_tensor_that_is_its_own_residual(device: torch.device) -> None:
    x = torch.randn(6, 30, device=device, requires_grad=True)
    seed = seed_after(2)
    torch.manual_seed(2)
    (gradient,) = torch.autograd.grad(dropout(x, 0.5, residual=x).sum(), x)
    torch.testing.assert_close(gradient, 1 + factors((6, 30), seed, 0.5).to(gradient))


def test_only_the_gradients_that_are_asked_for(device: torch.device) -> None:
    x, residual = torch.randn(2, 4, 9, device=device)
    for given in ((x.clone().requires_grad_(), residual), (x, residual.clone().requires_grad_())):
        output = dropout(given[0], 0.3, residual=given[1])
        (gradient,) = torch.autograd.grad(output.sum(), [t for t in given if t.requires_grad])
        assert gradient.shape == x.shape
    assert not dropout(x, 0.3, residual=residual).requires_grad


def test_nothing_but_the_seed_is_kept() -> None:
    for backend in BACKENDS_UNDER_TEST:
        if backend == "reference" or not fastdl.backends()[backend].available:
            continue
        x, residual = (
            torch.randn(64, 64, device=BACKENDS_UNDER_TEST[backend].device(), requires_grad=True) for _ in range(2)
        )
        with fastdl.use_backend(backend):
            assert saved_bytes(lambda: dropout(x, residual=residual)) == 8  # noqa: B023
        assert saved_bytes(lambda: F.dropout(x) + residual) >= x.numel()  # noqa: B023


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=str)
def test_no_copy_is_made(form: torch.memory_format) -> None:
    if not fastdl.backends()["cpu"].available:
        pytest.skip(fastdl.backends()["cpu"].reason)
    x = torch.randn(2, 20, 5, 9).contiguous(memory_format=form).requires_grad_()
    residual, probe = torch.randn_like(x), torch.randn_like(x)

    def step() -> None:
        torch.autograd.grad(dropout(x, residual=residual), x, probe)

    assert not copies(count_operators(step))


def test_the_number_of_threads_changes_nothing() -> None:
    x = torch.randn(37, 1003)
    threads, outputs = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        torch.manual_seed(1)
        outputs.append(dropout(x, 0.2))
    torch.set_num_threads(threads)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_checkpointing_makes_the_same_choices(device: torch.device) -> None:
    x = torch.randn(8, 30, device=device, requires_grad=True)
    block = lambda x: dropout(x.square(), 0.5, residual=x)  # noqa: E731
    torch.manual_seed(2)
    (expected,) = torch.autograd.grad(block(x).sum(), x)
    torch.manual_seed(2)
    (found,) = torch.autograd.grad(checkpoint(block, x, use_reentrant=False).sum(), x)
    assert torch.equal(found, expected)


# -- how torch sees it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("added", [False, True])
def test_opcheck(added: bool, layout: str, device: torch.device) -> None:
    form = getattr(torch, "contiguous_format" if layout == "contiguous" else layout)
    x = torch.randn(2, 6, 3, 5, device=device).contiguous(memory_format=form).requires_grad_()
    residual = torch.randn_like(x).requires_grad_() if added else None
    arguments = (x, residual, seed_after(1), 0.3, fastdl.ops.dispatch.requested())
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.fastdl.dropout_forward.default, arguments, test_utils=checks)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_without_a_break(dynamic: bool, device: torch.device) -> None:
    torch._dynamo.reset()

    def call(x: Tensor, residual: Tensor) -> Tensor:
        return dropout(x.sin(), 0.5, residual=residual)

    compiled = torch.compile(call, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for shape in ((4, 40), (6, 50)):
        x, residual = torch.randn(2, *shape, device=device).unbind()
        x.requires_grad_()
        output = compiled(x, residual)
        change = output.detach() - residual
        kept = change != 0
        assert 0.2 < float(kept.double().mean()) < 0.8
        torch.testing.assert_close(change[kept], 2 * x.detach().sin()[kept], rtol=1e-4, atol=1e-5)
        (gradient,) = torch.autograd.grad(output.sum(), x)
        torch.testing.assert_close(gradient, 2 * x.detach().cos() * kept, rtol=1e-4, atol=1e-5)
        assert not torch.equal(compiled(x, residual), output)
    torch._dynamo.reset()


def test_fake_tensors_have_the_real_layout() -> None:
    for form in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 6, 3, 5).contiguous(memory_format=form)
        with FakeTensorMode() as mode:
            fake = dropout(mode.from_tensor(x), residual=mode.from_tensor(torch.randn(x.shape)))
        assert fake.stride() == dropout(x).stride()


def test_transforms(device: torch.device) -> None:
    x, tangent, residual = torch.randn(3, 6, 20, device=device)
    seed = seed_after(7)
    factor = factors((6, 20), seed, 0.3).to(x)
    found = grad(lambda x: seeded(lambda x: dropout(x, 0.3, residual=residual))(x).square().sum())(x)
    torch.testing.assert_close(found, 2 * (x * factor + residual) * factor)
    output, change = jvp(seeded(lambda x: dropout(x, 0.3, residual=residual)), (x,), (tangent,))
    torch.testing.assert_close(output, x * factor + residual)
    torch.testing.assert_close(change, tangent * factor)
    each = vmap(lambda x: dropout(x, 0.5), randomness="different")(torch.ones(4, 300, device=device))
    assert set(each.unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(each[0], each[1])
    same = vmap(lambda x: dropout(x, 0.5), randomness="same")(torch.ones(4, 300, device=device))
    assert torch.equal(same[0], same[1])
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(lambda x: dropout(x, 0.5))(torch.ones(4, 300, device=device))


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input": [1.0]}, TypeError, "input must be a torch.Tensor; got list"),
        ({"input": torch.ones(3, dtype=torch.int64)}, TypeError, r"input must be float32.*; got torch.int64"),
        ({"p": -0.1}, ValueError, r"p must be a number from 0 to 1; got -0.1"),
        ({"p": 1.5}, ValueError, r"p must be a number from 0 to 1; got 1.5"),
        ({"p": float("nan")}, ValueError, r"p must be a number from 0 to 1; got nan"),
        ({"p": "half"}, ValueError, r"p must be a number from 0 to 1; got 'half'"),
        ({"training": 1}, TypeError, "training must be a bool; got int"),
        ({"residual": torch.ones(4)}, ValueError, r"residual must have the output's shape \(2, 3\); got \(4,\)"),
        ({"residual": 1.0}, TypeError, "residual must be a torch.Tensor or None; got float"),
        ({"residual": torch.ones(2, 3, dtype=torch.int32)}, TypeError, r"residual must be float32.*; got torch.int32"),
    ],
)
def test_errors_name_the_argument(
    arguments: dict[str, Any], error: type[Exception], message: str, device: torch.device
) -> None:
    with pytest.raises(error, match=f"dropout: {message}"):
        dropout(**{"input": torch.ones(2, 3, device=device), **arguments})


# -- the module -------------------------------------------------------------------------------------------------------


def test_module_is_torchs() -> None:
    module = nn.Dropout(0.25)
    assert isinstance(module, torch.nn.Dropout)
    assert repr(module) == "Dropout(p=0.25, inplace=False)"
    assert not module.state_dict()
    x, residual = torch.randn(2, 5, 40)
    seed = seed_after(1)
    torch.manual_seed(1)
    torch.testing.assert_close(module(x, residual), reference(x, residual, seed, 0.25))
    module.eval()
    assert module(x) is x
    assert torch.equal(module(x, residual), x + residual)
    with pytest.raises(ValueError, match="between 0 and 1"):
        nn.Dropout(2.0)


def test_module_in_place() -> None:
    x = torch.ones(5, 40)
    output = nn.Dropout(0.5, inplace=True)(x)
    assert output is x
    assert set(x.unique().tolist()) == {0.0, 2.0}
