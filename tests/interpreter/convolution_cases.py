"""The cases of the convolutions' paths, solved by the kernels, by torch and by the definition in float64."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fastdl.kernels import convolution_layout
from fastdl.kernels import norm_act_conv as kernels
from fastdl.reference import activate
from fastdl.reference.conv_norm_act import CONVOLUTIONS
from fastdl.reference.norm_act_conv import norm_act_conv_with_statistics
from tests.support.accuracy import assert_as_right_as_torch, relative_error
from tests.support.layouts import LAYOUTS
from tests.support.values import VALUES

Tensors = dict[str, Tensor | None]


@dataclass(frozen=True)
class Case:
    """``groups`` are the convolution's, ``num_groups`` the norm's; the rest as in the op. All statistics are taken."""

    name: str
    input: tuple[int, ...] = (2, 18, 4, 5)
    weight: tuple[int, ...] = (20, 18, 2, 3)
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (1, 1)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1
    num_groups: int = 0
    evaluates: bool = False
    activation: str = "silu"
    parameter: float = 0.3
    activation_first: bool = False
    norm_weight: bool = True
    norm_bias: bool = True
    bias: bool = True
    layout: str = "channels_last"
    grad_layout: str = "channels_last"
    weight_layout: str = "contiguous"
    values: str = "varied"
    parameter_dtype: torch.dtype | None = None
    bounded: bool = False

    def statics(self, collect: bool = True) -> tuple[Any, ...]:
        steps = (list(self.stride), list(self.padding), list(self.dilation))
        return (
            self.num_groups, 1e-5, self.activation, self.parameter, self.activation_first, *steps, self.groups, collect
        )  # fmt: skip


NAMES = ("input", "norm_weight", "norm_bias", "weight", "bias", "running_mean", "running_var")
GROUPED = {"input": (2, 12, 4, 5), "weight": (12, 1, 3, 3), "groups": 12}
CASES = (
    Case("batch"),
    Case("group", num_groups=3),
    Case("group_of_one_sample", input=(1, 18, 4, 5), num_groups=2, norm_bias=False),
    Case("evaluation", evaluates=True),
    Case("evaluation_act_norm", evaluates=True, activation_first=True, activation="gelu"),
    Case("act_norm", activation_first=True, activation="mish", bias=False),
    Case("group_act_norm", num_groups=6, activation_first=True, activation="tanh"),
    Case("no_norm", num_groups=-1, activation="softplus"),
    Case("plain", num_groups=-1, activation="identity"),
    Case("plain_without_activation_first", num_groups=-1, activation="elu", activation_first=True),
    Case("no_parameters", norm_weight=False, norm_bias=False, bias=False),
    Case("points", weight=(20, 18, 1, 1), padding=(0, 0)),
    Case("points_down", weight=(20, 18, 1, 1), padding=(0, 0), stride=(2, 2)),
    Case("down", input=(2, 18, 6, 7), stride=(2, 2)),
    Case("down_by_group", input=(3, 18, 6, 5), stride=(2, 2), num_groups=9),
    Case("asymmetric", weight=(7, 18, 2, 5), stride=(3, 2), padding=(2, 1), dilation=(2, 1), input=(2, 18, 7, 8)),
    Case("stride_shares_with_dilation", weight=(7, 18, 2, 3), stride=(2, 4), padding=(2, 3), dilation=(2, 2)),
    Case("first_layer", input=(2, 3, 9, 8), weight=(20, 3, 7, 7), stride=(2, 2), padding=(3, 3)),
    Case("five", input=(2, 5, 8, 6), weight=(33, 5, 5, 5), padding=(2, 2)),
    Case("one_dimension", input=(2, 18, 21), weight=(20, 18, 4), stride=(2,), padding=(3,), dilation=(1,)),
    Case("two_groups", input=(2, 36, 4, 5), weight=(40, 18, 1, 3), groups=2, padding=(0, 1)),
    Case("depthwise", **GROUPED),
    Case("depthwise_down", **{**GROUPED, "weight": (24, 1, 3, 3)}, stride=(2, 2), num_groups=2),
    Case("few_a_group", input=(2, 12, 4, 5), weight=(8, 3, 2, 3), groups=4, padding=(1, 2), activation_first=True),
    Case("few_evaluation", input=(2, 12, 4, 5), weight=(8, 3, 2, 1), groups=4, evaluates=True, dilation=(2, 3)),
    Case("few_plain", input=(2, 12, 4, 5), weight=(4, 6, 3, 3), groups=2, num_groups=-1, activation="identity"),
    Case("contiguous", layout="contiguous", grad_layout="contiguous"),
    Case("sliced", layout="sliced_channels_last", grad_layout="expanded_everywhere", weight_layout="channels_last"),
    Case("transposed", layout="space_transposed", grad_layout="sliced_space"),
    Case("one_value_wide", input=(3, 1, 5, 5), weight=(1, 1, 3, 3)),
    Case("one_position", input=(5, 18, 1, 1)),
    Case("shifted", values="shifted", bounded=True),
    Case("shifted_groups", values="shifted", bounded=True, num_groups=3),
    Case("shifted_few", **GROUPED, values="shifted", bounded=True),
    Case("outlier", values="first_is_outlier"),
)


def make(case: Case, dtype: torch.dtype, draw: int = 0) -> tuple[Tensors, Tensor]:
    """The tensors of a case, and a gradient of its output."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{case.name} {dtype} {draw}".encode()))
    channels, out_channels = case.input[1], case.weight[0]

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    parameter_dtype = case.parameter_dtype or dtype
    tensors: Tensors = dict.fromkeys(NAMES)
    tensors["input"] = laid_out(case.layout, VALUES[case.values](case.input, generator).to(dtype))
    has_norm = case.num_groups >= 0
    if case.norm_weight and has_norm:
        tensors["norm_weight"] = (0.5 + normal(channels).abs()).to(parameter_dtype)
    if case.norm_bias and has_norm:
        tensors["norm_bias"] = normal(channels).to(parameter_dtype)
    scale = math.prod(case.weight[1:]) ** -0.5
    tensors["weight"] = laid_out(case.weight_layout, (normal(*case.weight) * scale).to(dtype))
    if case.bias:
        tensors["bias"] = normal(out_channels).to(dtype)
    if case.evaluates:
        tensors["running_mean"] = normal(channels).to(parameter_dtype)
        tensors["running_var"] = (0.5 + normal(channels).abs()).to(parameter_dtype)
    grad = normal(*output_shape(case)).to(dtype)
    return tensors, laid_out(case.grad_layout, grad)


