"""norm_act_conv: parity on every backend (the rows are in tests/support/norm_act_conv.py), and what is its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastdl
from fastdl.ops import OPERATORS, batch_norm, norm_act_conv
from fastdl.ops.convolution import Convolution, Norm
from fastdl.ops.norm_act_conv import convolve_normalized
from tests.support.backends import BACKENDS_UNDER_TEST
from tests.support.layouts import LAYOUTS
from tests.support.measure import saved_bytes
from tests.support.norm_act_conv import OPERATOR, row
from tests.support.problems import Case, check_parity, doubles, make_problem, problem_rows

OPERATION = OPERATORS["norm_act_conv"]
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
KERNELS = [name for name in BACKENDS_UNDER_TEST if name != "reference"]


@pytest.mark.parametrize(("case", "dtype", "backend"), problem_rows(OPERATOR))
def test_parity(case: Case, dtype: torch.dtype, backend: str) -> None:
    check_parity(OPERATOR, case, dtype, backend)


def arguments_of(layout: str, groups: int, collect: bool, backend: str, needs_grad: bool = False) -> tuple[Any, ...]:
    def tensor(*shape: int, kind: str = "contiguous") -> Tensor:
        return LAYOUTS[kind](shape, torch.randn).to(device).requires_grad_(needs_grad)

    device = BACKENDS_UNDER_TEST[backend].device()
    x = tensor(2, 6, 5, 4, kind=layout)
    norm = (None, None) if groups < 0 else (tensor(6), tensor(6))
    weight, bias = tensor(8, 3, 3, 3), tensor(8)
    return (
        x, *norm, weight, bias, None, None, None, groups, 1e-5, "silu", 0.0, False, [2, 1], [1, 0], [1, 1], 2, collect,
        backend,
    )  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS_UNDER_TEST)
@pytest.mark.parametrize(
    ("layout", "groups", "collect"),
    [
        ("contiguous", 0, True),
        ("channels_last", 0, False),
        ("sliced_channels_last", 3, True),
        ("sliced_space", -1, False),
    ],
)
def test_both_ops_pass_opcheck(layout: str, groups: int, collect: bool, backend: str) -> None:
    torch.library.opcheck(
        OPERATION.forward_op, arguments_of(layout, groups, collect, backend, needs_grad=True), test_utils=CHECKS
    )
    arguments = arguments_of(layout, groups, collect, backend)
    output, statistics = OPERATION.forward_op(*arguments)
    kept, statics = arguments[: OPERATION.count], arguments[OPERATION.count : -1]
    for needs in ([True] * 5, [True, False, False, False, False], [False, True, False, True, True]):
        torch.library.opcheck(
            OPERATION.backward_op,
            (torch.randn_like(output), *kept, statistics, *statics, needs, backend),
            test_utils=CHECKS,
        )


@pytest.mark.parametrize("backend", BACKENDS_UNDER_TEST)
@pytest.mark.parametrize(
    "case",
    [
        row("check_batch", (2, 2, 4, 3), kernel=(4, 2, 3, 2), padding=1),
        row("check_act_norm", (2, 2, 4, 3), kernel=(4, 2, 2, 2), order="act_norm_conv", stride=2),
        row("check_group", (2, 4, 3, 3), kernel=(4, 2, 2, 2), norm="group", num_groups=2, groups=2),
        row("check_none", (2, 2, 4, 3), kernel=(3, 2, 3, 3), norm="none", activation="gelu"),
        row("check_evaluation", (2, 2, 4, 3), kernel=(3, 2, 1, 1), training=False, tracked=True),
    ],
    ids=lambda case: case.name,
)
def test_first_and_second_derivatives(case: Any, backend: str) -> None:
    if torch.float64 not in BACKENDS_UNDER_TEST[backend].dtypes():
        pytest.skip("no float64")
    tensors = doubles(make_problem(OPERATOR, case, torch.float64).tensors)
    names = [name for name in OPERATOR.differentiable if name in tensors]

    def function(*values: Tensor) -> Tensor:
        return OPERATOR.ours(case, {**tensors, **dict(zip(names, values, strict=True))})

    inputs = [tensors[name].requires_grad_() for name in names]
    with fastdl.use_backend(backend):
        torch.autograd.gradcheck(function, inputs)
        torch.autograd.gradgradcheck(function, inputs)


def setting(layout: str = "channels_last", device: torch.device | str = "cpu") -> tuple[Tensor, dict[str, Any]]:
    torch.manual_seed(0)
    x = LAYOUTS[layout]((4, 16, 12, 12), torch.randn).to(device).requires_grad_()
    weight = (torch.randn(24, 16, 3, 3) * 0.1).to(device).requires_grad_()
    gamma, beta = (torch.randn(16).to(device).requires_grad_() for _ in range(2))
    rest = {"norm_weight": gamma, "norm_bias": beta, "training": True, "activation": "silu", "padding": 1}
    return x, {"weight": weight, **rest}


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_activated_tensor_is_not_kept(layout: str, backend: str) -> None:
    """Eager keeps the norm's input, the activation's and the convolution's: three of the size of ours."""
    x, arguments = setting(layout, BACKENDS_UNDER_TEST[backend].device())
    weight = arguments["weight"]

    def eager() -> Tensor:
        y = F.batch_norm(x, None, None, arguments["norm_weight"], arguments["norm_bias"], True)
        return F.conv2d(F.silu(y), weight, padding=1)

    with fastdl.use_backend(backend):
        saved = saved_bytes(lambda: norm_act_conv(x, **arguments))
    size, parameters = x.numel() * 4, weight.numel() * 4
    assert size <= saved - parameters <= 1.02 * size
    assert saved - parameters <= 0.35 * (saved_bytes(eager) - parameters)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_what_is_computed_again_is_what_was_there(backend: str, layout: str) -> None:
    """The weight's gradient is to the bit that of the norm's own output."""
    x, arguments = setting(layout)
    weight, gamma, beta = (arguments[name] for name in ("weight", "norm_weight", "norm_bias"))
    output = norm_act_conv(x, **arguments)
    grad_output = torch.randn_like(output)
    activated = batch_norm(x, None, None, gamma, beta, True, activation="silu")
    plain = F.conv2d(activated, weight, padding=1)
    assert torch.equal(output, plain)
    [ours] = torch.autograd.grad(output, weight, grad_output)
    [theirs] = torch.autograd.grad(plain, weight, grad_output)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("backend", BACKENDS_UNDER_TEST)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced_space", "sliced_channels_last"])
