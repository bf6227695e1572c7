"""Dropout's choices: Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3).

The stream is that of ``fastdl.reference.dropout``: a call of the function gives eight choices of 16 bits, for eight
keys in a row.
"""

from __future__ import annotations

import triton
import triton.language as tl

MULTIPLIER_0 = tl.constexpr(0xD2511F53)
MULTIPLIER_1 = tl.constexpr(0xCD9E8D57)
STEP_0 = tl.constexpr(0x9E3779B9)
STEP_1 = tl.constexpr(0xBB67AE85)


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Four random words from counters and a key, all in uint32."""
    for _ in tl.static_range(10):
        high0 = tl.umulhi(MULTIPLIER_0, c0)
        low0 = tl.mul(c0, MULTIPLIER_0, sanitize_overflow=False)
        high1 = tl.umulhi(MULTIPLIER_1, c2)
        low1 = tl.mul(c2, MULTIPLIER_1, sanitize_overflow=False)
        c0 = high1 ^ c1 ^ k0
        c1 = low1
        c2 = high0 ^ c3 ^ k1
        c3 = low0
        k0 = tl.add(k0, STEP_0, sanitize_overflow=False)
        k1 = tl.add(k1, STEP_1, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def key_of(seed, seed_low, seed_high):
    """Philox's key: from an int64 in memory where there is one (its value may change between replays of a graph)."""
    if seed is not None:
        both = tl.load(seed)
        low = both.to(tl.uint32)
        high = (both >> 32).to(tl.uint32)
    else:
        low = seed_low.to(tl.uint32, bitcast=True)
        high = seed_high.to(tl.uint32, bitcast=True)
    return low, high


@triton.jit
def kept(low, high, sequence, head, row, first_column, dropped, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Which weights of a (ROWS, COLUMNS) tile are kept.

    ``row`` is (ROWS, 1), ``head`` likewise or a scalar; ``first_column`` is a multiple of 8. Eight neighbours share a
    call; a word for each element would be eight times the integer work.
    """
    octet = (first_column // 8 + tl.arange(0, COLUMNS // 8))[None, :]
    zero = tl.zeros([ROWS, COLUMNS // 8], tl.int32)
    w0, w1, w2, w3 = philox(
        (zero + octet).to(tl.uint32, bitcast=True),
        (zero + row).to(tl.uint32, bitcast=True),
        (zero + head).to(tl.uint32, bitcast=True),
        (zero + sequence).to(tl.uint32, bitcast=True),
        low,
        high,
    )
    return tl.reshape(levels(w0, w1, w2, w3) >= dropped, [ROWS, COLUMNS])


@triton.jit
def levels(w0, w1, w2, w3):
    """The choices of calls, in order, along three more dimensions of 2: choice 2 w + h of a call has word w.

    In its lower half if h is 0. The last of the joined dimensions counts first.
    """
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    return tl.join(words & 0xFFFF, words >> 16).to(tl.int32, bitcast=True)
