"""Each path of the attention kernels by force, on shapes small enough for the interpreter, and what holds for all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

import fastdl
from fastdl.kernels import attention as kernels
from fastdl.kernels import attention_descriptors, attention_layout, attention_plan
from fastdl.kernels import philox as philox_kernels
from fastdl.ops import scaled_dot_product_attention, varlen_attention
from fastdl.reference import dropout
from fastdl.reference.attention import attention as reference
from tests.support.accuracy import assert_as_right_as_torch
from tests.support.attention import Case, DrawnSeed, expected_of, ours, solve
from tests.support.attention_cases import CASES

USUAL = attention_plan.Limits()
ANY = ((256, 256),)
NEVER_SHORT = replace(USUAL, short_keys=(), short_keys_of_more=(), short_keys_single=(), decoding_rows=0)
PATHS = {
    "short": replace(
        USUAL,
        short_keys_before_hopper=ANY,
        short_keys=ANY,
        short_keys_of_more=ANY,
        short_keys_single=ANY,
        decoding_rows=0,
    ),
    "one_launch": replace(NEVER_SHORT, one_launch=1 << 30),
    "general": replace(NEVER_SHORT, one_launch=0),
    "described": replace(NEVER_SHORT, one_launch=0, described=1),
    "decoding": replace(NEVER_SHORT, decoding_rows=1 << 30, split_programs=16, split_keys=8, one_launch=1 << 30),
}
# Several blocks in every direction, on the smallest of shapes.
SMALL_TILE = (16, 16, 4, 2)
LAUNCHES = {
    "short": {"attend_forward": 1, "attend_backward_short": 1},
    "one_launch": {"attend_forward": 1, "attend_backward": 1},
    "general": {"attend_forward": 1, "attend_delta": 1, "attend_backward": 2},
    "described": {"attend_forward": 1, "attend_delta": 1, "attend_backward": 2},
    "decoding": {"attend_forward": 1, "merge_splits": 1, "attend_backward": 1},
}

SHAPE = (1, 2, 37, 8)
# The weights come back from a log-sum-exp that was rounded to float32, which costs as much again as the rounding of the
# scores that torch's composition has as well: measured, up to 1.9 times its error in these rows.
FACTOR = 2.5


def check(case: Case, dtype: torch.dtype) -> None:
    expected = expected_of(case, dtype, torch.device("cpu"))
    with DrawnSeed(case.seed):
        found = solve(ours, case, expected.problem)
    for name, result in found.items():
        assert_as_right_as_torch(
            f"{case.name}: {name}", result, expected.truth[name], expected.baseline[name],
            typical=expected.typical[name], factor=FACTOR,
        )  # fmt: skip


PATH_CASES = (
    Case("plain", SHAPE),
    Case("even", (1, 2, 32, 16), with_log_sum=True),
    Case("packed", (2, 2, 37, 16), layout="packed"),
    Case("features_first", (1, 2, 35, 3), value_features=20, layout="features_first"),
    Case("causal", SHAPE, is_causal=True),
    Case("causal_from_behind", (1, 2, 20, 8), keys=52, is_causal=True, query_offset=32, with_log_sum=True),
    Case("sees_nothing_first", SHAPE, is_causal=True, query_offset=-20),
    Case("window", (1, 2, 53, 8), window=(18, 5)),
    Case("offsets", (3, 2, 20, 8), keys=50, window=(20, 0), offsets=(0, 30, -25)),
    Case("grouped", (1, 6, 19, 8), key_heads=2, keys=35, is_causal=True, query_offset=16),
    Case("boolean", SHAPE, mask="bool", mask_shape="NS", empty_rows=True),
    Case("bias", SHAPE, mask="additive", mask_shape="HLS", with_log_sum=True),
    Case("bias_of_rows", SHAPE, mask="additive", mask_shape="L", is_causal=True),
    Case("transposed_bias", SHAPE, keys=21, mask="additive", mask_layout="transposed"),
    Case("minus_infinity", SHAPE, mask="minus_infinity", empty_rows=True),
    Case("softcap", SHAPE, softcap=1.0, mask="additive", mask_shape="NLS"),
    Case("dropout", SHAPE, dropout_p=0.3, is_causal=True, with_log_sum=True),
    Case("grouped_dropout", (1, 4, 20, 8), key_heads=2, dropout_p=0.3, mask="additive", mask_shape="LS"),
    Case("negative_scale", SHAPE, scale=-0.4),
)


def clear_plans() -> None:
    for function in (attention_plan.forward, attention_plan.backward, attention_plan.mask_gradient):
        function.cache_clear()


@pytest.fixture
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(attention_plan, "LIMITS", PATHS[request.param])
    small = dict.fromkeys(attention_plan.FORWARD, SMALL_TILE)
    for table in ("FORWARD", "COLUMNS_BACKWARD", "ROWS_BACKWARD"):
        monkeypatch.setattr(attention_plan, table, small)
    for table in ("FORWARD_OF_MORE", "COLUMNS_OF_MORE", "ROWS_OF_MORE", "FORWARD_ELSEWHERE", "COLUMNS_ELSEWHERE"):
        monkeypatch.setattr(attention_plan, table, {})
    for tile in ("MASK_TILE", "MASK_TILE_LARGE", "MASK_TILE_CHUNKED"):
        monkeypatch.setattr(attention_plan, tile, (16, 16, 4))
    monkeypatch.setattr(attention_plan, "SHORT_ROWS", ((16, 4),) * 3)
    monkeypatch.setattr(attention_plan, "SHORT_ROWS_OF_MORE", ((16, 4),) * 3)
    monkeypatch.setattr(attention_plan, "SHORT_ROWS_SINGLE", (16, 4))
    clear_plans()
    with fastdl.use_backend("triton"):
        yield request.param
    clear_plans()


every_path = pytest.mark.parametrize("path", PATHS, indirect=True)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often each kernel was launched, and how many launches had descriptors."""
    counts: dict[str, int] = {}

    def launch(kernel: Any, programs: int, *arguments: Any, warps: int, stages: int = 3, **constants: Any) -> None:
        for name in (kernel.fn.__name__, *["described"] * constants.get("DESCRIBED", False)):
            counts[name] = counts.get(name, 0) + 1
        kernel[(programs,)](*arguments, **constants)

    monkeypatch.setattr(kernels, "launch", launch)
    return counts