def laid_out(layout: str, values: Tensor) -> Tensor:
    """The values in a layout, as far as its elements do not share memory."""
    tensor = LAYOUTS[layout](tuple(values.shape), lambda shape: torch.full(shape, 3.0, dtype=values.dtype))
    return tensor if layout.startswith("expanded") else tensor.copy_(values)


def output_shape(case: Case) -> tuple[int, ...]:
    sizes = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip(
            case.input[2:], case.weight[2:], case.stride, case.padding, case.dilation, strict=True
        )
    ]
    return (case.input[0], case.weight[0], *sizes)


def composed(case: Case, tensors: Tensors) -> Tensor:
    """The norm, the activation and the convolution of torch, one after the other."""
    x, weight, bias = tensors["input"], tensors["norm_weight"], tensors["norm_bias"]
    assert x is not None
    if case.activation_first or case.num_groups < 0:
        x = activate(x, case.activation, case.parameter)
    if case.num_groups == 0:
        running = tensors["running_mean"], tensors["running_var"]
        x = torch.nn.functional.batch_norm(x, *running, weight, bias, not case.evaluates, 0.0, 1e-5)
    elif case.num_groups > 0:
        x = torch.nn.functional.group_norm(x, case.num_groups, weight, bias, 1e-5)
    if not case.activation_first and case.num_groups >= 0:
        x = activate(x, case.activation, case.parameter)
    steps = (case.stride, case.padding, case.dilation, case.groups)
    output: Tensor = CONVOLUTIONS[len(case.input)](x, tensors["weight"], tensors["bias"], *steps)
    return output


