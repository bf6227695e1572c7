"""Attention under test: its cases, and the solutions of ours, of the definition and of torch for the same tensors."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

import fastdl
from fastdl.ops import scaled_dot_product_attention
from fastdl.reference.attention import attention
from tests.support.accuracy import assert_as_right_as_torch, relative_error
from tests.support.attention_layouts import ATTENTION_LAYOUTS
from tests.support.backends import BACKENDS_UNDER_TEST, FLOATING, short
from tests.support.values import VALUES

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        name: the test's id.
        query: (N, H, L, E).
        keys: S; the query's length by default. key_heads: H_k. value_features: E_v.
        layout: of query, key and value, by its name in ``ATTENTION_LAYOUTS``.
        values: of all three, by its name in ``VALUES``; factor: what the queries are multiplied with.
        mask: ``bool``, ``additive``, ``additive_float32`` or ``minus_infinity`` (additive, a third of it -inf).
        mask_shape: which of the dimensions "NHLS" the mask has; the others are 1, or absent at the front.
        mask_layout: ``contiguous``, ``transposed``, ``expanded``, ``sliced``.
        empty_rows: whether some queries see nothing.
        offsets: a query offset for each sample, as a tensor; None uses ``query_offset``.
        seed: of the dropout's choices.
        with_log_sum: whether the log-sum-exp has a gradient too.
        large_scores: whether there are scores of hundreds.
        floor: the least scale of the gradients behind the softmax, where its two terms cancel but for their rounding.
        slow: takes more than about ten seconds.
    """

    name: str
    query: tuple[int, int, int, int] = (2, 3, 17, 8)
    keys: int | None = None
    key_heads: int | None = None
    value_features: int | None = None
    layout: str = "contiguous"
    values: str = "normal"
    factor: float = 1.0
    mask: str | None = None
    mask_shape: str = "NHLS"
    mask_layout: str = "contiguous"
    empty_rows: bool = False
    is_causal: bool = False
    window: tuple[int, int] | None = None
    query_offset: int = 0
    offsets: tuple[int, ...] | None = None
    scale: float | None = None
    softcap: float = 0.0
    dropout_p: float = 0.0
    seed: int = 0x0123456789ABCDEF
    with_log_sum: bool = False
    dtypes: tuple[torch.dtype, ...] = FLOATING
    large_scores: bool = False
    floor: float = 0.0
    slow: bool = False

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        samples, heads, length, features = self.query
        key_heads = heads if self.key_heads is None else self.key_heads
        keys = length if self.keys is None else self.keys
        values = features if self.value_features is None else self.value_features
        return (self.query, (samples, key_heads, keys, features), (samples, key_heads, keys, values))

    @property
    def weights(self) -> tuple[int, int, int, int]:
        """(N, H, L, S)."""
        return (*self.query[:3], self.shapes[1][2])

    @property
    def numbers(self) -> float:
        return math.prod(self.weights)

    @property
    def limits(self) -> tuple[int, int]:
        left, right = self.window or (-1, -1)
        return left, 0 if self.is_causal else right


@dataclass(frozen=True)
class Problem:
    """The tensors of one case in one dtype, and the gradients for its backward."""

    tensors: Tensors
    grad_output: Tensor
    grad_log_sum: Tensor


def make_problem(case: Case, dtype: torch.dtype, device: torch.device, draw: int = 0) -> Problem:
    """Random tensors for a case, the same ones every time for each ``draw``."""
    generator = Generator().manual_seed(zlib.crc32(f"attention {case.name} {dtype} {draw}".encode()))

    def fill(shape: tuple[int, ...], kind: str = case.values) -> Tensor:
        return VALUES[kind](shape, generator).to(dtype).to(device)

    query, key, value = ATTENTION_LAYOUTS[case.layout](case.shapes, fill)  # type: ignore[arg-type]
    if case.factor != 1:
        query = query * case.factor
    tensors = {"query": query, "key": key, "value": value}
    if case.mask is not None:
        tensors["attn_mask"] = make_mask(case, dtype, generator).to(device)
    if case.offsets is not None:
        tensors["query_offset"] = torch.tensor(case.offsets, device=device)
    samples, heads, length, _ = case.query
    grad_output = fill((samples, length, heads, case.shapes[2][3]), "normal").transpose(1, 2)
    grad_log_sum = VALUES["normal"]((samples, heads, length), generator).to(device)
    return Problem(tensors, grad_output, grad_log_sum)