# Its backward is that of one launch.
OF_DECODING = ("causal_from_behind", "offsets", "grouped", "grouped_dropout", "minus_infinity", "softcap", "dropout")
PATHS_OF_CASES = [
    pytest.param(path, case, id=f"{case.name}-{path}")
    for case in PATH_CASES
    for path in PATHS
    if path != "decoding" or case.name in OF_DECODING
]


@pytest.mark.parametrize(("path", "case"), PATHS_OF_CASES, indirect=["path"])
def test_every_path_is_right(path: str, launched: dict[str, int], case: Case) -> None:
    """Descriptors are for half precision, and for strides of 16 bytes, which 3 features do not have."""
    check(case, torch.bfloat16 if path == "described" else torch.float32)
    described = launched.pop("described", 0)
    assert described == (3 if path == "described" and case.name != "features_first" else 0)
    expected = dict(LAUNCHES[path])
    if case.mask not in (None, "bool"):
        expected |= {"attend_mask_gradient": 1} | ({} if path == "short" else {"attend_delta": 1})
        launched.pop("sum_chunks", None)
    assert launched == expected


# Products over the features in three chunks of 16, the last of them not full, and in one where there are no more.
CHUNK_CASES = (
    Case("chunks", (2, 1, 20, 40), keys=21, with_log_sum=True),
    Case("even_chunks", (1, 1, 16, 64)),
    Case("chunks_of_keys", (1, 2, 20, 33), value_features=7, layout="heads_inside", is_causal=True),
    Case("chunks_of_values", (1, 2, 20, 7), value_features=33, layout="heads_inside", window=(8, 5)),
    Case("chunks_packed", (1, 2, 20, 40), layout="packed", is_causal=True),
    Case("chunks_features_first", (1, 1, 20, 40), layout="features_first"),
    Case("chunks_offsets", (3, 1, 5, 40), keys=35, window=(20, 0), offsets=(0, 30, -4)),
    Case("chunks_grouped", (1, 4, 9, 40), key_heads=2, keys=20, mask="bool", mask_shape="S"),
    Case("chunks_bias", (1, 2, 20, 40), keys=21, mask="additive", mask_shape="HLS", dropout_p=0.3, with_log_sum=True),
    Case("chunks_softcap", (1, 1, 20, 40), softcap=1.0, mask="additive", mask_shape="NLS", is_causal=True),
    Case("chunks_one_key", (1, 1, 17, 40), keys=1, floor=0.5),
    Case("chunks_shifted", (1, 1, 20, 40), values="shifted_little", large_scores=True),
)


