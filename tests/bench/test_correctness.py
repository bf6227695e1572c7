"""A contender with a wrong answer is found out, whatever of its answer is wrong."""

import pytest
import torch
import torch.nn.functional as F

import fastdl
from fastdl.bench import registry
from fastdl.bench.cases import Case
from fastdl.bench.correctness import Judge, copies
from fastdl.bench.operands import make_operands

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def batch_norm():
    benchmark = registry.load("batch_norm")
    case = Case((4, 6, 5, 5), "channels_last", "float32", "relu", "a test")
    operands = make_operands(benchmark, case, CPU, sets=2)
    return benchmark, case, operands, Judge(benchmark, case, operands)


def plain(x, weight, bias, mean, variance):
    return F.relu(F.batch_norm(x, mean, variance, weight, bias, True, 0.1, 1e-5))


def wrong_activation(x, *parameters):
    return F.leaky_relu(plain(x, *parameters) - 0.01)


def wrong_gradient(x, *parameters):
    y = plain(x, *parameters)
    return y + 0.1 * (x - x.detach())


def wrong_weight_gradient(x, weight, *parameters):
    return plain(x, weight.detach() + 0 * weight, *parameters)


def forgets_running_statistics(x, weight, bias, mean, variance):
    return plain(x, weight, bias, None, None)


def not_a_number(x, *parameters):
    return plain(x, *parameters) * float("nan")


def wrong_shape(x, *parameters):
    return plain(x, *parameters).flatten(2)[:, :, :, None]


@pytest.mark.parametrize("name", ["ours", "eager", "in place"])
def test_right_answers_pass(batch_norm, name):
    benchmark, case, _, judge = batch_norm
    functions = {"ours": benchmark.ours, "eager": benchmark.eager, "in place": benchmark.peers[0].load()}
    assert judge.complaint(functions[name](case)) is None


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (wrong_activation, "output"),
        (wrong_gradient, "gradient of the input"),
        (wrong_weight_gradient, "gradient of parameter 0"),
        (forgets_running_statistics, "buffer 2"),
        (not_a_number, "output"),
    ],
)
def test_wrong_answers_are_named(batch_norm, function, what):
    complaint = batch_norm[3].complaint(function)
    assert complaint is not None
    assert what in complaint


def test_a_wrong_shape_does_not_pass(batch_norm):
    with pytest.raises(RuntimeError, match="shape"):
        batch_norm[3].complaint(wrong_shape)


def test_copies_leave_the_buffers_alone(batch_norm):
    benchmark, case, operands, _ = batch_norm
    before = [parameter.clone() for parameter in operands.parameters]
    benchmark.eager(case)(operands.inputs[0], *copies(operands.parameters))
    assert all(torch.equal(a, b) for a, b in zip(before, operands.parameters, strict=True))
    assert [p.requires_grad for p in copies(operands.parameters)] == [True, True, False, False]


def test_truth_is_the_definition_in_float64(batch_norm):
    _, _, operands, judge = batch_norm
    x = operands.inputs[0].detach().double()
    weight, bias = (p.detach().double() for p in operands.parameters[:2])
    expected = fastdl.reference.batch_norm(x, None, None, weight, bias, True, activation="relu")
    assert judge.truth["output"].dtype == torch.float64
    assert torch.equal(judge.truth["output"], expected)