def solve_by_torch(case: Case, tensors: Tensors, grad: Tensor, wide: bool) -> Tensors:
    """The output and the gradients by autograd, of the definition in float64 or of torch's ops."""
    leaves = {
        name: None if t is None else (t.double() if wide else t.clone()).requires_grad_(name in NAMES[:5])
        for name, t in tensors.items()
    }
    if wide:
        output, statistics = norm_act_conv_with_statistics(*leaves.values(), None, *case.statics())
    else:
        output, statistics = composed(case, leaves), None
    wanted = [name for name in NAMES[:5] if leaves[name] is not None]
    found = torch.autograd.grad(output, [leaves[name] for name in wanted], grad.to(output.dtype))
    return {"output": output.detach(), "statistics": statistics} | dict(zip(wanted, found, strict=True))


def ours(case: Case, tensors: Tensors, grad: Tensor, known: Tensor | None = None) -> Tensors:
    arguments = (*tensors.values(), known)
    output, statistics = kernels.forward(*arguments, *case.statics())
    gradients = kernels.backward(grad, *arguments, statistics, *case.statics(), [True] * 5)
    for name, gradient in zip(NAMES, gradients, strict=False):
        assert (gradient is None) == (tensors[name] is None), name
    return {"output": output, "statistics": statistics} | dict(zip(NAMES, gradients, strict=False))


# Which of several results is worst is luck; torch's error in other draws of the problem says what its method costs.
DRAWS = 3


@cache
def expected(case: Case, dtype: torch.dtype) -> tuple[Tensors, Tensor, Tensors, Tensors, dict[str, float]]:
    tensors, grad = make(case, dtype)
    truth, baseline = (solve_by_torch(case, tensors, grad, wide) for wide in (True, False))
    typical: dict[str, float] = {}
    for draw in range(1, DRAWS + 1):
        others, other_grad = make(case, dtype, draw)
        right, found = (solve_by_torch(case, others, other_grad, wide) for wide in (True, False))
        for name in found:
            if name != "statistics":
                error = relative_error(found[name], right[name], right[name])
                typical[name] = max(typical.get(name, 0.0), error)
    return tensors, grad, truth, baseline, typical


def check(case: Case, dtype: torch.dtype) -> None:
    tensors, grad, truth, baseline, typical = expected(case, dtype)
    found = ours(case, tensors, grad)
    for name in baseline:
        if name != "statistics":
            assert_as_right_as_torch(
                f"{case.name}: {name}", found[name], truth[name], baseline[name], typical=typical[name],
                bounded=case.bounded and name == "output",
            )  # fmt: skip
    check_statistics(case, tensors, found, truth["statistics"])
    x, weight = tensors["input"], tensors["weight"]
    for result, model in ((found["output"], x), (found["input"], x), (found["weight"], weight)):
        last = convolution_layout.is_channels_last(model)
        strides = convolution_layout.channels_last_view(tuple(result.shape)).dense
        assert result.stride() == strides if last else result.is_contiguous()


def check_statistics(case: Case, tensors: Tensors, found: Tensors, truth: Tensor) -> None:
    """The norm's own are as exact as float64 merging makes them; the output's are those of the output as it is."""
    statistics = found["statistics"]
    assert statistics.dtype == torch.float64
    assert statistics.shape == truth.shape
    own = truth.shape[0] - 2 * case.weight[0]
    scale = float(tensors["input"].double().std())
    torch.testing.assert_close(statistics[:own], truth[:own], rtol=2e-6, atol=2e-6 * scale)
    output = found["output"].double().transpose(0, 1).flatten(1)
    mean, variance = output.mean(1), output.var(1, correction=0)
    torch.testing.assert_close(statistics[own:].view(2, -1)[0], mean, rtol=0, atol=1e-6 * float(output.std()))
    torch.testing.assert_close(statistics[own:].view(2, -1)[1], variance, rtol=3e-6, atol=1e-9)
