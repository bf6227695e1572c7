"""Attention's backward pass for short sequences: one program for a key head, whose keys are all in one tile.

The queries pass by once, and each block of them meets every key: dQ is complete at once, D = rowsum(P * dP) needs no
output, and nothing is computed twice (five products a block, where the general path takes seven).
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastdl.kernels.attention_backward import INTEGERS
from fastdl.kernels.attention_scores import (
    limits_of_sample,
    load_log_sums,
    mask_offsets,
    power,
    scores,
    sequence_of,
)
from fastdl.kernels.attention_tiles import (
    edge_block,
    load_rows,
    product,
    rounded,
    store_rows,
    visible_blocks,
)
from fastdl.kernels.philox import kept, key_of


@triton.jit(do_not_specialize=[n for n in INTEGERS if not n.startswith("o_") and not n.endswith("_blocks")])
def attend_backward_short(
    query, key, value, grad, log_sum, grad_log_sum, delta, grad_query, grad_key, grad_value, mask,
    query_offset, starts_q, starts_k, seed,
    q_sample, q_head, q_row, k_sample, k_head, k_row, v_sample, v_head, v_row, g_sample, g_head, g_row,
    mask_sample, mask_head, mask_row, mask_column,
    dq_sample, dq_head, dq_row, dk_sample, dk_head, dk_row, dv_sample, dv_head, dv_row,
    samples, heads, length, keys, low, high, scale, cap, grad_scale, dropped, kept_scale, seed_low, seed_high,
    ROWS: tl.constexpr, EDGE_ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    FEATURES: tl.constexpr, FEATURE_BLOCK: tl.constexpr, VALUES: tl.constexpr, VALUE_BLOCK: tl.constexpr,
    GROUP: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr, KEY_TAIL: tl.constexpr, TURNED: tl.constexpr,
    EDGES: tl.constexpr, INTERIOR: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, CAPPED: tl.constexpr,
    MASK: tl.constexpr, MASK_COLUMNS: tl.constexpr, MASK_UNIT: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """dQ, dK and dV of a key head, and D, where the gradient of a mask is to have it.

    ``TURNED``: dQ is multiplied out as dQ^T = K^T dS^T, features x queries;
    the matrix instructions of Hopper take 64 rows at least, and a block of queries has fewer.
    """
    dtype: tl.constexpr = query.dtype.element_ty
    NATURAL: tl.constexpr = dtype == tl.float32
    key_heads = heads // GROUP
    key_head = tl.program_id(0) % key_heads
    sample = tl.program_id(0) // key_heads
    first_query, rows = sequence_of(starts_q, sample, length)
    first_key, columns = sequence_of(starts_k, sample, keys)
    low, high = limits_of_sample(query_offset, sample, low, high)
    wide_sample = sample.to(tl.int64)
    mask_start = wide_sample * mask_sample
    if starts_q is not None:
        wide_sample = wide_sample * 0
    wide_head = key_head.to(tl.int64)
    key += (wide_sample * k_sample + wide_head * k_head + first_key * k_row) * UNIT
    value += (wide_sample * v_sample + wide_head * v_head + first_key * v_row) * UNIT
    zero = key_head * 0
    k = load_rows(key, zero, columns, k_row, COLUMNS, FEATURES, FEATURE_BLOCK, UNIT, WIDE, KEY_TAIL)
    v = load_rows(value, zero, columns, v_row, COLUMNS, VALUES, VALUE_BLOCK, UNIT, WIDE, KEY_TAIL)
    column = tl.arange(0, COLUMNS)[:, None]
    low_word, high_word = key_of(seed, seed_low, seed_high)
    begin, full_begin, full_end, end = visible_blocks(zero, columns - 1, rows, -high, -low, ROWS, RIGHT, LEFT)

    gradient_of_k = tl.zeros([COLUMNS, FEATURE_BLOCK], tl.float32)
    gradient_of_v = tl.zeros([COLUMNS, VALUE_BLOCK], tl.float32)
    for member in range(GROUP):
        head = key_head * GROUP + member
        wide_head = head.to(tl.int64)
        q_base = query + (wide_sample * q_sample + wide_head * q_head + first_query * q_row) * UNIT
        g_base = grad + (wide_sample * g_sample + wide_head * g_head + first_query * g_row) * UNIT
        dq_base = grad_query + (wide_sample * dq_sample + wide_head * dq_head + first_query * dq_row) * UNIT
        place = (wide_sample * heads + wide_head) * length + first_query
        if LEFT or RIGHT:
            # Queries beyond what any key sees, on either side: nothing below comes to them.
            for start in range(0, begin * ROWS, ROWS):
                nothing = tl.zeros([ROWS, FEATURE_BLOCK], tl.float32)
                store_rows(dq_base, zero + start, rows, dq_row, nothing, ROWS, FEATURES, FEATURE_BLOCK, UNIT)
            for start in range(end * ROWS, rows, ROWS):
                nothing = tl.zeros([ROWS, FEATURE_BLOCK], tl.float32)
                store_rows(dq_base, zero + start, rows, dq_row, nothing, ROWS, FEATURES, FEATURE_BLOCK, UNIT)
        for stage in tl.static_range(2):
            if (EDGES and stage == 0) or (INTERIOR and stage == 1):
                if stage == 0:
                    count = full_begin - begin + end - full_end
                else:
                    count = full_end - full_begin
                for index in range(count):
                    if stage == 0:
                        start = edge_block(index, begin, full_begin, full_end) * ROWS
                    else:
                        start = (full_begin + index) * ROWS
                    row = start + tl.arange(0, EDGE_ROWS if stage == 0 else ROWS)
                    there = row < rows
                    q = load_rows(
                        q_base, start, rows, q_row, EDGE_ROWS if stage == 0 else ROWS, FEATURES, FEATURE_BLOCK,
                        UNIT, WIDE, stage == 0,
                    )  # fmt: skip
                    g = load_rows(
                        g_base, start, rows, g_row, EDGE_ROWS if stage == 0 else ROWS, VALUES, VALUE_BLOCK,
                        UNIT, WIDE, stage == 0,
                    )  # fmt: skip
                    sums = load_log_sums(log_sum + place + row, there, NATURAL)
                    products = product(
                        k, tl.trans(q), tl.zeros([COLUMNS, EDGE_ROWS if stage == 0 else ROWS], tl.float32)
                    )
                    mask_rows = tl.minimum(row, rows - 1).to(tl.int64) * mask_row
                    mask_rows = ((mask_rows + mask_start + wide_head * mask_head) * MASK_UNIT)[None, :]
                    s, tangent = scores(
                        products, mask, mask_rows, mask_offsets(column, mask_column, MASK_COLUMNS),
                        row[None, :], column, columns, low, high, scale, cap, stage == 0 or KEY_TAIL, LEFT, RIGHT,
                        CAPPED, MASK, KEY_TAIL and MASK_COLUMNS > 0, NATURAL,
                    )  # fmt: skip
                    weights = power(s - sums[None, :], NATURAL)
                    # All keys are here, so the weights can be made to add up to 1 again, which the rounding of the
                    # log-sum-exp has cost them: where dS cancels, nothing else is left.
                    whole = tl.sum(weights, axis=0)
                    weights *= (1.0 / tl.where(whole == 0.0, 1.0, whole))[None, :]
                    dp = product(v, tl.trans(g), tl.zeros([COLUMNS, EDGE_ROWS if stage == 0 else ROWS], tl.float32))
                    given = weights
                    if DROPOUT:
                        keep = tl.trans(
                            kept(
                                low_word, high_word, sample, head, row[:, None], zero, dropped,
                                EDGE_ROWS if stage == 0 else ROWS, COLUMNS,
                            )
                        )  # fmt: skip
                        given = tl.where(keep, weights, 0.0)
                        dp = tl.where(keep, dp * kept_scale, 0.0)
                    d = tl.sum(weights * dp, axis=0)
                    if grad_log_sum is not None:
                        d -= tl.load(grad_log_sum + place + row, mask=there, other=0.0)
                    if delta is not None:
                        tl.store(delta + place + row, d, mask=there)
                    gradient_of_v = product(rounded(given, dtype), g, gradient_of_v)
                    ds = weights * (dp - d[None, :])
                    if CAPPED:
                        ds *= 1.0 - tangent * tangent
                    narrow = rounded(ds, dtype)
                    gradient_of_k = product(narrow, q, gradient_of_k)
                    if TURNED:
                        turned = tl.zeros([FEATURE_BLOCK, EDGE_ROWS if stage == 0 else ROWS], tl.float32)
                        gradient_of_q = tl.trans(product(tl.trans(k), narrow, turned))
                    else:
                        straight = tl.zeros([EDGE_ROWS if stage == 0 else ROWS, FEATURE_BLOCK], tl.float32)
                        gradient_of_q = product(tl.trans(narrow), k, straight)
                    store_rows(
                        dq_base, start, rows, dq_row, gradient_of_q * grad_scale, EDGE_ROWS if stage == 0 else ROWS,
                        FEATURES, FEATURE_BLOCK, UNIT,
                    )  # fmt: skip
    if DROPOUT:
        gradient_of_v *= kept_scale
    wide_head = key_head.to(tl.int64)
    grad_key += (wide_sample * dk_sample + wide_head * dk_head + first_key * dk_row) * UNIT
    grad_value += (wide_sample * dv_sample + wide_head * dv_head + first_key * dv_row) * UNIT
    store_rows(grad_key, zero, columns, dk_row, gradient_of_k * grad_scale, COLUMNS, FEATURES, FEATURE_BLOCK, UNIT)
    store_rows(grad_value, zero, columns, dv_row, gradient_of_v, COLUMNS, VALUES, VALUE_BLOCK, UNIT)
