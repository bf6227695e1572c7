"""Attention's backward pass (Dao 2023, arXiv:2307.08691, algorithm 2), the weights computed again from the log-sum-exp.

With P the weights, Z = keep / (1 - p) and D = rowsum(dO * O) - dLSE:

    dP = Z (dO V^T)    dS = P (dP - D)    dQ = scale dS K    dK = scale dS^T Q    dV = (Z P)^T dO

A program owns a block of keys and goes over the queries that see it, or owns a block of queries and goes over the keys
that it sees: each sum has one program, and no atomics are needed. The weights of the first are held transposed, keys x
queries, so that P^T and dS^T are left operands where they are. Both kinds may share a launch (`attend_backward`): what
counts for short sequences is how many launches there are.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastdl.kernels.attention_descriptors import head_of, load_head_rows
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
    pointers_to_rows,
    product,
    product_by_chunks,
    rounded,
    store_rows,
    visible_blocks,
)
from fastdl.kernels.philox import kept, key_of

INTEGERS = [
    "q_sample", "q_head", "q_row", "k_sample", "k_head", "k_row", "v_sample", "v_head", "v_row",
    "o_sample", "o_head", "o_row", "g_sample", "g_head", "g_row", "mask_sample", "mask_head", "mask_row", "mask_column",
    "dq_sample", "dq_head", "dq_row", "dk_sample", "dk_head", "dk_row", "dv_sample", "dv_head", "dv_row",
    "row_blocks", "column_blocks", "samples", "heads", "length", "keys", "low", "high", "dropped", "seed_low",
    "seed_high",
]  # fmt: skip


@triton.jit(do_not_specialize=["o_sample", "o_head", "o_row", "g_sample", "g_head", "g_row", "heads", "length"])
def attend_delta(
    output, grad, grad_log_sum, delta, o_sample, o_head, o_row, g_sample, g_head, g_row, heads, length,
    ROWS: tl.constexpr, VALUES: tl.constexpr, VALUE_BLOCK: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """D of ``ROWS`` queries of one head."""
    blocks = tl.cdiv(length, ROWS)
    first = (tl.program_id(0) % blocks) * ROWS
    head = (tl.program_id(0) // blocks) % heads
    sample = tl.program_id(0) // blocks // heads
    wide_sample = sample.to(tl.int64)
    wide_head = head.to(tl.int64)
    output += (wide_sample * o_sample + wide_head * o_head) * UNIT
    grad += (wide_sample * g_sample + wide_head * g_head) * UNIT
    o = load_rows(output, first, length, o_row, ROWS, VALUES, VALUE_BLOCK, UNIT, WIDE, True)
    g = load_rows(grad, first, length, g_row, ROWS, VALUES, VALUE_BLOCK, UNIT, WIDE, True)
    row = first + tl.arange(0, ROWS)
    at = (wide_sample * heads + wide_head) * length + row
    found = tl.sum(o.to(tl.float32) * g.to(tl.float32), axis=1)
    if grad_log_sum is not None:
        found -= tl.load(grad_log_sum + at, mask=row < length, other=0.0)
    tl.store(delta + at, found, mask=row < length)


@triton.jit
def statistics_of_rows(
    log_sum, delta, grad_log_sum, output, g, o_row, place, first, rows,
    ROWS: tl.constexpr, VALUES: tl.constexpr, VALUE_BLOCK: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr,
    NATURAL: tl.constexpr,
):  # fmt: skip
    """The log-sum-exp of ``ROWS`` queries, as `load_log_sums` gives it, and D.

    ``place`` is where the first of them has its number in (N, H, L). D is read, or computed here from the output where
    ``delta`` is None.
    """
    row = first + tl.arange(0, ROWS)
    there = row < rows
    sums = load_log_sums(log_sum + place + tl.arange(0, ROWS), there, NATURAL)
    if delta is not None:
        found = tl.load(delta + place + tl.arange(0, ROWS), mask=there, other=0.0)
    else:
        o = load_rows(output, first, rows, o_row, ROWS, VALUES, VALUE_BLOCK, UNIT, WIDE, True)
        found = tl.sum(o.to(tl.float32) * g.to(tl.float32), axis=1)
        if grad_log_sum is not None:
            found -= tl.load(grad_log_sum + place + tl.arange(0, ROWS), mask=there, other=0.0)
    return sums, found


@triton.jit
def gradients_of_keys(
    block, key_head, sample,
    query, key, value, output, grad, log_sum, delta, grad_log_sum, grad_key, grad_value, mask,
    query_offset, starts_q, starts_k, seed,
    q_sample, q_head, q_row, k_sample, k_head, k_row, v_sample, v_head, v_row, o_sample, o_head, o_row,
    g_sample, g_head, g_row, mask_sample, mask_head, mask_row, mask_column,
    dk_sample, dk_head, dk_row, dv_sample, dv_head, dv_row,
    heads, length, keys, low, high, scale, cap, grad_scale, dropped, kept_scale, seed_low, seed_high,
    ROWS: tl.constexpr, EDGE_ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    FEATURES: tl.constexpr, FEATURE_BLOCK: tl.constexpr, VALUES: tl.constexpr, VALUE_BLOCK: tl.constexpr,
    GROUP: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr, KEY_TAIL: tl.constexpr,
    EDGES: tl.constexpr, INTERIOR: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, CAPPED: tl.constexpr,
    MASK: tl.constexpr, MASK_COLUMNS: tl.constexpr, MASK_UNIT: tl.constexpr, DROPOUT: tl.constexpr,
    DESCRIBED: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """dK and dV of a block of keys: a sum over the queries that see it, of all heads that share the key."""
    dtype: tl.constexpr = key.dtype.element_ty
    NATURAL: tl.constexpr = dtype == tl.float32
    first_query, rows = sequence_of(starts_q, sample, length)
    first_key, columns = sequence_of(starts_k, sample, keys)
    first = block * COLUMNS
    if first < columns:
        low, high = limits_of_sample(query_offset, sample, low, high)
        wide_sample = sample.to(tl.int64)
        mask_start = wide_sample * mask_sample
        if starts_q is not None:
            wide_sample = wide_sample * 0
        wide_head = key_head.to(tl.int64)
        key += (wide_sample * k_sample + wide_head * k_head + first_key * k_row) * UNIT
        value += (wide_sample * v_sample + wide_head * v_head + first_key * v_row) * UNIT
        # The left operands of all products over features, which are held throughout, or read again in each.
        if FEATURE_BLOCK <= CHUNK:
            k = load_rows(key, first, columns, k_row, COLUMNS, FEATURES, FEATURE_BLOCK, UNIT, WIDE, True)
        if VALUE_BLOCK <= CHUNK:
            v = load_rows(value, first, columns, v_row, COLUMNS, VALUES, VALUE_BLOCK, UNIT, WIDE, True)
        column = (first + tl.arange(0, COLUMNS))[:, None]
        low_word, high_word = key_of(seed, seed_low, seed_high)
        last = tl.minimum(first + COLUMNS, columns) - 1
        begin, full_begin, full_end, end = visible_blocks(first, last, rows, -high, -low, ROWS, RIGHT, LEFT)

        gradient_of_k = tl.zeros([COLUMNS, FEATURE_BLOCK], tl.float32)
        gradient_of_v = tl.zeros([COLUMNS, VALUE_BLOCK], tl.float32)
        # Blocks of queries and the heads that share the keys in one loop: with a loop around the loop, Blackwell's sums
        # leave their own memory and come back for each head, and 255 registers are not enough (396 bytes spilled).
        for stage in tl.static_range(2):
            if (EDGES and stage == 0) or (INTERIOR and stage == 1):
                if stage == 0:
                    count = full_begin - begin + end - full_end
                else:
                    count = full_end - full_begin
                for step in range(count * GROUP):
                    if GROUP == 1:
                        head = key_head
                        index = step
                    else:
                        head = key_head * GROUP + step % GROUP
                        index = step // GROUP
                    wide_head = head.to(tl.int64)
                    q_base = head_of(
                        query, wide_sample, wide_head, first_query, q_sample, q_head, q_row, UNIT, DESCRIBED
                    )
                    g_base = head_of(
                        grad, wide_sample, wide_head, first_query, g_sample, g_head, g_row, UNIT, DESCRIBED
                    )
                    o_base = output
                    if delta is None:
                        o_base = output + (wide_sample * o_sample + wide_head * o_head + first_query * o_row) * UNIT
                    place = (wide_sample * heads + wide_head) * length + first_query
                    if stage == 0:
                        start = edge_block(index, begin, full_begin, full_end) * ROWS
                    else:
                        start = (full_begin + index) * ROWS
                    row = start + tl.arange(0, EDGE_ROWS if stage == 0 else ROWS)
                    q = load_head_rows(
                        q_base, sample, head, start, rows, q_row, EDGE_ROWS if stage == 0 else ROWS, FEATURES,
                        FEATURE_BLOCK, UNIT, WIDE, stage == 0, DESCRIBED,
                    )  # fmt: skip
                    g = load_head_rows(
                        g_base, sample, head, start, rows, g_row, EDGE_ROWS if stage == 0 else ROWS, VALUES,
                        VALUE_BLOCK, UNIT, WIDE, stage == 0, DESCRIBED,
                    )  # fmt: skip
                    sums, d = statistics_of_rows(
                        log_sum, delta, grad_log_sum, o_base, g, o_row, place + start, start, rows,
                        EDGE_ROWS if stage == 0 else ROWS, VALUES, VALUE_BLOCK, UNIT, WIDE, NATURAL,
                    )  # fmt: skip
                    if FEATURE_BLOCK > CHUNK:
                        k_rows = pointers_to_rows(key, first, k_row, COLUMNS, UNIT, WIDE)
                        q_rows = pointers_to_rows(q_base, start, q_row, EDGE_ROWS if stage == 0 else ROWS, UNIT, WIDE)
                        in_columns = first + tl.arange(0, COLUMNS) < columns
                        products = product_by_chunks(k_rows, in_columns, q_rows, row < rows, FEATURES, CHUNK)
                    else:
                        products = product(
                            k, tl.trans(q), tl.zeros([COLUMNS, EDGE_ROWS if stage == 0 else ROWS], tl.float32)
                        )
                    mask_rows = tl.minimum(row, rows - 1).to(tl.int64) * mask_row
                    mask_rows = ((mask_rows + mask_start + wide_head * mask_head) * MASK_UNIT)[None, :]
                    s, tangent = scores(
                        products, mask, mask_rows, mask_offsets(column, mask_column, MASK_COLUMNS),
                        row[None, :], column, columns, low, high, scale, cap, stage == 0, LEFT, RIGHT, CAPPED, MASK,
                        KEY_TAIL and MASK_COLUMNS > 0, NATURAL,
                    )  # fmt: skip
                    weights = power(s - sums[None, :], NATURAL)
                    if VALUE_BLOCK > CHUNK:
                        v_rows = pointers_to_rows(value, first, v_row, COLUMNS, UNIT, WIDE)
                        g_rows = pointers_to_rows(g_base, start, g_row, EDGE_ROWS if stage == 0 else ROWS, UNIT, WIDE)
                        in_columns = first + tl.arange(0, COLUMNS) < columns
                        dp = product_by_chunks(v_rows, in_columns, g_rows, row < rows, VALUES, CHUNK)
                    else:
                        dp = product(v, tl.trans(g), tl.zeros([COLUMNS, EDGE_ROWS if stage == 0 else ROWS], tl.float32))
                    given = weights
                    if DROPOUT:
                        keep = tl.trans(
                            kept(
                                low_word, high_word, sample, head, row[:, None], first, dropped,
                                EDGE_ROWS if stage == 0 else ROWS, COLUMNS,
                            )
                        )  # fmt: skip
                        given = tl.where(keep, weights, 0.0)
                        dp = tl.where(keep, dp * kept_scale, 0.0)
                    gradient_of_v = product(rounded(given, dtype), g, gradient_of_v)
                    ds = weights * (dp - d[None, :])
                    if CAPPED:
                        ds *= 1.0 - tangent * tangent
                    gradient_of_k = product(rounded(ds, dtype), q, gradient_of_k)
        if DROPOUT:
            gradient_of_v *= kept_scale
        wide_head = key_head.to(tl.int64)
        grad_key += (wide_sample * dk_sample + wide_head * dk_head + first_key * dk_row) * UNIT
        grad_value += (wide_sample * dv_sample + wide_head * dv_head + first_key * dv_row) * UNIT
        store_rows(grad_key, first, columns, dk_row, gradient_of_k * grad_scale, COLUMNS, FEATURES, FEATURE_BLOCK, UNIT)
        store_rows(grad_value, first, columns, dv_row, gradient_of_v, COLUMNS, VALUES, VALUE_BLOCK, UNIT)


@triton.jit
def gradients_of_queries(
    block, head, sample,
    query, key, value, output, grad, log_sum, delta, grad_log_sum, grad_query, mask,
    query_offset, starts_q, starts_k, seed,
    q_sample, q_head, q_row, k_sample, k_head, k_row, v_sample, v_head, v_row, o_sample, o_head, o_row,
    g_sample, g_head, g_row, mask_sample, mask_head, mask_row, mask_column, dq_sample, dq_head, dq_row,
    heads, length, keys, low, high, scale, cap, grad_scale, dropped, kept_scale, seed_low, seed_high,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, EDGE_COLUMNS: tl.constexpr,
    FEATURES: tl.constexpr, FEATURE_BLOCK: tl.constexpr, VALUES: tl.constexpr, VALUE_BLOCK: tl.constexpr,
    GROUP: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr, KEY_TAIL: tl.constexpr,
    EDGES: tl.constexpr, INTERIOR: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, CAPPED: tl.constexpr,
    MASK: tl.constexpr, MASK_COLUMNS: tl.constexpr, MASK_UNIT: tl.constexpr, DROPOUT: tl.constexpr,
    DESCRIBED: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """dQ of a block of queries: a sum over the keys that it sees."""
    dtype: tl.constexpr = query.dtype.element_ty
    NATURAL: tl.constexpr = dtype == tl.float32
    first_query, rows = sequence_of(starts_q, sample, length)
    first_key, columns = sequence_of(starts_k, sample, keys)
    first = block * ROWS
    if first < rows:
        low, high = limits_of_sample(query_offset, sample, low, high)
        wide_sample = sample.to(tl.int64)
        mask_start = wide_sample * mask_sample
        if starts_q is not None:
            wide_sample = wide_sample * 0
        wide_head = head.to(tl.int64)
        key_head = wide_head // GROUP
        query += (wide_sample * q_sample + wide_head * q_head + first_query * q_row) * UNIT
        grad += (wide_sample * g_sample + wide_head * g_head + first_query * g_row) * UNIT
        key = head_of(key, wide_sample, key_head, first_key, k_sample, k_head, k_row, UNIT, DESCRIBED)
        value = head_of(value, wide_sample, key_head, first_key, v_sample, v_head, v_row, UNIT, DESCRIBED)
        if delta is None:
            output += (wide_sample * o_sample + wide_head * o_head + first_query * o_row) * UNIT
        if FEATURE_BLOCK <= CHUNK:
            q = load_rows(query, first, rows, q_row, ROWS, FEATURES, FEATURE_BLOCK, UNIT, WIDE, True)
        g = load_rows(grad, first, rows, g_row, ROWS, VALUES, VALUE_BLOCK, UNIT, WIDE, True)
        place = (wide_sample * heads + wide_head) * length + first_query + first
        sums, d = statistics_of_rows(
            log_sum, delta, grad_log_sum, output, g, o_row, place, first, rows, ROWS, VALUES, VALUE_BLOCK, UNIT, WIDE,
            NATURAL,
        )  # fmt: skip
        row = first + tl.arange(0, ROWS)
        mask_rows = tl.minimum(row, rows - 1).to(tl.int64) * mask_row
        mask_rows = ((mask_rows + mask_start + wide_head * mask_head) * MASK_UNIT)[:, None]
        low_word, high_word = key_of(seed, seed_low, seed_high)
        last = tl.minimum(first + ROWS, rows) - 1
        begin, full_begin, full_end, end = visible_blocks(first, last, columns, low, high, COLUMNS, LEFT, RIGHT)

        gradient = tl.zeros([ROWS, FEATURE_BLOCK], tl.float32)
        for stage in tl.static_range(2):
            if (EDGES and stage == 0) or (INTERIOR and stage == 1):
                if stage == 0:
                    count = full_begin - begin + end - full_end
                else:
                    count = full_end - full_begin
                for index in range(count):
                    if stage == 0:
                        start = edge_block(index, begin, full_begin, full_end) * COLUMNS
                    else:
                        start = (full_begin + index) * COLUMNS
                    column = (start + tl.arange(0, EDGE_COLUMNS if stage == 0 else COLUMNS))[None, :]
                    k = load_head_rows(
                        key, sample, key_head, start, columns, k_row, EDGE_COLUMNS if stage == 0 else COLUMNS,
                        FEATURES, FEATURE_BLOCK, UNIT, WIDE, stage == 0, DESCRIBED,
                    )  # fmt: skip
                    if VALUE_BLOCK <= CHUNK:
                        v = load_head_rows(
                            value, sample, key_head, start, columns, v_row, EDGE_COLUMNS if stage == 0 else COLUMNS,
                            VALUES, VALUE_BLOCK, UNIT, WIDE, stage == 0, DESCRIBED,
                        )  # fmt: skip
                    if FEATURE_BLOCK > CHUNK:
                        q_rows = pointers_to_rows(query, first, q_row, ROWS, UNIT, WIDE)
                        k_rows = pointers_to_rows(
                            key, start, k_row, EDGE_COLUMNS if stage == 0 else COLUMNS, UNIT, WIDE
                        )  # fmt: skip
                        in_columns = start + tl.arange(0, EDGE_COLUMNS if stage == 0 else COLUMNS) < columns
                        products = product_by_chunks(q_rows, row < rows, k_rows, in_columns, FEATURES, CHUNK)
                    else:
                        products = product(
                            q, tl.trans(k), tl.zeros([ROWS, EDGE_COLUMNS if stage == 0 else COLUMNS], tl.float32)
                        )
                    s, tangent = scores(
                        products, mask, mask_rows, mask_offsets(column, mask_column, MASK_COLUMNS),
                        row[:, None], column, columns, low, high, scale, cap, stage == 0, LEFT, RIGHT, CAPPED, MASK,
                        stage == 0 and KEY_TAIL and MASK_COLUMNS > 0, NATURAL,
                    )  # fmt: skip
                    weights = power(s - sums[:, None], NATURAL)
                    if VALUE_BLOCK > CHUNK:
                        g_rows = pointers_to_rows(grad, first, g_row, ROWS, UNIT, WIDE)
                        v_rows = pointers_to_rows(
                            value, start, v_row, EDGE_COLUMNS if stage == 0 else COLUMNS, UNIT, WIDE
                        )  # fmt: skip
                        in_columns = start + tl.arange(0, EDGE_COLUMNS if stage == 0 else COLUMNS) < columns
                        dp = product_by_chunks(g_rows, row < rows, v_rows, in_columns, VALUES, CHUNK)
                    else:
                        dp = product(
                            g, tl.trans(v), tl.zeros([ROWS, EDGE_COLUMNS if stage == 0 else COLUMNS], tl.float32)
                        )
                    if DROPOUT:
                        keep = kept(
                            low_word, high_word, sample, head, row[:, None], start, dropped, ROWS,
                            EDGE_COLUMNS if stage == 0 else COLUMNS,
                        )  # fmt: skip
                        dp = tl.where(keep, dp * kept_scale, 0.0)
                    ds = weights * (dp - d[:, None])
                    if CAPPED:
                        ds *= 1.0 - tangent * tangent
                    gradient = product(rounded(ds, dtype), k, gradient)
        grad_query += (wide_sample * dq_sample + wide_head * dq_head + first_query * dq_row) * UNIT
        store_rows(grad_query, first, rows, dq_row, gradient * grad_scale, ROWS, FEATURES, FEATURE_BLOCK, UNIT)


@triton.jit(do_not_specialize=INTEGERS)
def attend_backward(
    query, key, value, output, grad, log_sum, delta, grad_log_sum, grad_query, grad_key, grad_value, mask,
    query_offset, starts_q, starts_k, seed,
    q_sample, q_head, q_row, k_sample, k_head, k_row, v_sample, v_head, v_row, o_sample, o_head, o_row,
    g_sample, g_head, g_row, mask_sample, mask_head, mask_row, mask_column,
    dq_sample, dq_head, dq_row, dk_sample, dk_head, dk_row, dv_sample, dv_head, dv_row,
    row_blocks, column_blocks, samples, heads, length, keys, low, high, scale, cap, grad_scale, dropped, kept_scale,
    seed_low, seed_high,
    ROWS: tl.constexpr, EDGE_ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    QUERY_ROWS: tl.constexpr, QUERY_COLUMNS: tl.constexpr, EDGE_COLUMNS: tl.constexpr,
    FEATURES: tl.constexpr, FEATURE_BLOCK: tl.constexpr, VALUES: tl.constexpr, VALUE_BLOCK: tl.constexpr,
    GROUP: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr, KEY_TAIL: tl.constexpr,
    EDGES: tl.constexpr, INTERIOR: tl.constexpr, QUERY_EDGES: tl.constexpr, QUERY_INTERIOR: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, CAPPED: tl.constexpr, MASK: tl.constexpr,
    MASK_COLUMNS: tl.constexpr, MASK_UNIT: tl.constexpr, DROPOUT: tl.constexpr, DESCRIBED: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """All three gradients: the first programs own blocks of keys, those behind them blocks of queries.

    ``row_blocks`` or ``column_blocks`` may be 0, where ``grad_query`` or ``grad_key`` and ``grad_value`` are None.
    """
    program = tl.program_id(0)
    if grad_key is not None:
        of_keys = samples * (heads // GROUP) * column_blocks
        if program < of_keys:
            block = program % column_blocks
            outer = program // column_blocks
            gradients_of_keys(
                block, outer % (heads // GROUP), outer // (heads // GROUP),
                query, key, value, output, grad, log_sum, delta, grad_log_sum, grad_key, grad_value, mask,
                query_offset, starts_q, starts_k, seed,
                q_sample, q_head, q_row, k_sample, k_head, k_row, v_sample, v_head, v_row, o_sample, o_head, o_row,
                g_sample, g_head, g_row, mask_sample, mask_head, mask_row, mask_column,
                dk_sample, dk_head, dk_row, dv_sample, dv_head, dv_row,
                heads, length, keys, low, high, scale, cap, grad_scale, dropped, kept_scale, seed_low, seed_high,
                ROWS, EDGE_ROWS, COLUMNS, FEATURES, FEATURE_BLOCK, VALUES, VALUE_BLOCK, GROUP, UNIT, WIDE,
                KEY_TAIL, EDGES, INTERIOR, LEFT, RIGHT, CAPPED, MASK, MASK_COLUMNS, MASK_UNIT, DROPOUT,
                DESCRIBED, CHUNK,
            )  # fmt: skip
    else:
        of_keys = program * 0
    if grad_query is not None:  # noqa: SIM102  (the compiler knows this, and not what follows)
        if program >= of_keys:
            block = (program - of_keys) % row_blocks
            outer = (program - of_keys) // row_blocks
            if RIGHT:
                block = row_blocks - 1 - block  # the last queries see most keys
            gradients_of_queries(
                block, outer % heads, outer // heads,
                query, key, value, output, grad, log_sum, delta, grad_log_sum, grad_query, mask,
                query_offset, starts_q, starts_k, seed,
                q_sample, q_head, q_row, k_sample, k_head, k_row, v_sample, v_head, v_row, o_sample, o_head, o_row,
                g_sample, g_head, g_row, mask_sample, mask_head, mask_row, mask_column, dq_sample, dq_head, dq_row,
                heads, length, keys, low, high, scale, cap, grad_scale, dropped, kept_scale, seed_low, seed_high,
                QUERY_ROWS, QUERY_COLUMNS, EDGE_COLUMNS, FEATURES, FEATURE_BLOCK, VALUES, VALUE_BLOCK, GROUP, UNIT,
                WIDE, KEY_TAIL, QUERY_EDGES, QUERY_INTERIOR, LEFT, RIGHT, CAPPED, MASK, MASK_COLUMNS, MASK_UNIT,
                DROPOUT, DESCRIBED, CHUNK,
            )  # fmt: skip