def make_mask(case: Case, dtype: torch.dtype, generator: Generator) -> Tensor:
    shape = tuple(size if letter in case.mask_shape else 1 for letter, size in zip("NHLS", case.weights, strict=True))
    kept = [i for i, letter in enumerate("NHLS") if letter in case.mask_shape]
    if case.mask_layout == "expanded":
        mask = _mask_values(case, (1, 1, *shape[2:]), dtype, generator).expand(shape)
    elif case.mask_layout == "transposed":
        mask = _mask_values(case, (*shape[:2], shape[3], shape[2]), dtype, generator).transpose(2, 3)
    elif case.mask_layout == "sliced":
        mask = _mask_values(case, (*shape[:3], 2 * shape[3] + 1), dtype, generator)[..., 1::2]
    else:
        mask = _mask_values(case, shape, dtype, generator)
        mask = mask.reshape(shape[kept[0] :]) if kept else mask
    return mask


def _mask_values(case: Case, shape: tuple[int, ...], dtype: torch.dtype, generator: Generator) -> Tensor:
    chance = torch.rand(shape, generator=generator)
    if case.mask == "bool":
        mask = chance > 0.3
        if mask.numel() and not case.empty_rows:
            mask[..., :1] = True
        if case.empty_rows:
            mask[..., ::2, :] = False
        return mask
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    if case.mask == "minus_infinity":
        values = values.masked_fill(chance < 0.3, -math.inf)
        if values.numel() and not case.empty_rows:
            values[..., :1] = 0.5
        if case.empty_rows:
            values[..., ::2, :] = -math.inf
    return values.to(torch.float32 if case.mask == "additive_float32" and dtype != torch.float64 else dtype)


Solver = Callable[[Case, Tensors], tuple[Tensor, Tensor]]


def ours(case: Case, tensors: Tensors) -> tuple[Tensor, Tensor]:
    output, log_sum = scaled_dot_product_attention(
        tensors["query"], tensors["key"], tensors["value"], tensors.get("attn_mask"), case.dropout_p, case.is_causal,
        case.scale, case.key_heads is not None, softcap=case.softcap, window=case.window,
        query_offset=tensors.get("query_offset", case.query_offset), return_lse=True,
    )  # fmt: skip
    return output, log_sum


def reference(case: Case, tensors: Tensors) -> tuple[Tensor, Tensor]:
    features = case.query[3]
    left, right = case.limits
    mask = tensors.get("attn_mask")
    while mask is not None and mask.ndim < 4:
        mask = mask.unsqueeze(0)
    return attention(
        tensors["query"], tensors["key"], tensors["value"], mask, tensors.get("query_offset"), None, None,
        torch.tensor([case.seed], device=tensors["query"].device),
        1 / math.sqrt(features) if case.scale is None else case.scale,
        case.softcap, left, right, case.query_offset, case.dropout_p, 0, 0,
    )  # fmt: skip


def in_torch(case: Case, tensors: Tensors) -> tuple[Tensor, Tensor]:
    """torch's own op where it serves the case, with what it lacks given as a mask; its composition of ops elsewhere."""
    query, key, value, mask = (tensors.get(name) for name in ("query", "key", "value", "attn_mask"))
    assert query is not None
    assert key is not None
    assert value is not None
    visible = visible_places(case, tensors)
    scale = 1 / math.sqrt(case.query[3]) if case.scale is None else case.scale
    groups = case.query[1] // max(key.shape[1], 1)
    wide = torch.promote_types(query.dtype, torch.float32)
    keys = key.repeat_interleave(groups, 1)
    scores = capped(case, scale * (query.to(wide) @ keys.to(wide).mT))
    if mask is not None and mask.dtype != torch.bool:
        scores = scores + mask
    seen = visible if mask is None or mask.dtype != torch.bool else visible & mask
    log_sum = masked_log_sum(scores, seen)
    if case.softcap or case.dropout_p:
        return composed(case, query, keys, value.repeat_interleave(groups, 1), mask, seen, scale), log_sum
    if mask is None and bool(visible.all()):
        given = None
    elif mask is None or mask.dtype == torch.bool:
        given = seen
    else:
        given = mask.to(query.dtype).masked_fill(~visible, -math.inf)
    output = F.scaled_dot_product_attention(query, key, value, given, scale=scale, enable_gqa=groups != 1)
    return output, log_sum


