"""Runs parity rows on the backend ``cuda`` over kernels on the host; a process of its own, with the library's path.

Prints a line of JSON for each row that fails, and a last one with what was run.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

import fastdl
from fastdl.ops import dispatch
from fastdl.ops.layout import output_like
from fastdl.reference.attention import attention as attention_by_definition
from fastdl.reference.dropout import dropout as dropout_by_definition
from fastdl.reference.norm_act_conv import norm_act_conv_with_statistics
from tests.ops import test_attention_properties
from tests.support import (
    attention,
    attention_cases,
    backends,
    batch_norm,
    dropout,
    group_norm,
    norm_act_conv,
    problems,
    row_norms,
)

OPERATORS = (
    group_norm.OPERATOR, batch_norm.OPERATOR, row_norms.LAYER_NORM, row_norms.RMS_NORM, norm_act_conv.OPERATOR,
)  # fmt: skip
LARGEST = 3000
# What the kernels' own suite covers by itself: sizes against each other, and activations, as a word of a row's name.
KERNELS_OWN = ("sweep_", "positions_")
LARGEST_WEIGHTS = 2000
# Whatever the bindings look at; in one dtype, since accuracy is the kernels' own suite's.
ATTENTION_ROWS = (
    *attention_cases.LAYOUT_CASES, *attention_cases.HEAD_CASES, *attention_cases.WINDOW_CASES,
    *attention_cases.MASK_CASES, *attention_cases.OPTION_CASES, *attention_cases.DROPOUT_CASES,
    *attention_cases.EMPTY_CASES,
)  # fmt: skip


def main(library: str) -> int:
    torch.set_num_threads(1)
    torch.ops.load_library(library)
    on_the_cpu()
    ran: dict[str, int] = {}
    for name, check in CHECKS.items():
        report(name, check)
    rows = () if sys.argv[2:] == ["checks"] else OPERATORS
    for operator in rows:
        for case in operator.cases:
            for dtype in dtypes_of(case):
                row = f"{operator.name} {case.name} {backends.short(dtype)}"
                report(row, partial(problems.check_parity, operator, case, dtype, "cuda"))
                ran[operator.name] = ran.get(operator.name, 0) + 1
    for each in ATTENTION_ROWS if rows else ():
        if each.numbers <= LARGEST_WEIGHTS:
            report(f"attention {each.name}", partial(attention.check_parity, each, torch.bfloat16, "cuda"))
            ran["attention"] = ran.get("attention", 0) + 1
    for one in dropout.CASES if rows else ():
        # In both widths of values: whether vectors can be had is for the bindings' pointers to say.
        for dtype in (torch.float32, torch.float16):
            if dtype in one.dtypes:
                row = f"dropout {one.name} {backends.short(dtype)}"
                report(row, partial(dropout.check_parity, one, dtype, "cuda"))
                ran["dropout"] = ran.get("dropout", 0) + 1
    guards, streams = torch.ops.fastdl_cuda_on_host.guards_and_streams(torch.zeros(1))
    print(json.dumps({"ran": ran, "guards": guards, "streams": streams}))
    return 0


def report(row: str, check: Callable[[], object]) -> None:
    try:
        check()
    except Exception as error:
        print(json.dumps({"row": row, "error": f"{type(error).__name__}: {error}"[:600]}), flush=True)


def on_the_cpu() -> None:
    """The backend as it is on a GPU, but for the device that it serves."""
    row = dispatch.BACKENDS["cuda"]
    there = dispatch.BackendStatus(True)
    dispatch.BACKENDS["cuda"] = replace(row, probe=lambda: there, load=load, devices=frozenset({"cpu"}))
    backends.BACKENDS_UNDER_TEST["cuda"] = replace(backends.BACKENDS_UNDER_TEST["cuda"], devices=("cpu",))
    assert fastdl.backends()["cuda"].available


def load(op: str) -> dispatch.Implementation:
    composed = (
        op in dispatch.COMPOSED
    )  # whose own kernels serve some calls; the norms around torch's convolution the rest
    return dispatch._fused_or_composed("cuda") if composed else dispatch._registered(torch.ops.fastdl_cuda, op)


def dtypes_of(case: Any) -> list[torch.dtype]:
    """float32 for rows about layouts, ranks, edges and options; every dtype where parameters have another one."""
    small = torch.Size(case.shape).numel() <= LARGEST and not case.slow
    by_activation = f"_{case.activation}_" in f"_{case.name}_" or case.name.startswith(KERNELS_OWN)
    if not small or by_activation:
        return []
    served = [dtype for dtype in case.dtypes if dtype in dispatch.BACKENDS["cuda"].dtypes]
    return served if case.parameter_dtype is not None else served[:1]


# -- what no row of the tables asks ------------------------------------------------------------------------------------


def gradients_are_made_for_what_needs_them() -> None:
    x, weight, bias, residual, grad = (torch.randn(2, 6, 3, 5), *torch.randn(2, 6), *torch.randn(2, 2, 6, 3, 5))
    statics = (1e-5, "silu", 0.0, False)
    forward, backward = load("batch_norm").forward, load("batch_norm").backward
    statistics = forward(x, weight, bias, residual, None, None, *statics)[1]
    whole = backward(grad, x, weight, bias, residual, None, None, statistics, *statics, [True] * 4)
    for needs in itertools.product([False, True], repeat=4):
        found = backward(grad, x, weight, bias, residual, None, None, statistics, *statics, list(needs))
        assert [gradient is not None for gradient in found] == list(needs), needs
        assert all(torch.equal(a, b) for a, b, needed in zip(found, whole, needs, strict=True) if needed)
    without = backward(grad, x, None, None, None, None, None, statistics, *statics, [True] * 4)
    assert [gradient is not None for gradient in without] == [True, False, False, False]


def parameters_may_be_strided() -> None:
    x, grad = torch.randn(2, 2, 6, 4, 4)
    wide = torch.randn(2, 12, 3)
    statics = (3, 1e-5, "identity", 0.0, False)
    results = []
    for weight, bias in ((wide[0, ::2, 1], wide[1, ::2, 2]), (wide[0, ::2, 1].clone(), wide[1, ::2, 2].clone())):
        output, statistics = load("group_norm").forward(x, weight, bias, None, *statics)
        gradients = load("group_norm").backward(grad, x, weight, bias, None, statistics, *statics, [True] * 3 + [False])
        results.append([output, *gradients[:3]])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def running_statistics_of_any_dtype_are_updated() -> None:
    statistics = torch.stack([torch.randn(6), torch.rand(6) + 0.5]).double()
    update = load("batch_norm").update_running_statistics
    assert update is not None
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        mean, variance = (torch.rand(12).to(dtype)[::2] for _ in range(2))
        # Arithmetic is in float32, as torch's is, and in float64 for float64.
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        values = statistics.to(wide)
        expected = [(0.7 * mean.to(wide) + 0.3 * values[0]), (0.7 * variance.to(wide) + 0.3 * values[1] * (10 / 9))]
        update(mean, variance, statistics, 10, 0.3)
        for ours, truth in zip((mean, variance), expected, strict=True):
            torch.testing.assert_close(ours, truth.to(dtype), rtol=4 * torch.finfo(dtype).eps, atol=1e-7)
        kept = mean.clone()
        update(None, variance, statistics, 10, 0.3)
        assert torch.equal(mean, kept)


def a_dtype_that_is_not_served_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="float32, float16 and bfloat16"):
        load("group_norm").forward(torch.randn(2, 4, 3).double(), None, None, None, 2, 1e-5, "silu", 0.0, False)


def evaluation_of_nothing_keeps_the_constants() -> None:
    running = torch.rand(4), torch.rand(4)
    x = torch.empty(0, 4, 3, 3)
    statistics = load("batch_norm").forward(x, None, None, None, *running, 1e-5, "relu", 0.0, False)[1]
    assert torch.equal(statistics, torch.stack(running).double())


def attention_makes_gradients_for_what_needs_them() -> None:
    query, key, value = torch.randn(3, 1, 2, 5, 8)
    mask, grad = torch.randn(1, 1, 5, 5), torch.randn(1, 2, 5, 8)
    tensors = (query, key, value, mask, None, None, None, None)
    statics = (0.3, 0.0, -1, -1, 0, 0.0, 5, 5)
    output, log_sum = load("attention").forward(*tensors, *statics)
    backward = partial(load("attention").backward, grad, None, *tensors, output, log_sum, *statics)
    whole = backward([True] * 4)
    for needs in itertools.product([False, True], repeat=4):
        found = backward(list(needs))
        assert [gradient is not None for gradient in found] == list(needs), needs
        assert all(torch.equal(a, b) for a, b, needed in zip(found, whole, needs, strict=True) if needed)


def attention_over_sequences_leaves_zeros_between_them() -> None:
    query, key, value = (tensor.transpose(0, 1) for tensor in torch.randn(3, 14, 2, 8))
    for dtype in (torch.int32, torch.int64):
        starts = torch.tensor([0, 3, 3, 11], dtype=dtype)
        q, k, v = parts = [tensor.transpose(0, 1).detach().requires_grad_() for tensor in (query, key, value)]
        with fastdl.use_backend("cuda"):
            output = fastdl.ops.varlen_attention(q, k, v, starts, starts, 8, 8, is_causal=True)
        output.sum().backward()
        given = [part.detach().double().transpose(0, 1)[None] for part in parts]
        truth, _ = attention_by_definition(
            given[0], given[1], given[2], None, None, starts, starts, None, 8**-0.5, 0.0, -1, 0, 0, 0.0, 8, 8
        )
        torch.testing.assert_close(output.double(), truth[0].transpose(0, 1), rtol=1e-5, atol=1e-6)
        assert not output[11:].any()
        assert all(part.grad is not None and not part.grad[11:].any() and part.grad[:11].any() for part in parts)


def attention_of_float64_is_an_error() -> None:
    query = torch.randn(1, 1, 3, 4).double()
    with pytest.raises(RuntimeError, match="float32, float16 and bfloat16"):
        load("attention").forward(query, query, query, *[None] * 5, 0.5, 0.0, -1, -1, 0, 0.0, 3, 3)


def attention_writes_the_gradients_of_a_packed_projection_in_place() -> None:
    test_attention_properties.test_the_gradients_of_a_packed_projection_are_slices_of_one_tensor("cuda")


def row_norms_make_gradients_for_what_needs_them() -> None:
    x, residual, grad, grad_sum = torch.randn(4, 5, 6)
    weight, bias = torch.randn(2, 6)
    for op, parameters in (("layer_norm", (weight, bias)), ("rms_norm", (weight,))):
        forward, backward = load(op).forward, load(op).backward
        _, total, statistics = forward(x, residual, *parameters, 1, 1e-5)
        assert torch.equal(total, x + residual)
        rest = (grad_sum, total, None, *parameters, statistics, 1, 1e-5)
        whole = backward(grad, *rest, [True] * (2 + len(parameters)))
        assert whole[1] is None
        for needs in itertools.product([False, True], repeat=2 + len(parameters)):
            found = backward(grad, *rest, list(needs))
            assert [g is not None for g in found] == [needs[0], False, *needs[2:]], (op, needs)
            assert all(g is None or torch.equal(g, w) for g, w in zip(found, whole, strict=True)), (op, needs)
        # Without a gradient of the sum, and without parameters.
        alone = backward(grad, None, *rest[1:], [True, False] + [False] * len(parameters))
        torch.testing.assert_close(whole[0], alone[0] + grad_sum)
        nothing = [None] * len(parameters)
        _, total, statistics = forward(x, None, *nothing, 1, 1e-5)
        assert total is None
        assert tuple(statistics.shape) == ((2, 5) if op == "layer_norm" else (5,))
        found = backward(grad, None, x, None, *nothing, statistics, 1, 1e-5, [True] * (2 + len(parameters)))
        assert [g is not None for g in found] == [True, False] + [False] * len(parameters)


def row_norms_read_parameters_of_any_strides_and_dtype() -> None:
    x, grad = torch.randn(2, 5, 4, 8).to(torch.bfloat16)
    wide = torch.randn(3, 8, 9)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        transposed, offset = wide[0, :, 1:5].t().to(dtype), wide[1].flatten()[3:35].view(4, 8).to(dtype)
        results = []
        for weight, bias in ((transposed, offset), (transposed.contiguous(), offset.clone())):
            output, _, statistics = load("layer_norm").forward(x, None, weight, bias, 2, 1e-5)
            arguments = (grad, None, x, None, weight, bias, statistics, 2, 1e-5, [True] * 4)
            gradients = [gradient for gradient in load("layer_norm").backward(*arguments) if gradient is not None]
            assert [gradient.dtype for gradient in gradients] == [torch.bfloat16, dtype, dtype]
            assert all(gradient.is_contiguous() for gradient in gradients)
            results.append([output, statistics, *gradients])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True)), dtype


def row_norms_of_rows_that_lie_anywhere() -> None:
    """Read in place or copied, in forward and in backward: what comes out is that of contiguous tensors, to the bit."""
    whole = torch.randn(6, 7, 5, 16)
    views = {
        "transposed": whole[0].transpose(0, 1), "expanded": whole[0, :1].expand(7, 5, 16),
        "expanded_outside": whole[0, 0].expand(7, 5, 16), "sliced": whole[1, :, :, :8], "columns": whole[1, ..., ::2],
        "one_break": whole[2:4, 1:6], "two_breaks": whole[::2, 1:6, :3], "overlapping": whole[4, 0].unfold(0, 3, 1),
        "every_other_row": whole[5, ::2, :, 3:14], "nothing": whole[5, :0], "no_columns": whole[5, ..., :0],
    }  # fmt: skip
    forward, backward = load("rms_norm").forward, load("rms_norm").backward
    for name, view in views.items():
        weight, gradient = torch.randn(view.shape[-1]), torch.ones(1).expand(view.shape)
        # The last view of this shape: where there are several, with rows that lie elsewhere.
        for added in (None, [other for other in views.values() if other.shape == view.shape][-1]):
            found = []
            for in_place in (True, False):
                x, residual, grad = (t if t is None or in_place else t.contiguous() for t in (view, added, gradient))
                output, total, statistics = forward(x, residual, weight, 1, 1e-5)
                kept, grad_sum = (x, None) if total is None else (total, grad)
                by_input, _, by_weight = backward(grad, grad_sum, kept, None, weight, statistics, 1, 1e-5, [True] * 3)
                found.append([output, statistics, by_input, by_weight] + ([] if total is None else [total]))
                assert all(tensor.is_contiguous() for tensor in found[-1])
            assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)), name


def row_norms_of_float64_are_an_error() -> None:
    x = torch.randn(3, 4).double()
    for op, nothing in (("layer_norm", (None, None)), ("rms_norm", (None,))):
        with pytest.raises(RuntimeError, match="float32, float16 and bfloat16"):
            load(op).forward(x, None, *nothing, 1, 1e-5)


def dropout_chooses_by_shape_and_seed_alone() -> None:
    """Whatever the strides, read in place or copied; 64 bits of the seed and the probability as it is rounded."""
    forward = load("dropout").forward
    for seed in (torch.tensor([-3]), torch.tensor(1 << 40), torch.tensor([[12345]])):
        image, added = torch.randn(2, 2, 20, 5, 9)
        forms = {
            "contiguous": image,
            "channels_last": image.contiguous(memory_format=torch.channels_last),
            "transposed": image.transpose(1, 3).contiguous().transpose(1, 3),
            "sliced": image.repeat(1, 1, 1, 2)[..., :9],
            "shifted": torch.cat([torch.zeros(1), image.flatten()])[1:].view_as(image),
        }
        truth = dropout_by_definition(image, added, seed, 0.3)
        for name, x in forms.items():
            for residual in (added, added.contiguous(memory_format=torch.channels_last), added.transpose(2, 3).mT):
                output = forward(x, residual, seed, 0.3)
                torch.testing.assert_close(output, truth, msg=name)
                assert output.stride() == output_like(x).stride(), name
        # Halves between two levels go to the even one.
        for p in (0.5 / 65536, 1.5 / 65536, 2.5 / 65536, 1.0):
            torch.testing.assert_close(forward(image, None, seed, p), dropout_by_definition(image, None, seed, p))


def dropout_of_float64_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="float32, float16 and bfloat16"):
        load("dropout").forward(torch.randn(3, 4).double(), None, torch.tensor([1]), 0.5)


CONVOLUTIONS = {
    "pointwise": ((8, 6, 1, 1), (1, 1), (0, 0), (1, 1), 1),
    "pointwise_stride": ((5, 6, 1, 1), (2, 1), (0, 0), (1, 1), 1),
    "depthwise": ((12, 1, 3, 2), (1, 2), (2, 1), (2, 1), 6),
}


def convolutions_of_normalised_tensors_are_those_of_the_definition() -> None:
    """Forward, statistics and gradients, with parameters that are strided and a gradient that is not channels last."""
    names = ("input", "norm_weight", "norm_bias", "weight", "bias")
    for name, (kernel, stride, padding, dilation, groups) in CONVOLUTIONS.items():
        for num_groups, running in ((0, False), (0, True), (3, False), (-1, False)):
            x = torch.randn(2, 6, 5, 7).contiguous(memory_format=torch.channels_last)
            norm = [None, None] if num_groups < 0 else [*torch.randn(6, 2).unbind(1)]
            weight = torch.randn(*kernel, 2)[..., 0]
            tensors = [x, *norm, weight, torch.randn(kernel[0], 3)[:, 1]]
            constants = [torch.randn(6), torch.rand(6) + 0.5] if running else [None, None]
            statics = (num_groups, 1e-5, "silu", 0.0, False, stride, padding, dilation, groups, True)
            rest = (*map(list, statics[5:8]), groups)
            assert torch.ops.fastdl_cuda.norm_act_conv_is_served.default(x, weight, *rest), name
            forward, backward = (
                torch.ops.fastdl_cuda.norm_act_conv_forward,
                torch.ops.fastdl_cuda.norm_act_conv_backward,
            )
            output, statistics = forward.default(*tensors, *constants, None, *statics)
            wide = [None if t is None else t.double().requires_grad_() for t in tensors]
            truth, of_truth = norm_act_conv_with_statistics(
                *wide, *(None if t is None else t.double() for t in constants), None, *statics
            )
            assert output.is_contiguous(memory_format=torch.channels_last), name
            torch.testing.assert_close(output.double(), truth.detach(), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(statistics, of_truth.detach(), rtol=1e-5, atol=1e-5)
            grad = torch.randn(output.shape)
            given = [t for t in wide if t is not None]
            by_truth = dict(zip(
                [n for n, t in zip(names, wide, strict=True) if t is not None],
                torch.autograd.grad(truth, given, grad.double()), strict=True,
            ))  # fmt: skip
            arguments = (grad, *tensors, *constants, None, statistics, *statics)
            found = backward.default(*arguments, [True] * 5)
            for each, gradient in zip(names, found, strict=True):
                assert (gradient is not None) == (each in by_truth), (name, each)
                if gradient is not None:
                    torch.testing.assert_close(
                        gradient.double(), by_truth[each], rtol=1e-4, atol=1e-4, msg=f"{name} {each}"
                    )
            assert found[0].is_contiguous(memory_format=torch.channels_last), name
            for i in range(5):
                alone = backward.default(*arguments, [j == i for j in range(5)])
                assert [g is not None for g in alone] == [j == i and names[j] in by_truth for j in range(5)], (name, i)
                assert alone[i] is None or torch.equal(alone[i], found[i]), (name, i)


def known_statistics_of_a_convolutions_input_are_used() -> None:
    x = torch.randn(2, 6, 5, 7).contiguous(memory_format=torch.channels_last)
    tensors = (x, None, None, torch.randn(8, 6, 1, 1), None, None, None)
    statics = (0, 1e-5, "relu", 0.0)
    rest = ([1, 1], [0, 0], [1, 1], 1, False)
    forward = torch.ops.fastdl_cuda.norm_act_conv_forward.default
    other = torch.cat([torch.randn(6), torch.rand(6) + 0.5]).double()
    output, statistics = forward(*tensors, other, *statics, False, *rest)
    assert torch.equal(statistics, other)
    by_definition = torch.nn.functional.batch_norm(x, other[:6].float(), other[6:].float(), eps=1e-5).relu()
    torch.testing.assert_close(output, torch.nn.functional.conv2d(by_definition, tensors[3]), rtol=1e-5, atol=1e-5)
    # They are not those of an activated input.
    first = [forward(*tensors, known, *statics, True, *rest)[0] for known in (other, None)]
    assert torch.equal(*first)


def convolutions_without_kernels_are_refused() -> None:
    def last(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.contiguous(memory_format=torch.channels_last)

    x, weight = last(torch.randn(2, 6, 5, 7)), torch.randn(8, 6, 1, 1)
    unit = ([1, 1], [0, 0], [1, 1], 1)
    served = torch.ops.fastdl_cuda.norm_act_conv_is_served.default
    assert served(x, weight, *unit)
    wide = last(torch.randn(2, 9, 5, 7))
    for refused in (x.contiguous(), wide[:, :6], x[:, :, ::2], x.double(), x[0], last(torch.randn(2, 6, 1, 1))):
        assert not served(refused, weight.to(refused.dtype), *unit)
    assert not served(x, weight.half(), *unit)
    assert not served(x, torch.randn(8, 6, 3, 3), *unit)
    assert not served(x, weight, [1, 1], [1, 0], [1, 1], 1)
    with pytest.raises(RuntimeError, match="serve depthwise and pointwise convolutions"):
        torch.ops.fastdl_cuda.norm_act_conv_forward.default(
            x.contiguous(), None, None, weight, None, None, None, None, -1, 1e-5, "relu", 0.0, False, *unit, False
        )


CHECKS: dict[str, Callable[[], object]] = {
    check.__name__: check
    for check in (
        gradients_are_made_for_what_needs_them,
        parameters_may_be_strided,
        running_statistics_of_any_dtype_are_updated,
        a_dtype_that_is_not_served_is_an_error,
        evaluation_of_nothing_keeps_the_constants,
        attention_makes_gradients_for_what_needs_them,
        attention_over_sequences_leaves_zeros_between_them,
        attention_of_float64_is_an_error,
        attention_writes_the_gradients_of_a_packed_projection_in_place,
        row_norms_make_gradients_for_what_needs_them,
        row_norms_read_parameters_of_any_strides_and_dtype,
        row_norms_of_rows_that_lie_anywhere,
        row_norms_of_float64_are_an_error,
        dropout_chooses_by_shape_and_seed_alone,
        dropout_of_float64_is_an_error,
        convolutions_of_normalised_tensors_are_those_of_the_definition,
        known_statistics_of_a_convolutions_input_are_used,
        convolutions_without_kernels_are_refused,
    )
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
