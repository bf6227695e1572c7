"""Folding networks for inference: the same results but for rounding, and reasons for what is left alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import fastdl
from fastdl.nn import fold
from fastdl.nn.folded_conv import FoldedConvAct
from fastdl.reference import ACTIVATIONS

pytestmark = pytest.mark.usefixtures("one_thread")


class BasicBlock(nn.Module):
    """As ResNets have it: two convolutions, in-place activations, a shortcut that may have a convolution of its own."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


def resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), BasicBlock(8, 8, 1), BasicBlock(8, 12, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip


class Written(nn.Module):
    """A network of one convolution and norm, called as a test writes it."""

    def __init__(
        self, call: Callable[[Any, Tensor], Tensor], conv: nn.Module | None = None, **extra: nn.Module
    ) -> None:
        super().__init__()
        self.conv = conv or nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        for name, module in extra.items():
            setattr(self, name, module)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


def with_statistics(model: nn.Module, seed: int = 0) -> nn.Module:
    """In evaluation mode, with parameters and running statistics as training leaves them: none at its default."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            assert module.running_var is not None
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
            if module.affine:
                nn.init.normal_(module.weight, 1, 0.3, generator=generator)
                nn.init.normal_(module.bias, 0, 0.5, generator=generator)
    return model.eval()


def assert_same(model: nn.Module, *inputs: Tensor, least: int = 1) -> nn.Module:
    """Folds, and compares in float64 (exactly but for rounding) and in float32."""
    exact = fold(copy.deepcopy(model).double())
    doubles = [input.double() for input in inputs]
    with torch.no_grad():
        torch.testing.assert_close(exact(*doubles), copy.deepcopy(model).double()(*doubles), rtol=1e-11, atol=1e-11)
        narrow = fold(model)
        torch.testing.assert_close(narrow(*inputs), model(*inputs), rtol=2e-4, atol=2e-5)
    assert len(narrow.fold_report.folded) >= least
    return narrow


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_resnet_is_folded_whole(memory_format: torch.memory_format) -> None:
    model = with_statistics(resnet()).to(memory_format=memory_format)
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(2, 3, 9, 9).contiguous(memory_format=memory_format)
    narrow = assert_same(model, x, least=6)
    kinds = [type(module) for module in narrow.modules()]
    assert kinds.count(FoldedConvAct) == 6
    assert not any(issubclass(kind, (nn.modules.batchnorm._BatchNorm, nn.ReLU)) for kind in kinds)
    assert narrow.fold_report.refused == {}
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    feature = narrow.get_submodule("0")(x)
    assert feature.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("with_residual", [False, True])
def test_own_modules(activation: str, with_residual: bool) -> None:
    module = with_statistics(fastdl.nn.ConvNormAct2d(3, 4, 3, activation=activation))
    x, residual = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 6, 6)
    inputs = (x, residual) if with_residual else (x,)
    assert isinstance(assert_same(module, *inputs), FoldedConvAct)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_residual_in_every_epilogue(dtype: torch.dtype, groups: int, memory_format: torch.memory_format) -> None:
    own = fastdl.nn.ConvNormAct2d(3, 6, 3, stride=2, padding=1, dilation=2, groups=groups)
    module = with_statistics(own).to(dtype=dtype, memory_format=memory_format)
    x = torch.randn(2, 3, 9, 9, dtype=dtype).contiguous(memory_format=memory_format)
    residual = torch.randn(2, 6, 4, 4, dtype=dtype)
    wide = copy.deepcopy(module).float()
    assert wide.norm is not None
    with torch.no_grad():
        normalized = wide.norm(wide.conv(x.float()))
        narrow = fold(module)
        channels_last = residual.contiguous(memory_format=torch.channels_last)
        for added in (residual, channels_last, residual.mT, residual[:, :, :1, :1], residual[:1]):
            expected = F.relu(normalized + added.float())
            torch.testing.assert_close(narrow(x, added).float(), expected, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_every_number_of_dimensions(dimensions: int) -> None:
    own = getattr(fastdl.nn, f"ConvNormAct{dimensions}d")(3, 4, 3, stride=2, padding=1, activation="silu")
    conv, norm = getattr(nn, f"Conv{dimensions}d"), getattr(nn, f"BatchNorm{dimensions}d")
    model = with_statistics(
        nn.Sequential(own, conv(4, 6, 3, padding="same", groups=2), norm(6, affine=False), nn.SiLU())
    )
    assert_same(model, torch.randn(2, 3, *[7] * dimensions), least=2)


@pytest.mark.parametrize(
    "activation",
    [nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(0.2), nn.ELU(0.7), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(),
     nn.Hardswish(), nn.Sigmoid(), nn.Tanh(), nn.Softplus(), nn.Identity(), nn.Softplus(beta=2), nn.Hardsigmoid(),
     nn.PReLU(3)],
    ids=str,
)  # fmt: skip
def test_modules_behind_a_norm(activation: nn.Module) -> None:
    assert_same(
        with_statistics(nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), activation)), torch.randn(2, 3, 7, 7)
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda m, x: F.relu(m.norm(m.conv(x))),
        lambda m, x: m.norm(m.conv(x)).relu_(),
        lambda m, x: F.leaky_relu(m.norm(m.conv(x)), 0.3),
        lambda m, x: F.leaky_relu(m.norm(m.conv(x)), negative_slope=0.3, inplace=True),
        lambda m, x: F.elu(m.norm(m.conv(x))),
        lambda m, x: F.gelu(m.norm(m.conv(x)), approximate="tanh"),
        lambda m, x: F.softplus(m.norm(m.conv(x)), beta=3),
        lambda m, x: torch.sigmoid(m.norm(m.conv(x))) * x,
        lambda m, x: m.norm(m.conv(x)) + x,
        lambda m, x: x + m.norm(m.conv(x)),
        lambda m, x: torch.relu(m.norm(m.conv(x)).add_(x)),
        lambda m, x: F.silu(m.norm(m.conv(x)) + x),
        lambda m, x: torch.add(m.norm(m.conv(x)), x, alpha=2),
        lambda m, x: m.norm(m.conv(x)) + 1.5,
        lambda m, x: F.relu(m.norm(m.conv(x)) + x.mean((2, 3), keepdim=True)),
        lambda m, x: (lambda y: y + y)(m.norm(m.conv(x))),
        lambda m, x: (lambda y: F.relu(y) + y)(m.norm(m.conv(x))),
    ],
)
def test_functions_behind_a_norm(call: Callable[[Any, Tensor], Tensor]) -> None:
    assert_same(with_statistics(Written(call)), torch.randn(2, 3, 7, 7))


def changed_before_the_sum(m: Any, x: Tensor) -> Tensor:
    x = x * 1
    y = m.norm(m.conv(x))
    x.mul_(2)
    return F.relu(y + x)


def changed_before_the_norm(m: Any, x: Tensor) -> Tensor:
    x = x * 1
    y = m.conv(x)
    x += 1
    return F.relu(m.norm(y)) * x


@pytest.mark.parametrize("call", [changed_before_the_sum, changed_before_the_norm])
def test_a_convolution_is_not_moved_behind_a_change_of_its_input(call: Callable[[Any, Tensor], Tensor]) -> None:
    assert_same(with_statistics(Written(call)), torch.randn(2, 3, 7, 7))


@pytest.mark.parametrize(
    ("call", "extra", "words"),
    [
        (lambda m, x: (lambda y: m.norm(y) + y)(m.conv(x)), {}, "read by others"),
        (lambda m, x: m.norm(m.conv(m.norm(m.conv(x)))), {}, "called several times"),
        (lambda m, x: m.norm(F.relu(m.conv(x))), {}, "no convolution"),
        (lambda m, x: m.norm(m.conv(x)), {"norm": nn.BatchNorm2d(3, track_running_stats=False)}, "running statistics"),
        (lambda m, x: m.norm(m.conv(x)), {"conv": nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular")}, "circular"),
        (lambda m, x: m.norm(m.conv(x)), {"conv": weight_norm(nn.Conv2d(3, 3, 3))}, "no convolution|parametrized"),
        (lambda m, x: m.norm(m.conv(x)), {"conv": nn.ConvTranspose2d(3, 3, 3)}, "no convolution"),
        (lambda m, x: m.norm(m.conv(x)), {"norm": fastdl.nn.BatchNorm2d(3, activation="relu", order="act_norm")},
         "activation stands between"),
    ],
)  # fmt: skip
def test_what_would_change_the_result_is_left_alone(
    call: Callable[[Any, Tensor], Tensor], extra: dict[str, nn.Module], words: str
) -> None:
    model = with_statistics(Written(call, **extra))
    x = torch.randn(2, 3, 7, 7)
    result = fold(model)
    assert torch.equal(result(x), model(x))
    assert result.fold_report.folded == []
    reasons = list(result.fold_report.refused.values())
    assert reasons
    assert all(any(word in reason for word in words.split("|")) for reason in reasons)
    assert words.split("|")[0] in str(result.fold_report) or "|" in words


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"norm": "group", "num_groups": 2}, "group norm takes its statistics from the input"),
        ({"norm": "instance"}, "instance norm takes"),
        ({"order": "conv_act_norm"}, "activation stands between"),
    ],
)
def test_own_modules_that_stay(options: dict[str, Any], words: str) -> None:
    model = with_statistics(nn.Sequential(fastdl.nn.ConvNormAct2d(3, 4, 3, **options)))
    x = torch.randn(2, 3, 7, 7)
    result = fold(model)
    torch.testing.assert_close(result(x), model(x))
    assert words in result.fold_report.refused["0"]


def test_hooks_are_not_dropped() -> None:
    model = with_statistics(nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)))
    model[1].register_forward_hook(lambda module, inputs, output: output * 2)
    result = fold(model)
    x = torch.randn(2, 3, 7, 7)
    torch.testing.assert_close(result(x), model(x))
    assert "hooks" in result.fold_report.refused["1"]


def test_a_network_that_cannot_be_traced() -> None:
    """Only its Sequentials are searched, and the report says so."""

    class Looping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), fastdl.nn.ConvNormAct2d(3, 3, 1)
            )
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            while x.abs().max() > 1:
                x = x / 2
            return self.norm(self.conv(self.body(x)))

    model = with_statistics(Looping())
    narrow = assert_same(model, torch.randn(2, 3, 7, 7), least=2)
    assert type(narrow) is Looping
    assert "torch.fx cannot trace" in str(narrow.fold_report)


def test_shared_layers_of_a_sequential_that_cannot_be_traced_stay() -> None:
    conv = nn.Conv2d(3, 3, 3, padding=1)

    class Looping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Sequential(conv, nn.BatchNorm2d(3)), nn.Sequential(conv, nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x)) if x.sum() > 0 else self.first(x)

    model = with_statistics(Looping())
    x = torch.rand(2, 3, 5, 5)
    result = fold(model)
    torch.testing.assert_close(result(x), model(x))
    assert "several places" in result.fold_report.refused["first.1"]


def test_a_module_in_two_places_stays_one() -> None:
    block = fastdl.nn.ConvNormAct2d(3, 3, 3, padding=1)
    model = with_statistics(nn.Sequential(block, nn.Dropout(0.5), block))
    narrow = assert_same(model, torch.randn(2, 3, 5, 5), least=2)
    assert len([m for m in narrow.modules() if isinstance(m, FoldedConvAct)]) == 1


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_half_precision_and_autocast(memory_format: torch.memory_format) -> None:
    model = with_statistics(resnet()).to(memory_format=memory_format)
    x = torch.randn(2, 3, 9, 9).contiguous(memory_format=memory_format)
    expected = model(x)
    with torch.no_grad():
        torch.testing.assert_close(fold(model).bfloat16()(x.bfloat16()).float(), expected, rtol=0.1, atol=0.1)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(fold(model)(x).float(), expected, rtol=0.1, atol=0.1)


def test_gradients_of_the_input_still_flow() -> None:
    model = with_statistics(resnet())
    x = torch.randn(2, 3, 9, 9, requires_grad=True)
    theirs, ours = (torch.autograd.grad(m(x).square().sum(), x)[0] for m in (model, fold(model)))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_a_folded_network_keeps_its_state_and_compiles() -> None:
    model = with_statistics(resnet())
    x = torch.randn(2, 3, 9, 9)
    one, other = fold(model), fold(with_statistics(resnet(), seed=1))
    other.load_state_dict(one.state_dict())
    with torch.no_grad():
        expected = one(x)
        torch.testing.assert_close(other(x), expected)
        torch._dynamo.reset()
        compiled = torch.compile(one, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(fold(one)(x), expected)


def test_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"evaluation mode.*call model\.eval\(\) first"):
        fold(resnet())
    model = resnet().eval()
    model[1].train()
    with pytest.raises(ValueError, match="'1' is in training mode"):
        fold(model)
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module; got str"):
        fold("model")  # type: ignore[arg-type]


def test_empty_batches() -> None:
    model = fold(with_statistics(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())))
    assert model(torch.empty(0, 3, 8, 8)).shape == (0, 4, 6, 6)


class WithResidual(nn.Module):
    """A norm of fastdl that is given the residual itself, in one of the ways one may write it."""

    def __init__(self, way: str, activation: str, order: str = "norm_act") -> None:
        super().__init__()
        self.way = way
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = fastdl.nn.BatchNorm2d(3, activation=activation, order=order)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x.sin()
        if self.way == "changed_between":
            y = self.conv(x)
            x.mul_(2.0)
            return self.norm(y, x)
        y = self.conv(x)
        return self.norm(y, residual=shortcut) if self.way == "keyword" else self.norm(y, shortcut)


@pytest.mark.parametrize("way", ["positional", "keyword"])
@pytest.mark.parametrize("activation", ["identity", "relu", "silu"])
def test_a_norm_that_is_given_the_residual(way: str, activation: str) -> None:
    model = WithResidual(way, activation)
    x = torch.randn(2, 3, 6, 5)
    model(x)
    expected = model.eval()(x)
    folded = fold(model)
    assert folded.fold_report.folded == ["norm"]
    assert any(isinstance(module, FoldedConvAct) for module in folded.modules())
    torch.testing.assert_close(folded(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("way", "order", "reason"),
    [("changed_between", "norm_act", "changed before the residual"), ("positional", "act_norm", "activation")],
)
def test_a_residual_that_cannot_be_folded(way: str, order: str, reason: str) -> None:
    model = WithResidual(way, "relu", order)
    x = torch.randn(2, 3, 6, 5)
    model(x.clone())
    expected = model.eval()(x.clone())
    folded = fold(model)
    assert reason in folded.fold_report.refused["norm"]
    torch.testing.assert_close(folded(x.clone()), expected)
