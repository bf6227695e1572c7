"""Attention's promises beside its numbers: registration, tracing, layouts, memory, determinism, NaN."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fastdl
from fastdl.ops import ATTENTION, scaled_dot_product_attention, varlen_attention
from tests.support.attention_layouts import ATTENTION_LAYOUTS
from tests.support.backends import BACKENDS_UNDER_TEST
from tests.support.measure import copies, count_operators, saved_bytes

CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
KERNELS = [name for name in BACKENDS_UNDER_TEST if name != "reference"]

# Deprecated things that torch 2.13's compiler itself uses.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def forward_arguments(backend: str, layout: str, options: str, requires_grad: bool) -> tuple[Any, ...]:
    device = BACKENDS_UNDER_TEST[backend].device()
    shape = (2, 3, 5, 8)
    query, key, value = (
        tensor.to(device).requires_grad_(requires_grad)
        for tensor in ATTENTION_LAYOUTS[layout]((shape, shape, shape), torch.randn)
    )
    mask = offsets = cu = seed = None
    if options == "mask":
        mask = torch.randn(3, 1, 5, device=device)[None].requires_grad_(requires_grad)
    if options == "bool":
        mask = torch.rand(2, 1, 1, 5, device=device) > 0.3
    if options == "dropout":
        seed, offsets = torch.tensor([5]), torch.tensor([1, 2], device=device)
    return (
        query, key, value, mask, offsets, cu, cu, seed, 0.4, 0.0, -1, 0 if options == "dropout" else -1, 0,
        0.5 if options == "dropout" else 0.0, 5, 5, backend,
    )  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS_UNDER_TEST)
@pytest.mark.parametrize("options", ["plain", "mask", "bool", "dropout"])
@pytest.mark.parametrize("layout", ["contiguous", "packed", "features_first"])
def test_forward_passes_opcheck(layout: str, options: str, backend: str) -> None:
    arguments = forward_arguments(backend, layout, options, True)
    torch.library.opcheck(ATTENTION.forward_op, arguments, test_utils=CHECKS)


@pytest.mark.parametrize("backend", BACKENDS_UNDER_TEST)
@pytest.mark.parametrize("needs", [[True] * 4, [True, False, False, False], [False, True, True, False]], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "packed"])
def test_backward_passes_opcheck(layout: str, needs: list[bool], backend: str) -> None:
    *arguments, _ = forward_arguments(backend, layout, "mask", False)
    output, log_sum = ATTENTION.forward_op(*arguments, backend)
    tensors, statics = arguments[: ATTENTION.count], arguments[ATTENTION.count :]
    for grad_log_sum in (None, torch.randn_like(log_sum)):
        torch.library.opcheck(
            ATTENTION.backward_op,
            (torch.randn_like(output), grad_log_sum, *tensors, output, log_sum, *statics, needs, backend),
            test_utils=CHECKS,
        )


CALLS: dict[str, Any] = {
    "plain": lambda q, k, v: scaled_dot_product_attention(q, k, v),
    "causal": lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True, window=(7, -1)),
    "log_sum": lambda q, k, v: scaled_dot_product_attention(q, k, v, softcap=3.0, return_lse=True)[1],
    "bias": lambda q, k, v: scaled_dot_product_attention(q, k, v, v.mean(-1)[:, :, None]),
    "lower_right": lambda q, k, v: scaled_dot_product_attention(
        q[:, :, 1:], k, v, is_causal=True, query_offset=k.shape[2] - q.shape[2] + 1
    ),
}


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("backend", BACKENDS_UNDER_TEST)
@pytest.mark.parametrize("call", CALLS)
def test_compiled_equals_eager_without_a_graph_break(call: str, backend: str, dynamic: bool) -> None:
    if BACKENDS_UNDER_TEST[backend].device().type != "cpu":
        pytest.skip("this test's tensors are on the CPU")
    compiled = torch.compile(CALLS[call], backend="aot_eager", fullgraph=True, dynamic=dynamic)
    with fastdl.use_backend(backend):
        for shape in ((2, 3, 9, 8), (3, 3, 12, 8))[: 2 if dynamic else 1]:
            for layout in ("contiguous", "packed"):
                leaves = [t.detach().requires_grad_() for t in ATTENTION_LAYOUTS[layout]((shape,) * 3, torch.randn)]
                ours, expected = compiled(*leaves), CALLS[call](*leaves)
                torch.testing.assert_close(ours, expected)
                for found, right in zip(
                    torch.autograd.grad(ours.sin().sum(), leaves, materialize_grads=True),
                    torch.autograd.grad(expected.sin().sum(), leaves, materialize_grads=True),
                    strict=True,
                ):
                    torch.testing.assert_close(found, right)


def test_inductor_with_dropout_draws_anew_and_reproducibly() -> None:
    def attend(query: Tensor) -> Tensor:
        output: Tensor = scaled_dot_product_attention(query, query, query, dropout_p=0.5)
        return output

    compiled = torch.compile(attend, fullgraph=True)
    query = torch.randn(1, 2, 20, 8)
    torch.manual_seed(1)
    first, second = compiled(query), compiled(query)
    torch.manual_seed(1)
    assert torch.equal(compiled(query), first)
    assert not torch.equal(second, first)


def test_export_keeps_one_op() -> None:
    class Attend(torch.nn.Module):
        def forward(self, query: Tensor) -> Tensor:
            output: Tensor = scaled_dot_product_attention(query, query, query, is_causal=True)
            return output

    BACKENDS_UNDER_TEST["cpu"].device()
    query = torch.randn(2, 2, 9, 8)
    length = torch.export.Dim("length", min=2, max=64)
    with fastdl.use_backend("cpu"):
        program = torch.export.export(Attend(), (query,), dynamic_shapes={"query": {2: length}})
    names = [str(node.target) for node in program.graph.nodes if "fastdl" in str(node.target)]
    assert names == ["fastdl.attention_forward.default"]
    longer = torch.randn(2, 2, 23, 8)
    torch.testing.assert_close(program.module()(longer), Attend()(longer))


@pytest.mark.parametrize("layout", ["contiguous", "packed", "features_first", "length_first", "expanded_heads"])
def test_fake_tensors_have_the_real_strides(layout: str) -> None:
    tensors = ATTENTION_LAYOUTS[layout](((2, 3, 5, 8),) * 3, torch.randn)
    expected = scaled_dot_product_attention(*tensors)
    with FakeTensorMode() as mode:
        fake = scaled_dot_product_attention(*(mode.from_tensor(t) for t in tensors))
    assert (fake.shape, fake.dtype, fake.stride()) == (expected.shape, expected.dtype, expected.stride())


# -- layouts and memory -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", KERNELS)
def test_a_packed_projection_is_read_and_written_in_place(backend: str) -> None:
    """No copy on the way in, out or back, but for autograd's own stacking of the three gradients."""
    device = BACKENDS_UNDER_TEST[backend].device()
    if backend == "triton" and device.type == "cpu":
        pytest.skip("Triton's interpreter copies what it computes with")
    projection = torch.randn(2, 40, 3 * 4 * 16, device=device, requires_grad=True)

    def forward() -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in projection.unflatten(-1, (3, 4, 16)).unbind(2))
        merged: Tensor = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return merged

    with fastdl.use_backend(backend):
        output = forward()
        assert output.is_contiguous()
        assert not copies(count_operators(forward))
        grad = torch.randn_like(output)
        assert not copies(count_operators(lambda: torch.autograd.grad(forward(), projection, grad)))


