"""Multi-head attention in Triton (Vaswani et al. 2017, arXiv:1706.03762; Dao et al. 2022, arXiv:2205.14135)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastdl.kernels import attention_plan as plan
from fastdl.kernels.attention_backward import attend_backward, attend_delta
from fastdl.kernels.attention_call import Call, blocks_of, log_sums_like
from fastdl.kernels.attention_descriptors import can_describe, describe
from fastdl.kernels.attention_forward import attend_forward, merge_splits
from fastdl.kernels.attention_layout import (
    Operand,
    empty_gradients,
    empty_with_heads,
    is_wide,
    operand,
    steps,
    unit_of,
)
from fastdl.kernels.attention_mask import attend_mask_gradient, sum_chunks
from fastdl.kernels.attention_shipped import SHIPPED_SHAPES, Shape, variants
from fastdl.kernels.attention_short import attend_backward_short
from fastdl.kernels.launch import launch, on_device
from fastdl.kernels.shipped import Shipped

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    query_offset: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    seed: Tensor | None,
    scale: float,
    softcap: float,
    window_left: int,
    window_right: int,
    offset: int,
    dropout_p: float,
    max_seqlen_q: int,
    max_seqlen_k: int,
) -> tuple[Tensor, Tensor]:
    """``softmax(scale q k^T + mask) v`` (N, H, L, E_v) and the log-sum-exp of the scores (N, H, L), in float32.

    Arguments are those of ``fastdl.reference.attention.attention``: ``query`` (N, H, L, E), ``key`` and ``value``
    (N, H_k, S, E or E_v) in float32, float16 or bfloat16 with any strides.
    """
    call = Call(
        query, key, value, attn_mask, query_offset, cu_seqlens_q, cu_seqlens_k, seed, scale, softcap, window_left,
        window_right, offset, dropout_p, max_seqlen_q, max_seqlen_k,
    )  # fmt: skip
    output = empty_with_heads(query, (*query.shape[:3], value.shape[3]))
    log_sum = log_sums_like(query)
    if call.is_empty or call.varlen:  # kernels do not come to rows that are in no sequence
        output.zero_()
        log_sum.fill_(-math.inf)
    if call.is_empty:
        return output, log_sum
    with on_device(query):
        _forward(call, output, log_sum)
    return output, log_sum


def _forward(call: Call, output: Tensor, log_sum: Tensor) -> None:
    chosen = plan.forward(call.problem, plan.LIMITS)
    tile, splits = chosen.tile, chosen.splits
    written = Operand(output, *_strides(output))
    unit = unit_of(output.element_size(), (call.q, call.k, call.v, written))
    problem, total, heads = call.problem, call.query.shape[2], call.query.shape[1]
    packed = call.group if chosen.packed else 1
    blocks = blocks_of(problem.length * packed, tile.rows)
    into, sums = output, log_sum
    if splits > 1:
        into = torch.empty((splits, *output.shape), dtype=torch.float32, device=output.device)
        sums = torch.empty((splits, *log_sum.shape), dtype=torch.float32, device=output.device)
    seed, seed_low, seed_high = call.seeds
    described = chosen.described and can_describe(call.k) and can_describe(call.v)
    key: Any = call.k.tensor
    value: Any = call.v.tensor
    constants = call.constants()
    if described:
        key = describe(call.k, tile.columns, constants["FEATURE_BLOCK"])
        value = describe(call.v, tile.columns, constants["VALUE_BLOCK"])
        tile = tile._replace(edge=tile.columns)
    launch(
        attend_forward, blocks * heads // packed * problem.samples * splits,
        call.q.tensor, key, value, into, sums, call.mask.tensor, *call.indices, seed,
        *steps(unit, call.q, call.k, call.v, written), *call.mask.strides,
        blocks, problem.samples, heads, total, call.key.shape[2], *call.window, *call.scores, call.dropped,
        call.kept_scale, seed_low, seed_high, splits,
        ROWS=tile.rows, COLUMNS=tile.columns, EDGE_COLUMNS=tile.edge, PACKED=chosen.packed, SPLIT=splits > 1,
        UNIT=unit, WIDE=call.wide, KEY_TAIL=call.varlen or problem.keys % tile.columns != 0,
        EDGES=tile.edges, INTERIOR=tile.interior, DESCRIBED=described, CHUNK=problem.chunk, warps=tile.warps,
        stages=tile.stages, **constants,
    )  # fmt: skip
    if splits > 1:
        rows = 16
        launch(
            merge_splits, blocks_of(log_sum.numel(), rows), into, sums, output, log_sum, *steps(unit, written), heads,
            total, log_sum.numel(), splits, ROWS=rows, VALUES=constants["VALUES"],
            VALUE_BLOCK=constants["VALUE_BLOCK"], UNIT=unit, warps=4,
        )  # fmt: skip


def _strides(tensor: Tensor) -> tuple[int, int, int]:
    sample, head, row, _ = tensor.stride()
    return sample, head, row


def backward(
    grad_output: Tensor,
    grad_log_sum: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    query_offset: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    seed: Tensor | None,
    output: Tensor,
    log_sum: Tensor,
    scale: float,
    softcap: float,
    window_left: int,
    window_right: int,
    offset: int,
    dropout_p: float,
    max_seqlen_q: int,
    max_seqlen_k: int,
    needs: Sequence[bool],
) -> Gradients:
    """The gradients of query, key, value and an additive mask; None for what is absent or not in ``needs``."""
    call = Call(
        query, key, value, attn_mask, query_offset, cu_seqlens_q, cu_seqlens_k, seed, scale, softcap, window_left,
        window_right, offset, dropout_p, max_seqlen_q, max_seqlen_k,
    )  # fmt: skip
    wants_mask = needs[3] and attn_mask is not None and attn_mask.dtype != torch.bool
    found = empty_gradients(query, key, value, call.is_empty or call.varlen)
    grad_mask = None
    if wants_mask:
        assert attn_mask is not None
        grad_mask = torch.empty(attn_mask.shape, dtype=attn_mask.dtype, device=attn_mask.device)
        if call.is_empty:
            grad_mask.zero_()
    if not call.is_empty:
        with on_device(query):
            _backward(call, grad_output, grad_log_sum, output, log_sum, found, grad_mask, needs)
    grad_query, grad_key, grad_value = (
        gradient if needed else None for gradient, needed in zip(found, needs[:3], strict=True)
    )
    return grad_query, grad_key, grad_value, grad_mask


def _backward(
    call: Call,
    grad_output: Tensor,
    grad_log_sum: Tensor | None,
    output: Tensor,
    log_sum: Tensor,
    found: tuple[Tensor, Tensor, Tensor],
    grad_mask: Tensor | None,
    needs: Sequence[bool],
) -> None:
    chosen = plan.backward(call.problem, plan.LIMITS)
    grad = operand(grad_output)
    given = operand(output)
    if grad_log_sum is not None:
        grad_log_sum = grad_log_sum.contiguous()
    of_keys, of_queries = bool(needs[1] or needs[2]), bool(needs[0])
    delta = None
    if chosen.kind == "short":
        delta = torch.zeros_like(log_sum) if grad_mask is not None else None
        _short(call, chosen, grad, log_sum, grad_log_sum, delta, found)
    else:
        if grad_mask is not None or chosen.kind == "general":
            delta = _delta(given, grad, grad_log_sum, log_sum)
        shares = [(of_keys, of_queries)] if chosen.kind == "one_launch" else [(of_keys, False), (False, of_queries)]
        for share in filter(any, shares):
            _general(call, chosen, given, grad, log_sum, delta, grad_log_sum, found, share)
    if grad_mask is not None:
        assert delta is not None
        _mask_gradient(call, grad, log_sum, delta, grad_mask)


def _delta(given: Operand, grad: Operand, grad_log_sum: Tensor | None, log_sum: Tensor) -> Tensor:
    delta = torch.empty_like(log_sum)
    samples, heads, length, values = given.tensor.shape
    block = plan.feature_block(values)
    rows = max(8192 // given.tensor.element_size() // block, 16)
    unit = unit_of(given.tensor.element_size(), (given, grad))
    launch(
        attend_delta, blocks_of(length, rows) * heads * samples, given.tensor, grad.tensor, grad_log_sum, delta,
        *steps(unit, given, grad), heads, length,
        ROWS=rows, VALUES=values, VALUE_BLOCK=block, UNIT=unit, WIDE=is_wide((given, grad)), warps=4,
    )  # fmt: skip
    return delta


def _short(
    call: Call,
    chosen: plan.Backward,
    grad: Operand,
    log_sum: Tensor,
    grad_log_sum: Tensor | None,
    delta: Tensor | None,
    found: tuple[Tensor, Tensor, Tensor],
) -> None:
    tile, problem = chosen.keys, call.problem
    written = [Operand(tensor, *_strides(tensor)) for tensor in found]
    unit = unit_of(grad.tensor.element_size(), (call.q, call.k, call.v, grad, *written))
    columns = max(plan.power_of_two(problem.keys), 16)
    seed, seed_low, seed_high = call.seeds
    launch(
        attend_backward_short, problem.samples * problem.key_heads,
        call.q.tensor, call.k.tensor, call.v.tensor, grad.tensor, log_sum, grad_log_sum, delta, *found,
        call.mask.tensor, *call.indices, seed, *steps(unit, call.q, call.k, call.v, grad), *call.mask.strides,
        *steps(unit, *written),
        problem.samples, problem.heads, call.query.shape[2], call.key.shape[2], *call.window, *call.scores, call.scale,
        call.dropped, call.kept_scale, seed_low, seed_high,
        ROWS=tile.rows, EDGE_ROWS=tile.edge, COLUMNS=columns, UNIT=unit,
        WIDE=call.wide or is_wide((grad, *written)), KEY_TAIL=call.varlen or problem.keys != columns,
        TURNED=tile.rows < 64,
        EDGES=tile.edges, INTERIOR=tile.interior, warps=tile.warps, stages=tile.stages,
        **call.constants(),
    )  # fmt: skip


def _general(
    call: Call,
    chosen: plan.Backward,
    given: Operand,
    grad: Operand,
    log_sum: Tensor,
    delta: Tensor | None,
    grad_log_sum: Tensor | None,
    found: tuple[Tensor, Tensor, Tensor],
    share: tuple[bool, bool],
) -> None:
    """``share``: whether the launch has the gradients of keys and values, and that of queries."""
    of_keys, of_queries = share
    keys, queries, problem = chosen.keys, chosen.queries, call.problem
    dq, dk, dv = (Operand(tensor, *_strides(tensor)) for tensor in found)
    unit = unit_of(grad.tensor.element_size(), (call.q, call.k, call.v, given, grad, dq, dk, dv))
    # What a launch leaves out is no reason to compile it anew.
    keys, queries = keys if of_keys else queries, queries if of_queries else keys
    constants = call.constants()
    q: Any = call.q.tensor
    k: Any = call.k.tensor
    v: Any = call.v.tensor
    g: Any = grad.tensor
    # What the loop goes over is described; such a launch has one of the two shares.
    looped = (call.q, grad) if of_keys else (call.k, call.v)
    described = chosen.described and all(map(can_describe, looped))
    if described:
        width = keys.rows if of_keys else queries.columns
        keys, queries = keys._replace(edge=width), queries._replace(edge=width)
        first = describe(looped[0], width, constants["FEATURE_BLOCK"])
        second = describe(looped[1], width, constants["VALUE_BLOCK"])
        q, g, k, v = (first, second, k, v) if of_keys else (q, g, first, second)
    column_blocks = blocks_of(problem.keys, keys.columns) if of_keys else 0
    row_blocks = blocks_of(problem.length, queries.rows) if of_queries else 0
    programs = problem.samples * (column_blocks * problem.key_heads + row_blocks * problem.heads)
    seed, seed_low, seed_high = call.seeds
    launch(
        attend_backward, programs,
        q, k, v, given.tensor if delta is None else None, g, log_sum,
        delta, grad_log_sum if delta is None else None, dq.tensor if of_queries else None,
        dk.tensor if of_keys else None, dv.tensor if of_keys else None, call.mask.tensor, *call.indices, seed,
        *steps(unit, call.q, call.k, call.v, given, grad), *call.mask.strides, *steps(unit, dq, dk, dv),
        row_blocks, column_blocks, problem.samples, problem.heads, call.query.shape[2], call.key.shape[2],
        *call.window, *call.scores, call.scale, call.dropped, call.kept_scale, seed_low, seed_high,
        ROWS=keys.rows, EDGE_ROWS=keys.edge, COLUMNS=keys.columns, QUERY_ROWS=queries.rows,
        QUERY_COLUMNS=queries.columns, EDGE_COLUMNS=queries.edge, UNIT=unit,
        WIDE=call.wide or is_wide((given, grad)),
        KEY_TAIL=call.varlen or problem.keys % max(keys.columns, queries.columns) != 0,
        EDGES=keys.edges, INTERIOR=keys.interior, QUERY_EDGES=queries.edges, QUERY_INTERIOR=queries.interior,
        DESCRIBED=described, CHUNK=problem.chunk, warps=keys.warps, stages=keys.stages, **constants,
    )  # fmt: skip


def _mask_gradient(call: Call, grad: Operand, log_sum: Tensor, delta: Tensor, grad_mask: Tensor) -> None:
    problem = call.problem
    samples, heads, length, keys = grad_mask.shape
    chosen = plan.mask_gradient(problem, tuple(grad_mask.shape), plan.LIMITS)
    unit = unit_of(grad.tensor.element_size(), (call.q, call.k, call.v, grad))
    partial = grad_mask
    if chosen.chunks > 1:
        partial = torch.empty((chosen.chunks, *grad_mask.shape), dtype=torch.float32, device=grad_mask.device)
    seed, seed_low, seed_high = call.seeds
    launch(
        attend_mask_gradient, chosen.tiles * chosen.chunks,
        call.q.tensor, call.k.tensor, call.v.tensor, grad.tensor, log_sum, delta, call.mask.tensor, partial,
        call.indices[0], seed, *steps(unit, call.q, call.k, call.v, grad), *call.mask.strides, samples, heads,
        problem.samples, problem.heads, problem.length, problem.keys, *call.window, *call.scores, call.dropped,
        call.kept_scale, seed_low, seed_high, chosen.chunks,
        ROWS=chosen.rows, COLUMNS=chosen.columns, HAS_ROWS=length > 1, HAS_COLUMNS=keys > 1,
        UNIT=unit, KEY_TAIL=problem.keys % chosen.columns != 0,
        WIDE=call.wide or is_wide((grad,)), CHUNK=problem.chunk, warps=chosen.warps, stages=2, **call.constants(),
    )  # fmt: skip
    if chosen.chunks > 1:
        block = 256
        launch(
            sum_chunks, blocks_of(grad_mask.numel(), block), partial, grad_mask, chosen.chunks, grad_mask.numel(),
            BLOCK=block, warps=4,
        )  # fmt: skip


def shipped() -> tuple[Shipped, ...]:
    """What the plans choose for the shapes of networks in use, and for the most options at once."""
    return variants(shipped_calls())


def shipped_calls() -> Iterator[tuple[str, Callable[[], Any]]]:
    for label, shape in SHIPPED_SHAPES:
        yield label, functools.partial(_pass_through, shape)


def _pass_through(shape: Shape) -> None:
    """Forward and backward of tensors without memory."""
    arguments, statics = shape.arguments()
    output, log_sum = forward(*arguments, *statics)
    if not shape.forward_only:
        given: list[Any] = [output, None, *arguments, output, log_sum, *statics, [True] * 4]
        backward(*given)
