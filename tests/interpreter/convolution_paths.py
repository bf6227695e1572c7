"""Each path of norm_act_conv's kernels by force, on shapes small enough for the interpreter, and what holds for all."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdl.kernels import convolution_call, convolution_layout, norm_act_conv
from fastdl.kernels import convolution_plan as plan
from fastdl.kernels import norm_act_conv as kernels
from tests.interpreter.convolution_cases import CASES, NAMES, Case, check, make, ours, solve_by_torch

# Several blocks in every direction, on the smallest of shapes, and partial results merged several times.
SMALL = plan.Limits(
    few=0, flat=0, rows=32, rows_single=32, columns=16, columns_single=16, columns_data=16, flat_columns=16,
    flat_depth=16, split_programs=24, items=2,
)  # fmt: skip
PATHS = {
    "products": SMALL,
    "flat": replace(SMALL, flat=1 << 20),
    "direct": replace(SMALL, few=1 << 20, direct_bytes=32, direct_values=64, direct_values_single=64),
    "usual": plan.Limits(),
}


@pytest.fixture
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(plan, "LIMITS", PATHS[request.param])
    return request.param


every_path = pytest.mark.parametrize("path", PATHS, indirect=True)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """The names of the kernels launched, in order, and what they were compiled for."""
    found: list[tuple[str, dict[str, Any]]] = []

    def launch(kernel: Any, programs: int, *arguments: Any, warps: int, stages: int = 3, **constants: Any) -> None:
        found.append((kernel.fn.__name__, constants))
        kernel[(programs,)](*arguments, **constants)

    for module in (norm_act_conv, convolution_call):
        monkeypatch.setattr(module, "launch", launch)
    return found


def is_served_by(case: Case, path: str) -> bool:
    """Whether a path is another than that of products, for this case; of the usual one every third case is enough."""
    if path == "flat":
        return math.prod(case.weight[2:]) > 1 and case.groups < 12
    return case.groups > 2 if path == "direct" else path == "products" or CASES.index(case) % 3 == 0


PATHS_OF_CASES = [
    pytest.param(path, case, id=f"{case.name}-{path}") for case in CASES for path in PATHS if is_served_by(case, path)
]


@pytest.mark.parametrize(("path", "case"), PATHS_OF_CASES, indirect=["path"])
def test_every_path_is_right(path: str, launched: list[tuple[str, dict[str, Any]]], case: Case) -> None:
    check(case, torch.float32)
    names = [name for name, _ in launched]
    few = case.groups > 1 and min(case.weight[1], case.weight[0] // case.groups) < 16
    kind = "direct" if path == "direct" or (path == "usual" and few) else "convolve"
    for part in ("forward", "data", "weight"):
        assert names.count(f"{kind}_{part}") == 1
    assert ("apply_backward" in names) == (case.num_groups >= 0 and not case.evaluates)
    if path == "flat" and math.prod(case.weight[2:]) > 1:
        assert all(constants["FLAT"] for name, constants in launched if "FLAT" in constants)


HALF = [replace(case, parameter_dtype=torch.float32) for case in CASES if case.name in ("batch", "few_a_group")]
HALF += [case for case in CASES if case.name in ("group", "plain", "evaluation", "first_layer", "depthwise_down")]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("path", "case"),
    [
        pytest.param(path, case, id=f"{case.name}-{path}")
        for case in HALF
        for path in ("products", "flat", "direct")
        if path == "products" or (case.groups > 1) == (path == "direct")
    ],
    indirect=["path"],
)
def test_half_precision_is_right(path: str, case: Case, dtype: torch.dtype) -> None:
    check(case, dtype)


@pytest.mark.parametrize(
    ("path", "case"),
    [
        pytest.param(path, case, id=f"{case.name}-{path}")
        for case in CASES
        if case.name in ("asymmetric", "group", "depthwise_down", "few_a_group", "sliced")
        for path in ("products", "flat", "direct")
        if path == "products" or (case.groups > 1) == (path == "direct")
    ],
    indirect=["path"],
)
def test_offsets_in_64_bits(
    path: str, monkeypatch: pytest.MonkeyPatch, launched: list[tuple[str, dict[str, Any]]], case: Case
) -> None:
    """The code that tensors of 2**31 elements take, on small ones."""
    monkeypatch.setattr(convolution_layout, "FARTHEST", 0)
    check(case, torch.float32)
    assert all(constants["WIDE"] for _, constants in launched if "WIDE" in constants and "KERNEL_WIDTH" in constants)


def far_apart(shape: tuple[int, ...], sample: int, line: int) -> Tensor:
    """An (N, C, 1, W) of random values over memory that is never touched between them."""
    strides = (sample, 1, line * shape[3], line)
    reach = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 1
    values = torch.empty(reach, dtype=torch.float16).as_strided(shape, strides)
    return values.copy_(torch.randn(shape, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(("path", "groups"), [("products", 1), ("flat", 1), ("direct", 4)], indirect=["path"])
@pytest.mark.parametrize(("sample", "line"), [(2**31 + 8, 8), (0, 2**30 + 8)])
def test_values_that_are_far_apart(path: str, groups: int, sample: int, line: int) -> None:
    """Beyond 2**31 values from the start, by the stride of the samples or of the positions."""
    case = Case(
        "far", input=(1 + (sample > 0), 4, 1, 3), weight=(4, 4 // groups, 1, 3), padding=(0, 1), groups=groups,
        evaluates=True,
    )  # fmt: skip
    tensors, grad = make(case, torch.float16)
    tensors["input"] = far_apart(case.input, sample, line)
    near = ours(case, tensors | {"input": tensors["input"].contiguous(memory_format=torch.channels_last)}, grad)
    found = ours(case, tensors, far_apart(tuple(grad.shape), sample, line).copy_(grad))
    for name in ("output", *NAMES[:5]):
        assert torch.equal(found[name], near[name]), name


def test_which_calls_need_64_bits() -> None:
    def wide(samples: int, channels: int, size: int, out_channels: int = 8) -> bool:
        x = convolution_layout.empty_lines((samples, channels, size, size), torch.empty(0, device="meta"))
        w = torch.empty((out_channels, channels, 3, 3), device="meta")
        geometry = convolution_layout.geometry_of(x, w, [1, 1], [1, 1], [1, 1], 1)
        y = convolution_layout.dense_strides((samples, out_channels, *geometry.out_size))
        lines = ((convolution_layout.lines_of(x).strides, size * size, channels), (y, size * size, out_channels))
        return convolution_layout.is_wide(geometry, *lines)

    assert not wide(64, 64, 512)
    assert wide(128, 64, 512)  # 2**31 values of the input
    assert wide(64, 8, 512, 128)  # of the output


@every_path
def test_repeated_runs_give_the_same_bits(path: str) -> None:
    for case in CASES[:2] + tuple(case for case in CASES if case.name == "depthwise_down"):
        tensors, grad = make(case, torch.float32)
        one, other = ours(case, tensors, grad), ours(case, tensors, grad)
        for name, result in one.items():
            assert result is None or torch.equal(result, other[name]), name


@every_path
@pytest.mark.parametrize("groups", [1, 12])
def test_statistics_of_an_output_whose_mean_is_far_above_its_deviation(path: str, groups: int) -> None:
    x = torch.randn(3, 12, 9, 7).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(12, 12 // groups, 3, 3) * 0.1, 1e4 + 100 * torch.randn(12)
    statics = (-1, 1e-5, "identity", 0.0, False, [1, 1], [1, 1], [1, 1], groups, True)
    output, statistics = kernels.forward(x, None, None, weight, bias, None, None, None, *statics)
    exact = output.double().transpose(0, 1).flatten(1)
    found = statistics.view(2, 12)
    torch.testing.assert_close(found[0], exact.mean(1), rtol=0, atol=2e-6)
    torch.testing.assert_close(found[1], exact.var(1, correction=0), rtol=3e-6, atol=0)


@every_path
def test_statistics_are_of_the_output_as_it_is_rounded(path: str) -> None:
    """In bfloat16 a value near 256 is rounded to a whole number of twos: what is normalised next are these."""
    x = torch.rand(2, 4, 6, 5).to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.full((4, 4, 1, 1), 0.3).to(torch.bfloat16), torch.full((4,), 257.0).to(torch.bfloat16)
    statics = (-1, 1e-5, "identity", 0.0, False, [1, 1], [0, 0], [1, 1], 1, True)
    output, statistics = kernels.forward(x, None, None, weight, bias, None, None, None, *statics)
    exact = output.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(statistics.view(2, 4), torch.stack([exact.mean(1), exact.var(1, correction=0)]))


@every_path
def test_statistics_of_a_constant_output(path: str) -> None:
    x = torch.ones(2, 3, 5, 7).contiguous(memory_format=torch.channels_last)
    weight = torch.zeros(4, 3, 1, 1)
    statics = (-1, 1e-5, "identity", 0.0, False, [1, 1], [0, 0], [1, 1], 1, True)
    bias = torch.tensor([0.1, 1e4 / 3, -7e-5, 3e8])
    _, statistics = kernels.forward(x, None, None, weight, bias, None, None, None, *statics)
    torch.testing.assert_close(statistics[:4], bias.double(), rtol=1e-9, atol=0)
    assert (statistics[4:] <= 1e-12 * bias.double().square()).all()
    assert (statistics[4:] >= 0).all()


@every_path
@pytest.mark.parametrize("num_groups", [0, -1])
def test_without_collecting_there_are_no_statistics_of_the_output(path: str, num_groups: int) -> None:
    case = Case("batch", num_groups=num_groups)
    tensors, grad = make(case, torch.float32)
    with_them, all_of_them = kernels.forward(*tensors.values(), None, *case.statics())
    without, statistics = kernels.forward(*tensors.values(), None, *case.statics(False))
    assert torch.equal(with_them, without)
    assert torch.equal(statistics, all_of_them[: 36 if num_groups == 0 else 0])
    one = kernels.backward(grad, *tensors.values(), None, all_of_them, *case.statics(), [True] * 5)
    other = kernels.backward(grad, *tensors.values(), None, statistics, *case.statics(False), [True] * 5)
    for first, second in zip(one, other, strict=True):
        assert (first is None and second is None) or torch.equal(first, second)


@every_path
def test_statistics_that_are_known_are_not_computed_again(
    path: str, monkeypatch: pytest.MonkeyPatch, launched: list[tuple[str, dict[str, Any]]]
) -> None:
    """A first convolution's collected statistics are the second one's; the gradient goes through them all the same."""
    first = Case("batch", num_groups=-1, activation="identity")
    tensors, _ = make(first, torch.float32)
    middle, statistics = kernels.forward(*tensors.values(), None, *first.statics())
    second = Case("second", input=tuple(middle.shape), weight=(5, 20, 3, 3))
    tensors, grad = make(second, torch.float32)
    tensors["input"] = middle

    usual = ours(second, tensors, grad)

    def refuse(*_: Any) -> None:
        raise AssertionError("statistics were computed that are known")

    monkeypatch.setattr(convolution_call, "reduce_moments", refuse)
    found = ours(second, tensors, grad, statistics)
    assert torch.equal(found["statistics"][:40], statistics)
    for name in ("output", *NAMES[:5]):
        scale = float(usual[name].abs().max())
        torch.testing.assert_close(found[name], usual[name], rtol=0, atol=3e-6 * scale)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("products", "batch"), ("flat", "group"), ("direct", "depthwise_down"), ("direct", "few_evaluation"),
        ("usual", "few_plain"), ("usual", "evaluation"),
    ],
    indirect=["path"],
)  # fmt: skip
def test_only_what_is_needed_is_computed(path: str, launched: list[tuple[str, dict[str, Any]]], name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    tensors, grad = make(case, torch.float32)
    arguments = (*tensors.values(), None)
    _, statistics = kernels.forward(*arguments, *case.statics())
    whole = kernels.backward(grad, *arguments, statistics, *case.statics(), [True] * 5)
    for i in range(5):
        needs = [i == j for j in range(5)]
        launched.clear()
        part = kernels.backward(grad, *arguments, statistics, *case.statics(), needs)
        there = tensors[NAMES[i]] is not None
        assert [gradient is not None for gradient in part] == [needed and there for needed in needs]
        assert part[i] is None or torch.equal(part[i], whole[i])
        names = {kernel.partition("_")[2] for kernel, _ in launched if kernel.startswith(("direct", "convolve"))}
        assert names == ([{"data"}] * 3 + [{"weight"}, set()])[i] or not there
    launched.clear()
    assert kernels.backward(grad, *arguments, statistics, *case.statics(), [False] * 5) == (None,) * 5
    assert not launched


@every_path
def test_nothing_is_written_beyond_a_tensor(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results lie in buffers with a margin on both sides, which must stay as it was, and every place is written."""
    margin, buffers = 1024, []

    def guarded(shape: tuple[int, ...], like: Tensor) -> Tensor:
        count = math.prod(shape)
        buffer = torch.full((count + 2 * margin,), 7.0, dtype=like.dtype)
        buffers.append((buffer, count))
        strides = convolution_layout.channels_last_view(tuple(shape)).dense
        return buffer.as_strided(shape, strides, margin)

    monkeypatch.setattr(convolution_layout, "empty_lines", guarded)
    for name in ("asymmetric", "points_down", "depthwise_down", "few_a_group", "stride_shares_with_dilation"):
        case = replace(next(case for case in CASES if case.name == name), weight_layout="channels_last")
        ours(case, *make(case, torch.float32))
    assert len(buffers) >= 10
    for buffer, count in buffers:
        assert (buffer[:margin] == 7).all()
        assert (buffer[margin + count :] == 7).all()
        assert not (buffer[margin : margin + count] == 7).any()


