"""The gradient of attention's additive mask: dS, summed over every dimension along which the mask was broadcast.

A program owns a tile of the mask and goes over all samples, heads, queries and keys that share it, computing dS again
for each; what it holds is one tile of sums. Nothing of the size of the weights is written unless the mask has it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastdl.kernels import tiles
from fastdl.kernels.attention_scores import limits_of_sample, load_log_sums, mask_offsets, power, scores
from fastdl.kernels.attention_tiles import load_rows, pointers_to_rows, product, product_by_chunks
from fastdl.kernels.philox import kept, key_of

INTEGERS = [
    "q_sample", "q_head", "q_row", "k_sample", "k_head", "k_row", "v_sample", "v_head", "v_row",
    "g_sample", "g_head", "g_row", "mask_sample", "mask_head", "mask_row", "mask_column",
    "mask_samples", "mask_heads", "samples", "heads", "length", "keys", "low", "high", "dropped", "seed_low",
    "seed_high", "chunks",
]  # fmt: skip


@triton.jit(do_not_specialize=INTEGERS)
def attend_mask_gradient(
    query, key, value, grad, log_sum, delta, mask, partial, query_offset, seed,
    q_sample, q_head, q_row, k_sample, k_head, k_row, v_sample, v_head, v_row, g_sample, g_head, g_row,
    mask_sample, mask_head, mask_row, mask_column, mask_samples, mask_heads,
    samples, heads, length, keys, low, high, scale, cap, dropped, kept_scale, seed_low, seed_high, chunks,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, HAS_ROWS: tl.constexpr, HAS_COLUMNS: tl.constexpr,
    MASK_COLUMNS: tl.constexpr, MASK_UNIT: tl.constexpr,
    FEATURES: tl.constexpr, FEATURE_BLOCK: tl.constexpr, VALUES: tl.constexpr, VALUE_BLOCK: tl.constexpr,
    GROUP: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr, KEY_TAIL: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, CAPPED: tl.constexpr, MASK: tl.constexpr, DROPOUT: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """(chunks, N or 1, H or 1, L or 1, S or 1): each chunk the sum over its share of what is broadcast.

    ``HAS_ROWS``, ``HAS_COLUMNS``: whether the mask has the length of the queries and of the keys, and not 1 (even so a
    stride may be 0). ``CHUNK`` counts features, as in `fastdl.kernels.attention_forward`.
    """
    NATURAL: tl.constexpr = query.dtype.element_ty == tl.float32
    row_blocks = tl.cdiv(length, ROWS)
    column_blocks = tl.cdiv(keys, COLUMNS)
    own_rows = row_blocks if HAS_ROWS else 1
    own_columns = column_blocks if HAS_COLUMNS else 1
    program = tl.program_id(0)
    own_column = program % own_columns
    program = program // own_columns
    own_row = program % own_rows
    program = program // own_rows
    own_head = program % mask_heads
    program = program // mask_heads
    own_sample = program % mask_samples
    chunk = program // mask_samples

    shared_columns = 1 if HAS_COLUMNS else column_blocks
    shared_rows = 1 if HAS_ROWS else row_blocks
    shared_heads = heads // mask_heads
    total = (samples // mask_samples).to(tl.int64) * shared_heads * shared_rows * shared_columns
    share = (total + (chunks - 1)) // chunks
    begin = chunk * share
    end = tl.minimum(begin + share, total)
    low_word, high_word = key_of(seed, seed_low, seed_high)

    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for index in range(begin, end):
        step = begin * 0 + index
        block = (own_column if HAS_COLUMNS else step % shared_columns).to(tl.int32)
        row_block = (own_row if HAS_ROWS else step // shared_columns % shared_rows).to(tl.int32)
        outer = step // shared_columns // shared_rows
        # Of shared heads and samples there is one, or all.
        head = (own_head + outer % shared_heads).to(tl.int32)
        sample = (own_sample + outer // shared_heads).to(tl.int32)
        first_row = row_block * ROWS
        first = block * COLUMNS
        own_low, own_high = limits_of_sample(query_offset, sample, low, high)
        seen = first_row >= 0
        if LEFT:
            seen = seen & (first + COLUMNS - 1 - first_row >= own_low)
        if RIGHT:
            seen = seen & (first - first_row - (ROWS - 1) <= own_high)
        if seen:
            wide_sample = sample.to(tl.int64)
            wide_head = head.to(tl.int64)
            key_head = wide_head // GROUP
            of_query = query + (wide_sample * q_sample + wide_head * q_head) * UNIT
            of_key = key + (wide_sample * k_sample + key_head * k_head) * UNIT
            if FEATURE_BLOCK <= CHUNK:
                q = load_rows(of_query, first_row, length, q_row, ROWS, FEATURES, FEATURE_BLOCK, UNIT, WIDE, True)
                k = load_rows(of_key, first, keys, k_row, COLUMNS, FEATURES, FEATURE_BLOCK, UNIT, WIDE, True)
            row = first_row + tl.arange(0, ROWS)
            column = (first + tl.arange(0, COLUMNS))[None, :]
            place = (wide_sample * heads + wide_head) * length + row
            row_sums = load_log_sums(log_sum + place, row < length, NATURAL)
            d = tl.load(delta + place, mask=row < length, other=0.0)
            mask_rows = tl.minimum(row, length - 1).to(tl.int64) * mask_row
            mask_rows = (mask_rows + wide_sample * mask_sample + wide_head * mask_head) * MASK_UNIT
            mask_rows = mask_rows[:, None]
            in_columns = first + tl.arange(0, COLUMNS) < keys
            if FEATURE_BLOCK > CHUNK:
                q_rows = pointers_to_rows(of_query, first_row, q_row, ROWS, UNIT, WIDE)
                k_rows = pointers_to_rows(of_key, first, k_row, COLUMNS, UNIT, WIDE)
                products = product_by_chunks(q_rows, row < length, k_rows, in_columns, FEATURES, CHUNK)
            else:
                products = product(q, tl.trans(k), tl.zeros([ROWS, COLUMNS], tl.float32))
            s, _ = scores(
                products, mask, mask_rows, mask_offsets(column, mask_column, MASK_COLUMNS),
                row[:, None], column, keys, low=own_low, high=own_high, scale=scale, cap=cap, EDGE=True, LEFT=LEFT,
                RIGHT=RIGHT, CAPPED=CAPPED, MASK=MASK, BOUNDED=KEY_TAIL and MASK_COLUMNS > 0, NATURAL=NATURAL,
            )  # fmt: skip
            weights = power(s - row_sums[:, None], NATURAL)
            of_grad = grad + (wide_sample * g_sample + wide_head * g_head) * UNIT
            of_value = value + (wide_sample * v_sample + key_head * v_head) * UNIT
            if VALUE_BLOCK > CHUNK:
                g_rows = pointers_to_rows(of_grad, first_row, g_row, ROWS, UNIT, WIDE)
                v_rows = pointers_to_rows(of_value, first, v_row, COLUMNS, UNIT, WIDE)
                dp = product_by_chunks(g_rows, row < length, v_rows, in_columns, VALUES, CHUNK)
            else:
                g = load_rows(of_grad, first_row, length, g_row, ROWS, VALUES, VALUE_BLOCK, UNIT, WIDE, True)
                v = load_rows(of_value, first, keys, v_row, COLUMNS, VALUES, VALUE_BLOCK, UNIT, WIDE, True)
                dp = product(g, tl.trans(v), tl.zeros([ROWS, COLUMNS], tl.float32))
            if DROPOUT:
                keep = kept(
                    low_word, high_word, sample, head, row[:, None], first, dropped, ROWS, COLUMNS
                )  # fmt: skip
                dp = tl.where(keep, dp * kept_scale, 0.0)
            sums += weights * (dp - d[:, None])

    row = own_row * ROWS + tl.arange(0, ROWS)
    column = own_column * COLUMNS + tl.arange(0, COLUMNS)
    rows = length if HAS_ROWS else 1
    columns = keys if HAS_COLUMNS else 1
    if not HAS_ROWS:
        sums = tl.sum(sums, axis=0)[None, :] + tl.zeros([ROWS, COLUMNS], tl.float32)
    if not HAS_COLUMNS:
        sums = tl.sum(sums, axis=1)[:, None] + tl.zeros([ROWS, COLUMNS], tl.float32)
    outer = (chunk.to(tl.int64) * mask_samples + own_sample) * mask_heads + own_head
    places = ((outer * rows + row)[:, None]) * columns + column[None, :]
    tiles.store(partial + places, sums, (row < rows)[:, None] & (column < columns)[None, :])


@triton.jit(do_not_specialize=["chunks", "numbers"])
def sum_chunks(partial, gradient, chunks, numbers, BLOCK: tl.constexpr):
    """(chunks, numbers) in float32 to (numbers,), in a fixed order."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for chunk in range(chunks):
        total += tl.load(partial + chunk * numbers.to(tl.int64) + place, mask=place < numbers, other=0.0)
    tiles.store(gradient + place, total, place < numbers)
