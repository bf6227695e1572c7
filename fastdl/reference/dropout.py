"""Dropout whose choices depend on a seed and on positions alone: every backend drops the same values.

Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3) is a function from a
counter of four 32-bit words and a key of two to four 32-bit words that pass every test of randomness. Nothing is
stored: backward computes the same words again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastdl.reference.normalize import accumulation_dtype

# Each word is worth two choices of 16 bits, and each call eight, for eight keys in a row: a probability is rounded to a
# multiple of 2^-16. What is kept is scaled by the rounded probability, so that the expectation is exact.
LEVELS = 1 << 16
CHOICES_OF_A_CALL = 8

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)  # the golden ratio, and the square root of 3 less 1
_WORD = 0xFFFFFFFF


def dropout(input: Tensor, residual: Tensor | None, seed: Tensor, dropout_p: float) -> Tensor:
    r"""``residual + input * kept / (1 - p)`` (Srivastava et al. 2014, "Dropout", section 4, scaled in training).

    Args:
        input: (\*, W); W is 1 for a tensor of no dimensions.
        residual: of the input's shape and dtype, or None.
        seed, dropout_p: as `keep` takes them. Value j of row i, rows counted over all leading dimensions in order,
            is that of query i % 2^32, head i // 2^32, key j and sequence 0: whatever the strides are.
    """
    width = input.shape[-1] if input.ndim else 1
    rows = torch.arange(input.numel() // max(width, 1), device=input.device).unsqueeze(1)
    kept = keep_in_rows(seed.to(input.device), dropout_p, rows, width)
    wide = input.to(accumulation_dtype(input.dtype))
    # A product, not a choice: NaN and infinity go through as torch lets them.
    scaled = wide * (kept.to(wide.dtype) * scale_of_kept(dropout_p)).reshape(input.shape)
    return (scaled if residual is None else scaled + residual).to(input.dtype)


def keep_in_rows(seed: Tensor, dropout_p: float, rows: Tensor, width: int) -> Tensor:
    """`keep` of the values of whole rows, (R, width) for ``rows`` (R, 1): a call for each eight of them."""
    seed = seed.reshape(()).to(torch.int64)
    octets = torch.arange((width + CHOICES_OF_A_CALL - 1) // CHOICES_OF_A_CALL, device=rows.device)
    zero = torch.zeros_like(rows + octets)
    counter = (octets + zero, (rows & _WORD) + zero, (rows >> 32) + zero, zero)
    words = torch.stack(philox(counter, (seed & _WORD, (seed >> 32) & _WORD)), dim=-1)
    levels = torch.stack((words & (LEVELS - 1), words >> 16), dim=-1)
    return (levels >= dropped_levels(dropout_p)).flatten(1)[:, :width]


def scale_of_kept(dropout_p: float) -> float:
    """What a kept value is multiplied by: 1 / (1 - p) for p as it is applied; 0 where nothing is kept."""
    dropped = dropped_levels(dropout_p)
    return LEVELS / (LEVELS - dropped) if dropped < LEVELS else 0.0


def dropped_levels(dropout_p: float) -> int:
    """How many of the 65,536 levels drop: the probability as it is applied is this over 65,536."""
    return round(dropout_p * LEVELS)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four random words, each in int64, from counters and a key of 32-bit words in int64."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _product(_MULTIPLIERS[0], c0)
        high1, low1 = _product(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _WORD, (k1 + _KEY_STEPS[1]) & _WORD
    return c0, c1, c2, c3


def _product(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low word of a 32-bit product; int64 has no room for all 64 bits without a sign."""
    low_part = (a & 0xFFFF) * b  # 48 bits
    high_part = (a >> 16) * b + (low_part >> 16)  # 49 bits
    return high_part >> 16, ((high_part & 0xFFFF) << 16) | (low_part & 0xFFFF)


def keep(seed: Tensor, dropout_p: float, sequences: Tensor, heads: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Which attention weights are kept: a boolean tensor of the shape that the four indices broadcast to.

    Args:
        seed: one int64 value; its two words are Philox's key.
        dropout_p: the probability of dropping, 0 to 1.
        sequences, heads, rows, columns: int64; of the batch, of the query's heads, of the query, of the key. Both of
            the latter count from 0 within a sequence. The counter is (column / 8, row, head, sequence); of the call's
            four words, the one numbered (column % 8) / 2 decides, in its lower half if the column is even.
    """
    seed = seed.reshape(()).to(torch.int64)
    key = (seed & _WORD, (seed >> 32) & _WORD)
    zero = torch.zeros_like(sequences + heads + rows + columns)
    words = torch.stack(philox((columns // CHOICES_OF_A_CALL + zero, rows + zero, heads + zero, sequences + zero), key))
    which = (columns % CHOICES_OF_A_CALL) // 2 + zero
    word = torch.gather(words, 0, which.unsqueeze(0)).squeeze(0)
    level = (word >> (16 * (columns % 2))) & (LEVELS - 1)
    return level >= dropped_levels(dropout_p)