@pytest.mark.parametrize("backend", KERNELS)
def test_the_gradients_of_a_packed_projection_are_slices_of_one_tensor(backend: str) -> None:
    """So that whoever took the projection apart has its gradient without putting anything together."""
    device = BACKENDS_UNDER_TEST[backend].device()
    projection = torch.randn(2, 5, 3, 4, 8, device=device)
    slices = [part.transpose(1, 2).detach().requires_grad_() for part in projection.unbind(2)]
    with fastdl.use_backend(backend):
        output = scaled_dot_product_attention(*slices)
        gradients = torch.autograd.grad(output.sum(), slices)
    assert {gradient.untyped_storage().data_ptr() for gradient in gradients} == {
        gradients[0].untyped_storage().data_ptr()
    }
    assert [gradient.stride() for gradient in gradients] == [part.stride() for part in slices]
    assert [gradient.storage_offset() for gradient in gradients] == [0, 32, 64]


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("layout", ["contiguous", "heads_inside", "packed"])
def test_output_and_gradients_keep_the_memory_order(layout: str, backend: str) -> None:
    device = BACKENDS_UNDER_TEST[backend].device()
    leaves = [
        t.to(device).detach().requires_grad_() for t in ATTENTION_LAYOUTS[layout](((2, 3, 5, 8),) * 3, torch.randn)
    ]
    with fastdl.use_backend(backend):
        output = scaled_dot_product_attention(*leaves)
    inside = layout != "contiguous"
    assert (output.transpose(1, 2) if inside else output).is_contiguous()


@pytest.mark.parametrize("backend", KERNELS)
def test_saves_its_arguments_its_output_and_a_number_a_row(backend: str) -> None:
    device = BACKENDS_UNDER_TEST[backend].device()
    query, key, value = (torch.randn(2, 3, 200, 16, device=device, requires_grad=True) for _ in range(3))
    with fastdl.use_backend(backend):
        saved = saved_bytes(lambda: scaled_dot_product_attention(query, key, value, dropout_p=0.1, is_causal=True))
    assert saved == 4 * query.numel() * 4 + 2 * 3 * 200 * 4 + 8


