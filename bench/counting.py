"""What an op must move and compute at least, the floor that follows, and what it keeps for its backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Operations an element, for the roofline alone: additions, multiplications and functions (exp, an activation, its
# derivative) of the definition count one each. Forward: the mean 1, the centred square and its sum 3, the scaling 1,
# weight and bias 2, the activation 1. Backward: the activation's derivative 2, the normalised value 2, the two
# parameters' sums 3, the weight 1, the two sums of a group 3, the input's gradient 4.
NORM_FORWARD_OPERATIONS, NORM_BACKWARD_OPERATIONS = 8, 15


@dataclass(frozen=True)
class Work:
    """The least an op must do.

    ``bytes`` moved between memory and the cores, operations of matrix products, and all the others. The others take no
    part in a floor: where they are many, there are products, and where there are none, the bytes take longer.
    """

    bytes: int
    matrix_operations: int = 0
    vector_operations: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.bytes + other.bytes,
            self.matrix_operations + other.matrix_operations,
            self.vector_operations + other.vector_operations,
        )

    @property
    def operations(self) -> int:
        return self.matrix_operations + self.vector_operations

    def floor(self, bandwidth: float, matrix_rate: float = 0.0) -> float:
        """Seconds below which no implementation can go, at so many bytes/s and operations/s; the two may overlap."""
        computing = self.matrix_operations / matrix_rate if self.matrix_operations else 0.0
        return max(self.bytes / bandwidth, computing)


def norm_forward(tensor_bytes: int, channel_bytes: int, statistics: int, elements: int = 0) -> Work:
    """A normalisation forward: read x, weight and bias, write y and two float64 statistics a group or channel.

    The statistics need all of a group before the first output, so an implementation reads x twice; the second time it
    may come from the cache, so that the floor counts it once.
    """
    moved = 2 * tensor_bytes + 2 * channel_bytes + 2 * 8 * statistics
    return Work(moved, vector_operations=NORM_FORWARD_OPERATIONS * elements)


def norm_backward(tensor_bytes: int, channel_bytes: int, statistics: int, elements: int = 0) -> Work:
    """A normalisation backward: read x, grad_y, weight, bias, statistics; write grad_x, grad_weight, grad_bias."""
    moved = 3 * tensor_bytes + 4 * channel_bytes + 2 * 8 * statistics
    return Work(moved, vector_operations=NORM_BACKWARD_OPERATIONS * elements)


def convolution_forward(tensor_bytes: int, shape: tuple[int, ...], kernel: int) -> Work:
    """A convolution of (N, C, H, W) to as many channels, stride 1: read x and the weight, write y."""
    samples, channels, height, width = shape
    weight_bytes = tensor_bytes // (samples * channels * height * width) * channels**2 * kernel**2
    return Work(2 * tensor_bytes + weight_bytes, 2 * samples * height * width * channels**2 * kernel**2)


def convolution_backward(tensor_bytes: int, shape: tuple[int, ...], kernel: int) -> Work:
    """Its backward: read grad_y, x and the weight, write both gradients; two products of the forward's size."""
    forward = convolution_forward(tensor_bytes, shape, kernel)
    weight_bytes = forward.bytes - 2 * tensor_bytes
    return Work(3 * tensor_bytes + 2 * weight_bytes, 2 * forward.matrix_operations)


def attention_forward(query_bytes: int, shape: tuple[int, ...], pairs: int) -> Work:
    """Attention forward over (N, H, L, E) with as many keys: read q, k, v, write the output and a float32 a row.

    ``pairs`` is how many pairs of query and key a head sees: two products of E multiply-adds each.
    """
    samples, heads, length, features = shape
    return Work(4 * query_bytes + 4 * samples * heads * length, 2 * 2 * features * pairs * samples * heads)


def attention_backward(query_bytes: int, shape: tuple[int, ...], pairs: int) -> Work:
    """Attention backward: read q, k, v, the output and its gradient, write three gradients; five products a pair."""
    samples, heads, length, features = shape
    return Work(8 * query_bytes + 4 * samples * heads * length, 5 * 2 * features * pairs * samples * heads)


def saved_bytes(function: Callable[..., object], input: Tensor, parameters: Sequence[Tensor]) -> int:
    """Bytes that one forward call keeps alive for its backward: each storage once, parameters and buffers left out.

    The input counts: as a layer's input it is the activation that would otherwise be free to go.
    """
    owned = {tensor.untyped_storage().data_ptr() for tensor in parameters}
    kept: dict[int, int] = {}
    held: list[Tensor] = []  # so that no storage is freed and its address given to another while counting

    def pack(tensor: Tensor) -> Tensor:
        held.append(tensor)
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = function(input, *parameters)
    del output
    return sum(kept.values())
