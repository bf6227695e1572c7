"""The least that a call of an op must move and compute, from its tensors: what a roofline compares its time with.

Counted as `bench.counting` does: bytes between memory and the cores, each tensor read or written once; operations of
matrix products, a multiplication and an addition being two; and the other operations of a definition, additions,
multiplications and functions one each. The others never are the limit: what has many has products, and what has no
products takes longer over its bytes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fastdl.ops.annotation import FORWARD
from fastdl.profile.arguments import Arguments
from fastdl.reference.norm_act_conv import BATCH, NO_NORM


@dataclass(frozen=True)
class Cost:
    """The least of a call.

    Attributes:
        bytes: moved between memory and the cores.
        matrix_operations: of products; None where only values on a GPU would tell.
        vector_operations: all the others; those of a softmax are not counted.
    """

    bytes: int
    matrix_operations: int | None = 0
    vector_operations: int = 0

    @property
    def operations(self) -> int | None:
        return None if self.matrix_operations is None else self.matrix_operations + self.vector_operations


def cost_of(op: str, given: Arguments) -> Cost | None:
    """What a call must move and compute at least; None for an op that is not counted here."""
    count = COUNTERS.get(op)
    return None if count is None else count(given)


def distinct_bytes(tensor: Tensor | None) -> int:
    """Bytes of a tensor's elements in memory, those of an expanded dimension once; 0 for None."""
    if tensor is None or tensor.numel() == 0:
        return 0
    sizes = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return math.prod(sizes) * tensor.element_size()


def dense_bytes(tensor: Tensor | None) -> int:
    """Bytes of a fresh tensor of this one's shape and dtype; 0 for None."""
    return 0 if tensor is None else tensor.numel() * tensor.element_size()


def bytes_read(tensors: Sequence[Tensor | None]) -> int:
    return sum(map(distinct_bytes, tensors))


def bytes_of_gradients(given: Arguments) -> int:
    """What a backward writes: a gradient of each tensor that needs one."""
    return sum(dense_bytes(tensor) for tensor, needed in zip(given.tensors, given.needs, strict=False) if needed)


# -- norms ------------------------------------------------------------------------------------------------------------


def norm(given: Arguments, statistics: int, an_element: int) -> Cost:
    """A norm with ``statistics`` bytes of them, which forward writes and backward reads.

    Forward needs all of a group's input before its first output, and so reads it twice; the second time it may come
    from the cache. A layer's residual is added into a sum that is written as well.
    """
    input = given.tensors[0]
    operations = an_element * input.numel()
    if given.direction == FORWARD:
        outputs = 2 if given.adds_residual and given.tensors[1] is not None else 1
        moved = bytes_read(given.tensors) + outputs * dense_bytes(input) + statistics
        return Cost(moved, vector_operations=operations)
    moved = bytes_read((*given.gradients, *given.tensors)) + statistics + bytes_of_gradients(given)
    return Cost(moved, vector_operations=operations)


def operations_of_norm(
    direction: str,
    weight: bool,
    bias: bool,
    *,
    activation: bool = False,
    added: bool = False,
    known: bool = False,
    centred: bool = True,
) -> int:
    """Operations an element.

    Forward: the mean 1, the centred square and its sum 3, the scaling 1, weight and bias 1 each, an activation 1, a
    residual 1. Backward: the activation's derivative 2, the normalised value 2, the sums for weight and bias 2 and 1,
    the weight 1, the two sums of a group 3, the input's gradient 4, the gradient of a sum 1. Of statistics that are
    ``known`` only the centred value is left, and of a gradient under them only the scaling; what is not ``centred``
    has no mean.
    """
    if direction == FORWARD:
        statistics = 1 if known else 4 if centred else 2
        return statistics + 1 + weight + bias + activation + added
    normalized, sums, gradient = (2, 0, 1) if known else (2, 3, 4) if centred else (1, 2, 3)
    return 2 * activation + normalized + 2 * weight + bias + weight + sums + gradient + added


def operations_around_channels(given: Arguments, activation: str, known: bool, added: bool = False) -> int:
    """The same for a norm with weight and bias by channel, the second and third tensor, and an activation."""
    weight, bias = (tensor is not None for tensor in given.tensors[1:3])
    return operations_of_norm(
        given.direction, weight, bias, activation=activation != "identity", added=added, known=known
    )


def batch_norm(given: Arguments) -> Cost:
    """In evaluation the running statistics are what is read; in training each channel has two of float64.

    The running statistics that training moves are not its part: that is a kernel of its own, which follows.
    """
    input, running_mean = given.tensors[0], given.tensors[4]
    known = running_mean is not None
    operations = operations_around_channels(given, given.statics[1], known, residual_is_added(given))
    return norm(given, 0 if known else 2 * 8 * input.shape[1], operations)


def group_norm(given: Arguments) -> Cost:
    """Each sample's group has two statistics of float64."""
    operations = operations_around_channels(given, given.statics[2], False, residual_is_added(given))
    return norm(given, 2 * 8 * given.tensors[0].shape[0] * given.statics[0], operations)


def residual_is_added(given: Arguments) -> bool:
    """Whether a norm by channel adds its fourth tensor; its gradient is passed on as it is."""
    return given.direction == FORWARD and given.tensors[3] is not None


def row_norm(each: int) -> Callable[[Arguments], Cost]:
    """A norm over rows with ``each`` statistics a row, of float32, or of float64 for such an input; one is no mean."""

    def count(given: Arguments) -> Cost:
        input, dimensions = given.tensors[0], given.statics[0]
        rows = math.prod(input.shape[: input.ndim - dimensions])
        weight, bias = given.tensors[2] is not None, given.tensors[-1] is not None and each == 2
        added = (given.tensors[1] if given.direction == FORWARD else given.gradients[1]) is not None
        operations = operations_of_norm(given.direction, weight, bias, added=added, centred=each == 2)
        return norm(given, each * accumulated_bytes(input) * rows, operations)

    return count