def composed(
    case: Case, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, seen: Tensor, scale: float
) -> Tensor:
    """Each step rounded to the dtype, as eager torch does it."""
    scores = capped(case, (query @ key.mT) * scale)
    if mask is not None and mask.dtype != torch.bool:
        scores = scores + mask.to(scores.dtype)
    nothing = ~(seen & (scores != -math.inf)).any(-1, keepdim=True)
    weights = torch.softmax(scores.masked_fill(~seen, -math.inf).masked_fill(nothing, 0), -1).masked_fill(nothing, 0)
    if case.dropout_p:
        weights = weights * kept_weights(case, query).to(weights.dtype)
    return weights @ value


def kept_weights(case: Case, query: Tensor) -> Tensor:
    """0 where a weight is dropped, 1 / (1 - p) where it is kept: by the definition of the stream."""
    from fastdl.reference.dropout import LEVELS, dropped_levels, keep

    indices = [torch.arange(size, device=query.device) for size in case.weights]
    indices = [index.view([-1] + [1] * (3 - i)) for i, index in enumerate(indices)]
    kept = keep(torch.tensor([case.seed], device=query.device), case.dropout_p, *indices)
    dropped = dropped_levels(case.dropout_p)
    return kept.double() * (LEVELS / (LEVELS - dropped) if dropped < LEVELS else 0.0)


def capped(case: Case, scores: Tensor) -> Tensor:
    return case.softcap * torch.tanh(scores / case.softcap) if case.softcap else scores


def masked_log_sum(scores: Tensor, seen: Tensor) -> Tensor:
    scores = scores.masked_fill(~seen, -math.inf)
    nothing = (scores == -math.inf).all(-1, keepdim=True)
    return torch.logsumexp(scores.masked_fill(nothing, 0), -1).masked_fill(nothing.squeeze(-1), -math.inf)


def visible_places(case: Case, tensors: Tensors) -> Tensor:
    """Which keys the window lets each query see, written out: the test's own words for the contract."""
    samples, _, length, keys = case.weights
    device = tensors["query"].device
    visible = torch.ones(samples, 1, length, keys, dtype=torch.bool, device=device)
    left, right = case.limits
    for n in range(samples):
        offset = case.query_offset if case.offsets is None else case.offsets[n]
        position = torch.arange(length, device=device)[:, None] + offset
        column = torch.arange(keys, device=device)[None]
        if left >= 0:
            visible[n, 0] &= position - column <= left
        if right >= 0:
            visible[n, 0] &= column - position <= right
    return visible


DIFFERENTIABLE = ("query", "key", "value", "attn_mask")


def solve(solver: Solver, case: Case, problem: Problem, *, double: bool = False) -> Tensors:
    """Output, log-sum-exp and gradients of one implementation; in float64 with ``double``."""
    tensors = dict(problem.tensors)
    if double:
        tensors = {
            name: tensor.detach().to(torch.float64, copy=True) if tensor.is_floating_point() else tensor
            for name, tensor in tensors.items()
        }
    names = [name for name in DIFFERENTIABLE if name in tensors and tensors[name].is_floating_point()]
    for name in names:
        tensors[name] = tensors[name].detach().requires_grad_()
    output, log_sum = solver(case, tensors)
    outputs, gradients = [output], [problem.grad_output.to(output.dtype)]
    if case.with_log_sum:
        outputs.append(log_sum)
        gradients.append(problem.grad_log_sum.to(log_sum.dtype))
    # With no keys torch's op does not look at the mask.
    leaves = [tensors[name] for name in names]
    found = torch.autograd.grad(outputs, leaves, gradients, allow_unused=True, materialize_grads=True)
    results = {"output": output.detach(), "log_sum": log_sum.detach()}
    return results | {f"gradient of {name}": gradient for name, gradient in zip(names, found, strict=True)}


@dataclass(frozen=True)
class Expected:
    """A problem, its truth, what torch makes of it, and torch's relative errors in further draws, by name."""

    problem: Problem
    truth: Tensors
    baseline: Tensors
    typical: dict[str, float]