# Decoding differs in the forward pass, and one launch in D, which keys' and queries' share computes on the way.
CHUNKS_OF_DECODING = ("chunks_offsets", "chunks_grouped", "chunks_bias")
CHUNKS_OF_ONE_LAUNCH = ("chunks", "chunks_of_keys", "chunks_of_values", "chunks_packed", "chunks_grouped")
PATHS_OF_CHUNKS = [
    pytest.param(path, case, id=f"{case.name}-{path}")
    for path, names in (("general", None), ("decoding", CHUNKS_OF_DECODING), ("one_launch", CHUNKS_OF_ONE_LAUNCH))
    for case in CHUNK_CASES
    if names is None or case.name in names
]


@pytest.mark.parametrize(("path", "case"), PATHS_OF_CHUNKS, indirect=["path"])
def test_products_by_chunks(path: str, monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    monkeypatch.setattr(attention_plan, "CHUNKS", dict.fromkeys(attention_plan.FORWARD, 16))
    check(case, torch.float32)


@pytest.mark.parametrize("path", ["one_launch", "general"], indirect=True)
def test_chunks_of_rows_that_are_far_apart(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In 64 bits, and with what is not finite behind the last row and feature."""
    monkeypatch.setattr(attention_plan, "CHUNKS", dict.fromkeys(attention_plan.FORWARD, 16))
    monkeypatch.setattr(attention_layout, "FARTHEST_ROW", 0)
    found = []
    generator = torch.Generator().manual_seed(7)
    whole = torch.randn(4, 1, 1, 40, 50, generator=generator)
    whole[..., 20:, :] = math.nan
    whole[..., 40:] = math.nan
    for backend, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        q, k, v, g = (part[..., :20, :40] for part in whole.to(dtype).unbind(0))
        bias = whole[0, :, :, :1, :20].to(dtype)  # its gradient is a sum over the rows of a tile
        leaves = [part.detach().requires_grad_() for part in (q, k, v, bias)]
        with fastdl.use_backend(backend):
            output = scaled_dot_product_attention(*leaves, is_causal=True)
        found.append((output, *torch.autograd.grad(output, leaves, g)))
    for one, truth in zip(*found, strict=True):
        torch.testing.assert_close(one.double(), truth, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("dtype", "features", "values", "chunk"),
    [
        (torch.float32, 128, 128, 128),
        (torch.float32, 129, 129, 32),
        (torch.float32, 192, 8, 32),
        (torch.float32, 8, 256, 32),
        (torch.bfloat16, 192, 192, 256),
    ],
)
def test_which_heads_are_multiplied_by_chunks(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, features: int, values: int, chunk: int
) -> None:
    """By the plan as it is, in all kernels that multiply over features; keys and queries then have a launch each."""
    found: dict[tuple[str, int], int] = {}
    usual = kernels.launch

    def launch(kernel: Any, *arguments: Any, **constants: Any) -> None:
        if "FEATURE_BLOCK" in constants:
            at = (kernel.fn.__name__, constants["CHUNK"])
            found[at] = found.get(at, 0) + 1
        usual(kernel, *arguments, **constants)

    monkeypatch.setattr(kernels, "launch", launch)
    case = Case(f"heads_of_{features}", (1, 1, 17, features), keys=19, value_features=values, mask="additive")
    with fastdl.use_backend("triton"):
        check(case, dtype)
    launches = {"attend_forward": 1, "attend_backward": 2 if chunk == 32 else 1, "attend_mask_gradient": 1}
    assert found == {(name, chunk): count for name, count in launches.items()}


@every_path
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["bias", "causal"])
def test_half_precision(path: str, name: str, dtype: torch.dtype) -> None:
    case = next(case for case in PATH_CASES if case.name == name)
    check(case, dtype)


@every_path
def test_sequences_of_any_length(path: str) -> None:
    """Empty ones, ones without keys, rows in no sequence, and bounds far above the lengths."""
    q_starts = torch.tensor([0, 17, 17, 40, 45, 47])
    k_starts = torch.tensor([0, 20, 33, 33, 70, 71])
    q = torch.randn(50, 2, 8, requires_grad=True)
    k, v = (torch.randn(75, 1, 8, requires_grad=True) for _ in range(2))
    grad = torch.randn(50, 2, 8)
    for causal in (False, True):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            ours = varlen_attention(q, k, v, q_starts, k_starts, 40, 40, is_causal=causal, dropout_p=0.2)
        found = torch.autograd.grad(ours, (q, k, v), grad)
        with torch.random.fork_rng(), fastdl.use_backend("reference"):
            torch.manual_seed(5)
            wide = [t.detach().double().requires_grad_() for t in (q, k, v)]
            truth = varlen_attention(*wide, q_starts, k_starts, 40, 40, is_causal=causal, dropout_p=0.2)
        expected = torch.autograd.grad(truth, wide, grad.double())
        for one, other in zip((ours, *found), (truth, *expected), strict=True):
            torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=2e-6)
        for rest in (ours[47:], found[0][47:], found[1][71:], found[2][71:]):
            assert not rest.any()


@every_path
def test_repeated_runs_give_the_same_bits(path: str) -> None:
    tensors = [torch.randn(1, 2, 33, 8) for _ in range(4)]
    mask = torch.randn(33)
    statics = (0.3, 0.0, -1, 0, 0, 0.0, 33, 33)
    arguments = (*tensors[:3], mask.view(1, 1, 1, 33), None, None, None, None)
    runs = []
    for _ in range(2):
        output, log_sum = kernels.forward(*arguments, *statics)
        gradients = kernels.backward(tensors[3], None, *arguments, output, log_sum, *statics, [True] * 4)
        runs.append((output, log_sum, *gradients))
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one, other)


@every_path
def test_only_what_is_needed_is_returned(path: str) -> None:
    q, k, v = (torch.randn(1, 2, 20, 8) for _ in range(3))
    statics = (0.3, 0.0, -1, -1, 0, 0.0, 20, 20)
    arguments = (q, k, v, None, None, None, None, None)
    output, log_sum = kernels.forward(*arguments, *statics)
    whole = kernels.backward(q, None, *arguments, output, log_sum, *statics, [True] * 4)
    for i in range(3):
        needs = [j == i for j in range(4)]
        found = kernels.backward(q, None, *arguments, output, log_sum, *statics, needs)
        assert [gradient is not None for gradient in found] == needs
        torch.testing.assert_close(found[i], whole[i], rtol=1e-5, atol=1e-6)


@every_path
def test_nothing_is_written_beyond_a_tensor(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results lie in buffers with a margin on both sides, which must stay as it was."""
    margin, buffers = 2048, []

    def guarded(like: Tensor, shape: tuple[int, ...]) -> Tensor:
        count = math.prod(shape)
        buffer = torch.full((count + 2 * margin,), 7.0, dtype=like.dtype)
        buffers.append((buffer, count))
        return buffer[margin : margin + count].view(shape)

    monkeypatch.setattr(kernels, "empty_with_heads", guarded)
    monkeypatch.setattr(attention_layout, "empty_with_heads", guarded)
    for window in ((-1, -1), (3, 0)):
        q, k, v = (torch.randn(1, 2, size, 7) for size in (21, 35, 35))
        statics = (0.3, 0.0, *window, 0, 0.0, 21, 35)
        arguments = (q, k, v, None, None, None, None, None)
        output, log_sum = kernels.forward(*arguments, *statics)
        kernels.backward(torch.randn_like(output), None, *arguments, output, log_sum, *statics, [True] * 4)
    assert len(buffers) == 8
    for buffer, count in buffers:
        assert (buffer[:margin] == 7).all()
        assert (buffer[margin + count :] == 7).all()


def half(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("tensor", "described"),
    [
        (half(2, 3, 20, 64), True),
        (half(2, 20, 3, 64).transpose(1, 2), True),
        (half(2, 20, 3, 3, 64).unbind(2)[1].transpose(1, 2), True),
        (half(1, 1, 1, 64), True),
        (half(2, 20, 64).unsqueeze(1), True),
        (half(2, 3, 20, 80)[..., :64], True),
        (half(2, 3, 20, 3), False),  # strides of 6 bytes
        (half(2, 3, 20, 65)[..., 1:], False),
        (half(2 * 3 * 20 * 64 + 1)[1:].view(2, 3, 20, 64), False),  # an address of 2 bytes
        (half(2, 1, 20, 64).expand(2, 3, 20, 64), False),
        (half(1, 3, 20, 64).expand(2, 3, 20, 64), False),
        (half(3, 2, 20, 64).transpose(0, 1), False),  # samples inside of heads
    ],
)  # fmt: skip
def test_what_a_descriptor_takes(tensor: Tensor, described: bool) -> None:
    assert attention_descriptors.can_describe(attention_layout.operand(tensor)) is described


def test_gradients_of_a_packed_projection_are_packed() -> None:
    projection = torch.randn(2, 9, 3, 2, 8)
    q, k, v = (part.transpose(1, 2) for part in projection.unbind(2))
    found = attention_layout.empty_gradients(q, k, v, False)
    assert {gradient.untyped_storage().data_ptr() for gradient in found} == {found[0].untyped_storage().data_ptr()}
    for gradient, tensor in zip(found, (q, k, v), strict=True):
        assert gradient.stride() == tensor.stride()
        assert gradient.storage_offset() == tensor.storage_offset()
    assert not attention_layout.is_packed(q, v, k)
    assert not attention_layout.is_packed(q, k, v[..., :4])
    assert not attention_layout.is_packed(q.contiguous(), k.contiguous(), v.contiguous())


@triton.jit
def write_words(out, low, high, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.arange(0, ROWS)[:, None]
    kept = philox_kernels.kept(
        low.to(tl.uint32, bitcast=True), high.to(tl.uint32, bitcast=True), 3, row % 2 + 5, row, 16, 20000, ROWS, COLUMNS
    )
    tl.store(out + row * COLUMNS + tl.arange(0, COLUMNS)[None, :], kept.to(tl.int32))


def test_choices_are_those_of_the_definition() -> None:
    low, high = 0x1EADBEEF, -5
    out = torch.empty(4, 32, dtype=torch.int32)
    write_words[(1,)](out, low, high, 4, 32)
    row, column = torch.arange(4)[:, None], 16 + torch.arange(32)[None, :]
    seed = torch.tensor([(high << 32) | low])
    expected = dropout.keep(seed, 20000 / 65536, torch.tensor(3), row % 2 + 5, row, column)
    assert torch.equal(out.bool(), expected)


@pytest.mark.parametrize("case", [case for case in CASES if case.name in ("dropout", "layout_mixed", "offsets")])
def test_a_seed_in_memory_and_starts_in_32_bits(case: Case) -> None:
    """The forms that a recorded graph has: they give what the usual ones give."""
    q, k, v = (torch.randn(2, 2, 9, 8) for _ in range(3))
    seed, offsets = torch.tensor([case.seed]), torch.tensor([1, -2])
    statics = (0.3, 0.0, -1, 0, 0, 0.4, 9, 9)
    usual, _ = kernels.forward(q, k, v, None, offsets, None, None, seed, *statics)
    expected, _ = reference(q, k, v, None, offsets, None, None, seed, *statics)
    torch.testing.assert_close(usual, expected)
    narrow, _ = kernels.forward(q, k, v, None, offsets.int(), None, None, seed, *statics)
    assert torch.equal(usual, narrow)


def test_rows_that_are_far_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code for offsets beyond 31 bits, on small tensors."""
    monkeypatch.setattr(attention_layout, "FARTHEST_ROW", 0)
    q, k, v = (torch.randn(1, 2, 20, 8) for _ in range(3))
    with fastdl.use_backend("triton"):
        ours = scaled_dot_product_attention(q, k, v, is_causal=True)
    with fastdl.use_backend("reference"):
        truth = scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(ours, truth)