def accumulated_bytes(tensor: Tensor) -> int:
    return 8 if tensor.dtype == torch.float64 else 4


def dropout(given: Arguments) -> Cost:
    """Read the input, and the residual if any; write the output. Backward is the same on the gradient."""
    read = [
        tensor
        for tensor in (given.tensors[:2] if given.direction == FORWARD else given.gradients)
        if tensor is not None
    ]
    return Cost(bytes_read(read) + dense_bytes(read[0]), vector_operations=len(read) * read[0].numel())


# -- convolutions -----------------------------------------------------------------------------------------------------


def norm_act_conv(given: Arguments) -> Cost:
    """One fused pass: what is normalised and activated is neither written nor read.

    Backward takes a product of the forward's size for the input's gradient, and one for the weight's.
    """
    input, _, _, weight, _, running_mean, _, known = given.tensors
    num_groups, collect = given.statics[0], given.statics[-1]
    channels = weight.shape[0]
    positions = math.prod(output_sizes(input, weight, *given.statics[5:8]))
    outputs = input.shape[0] * channels * positions
    operations = 2 * outputs * math.prod(weight.shape[1:])
    given_statistics = running_mean is not None or known is not None
    statistics = 0
    if num_groups == NO_NORM:
        around = (1 if given.direction == FORWARD else 2) * (given.statics[2] != "identity")
    else:
        around = operations_around_channels(given, given.statics[2], num_groups == BATCH and running_mean is not None)
        if num_groups != BATCH:
            statistics = 2 * 8 * input.shape[0] * num_groups
        elif not given_statistics:
            statistics = 2 * 8 * input.shape[1]
    if given.direction == FORWARD:
        collected = 2 * 8 * channels * bool(collect)
        moved = bytes_read(given.tensors) + outputs * input.element_size() + statistics + collected
        return Cost(moved, operations, around * input.numel())
    products = bool(any(given.needs[:3])) + bool(given.needs[3])
    read = bytes_read((*given.gradients, *given.tensors[:4], *given.tensors[5:])) + statistics
    return Cost(read + bytes_of_gradients(given), products * operations, around * input.numel())


def output_sizes(
    input: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """Positions of a convolution's output in each spatial dimension."""
    return [
        (size + 2 * p - d * (kernel - 1) - 1) // s + 1
        for size, kernel, s, p, d in zip(input.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    ]


# -- attention --------------------------------------------------------------------------------------------------------


def attention(given: Arguments) -> Cost:
    """Two products for each pair of a query and a key that it may see by ``is_causal`` and ``window``; backward five.

    A mask's values are not looked at: it is read, and its pairs count as seen.
    """
    query, key, value = given.tensors[:3]
    samples, heads, length, features = query.shape
    wide = value.shape[3]
    rows = samples * heads * length
    of_rows = accumulated_bytes(query) * rows
    output = rows * wide * query.element_size()
    pairs = seen_pairs(given, length, key.shape[2])
    seen = None if pairs is None else heads * pairs
    if given.direction == FORWARD:
        return Cost(
            bytes_read(given.tensors) + output + of_rows, None if seen is None else 2 * (features + wide) * seen
        )
    moved = bytes_read((*given.gradients, *given.tensors)) + output + of_rows + bytes_of_gradients(given)
    of_query, of_key, of_value, of_mask = (bool(needed) for needed in given.needs)
    scores = of_query or of_key or of_mask
    # The weights again, and the scores' gradient from that of the output; then each gradient that is asked for.
    inner = features + wide * scores + features * of_query + features * of_key + wide * of_value
    return Cost(moved, None if seen is None else 2 * inner * seen)


def seen_pairs(given: Arguments, length: int, keys: int) -> int | None:
    """Pairs of query and key that one head sees in all samples; None where lengths or offsets lie on a GPU.

    Reading them there would wait for it.
    """
    query, _, _, _, query_offset, queries_from, keys_from, _ = given.tensors
    left, right, offset = (int(value) for value in given.statics[2:5])
    if any(tensor is not None and tensor.device.type != "cpu" for tensor in (query_offset, queries_from, keys_from)):
        return None
    if queries_from is not None and keys_from is not None:
        bounds = (queries_from.tolist(), keys_from.tolist())
        lengths = [[last - first for first, last in itertools.pairwise(b)] for b in bounds]
        return sum(band(of_queries, of_keys, left, right, 0) for of_queries, of_keys in zip(*lengths, strict=True))
    if query_offset is not None:
        return sum(band(length, keys, left, right, int(each)) for each in query_offset.tolist())
    return int(query.shape[0]) * band(length, keys, left, right, offset)


@lru_cache(maxsize=1024)
def band(queries: int, keys: int, left: int, right: int, offset: int) -> int:
    """Pairs of query i and key j with ``i + offset - left <= j <= i + offset + right``; -1 is no limit."""
    seen = 0
    for position in range(offset, offset + queries):
        first = 0 if left < 0 else max(0, position - left)
        last = keys - 1 if right < 0 else min(keys - 1, position + right)
        seen += max(0, last - first + 1)
    return seen


COUNTERS: dict[str, Callable[[Arguments], Cost]] = {
    "attention": attention,
    "batch_norm": batch_norm,
    "dropout": dropout,
    "group_norm": group_norm,
    "layer_norm": row_norm(2),
    "norm_act_conv": norm_act_conv,
    "rms_norm": row_norm(1),
}
"""Every op by its name on every floor."""
