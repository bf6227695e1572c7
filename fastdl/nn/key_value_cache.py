"""The keys and values of all tokens so far, so that a new token costs one query and not the whole sequence again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["KeyValueCache"]


class KeyValueCache:
    """Keys and values of one attention layer, for writing a sequence token by token.

    Memory is taken for ``capacity`` tokens at the first `append`, and doubled when it is full, so that a token costs no
    copy of those before it. Rows of a batch may differ in length: what lies behind a row's own length is not seen, as
    attention over the cache is causal and counts each row's positions by themselves.

    Args:
        capacity: tokens to take memory for at first.

    Attributes:
        lengths: tokens of each row so far; empty before the first `append`.
    """

    def __init__(self, capacity: int = 256) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1; got {capacity}")
        self.lengths: list[int] = []
        self._capacity = capacity
        self._key: Tensor | None = None
        self._value: Tensor | None = None

    def __len__(self) -> int:
        """Tokens of the longest row."""
        return max(self.lengths, default=0)

    def append(
        self, key: Tensor, value: Tensor, counts: Sequence[int] | Tensor | None = None
    ) -> tuple[Tensor, Tensor, int | Tensor]:
        """Write the keys and values of new tokens behind those that are there.

        Args:
            key: (N, H, T, E); value: (N, H, T, E_v); without a gradient.
            counts: how many of the T tokens are real in each row, the first ones; the rest is padding, and is
                overwritten by the next call. None is all of them. A tensor on a GPU is waited for.

        Returns:
            All keys (N, H, S, E) and values (N, H, S, E_v), views of the cache with S the longest row's length, padding
            of this call included; and ``query_offset`` for the new tokens: an int if rows are equally long, else int64
            (N,).

        Raises:
            ValueError: the shape, dtype or device is not that of the tokens before, or a gradient is asked for.
        """
        counts = self._check(key, value, counts)
        samples, _, added, _ = key.shape
        if self._key is None or self._value is None:
            self.lengths = [0] * samples
            self._key, self._value = self._grown(key, None, 0), self._grown(value, None, 0)
        before, longest = self.lengths, len(self)
        while longest + added > self._capacity:
            self._capacity *= 2
        if self._capacity > self._key.shape[1]:
            self._key, self._value = self._grown(key, self._key, longest), self._grown(value, self._value, longest)
        equal = min(before, default=0) == longest
        for buffer, new in ((self._key, key), (self._value, value)):
            tokens = new.transpose(1, 2)
            if equal:
                buffer[:, longest : longest + added] = tokens
            else:
                rows = torch.arange(samples, device=key.device).unsqueeze(1)
                places = torch.tensor(before, device=key.device).unsqueeze(1) + torch.arange(added, device=key.device)
                buffer[rows, places] = tokens
        self.lengths = [length + count for length, count in zip(before, counts, strict=True)]
        everything = [buffer[:, : longest + added].transpose(1, 2) for buffer in (self._key, self._value)]
        return everything[0], everything[1], longest if equal else torch.tensor(before, device=key.device)

    def select(self, rows: Sequence[int] | Tensor) -> None:
        """Keep these rows in this order, each as often as it is named: beam search, or dropping what is finished.

        Raises IndexError for a row that is not there.
        """
        chosen = rows.tolist() if isinstance(rows, Tensor) else list(rows)
        lengths = [self.lengths[row] for row in chosen]
        if self._key is not None and self._value is not None:
            index = torch.tensor(chosen, dtype=torch.int64, device=self._key.device)
            self._key, self._value = self._key[index], self._value[index]
        self.lengths = lengths

    def clear(self) -> None:
        """Forget all tokens and keep the memory for as many rows of the same kind."""
        self.lengths = [0] * len(self.lengths)

    def _grown(self, new: Tensor, old: Tensor | None, used: int) -> Tensor:
        """A buffer (N, capacity, H, E), heads inside as a projection gives them, that begins with what ``old`` holds.

        Zeros, since a kernel may multiply a hidden key or value by a weight of zero, and what malloc left may be NaN.
        """
        samples, heads, _, features = new.shape
        buffer = new.new_zeros(samples, self._capacity, heads, features)
        if old is not None:
            buffer[:, :used] = old[:, :used]
        return buffer

    def _check(self, key: Tensor, value: Tensor, counts: Sequence[int] | Tensor | None) -> list[int]:
        if torch.is_grad_enabled() and (key.requires_grad or value.requires_grad):
            raise ValueError("a KeyValueCache keeps no gradient: use it inside of torch.no_grad()")
        for name, new, buffer in (("key", key, self._key), ("value", value, self._value)):
            if new.ndim != 4 or new.shape[:3] != key.shape[:3]:
                raise ValueError(
                    f"{name} must have shape (N, H, T, E), the same N, H and T for both; got {tuple(new.shape)}"
                )
            if buffer is None:
                continue
            samples, _, heads, features = buffer.shape
            if (new.shape[0], new.shape[1], new.shape[3]) != (samples, heads, features):
                raise ValueError(
                    f"{name} must have {samples} rows, {heads} heads and {features} features, as the cache has; got "
                    f"{tuple(new.shape)}"
                )
            if new.dtype != buffer.dtype or new.device != buffer.device:
                raise ValueError(
                    f"{name} must be {buffer.dtype} on {buffer.device}, as before; got {new.dtype} on {new.device}"
                )
        samples, _, added, _ = key.shape
        if counts is None:
            return [added] * samples
        found = [int(count) for count in (counts.tolist() if isinstance(counts, Tensor) else counts)]
        if len(found) != samples or not all(0 <= count <= added for count in found):
            raise ValueError(f"counts must hold {samples} numbers from 0 to {added}, one a row; got {found}")
        return found
