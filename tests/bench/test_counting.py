"""Floors, and bytes kept for backward."""

import pytest
import torch
import torch.nn.functional as F

from fastdl.bench import registry
from fastdl.bench.counting import Work, norm_backward, norm_forward, saved_bytes


def test_floor_is_the_slower_of_moving_and_computing():
    assert Work(100).floor(bandwidth=50.0) == 2.0
    assert Work(100, matrix_operations=900).floor(bandwidth=50.0, matrix_rate=300.0) == 3.0
    assert Work(100, matrix_operations=30).floor(bandwidth=50.0, matrix_rate=300.0) == 2.0
    assert Work(1, 2, 3) + Work(10, 20, 30) == Work(11, 22, 33)
    assert Work(1, 2, 3).operations == 5
    assert Work(100, vector_operations=10**9).floor(bandwidth=50.0) == 2.0  # they take no part in it


@pytest.mark.parametrize(
    ("name", "forward", "backward"),
    [("group_norm", 8, 15), ("batch_norm", 8, 15), ("layer_norm", 8, 14), ("rms_norm", 5, 10)],
)
def test_operations_of_a_norm_are_so_many_an_element(name, forward, backward):
    """Those of the two row norms with the residual's addition."""
    benchmark = registry.load(name)
    case = benchmark.cases[0]
    assert case.variant == ("residual" if len(case.size) == 3 else "")
    assert benchmark.forward_work(case).operations == forward * case.elements
    assert benchmark.backward_work(case).operations == backward * case.elements


def test_operations_of_a_convolution_and_a_chain_hold_the_norms():
    single, chain = registry.load("conv_norm_act"), registry.load("conv_norm_act_chain")
    case = single.cases[0]
    assert case.variant == "training"
    products = 2 * case.elements * case.size[1] * 9
    assert single.forward_work(case).operations == products + 8 * case.elements
    assert single.backward_work(case).operations == 2 * products + 15 * case.elements
    case = chain.cases[0]
    products = 2 * case.elements * case.size[1] * 9
    assert chain.forward_work(case).operations == 8 * (products + 8 * case.elements)


def test_norm_moves_its_tensors_once():
    forward, backward = norm_forward(1000, 8, 2), norm_backward(1000, 8, 2)
    assert forward.bytes == 2 * 1000 + 2 * 8 + 2 * 2 * 8  # x, y; weight, bias; mean and variance in float64
    assert backward.bytes == 3 * 1000 + 4 * 8 + 2 * 2 * 8  # x, grad_y, grad_x; weight, bias and their gradients
    assert forward.matrix_operations == backward.matrix_operations == 0


def test_saved_bytes_count_each_storage_once_and_no_parameter():
    x = torch.randn(4, 8, requires_grad=True)
    weight = torch.randn(8, requires_grad=True)
    assert saved_bytes(lambda x: x.sin() + x.cos(), x, ()) == 4 * 8 * 4
    assert saved_bytes(lambda x, w: x * w, x, (weight,)) == 4 * 8 * 4
    assert saved_bytes(lambda x: x.sin().exp(), x, ()) == 2 * 4 * 8 * 4  # x, and the output of exp
    assert saved_bytes(lambda x: x + 1, x, ()) == 0


def test_saved_bytes_of_eager_norm_and_activation():
    x = torch.randn(2, 8, 4, 4, requires_grad=True)
    weight, bias = torch.ones(8, requires_grad=True), torch.zeros(8, requires_grad=True)
    found = saved_bytes(lambda x, w, b: F.silu(F.group_norm(x, 4, w, b)), x, (weight, bias))
    tensor = x.numel() * 4
    statistics = 2 * 2 * 4 * 4  # mean and reciprocal deviation, (2, 4) each, float32
    assert found == 2 * tensor + statistics


@pytest.mark.parametrize("bandwidth", [1e9, 4e10])
def test_floor_scales_with_bandwidth(bandwidth):
    assert norm_forward(10**6, 0, 0).floor(bandwidth) == pytest.approx(2e6 / bandwidth)