@pytest.mark.parametrize("weight_layout", ["contiguous", "channels_last"])
def test_the_output_is_channels_last_where_one_of_them_is(layout: str, weight_layout: str, backend: str) -> None:
    x, arguments = setting(layout, BACKENDS_UNDER_TEST[backend].device())
    arguments["weight"] = LAYOUTS[weight_layout]((24, 16, 3, 3), torch.randn).to(x.device)
    with fastdl.use_backend(backend):
        output = norm_act_conv(x, **arguments)
    last = "channels_last" in (weight_layout, layout.removeprefix("sliced_"))
    assert output.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@pytest.mark.parametrize("backend", BACKENDS_UNDER_TEST)
@pytest.mark.parametrize("groups", [0, 3, -1])
@pytest.mark.parametrize("values", ["normal", "shifted"])
def test_collected_statistics_are_those_of_the_output(groups: int, values: str, backend: str) -> None:
    arguments = list(arguments_of("channels_last", groups, True, backend))
    if values == "shifted":
        arguments[4] = 1e4 + arguments[4]
    output, statistics = OPERATION.forward_op(*arguments)
    mean, variance = statistics[-16:].view(2, 8)
    exact = output.double()
    torch.testing.assert_close(mean, exact.mean((0, 2, 3)), rtol=1e-7, atol=1e-6)
    # Of the output before it was rounded to float32, or after: at 1e4 that is up to 5e-4 a value.
    torch.testing.assert_close(variance, exact.var((0, 2, 3), correction=0), rtol=1e-5, atol=2e-5)


def test_known_statistics_are_taken_and_differentiated(backend: str) -> None:
    """As if they had been computed here: the gradient goes through them."""
    x, given = setting()
    before = Norm("batch", given["norm_weight"], given["norm_bias"], training=True, activation="silu")
    convolution = Convolution(given["weight"], padding=1)
    exact = x.detach().double()
    known = torch.cat([exact.mean((0, 2, 3)), exact.var((0, 2, 3), correction=0)])
    results = []
    for statistics in (None, known):
        output, _ = convolve_normalized(x, before, convolution, known=statistics)
        results.append(
            (output, *torch.autograd.grad(output.square().sum(), [x, given["norm_weight"], given["weight"]]))
        )
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    if backend != "reference":
        # They are believed: nobody computes them again.
        output, _ = convolve_normalized(x, before, convolution, known=torch.cat([known[:16] + 1, known[16:]]))
        assert (output - results[0][0]).abs().max() > 0.1


