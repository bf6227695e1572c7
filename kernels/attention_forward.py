"""Attention's forward pass: softmax along blocks of keys (Dao et al. 2022, arXiv:2205.14135, algorithm 1)."""

from __future__ import annotations

import triton
import triton.language as tl

from fastdl.kernels import tiles
from fastdl.kernels.attention_descriptors import head_of, load_head_rows
from fastdl.kernels.attention_scores import (
    INFINITY,
    NO_MASK,
    limits_of_sample,
    log_sum_of,
    mask_offsets,
    power,
    scores,
    sequence_of,
)
from fastdl.kernels.attention_tiles import (
    edge_block,
    load,
    pointers_to_rows,
    product,
    product_by_chunks,
    rounded,
    visible_blocks,
)
from fastdl.kernels.philox import kept, key_of

INTEGERS = [
    "q_sample", "q_head", "q_row", "k_sample", "k_head", "k_row", "v_sample", "v_head", "v_row",
    "o_sample", "o_head", "o_row", "mask_sample", "mask_head", "mask_row", "mask_column",
    "blocks", "samples", "heads", "length", "keys", "low", "high", "dropped", "seed_low", "seed_high", "splits",
]  # fmt: skip


@triton.jit(do_not_specialize=INTEGERS)
def attend_forward(
    query, key, value, output, log_sum, mask, query_offset, starts_q, starts_k, seed,
    q_sample, q_head, q_row, k_sample, k_head, k_row, v_sample, v_head, v_row, o_sample, o_head, o_row,
    mask_sample, mask_head, mask_row, mask_column,
    blocks, samples, heads, length, keys, low, high, scale, cap, dropped, kept_scale, seed_low, seed_high, splits,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, EDGE_COLUMNS: tl.constexpr,
    FEATURES: tl.constexpr, FEATURE_BLOCK: tl.constexpr, VALUES: tl.constexpr, VALUE_BLOCK: tl.constexpr,
    GROUP: tl.constexpr, PACKED: tl.constexpr, SPLIT: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr,
    KEY_TAIL: tl.constexpr, EDGES: tl.constexpr, INTERIOR: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
    CAPPED: tl.constexpr, MASK: tl.constexpr, MASK_COLUMNS: tl.constexpr, MASK_UNIT: tl.constexpr,
    DROPOUT: tl.constexpr, DESCRIBED: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Output and log-sum-exp of ``ROWS`` queries.

    Programs run over blocks of queries, then heads, samples (or sequences) and ``splits``. ``PACKED``: the rows are the
    queries of all ``GROUP`` heads that share a key head, so that few queries still fill a tile and the keys are read
    once. ``SPLIT``: a program sees its share of the keys, and writes partial results, (splits, N, H, L, E_v) in float32
    and (splits, N, H, L), for `merge_splits`. ``DESCRIBED``: ``key`` and ``value`` are descriptors of tiles of
    ``COLUMNS`` rows. ``CHUNK``: so many features at most are multiplied at a time.
    """
    dtype: tl.constexpr = query.dtype.element_ty
    NATURAL: tl.constexpr = dtype == tl.float32
    group_heads: tl.constexpr = GROUP if PACKED else 1
    block = tl.program_id(0) % blocks
    outer = tl.program_id(0) // blocks
    if RIGHT:
        block = blocks - 1 - block  # the last queries see most keys; what takes longest starts first
    groups = heads // group_heads
    head = (outer % groups) * group_heads
    sample = (outer // groups) % samples
    split = outer // groups // samples

    first_query, rows = sequence_of(starts_q, sample, length)
    first_key, columns = sequence_of(starts_k, sample, keys)
    first = block * ROWS
    if first >= rows * group_heads:
        return
    low, high = limits_of_sample(query_offset, sample, low, high)
    place = first + tl.arange(0, ROWS)
    there = place < rows * group_heads
    place = tl.minimum(place, rows * group_heads - 1)
    if PACKED:
        row = place % rows
        heads_of_rows = head + place // rows
        first_row = first * 0
        last_row = rows - 1
    else:
        row = place
        heads_of_rows = head + place * 0
        first_row = first
        last_row = tl.minimum(first + ROWS, rows) - 1

    packed_sample = sample.to(tl.int64)
    if starts_q is not None:
        packed_sample = packed_sample * 0
    wide_head = head.to(tl.int64)
    key_head = wide_head // GROUP
    query += (packed_sample * q_sample + first_query * q_row) * UNIT
    key = head_of(key, packed_sample, key_head, first_key, k_sample, k_head, k_row, UNIT, DESCRIBED)
    value = head_of(value, packed_sample, key_head, first_key, v_sample, v_head, v_row, UNIT, DESCRIBED)

    feature = tl.arange(0, FEATURE_BLOCK)
    q_offsets = (heads_of_rows.to(tl.int64) * q_head + row.to(tl.int64) * q_row) * UNIT
    if FEATURE_BLOCK <= CHUNK:
        q = load(query + q_offsets[:, None] + feature[None, :], there[:, None] & (feature < FEATURES)[None, :], True)
    if MASK != NO_MASK:
        mask += sample.to(tl.int64) * mask_sample * MASK_UNIT
    mask_rows = ((heads_of_rows.to(tl.int64) * mask_head + row.to(tl.int64) * mask_row) * MASK_UNIT)[:, None]
    low_word, high_word = key_of(seed, seed_low, seed_high)

    begin, full_begin, full_end, end = visible_blocks(
        first_row, last_row, columns, low, high, COLUMNS, LEFT, RIGHT
    )  # fmt: skip
    if SPLIT:
        share = tl.cdiv(end - begin, splits)
        begin = tl.minimum(begin + split * share, end)
        end = tl.minimum(begin + share, end)
        full_begin = tl.minimum(tl.maximum(full_begin, begin), end)
        full_end = tl.minimum(tl.maximum(full_end, full_begin), end)

    highest = tl.full([ROWS], -INFINITY, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    accumulator = tl.zeros([ROWS, VALUE_BLOCK], tl.float32)
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
                if FEATURE_BLOCK > CHUNK:
                    k_rows = pointers_to_rows(key, start, k_row, EDGE_COLUMNS if stage == 0 else COLUMNS, UNIT, WIDE)
                    in_columns = start + tl.arange(0, EDGE_COLUMNS if stage == 0 else COLUMNS) < columns
                    products = product_by_chunks(query + q_offsets, there, k_rows, in_columns, FEATURES, CHUNK)
                else:
                    k = load_head_rows(
                        key, sample, key_head, start, columns, k_row, EDGE_COLUMNS if stage == 0 else COLUMNS,
                        FEATURES, FEATURE_BLOCK, UNIT, WIDE, stage == 0, DESCRIBED,
                    )  # fmt: skip
                    products = product(
                        q, tl.trans(k), tl.zeros([ROWS, EDGE_COLUMNS if stage == 0 else COLUMNS], tl.float32)
                    )
                s, _ = scores(
                    products, mask, mask_rows, mask_offsets(column, mask_column, MASK_COLUMNS),
                    row[:, None], column, columns, low, high, scale, cap, stage == 0, LEFT, RIGHT, CAPPED, MASK,
                    stage == 0 and KEY_TAIL and MASK_COLUMNS > 0, NATURAL,
                )  # fmt: skip
                higher = tl.maximum(highest, tl.max(s, axis=1))
                # Where nothing was seen so far the maximum is -inf, and its difference to -inf would be NaN.
                base = tl.where(higher == -INFINITY, 0.0, higher)
                weights = power(s - base[:, None], NATURAL)
                shrunk = power(highest - base, NATURAL)
                highest = higher
                total = total * shrunk + tl.sum(weights, axis=1)
                if DROPOUT:
                    keep = kept(
                        low_word, high_word, sample, heads_of_rows[:, None], row[:, None], start, dropped, ROWS,
                        EDGE_COLUMNS if stage == 0 else COLUMNS,
                    )  # fmt: skip
                    weights = tl.where(keep, weights, 0.0)
                v = load_head_rows(
                    value, sample, key_head, start, columns, v_row, EDGE_COLUMNS if stage == 0 else COLUMNS,
                    VALUES, VALUE_BLOCK, UNIT, WIDE, stage == 0, DESCRIBED,
                )  # fmt: skip
                accumulator = product(rounded(weights, dtype), v, accumulator * shrunk[:, None])

    divisor = tl.where(total == 0.0, 1.0, total)
    if DROPOUT:
        accumulator = accumulator * (kept_scale / divisor)[:, None]
    else:
        accumulator = accumulator / divisor[:, None]
    wide_row = row.to(tl.int64)
    wide_heads = heads_of_rows.to(tl.int64)
    feature = tl.arange(0, VALUE_BLOCK)
    inside = there[:, None] & (feature < VALUES)[None, :]
    places = (packed_sample * heads + wide_heads) * length + first_query + wide_row
    if SPLIT:
        places += split.to(tl.int64) * samples * heads * length
        tl.store(output + (places * VALUES)[:, None] + feature[None, :], accumulator, mask=inside)
    else:
        offsets = (packed_sample * o_sample + wide_heads * o_head + (first_query + wide_row) * o_row) * UNIT
        tiles.store(output + offsets[:, None] + feature[None, :], accumulator, inside)
    tl.store(log_sum + places, log_sum_of(highest, divisor, NATURAL), mask=there)


@triton.jit(do_not_specialize=["o_sample", "o_head", "o_row", "heads", "length", "total", "splits"])
def merge_splits(
    partial, partial_sums, output, log_sum, o_sample, o_head, o_row, heads, length, total, splits,
    ROWS: tl.constexpr, VALUES: tl.constexpr, VALUE_BLOCK: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """The outputs of ``ROWS`` of all ``total`` = N H L queries from those of the splits, weighted by exp(log-sum)."""
    place = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = place < total
    feature = tl.arange(0, VALUE_BLOCK)
    inside = there[:, None] & (feature < VALUES)[None, :]
    highest = tl.full([ROWS], -INFINITY, tl.float32)
    weight = tl.zeros([ROWS], tl.float32)
    merged = tl.zeros([ROWS, VALUE_BLOCK], tl.float32)
    for split in range(splits):
        at = split * total.to(tl.int64) + place
        found = tl.load(partial_sums + at, mask=there, other=-INFINITY)
        higher = tl.maximum(highest, found)
        base = tl.where(higher == -INFINITY, 0.0, higher)
        shrunk = tl.exp(highest - base)
        share = tl.exp(found - base)
        highest = higher
        weight = weight * shrunk + share
        part = tl.load(partial + (at * VALUES)[:, None] + feature[None, :], mask=inside, other=0.0)
        merged = merged * shrunk[:, None] + part * share[:, None]
    divisor = tl.where(weight == 0.0, 1.0, weight)
    merged = merged / divisor[:, None]
    row = place % length
    head = (place // length) % heads
    sample = place // length // heads
    offsets = (sample * o_sample + head * o_head + row * o_row) * UNIT
    tiles.store(output + offsets[:, None] + feature[None, :], merged, inside)
    tl.store(log_sum + place, highest + tl.log(divisor), mask=there)