@pytest.mark.parametrize("backend", KERNELS)
def test_results_do_not_depend_on_threads_or_on_the_call(backend: str) -> None:
    device = BACKENDS_UNDER_TEST[backend].device()
    leaves = [torch.randn(2, 3, 130, 32, device=device, requires_grad=True) for _ in range(3)]
    bias = torch.randn(3, 130, 130, device=device, requires_grad=True)

    def run() -> tuple[Tensor, ...]:
        output = scaled_dot_product_attention(*leaves, bias)
        return output.detach(), *torch.autograd.grad(output, [*leaves, bias], torch.ones_like(output))

    threads = torch.get_num_threads()
    with fastdl.use_backend(backend):
        first = run()
        try:
            torch.set_num_threads(1)
            second = run()
        finally:
            torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# -- NaN and infinity -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS_UNDER_TEST)
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_what_is_not_finite_goes_through_to_those_who_see_it(poison: float, backend: str) -> None:
    device = BACKENDS_UNDER_TEST[backend].device()
    query, key, value = (torch.randn(1, 2, 20, 8, device=device) for _ in range(3))
    with fastdl.use_backend(backend):
        clean = scaled_dot_product_attention(query, key, value, is_causal=True)
        bad = query.clone()
        bad[0, 0, 7, 3] = math.nan
        output = scaled_dot_product_attention(bad, key, value, is_causal=True)
        assert output[0, 0, 7].isnan().all()
        output[0, 0, 7] = clean[0, 0, 7]
        torch.testing.assert_close(output, clean)
        bad = value.clone()
        bad[0, 1, 12, 5] = poison
        output = scaled_dot_product_attention(query, key, bad, is_causal=True)
        assert not output[0, 1, 12:, 5].isfinite().any()
        torch.testing.assert_close(output[0, 0], clean[0, 0])
        torch.testing.assert_close(output[..., :5], clean[..., :5])
        bad = key.clone()
        bad[0, 1, 12, 5] = math.nan
        output = scaled_dot_product_attention(query, bad, value, is_causal=True)
        assert output[0, 1, 12:].isnan().all()
        torch.testing.assert_close(output[0, 0], clean[0, 0])


@pytest.mark.parametrize("backend", BACKENDS_UNDER_TEST)
def test_rows_that_see_nothing(backend: str) -> None:
    """Zeros, minus infinity and zero gradients, whatever the reason."""
    device = BACKENDS_UNDER_TEST[backend].device()
    leaves = [torch.randn(2, 2, 9, 8, device=device, requires_grad=True) for _ in range(3)]
    none = torch.zeros(2, 1, 9, 9, dtype=torch.bool, device=device)
    minus = torch.full((9, 9), -math.inf, device=device, requires_grad=True)
    with fastdl.use_backend(backend):
        for options in ({"attn_mask": none}, {"attn_mask": minus}, {"is_causal": True, "query_offset": -9}):
            output, log_sum = scaled_dot_product_attention(*leaves, return_lse=True, **options)
            assert not output.any()
            assert bool((log_sum == -math.inf).all())
            for gradient in torch.autograd.grad(output.sum(), leaves, allow_unused=False):
                assert bool((gradient == 0).all())


@pytest.mark.parametrize("backend", KERNELS)
def test_minus_infinity_in_a_bias_hides_nan_free(backend: str) -> None:
    """A whole block of keys that is masked out comes first: no -inf - -inf on the way."""
    device = BACKENDS_UNDER_TEST[backend].device()
    leaves = [torch.randn(1, 1, 300, 16, device=device, requires_grad=True) for _ in range(3)]
    bias = torch.zeros(300, 300, device=device)
    bias[:, :290] = -math.inf
    with fastdl.use_backend(backend):
        output = scaled_dot_product_attention(*leaves, bias)
        alone = scaled_dot_product_attention(leaves[0], *(t[:, :, 290:] for t in leaves[1:]))
        torch.testing.assert_close(output, alone)
        for found, expected in zip(
            torch.autograd.grad(output.sum(), leaves), torch.autograd.grad(alone.sum(), leaves), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("backend", KERNELS)
def test_memory_is_linear_in_length(backend: str) -> None:
    """16,384 tokens forward and backward: the weights alone would take a gigabyte."""
    import resource

    device = BACKENDS_UNDER_TEST[backend].device()
    leaves = [torch.randn(1, 1, 1 << 14, 64, device=device, requires_grad=True) for _ in range(3)]
    with fastdl.use_backend(backend):
        scaled_dot_product_attention(*(t[:, :, :256] for t in leaves)).sum().backward()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        scaled_dot_product_attention(*leaves, is_causal=True).sum().backward()
    if device.type == "cpu":
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 128 << 10  # KiB


@pytest.mark.parametrize("backend", KERNELS)
def test_long_packed_sequences_take_no_more_than_their_own(backend: str) -> None:
    device = BACKENDS_UNDER_TEST[backend].device()
    cu = torch.arange(0, 641, 10, dtype=torch.int32, device=device)
    tokens = torch.randn(640, 2, 16, device=device)
    with fastdl.use_backend(backend):
        packed = varlen_attention(tokens, tokens, tokens, cu, cu, 10, 10)
        padded = scaled_dot_product_attention(*(tokens.view(64, 10, 2, 16).transpose(1, 2) for _ in range(3)))
    torch.testing.assert_close(packed.view(64, 10, 2, 16).transpose(1, 2), padded)