def test_running_statistics_move_as_batch_norms_do(backend: str) -> None:
    x, arguments = setting()
    running = torch.randn(16), torch.rand(16)
    ours, theirs = [[t.clone() for t in running] for _ in range(2)]
    norm_act_conv(x, **arguments, running_mean=ours[0], running_var=ours[1], momentum=0.3)
    F.batch_norm(x.detach(), *theirs, None, None, True, 0.3)
    torch.testing.assert_close(ours, theirs)
    assert min(t._version for t in ours) >= 1  # whoever saved the old values is told


@pytest.mark.parametrize("collect", [False, True])
def test_compiles_as_one_graph(backend: str, collect: bool) -> None:
    x, given = setting()
    convolution = Convolution(given["weight"], padding=1)
    running = torch.zeros(16), torch.ones(16)

    def function(x: Tensor, gamma: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        before = Norm("batch", gamma, None, mean, variance, training=True, activation="gelu")
        return convolve_normalized(x, before, convolution, collect=collect)[0]

    results = []
    for call in (function, torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)):
        moved = [t.clone() for t in running]
        output = call(x, given["norm_weight"], *moved)
        gradients = torch.autograd.grad(output.square().sum(), [x, given["norm_weight"], given["weight"]])
        results.append((output, *gradients, *moved))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_functional_transforms(backend: str) -> None:
    x, arguments = setting("contiguous")
    weight = arguments.pop("weight").detach()
    arguments = {k: v.detach() if isinstance(v, Tensor) else v for k, v in arguments.items()}

    def loss(weight: Tensor, x: Tensor) -> Tensor:
        return norm_act_conv(x, weight, **arguments).square().sum()

    leaf = weight.clone().requires_grad_()
    expected = torch.autograd.grad(loss(leaf, x.detach()), leaf)[0]
    torch.testing.assert_close(torch.func.grad(loss)(weight, x.detach()), expected, rtol=1e-4, atol=1e-4)
    both = torch.func.vmap(torch.func.grad(loss), (None, 0))(weight, torch.stack([x.detach(), 2 * x.detach()]))
    torch.testing.assert_close(both[0], expected, rtol=1e-4, atol=1e-4)


def test_autocast_runs_the_convolution_in_bfloat16(backend: str) -> None:
    x, arguments = setting()
    with torch.autocast("cpu", torch.bfloat16):
        output = norm_act_conv(x, **arguments)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), norm_act_conv(x, **arguments), rtol=0.05, atol=0.1)
    output.float().square().mean().backward()
    assert x.grad is not None
    assert (x.grad.dtype, arguments["weight"].grad.dtype) == (torch.float32, torch.float32)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"weight": torch.ones(4, 16, 3, 3).double()}, TypeError, r"weight must have the input's dtype"),
        ({"weight": torch.ones(4, 15, 3, 3)}, ValueError, r"times groups be the input's 16; got 1"),
        ({"groups": 3}, ValueError, r"groups must divide .* got 3"),
        ({"bias": torch.ones(3)}, ValueError, r"bias must be None or of shape \(24,\).*got \(3,\)"),
        ({"norm": "batch_norm"}, ValueError, r"norm must be one of batch, .*; got 'batch_norm'"),
        ({"norm": "group"}, ValueError, r"num_groups must be given for norm='group'"),
        ({"norm": "group", "num_groups": 5}, ValueError, r"num_groups must be .* 16 channels; got 5"),
        ({"training": False}, ValueError, r"running_mean and running_var must be tensors when training=False"),
        ({"running_mean": torch.ones(3), "running_var": torch.ones(3)}, ValueError, r"must have shape \(16,\)"),
        ({"running_mean": torch.ones(16)}, ValueError, r"running_mean and running_var must be given together"),
        ({"order": "conv_norm_act"}, ValueError, r"order must be one of norm_act_conv, act_norm_conv; got"),
        ({"activation": "swish"}, ValueError, r"activation must be one of"),
        ({"weight": None}, TypeError, r"weight must be a torch\.Tensor; got NoneType"),
    ],
)  # fmt: skip
def test_mistakes_are_told(change: dict[str, Any], kind: type[Exception], message: str, backend: str) -> None:
    x, arguments = setting()
    with pytest.raises(kind, match=f"norm_act_conv: .*{message}"):
        norm_act_conv(x, **{**arguments, **change})