@lru_cache(maxsize=2)
def expected_of(case: Case, dtype: torch.dtype, device: torch.device) -> Expected:
    """The same for every backend, so kept for the next one."""
    draws = 6 if case.numbers <= 1 << 12 else 3 if case.numbers <= 1 << 16 else 1
    problems = [make_problem(case, dtype, device, draw) for draw in range(draws)]
    truths = [solve(reference, case, problem, double=True) for problem in problems]
    baselines = []
    for problem, truth in zip(problems, truths, strict=True):
        baseline = solve(in_torch, case, problem)
        # Where a row sees nothing, torch's composition may be 0/0; the convention is told by the definition.
        baselines.append({
            name: torch.where(truth[name].isfinite() & ~found.isfinite(), truth[name].to(found.dtype), found)
            for name, found in baseline.items()
        })  # fmt: skip
    typical = {
        name: max(
            relative_error(baseline[name], truth[name], truth[name])
            for baseline, truth in zip(baselines, truths, strict=True)
        )
        for name in truths[0]
    }
    return Expected(problems[0], truths[0], baselines[0], typical)


def check_parity(case: Case, dtype: torch.dtype, backend: str) -> None:
    """The parity test of one row: everything by the rule of ``tests.support.accuracy``."""
    device = BACKENDS_UNDER_TEST[backend].device()
    expected = expected_of(case, dtype, device)
    with fastdl.use_backend(backend), DrawnSeed(case.seed):
        found = solve(ours, case, expected.problem)
    assert_solution(case, found, expected, backend)


class DrawnSeed:
    """Makes the op draw this seed: the stream under test is then the one that the definition tells."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __enter__(self) -> None:
        from fastdl.ops import attention_arguments

        self.module, self.draw = attention_arguments, attention_arguments.draw_seed
        seed = self.seed
        self.module.draw_seed = lambda p, query: torch.tensor([seed]) if p else None

    def __exit__(self, *error: object) -> None:
        self.module.draw_seed = self.draw


# The definition sums over all keys at once, torch's op over blocks: measured, 1.6 times its error at 300 keys.
ERROR_OF_THE_REFERENCE = 2.0


# A gradient sums hundreds of products, each rounded before, and the largest error of thousands of such sums is
# compared: measured on the CPU in float32, up to a tenth of a unit over one unit, at 70 and at 577 queries.
UNITS_OF_A_GRADIENT = 2.0

# On GPUs, as in torch's own kernels there, backward makes the weights from a log-sum-exp in float32, which at scores of
# hundreds has few digits left behind the point, and takes the rows' sums from the rounded output. The yardstick is
# torch's op on the CPU where there is no GPU, which does better: measured under the interpreter, 1.8 times its error,
# and 8 times at scores of a thousand.
ERROR_OF_GPU_GRADIENTS = 2.0
ERROR_OF_GPU_GRADIENTS_AT_LARGE_SCORES = 10.0


def assert_solution(case: Case, found: Tensors, expected: Expected, backend: str = "auto") -> None:
    assert found.keys() == expected.truth.keys() == expected.baseline.keys()
    for name, result in found.items():
        gradient = name.startswith("gradient of")
        factor = ERROR_OF_THE_REFERENCE if backend == "reference" else 1.5
        if gradient and backend in ("triton", "cuda"):
            factor = ERROR_OF_GPU_GRADIENTS_AT_LARGE_SCORES if case.large_scores else ERROR_OF_GPU_GRADIENTS
        assert_as_right_as_torch(
            f"attention {case.name}: {name}", result, expected.truth[name], expected.baseline[name],
            typical=expected.typical[name], bounded=name == "output" and not case.floor,
            floor=case.floor if gradient and name != "gradient of value" else 0.0,
            factor=factor, units=UNITS_OF_A_GRADIENT if gradient else 1.0,
        )  # fmt: skip


def problem_rows(cases: tuple[Case, ...]) -> list[Any]:
    """One pytest parameter for each case, dtype and backend, with the backends of a case next to each other."""
    return [
        pytest.param(
            case, dtype, backend, id=f"{case.name}-{short(dtype)}-{backend}", marks=[pytest.mark.slow] * case.slow
        )
        for case in cases
        for dtype in case.dtypes
        for backend in BACKENDS_UNDER_TEST
        if dtype in BACKENDS_UNDER_TEST[backend].dtypes()
    ]