@every_path
@pytest.mark.parametrize(("num_groups", "evaluates"), [(0, False), (0, True), (2, False), (-1, False)])
def test_an_empty_batch(path: str, num_groups: int, evaluates: bool) -> None:
    case = Case("empty", input=(0, 4, 5, 5), weight=(6, 4, 3, 3), num_groups=num_groups, evaluates=evaluates)
    tensors, _ = make(replace(case, layout="contiguous", grad_layout="contiguous"), torch.float32)
    output, statistics = kernels.forward(*tensors.values(), None, *case.statics())
    assert output.shape == (0, 6, 5, 5)
    own = 8 if num_groups == 0 else 0
    assert statistics.shape == (own + 12,)
    assert not statistics[own:].any()
    if evaluates:
        given = torch.cat([tensors["running_mean"], tensors["running_var"]]).double()
        assert torch.equal(statistics[:own], given)
    gradients = kernels.backward(output, *tensors.values(), None, statistics, *case.statics(), [True] * 5)
    for name, gradient in zip(NAMES, gradients, strict=False):
        assert gradient is None if tensors[name] is None else gradient.shape == tensors[name].shape
        assert gradient is None or not gradient.any()


@every_path
def test_constant_channels_of_huge_values(path: str) -> None:
    """What lies behind the last row is 2**90 deviations from the mean there, and must not reach any sum."""
    case = Case("huge", input=(3, 4, 5, 5), weight=(6, 4, 1, 1), padding=(0, 0), activation="gelu_tanh")
    tensors, grad = make(case, torch.float32)
    tensors["input"] = torch.full((3, 4, 5, 5), 2.0**90).contiguous(memory_format=torch.channels_last)
    found, truth = ours(case, tensors, grad), solve_by_torch(case, tensors, grad, True)
    for name in ("output", "norm_weight", "norm_bias", "weight", "bias"):
        scale = float(truth[name].abs().max())
        torch.testing.assert_close(found[name].double(), truth[name], rtol=0, atol=1e-5 * scale + 1e-30, msg=name)
    assert found["input"].isfinite().all()


def test_the_bias_gradient_over_many_positions() -> None:
    """Several programs sum their share, and the last has less than the others."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 2, 57, 61, generator=generator).contiguous(memory_format=torch.channels_last)
    grad = torch.randn(2, 3, 57, 61, generator=generator) + 0.1
    weight, bias = torch.randn(3, 2, 1, 1, generator=generator), torch.zeros(3)
    statics = (-1, 1e-5, "identity", 0.0, False, [1, 1], [0, 0], [1, 1], 1, False)
    statistics = torch.empty(0, dtype=torch.float64)
    tensors = (x, None, None, weight, bias, None, None, None)
    found = kernels.backward(grad, *tensors, statistics, *statics, [False] * 4 + [True])
    torch.testing.assert_close(found[4].double(), grad.double().sum((0, 2, 3)), rtol=1e-6, atol=1e-4)


@every_path
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("groups", [1, 4])
def test_what_is_not_finite_goes_where_it_goes_in_torch(path: str, poison: float, groups: int) -> None:
    """Its own sample and neighbourhood, under running statistics; nowhere else."""
    case = Case(
        "poison", input=(3, 4, 6, 7), weight=(4, 4 // groups, 3, 3), groups=groups, evaluates=True, activation="relu"
    )
    tensors, grad = make(case, torch.float32)
    tensors["input"][1, 2, 3, 3] = poison
    found = ours(case, tensors, grad)
    baseline = solve_by_torch(case, tensors, grad, False)
    for name in ("output", "input", "weight"):
        assert torch.equal(found[name].isnan(), baseline[name].isnan()), name
    assert found["output"][0].isfinite().all()
    assert found["output"][2].isfinite().all()


SIZES = list(itertools.product((1, 2, 3), (1, 2, 4), (0, 1, 3), (1, 2, 3)))


@pytest.mark.parametrize("path", ["products", "direct"], indirect=True)
@pytest.mark.parametrize("part", range(3))
def test_every_stride_padding_and_dilation(path: str, part: int) -> None:
    """Kernel, stride, padding and dilation along one dimension, another choice along the other."""
    generator = torch.Generator().manual_seed(part)
    for at in range(2 * part + (path == "direct"), len(SIZES), 6):
        (kernel, stride, padding, dilation), other = SIZES[at], SIZES[(at * 7 + 3) % len(SIZES)]
        pairs = list(zip((kernel, stride, padding, dilation), other, strict=True))
        x = torch.randn(2, 4, 7, 8, generator=generator).contiguous(memory_format=torch.channels_last)
        weight = torch.randn(4, 2, *pairs[0], generator=generator)
        steps = [list(pair) for pair in pairs[1:]]
        leaves = [t.double().requires_grad_() for t in (x, weight)]
        truth = torch.nn.functional.conv2d(*leaves, None, *steps, 2)
        grad = torch.randn(truth.shape, generator=generator)
        statics = (-1, 1e-5, "identity", 0.0, False, *steps, 2, False)
        tensors = (x, None, None, weight, None, None, None, None)
        output, statistics = kernels.forward(*tensors, *statics)
        gradients = kernels.backward(
            grad, *tensors, statistics, *statics, [True, False, False, True, False]
        )  # fmt: skip
        expected = (truth, *torch.autograd.grad(truth, leaves, grad.double()))
        for found, right in zip((output, gradients[0], gradients[3]), expected, strict=True):
            torch.testing.assert_close(found.double(), right, rtol=1e-5, atol=2e-5, msg=f"{pairs}")


@every_path
def test_a_batch_in_one_dimension_is_one_of_height_1(path: str) -> None:
    x = torch.randn(2, 5, 17).transpose(1, 2).contiguous().transpose(1, 2)
    weight = torch.randn(3, 5, 4)
    statics = (0, 1e-5, "silu", 0.0, False)
    arguments = (None, None, weight, None, None, None, None, *statics, [2], [1], [2], 1, True)
    flat, by_line = kernels.forward(x, *arguments)
    arguments = (
        None, None, weight.unsqueeze(2), None, None, None, None, *statics, [1, 2], [0, 1], [1, 2], 1, True
    )  # fmt: skip
    image, by_image = kernels.forward(x.unsqueeze(2), *arguments)
    assert torch.equal(flat, image.squeeze(2))
    assert torch.equal(by_line, by_image)


def test_what_is_served() -> None:
    def reason(shape: tuple[int, ...], weight: tuple[int, ...], **changes: Any) -> str:
        given = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1, "dtype": torch.float32} | changes
        dtype = given.pop("dtype")
        x, w = (torch.empty(sizes, dtype=dtype, device="meta") for sizes in (shape, weight))
        return kernels.serves(x, w, *given.values())

    assert reason((2, 4, 5, 5), (3, 4, 3, 3)) == ""
    assert reason((0, 4, 5, 5), (3, 4, 3, 3)) == ""
    assert reason((2, 4, 5), (3, 4, 3), stride=[1], padding=[0], dilation=[1]) == ""
    assert "one or two dimensions; got 3" in reason((2, 4, 5, 5, 5), (3, 4, 3, 3, 3))
    assert "float64" in reason((2, 4, 5, 5), (3, 4, 3, 3), dtype=torch.float64)
    assert "at least one" in reason((2, 4, 5, 0), (3, 4, 3, 3))
    assert "31 bits" in reason((2, 2**15, 5, 5), (2**15, 2**15, 3, 3))
    assert "padding" in reason((2, 4, 5, 5), (3, 4, 3, 3), padding=[-1, 0])
    assert "larger than the padded input" in reason((2, 4, 5, 5), (3, 4, 9, 3))


def test_float32_on_the_matrix_units_is_what_torch_has_for_convolutions(
    launched: list[tuple[str, dict[str, Any]]],
) -> None:
    case = Case("batch")
    tensors, grad = make(case, torch.float32)
    before = torch.backends.cudnn.conv.fp32_precision
    try:
        for setting, expected in (("tf32", "tf32"), ("ieee", "ieee"), ("none", "ieee")):
            torch.backends.cudnn.conv.fp32_precision = setting
            launched.clear()
            ours(case, tensors, grad)
            found = {constants["PRECISION"] for _, constants in launched if "PRECISION" in constants}
            assert found == {expected}
    finally:
        torch.backends.cudnn.conv.fp32_precision = before


def test_running_statistics_are_the_saved_ones() -> None:
    case = next(case for case in CASES if case.name == "evaluation")
    tensors, _ = make(case, torch.float32)
    _, statistics = kernels.forward(*tensors.values(), None, *case.statics(False))
    assert torch.equal(statistics, torch.cat([tensors["running_mean"], tensors["running_var"]]).double())
