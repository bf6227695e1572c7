"""ConvNormActChain against the plain chain of the same blocks: numbers, what is kept, and when it is that chain."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastdl.nn import ConvNormAct1d, ConvNormAct2d, ConvNormAct3d, ConvNormActChain, SyncBatchNorm, fold
from tests.support.measure import saved_bytes

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU}


def blocks(
    norm: str = "batch", order: str = "conv_norm_act", activation: str = "silu", **options: Any
) -> list[nn.Module]:
    torch.manual_seed(0)
    rest: dict[str, Any] = {"norm": norm, "order": order, "activation": activation, **options}
    if norm == "group":
        rest["num_groups"] = 2
    return [
        ConvNormAct2d(5, 8, 3, padding=1, **rest),
        ConvNormAct2d(8, 8, 3, padding=1, groups=2, **rest),
        ConvNormAct2d(8, 6, 1, stride=2, **rest),
        ConvNormAct2d(6, 4, 3, dilation=2, padding=2, **rest),
    ]


def pair(*made: nn.Module) -> tuple[ConvNormActChain, nn.Sequential]:
    for norm in (m for block in made for m in block.modules() if isinstance(m, (nn.GroupNorm, nn.BatchNorm2d))):
        nn.init.normal_(norm.weight, 1.0, 0.3)
        nn.init.normal_(norm.bias, 0.0, 0.3)
    chain = ConvNormActChain(*made)
    return chain, copy.deepcopy(nn.Sequential(*chain))


def step(model: nn.Module, x: Tensor, grad_output: Tensor | None = None) -> list[Tensor]:
    x = x.detach().requires_grad_()
    output = model(x)
    torch.manual_seed(1)
    gradients = torch.autograd.grad(output, [x, *model.parameters()], torch.randn(output.shape).to(output.dtype))
    return [output, *gradients, *(buffer.clone() for buffer in model.buffers())]


@pytest.mark.parametrize("norm", ["batch", "group", "layer", "instance", "none"])
@pytest.mark.parametrize("order", ["conv_norm_act", "conv_act_norm"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_numbers_of_the_plain_chain(
    backend: str, norm: str, order: str, training: bool, layout: torch.memory_format
) -> None:
    chain, plain = pair(*blocks(norm, order))
    x = torch.randn(3, 5, 9, 8).contiguous(memory_format=layout)
    if norm == "batch":  # running statistics that are not the initial ones
        step(chain, x), step(plain, x)
    chain.train(training), plain.train(training)
    for ours, theirs in zip(step(chain, x), step(plain, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("made", "shape"),
    [
        ([ConvNormAct1d(3, 4, 3), ConvNormAct1d(4, 4, 5, padding="same", activation="gelu")], (2, 3, 17)),
        ([ConvNormAct3d(2, 4, 3, padding=1), ConvNormAct3d(4, 3, (1, 2, 2))], (2, 2, 4, 5, 4)),
        ([ConvNormAct2d(3, 4, 3)], (2, 3, 7, 7)),
        ([ConvNormAct2d(3, 4, 2, padding="same"), ConvNormAct2d(4, 4, 2, padding="same")], (2, 3, 6, 6)),
        (
            [
                ConvNormAct2d(3, 4, 3, norm="group", num_groups=2),
                ConvNormAct2d(4, 6, 3, order="conv_act_norm", activation="tanh"),
                ConvNormAct2d(6, 2, 1, norm="none", activation="leaky_relu", activation_param=0.3),
                ConvNormAct2d(2, 2, 3, momentum=None),
            ],
            (2, 3, 12, 12),
        ),
    ],
    ids=["one_dimension", "three_dimensions", "one_block", "even_kernel", "mixed"],
)
def test_blocks_of_every_kind(backend: str, made: list[nn.Module], shape: tuple[int, ...]) -> None:
    chain, plain = ConvNormActChain(*copy.deepcopy(made)), nn.Sequential(*copy.deepcopy(made))
    for _ in range(2):
        x = torch.randn(shape)
        for ours, theirs in zip(step(chain, x), step(plain, x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eight_blocks_keep_at_most_060_of_eagers_bytes(activation: str, dtype: torch.dtype) -> None:
    """Eager with ReLU keeps two tensors a block and with SiLU three, the chain one."""
    channels, count = 16, 8
    chain = ConvNormActChain(
        *(ConvNormAct2d(channels, channels, 3, padding=1, bias=False, activation=activation) for _ in range(count))
    ).to(dtype)
    layers = (
        nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), ACTIVATIONS[activation]()
        )
        for _ in range(count)
    )
    eager = nn.Sequential(*layers).to(dtype)
    x = torch.randn(4, channels, 16, 16, dtype=dtype, requires_grad=True)
    weights = sum(p.numel() * p.element_size() for p in chain.parameters())
    ours, theirs = (saved_bytes(lambda model=model: model(x)) - weights for model in (chain, eager))
    tensor = x.numel() * x.element_size()
    assert ours <= 1.03 * (count + 1) * tensor
    assert ours <= (0.60 if activation == "relu" else 0.40) * theirs


def test_state_dict_is_the_plain_chains() -> None:
    chain, plain = pair(*blocks())
    assert list(chain.state_dict()) == list(plain.state_dict())
    chain.load_state_dict(plain.state_dict())


def test_batches_are_counted_once() -> None:
    chain, _ = pair(*blocks())
    for _ in range(3):
        chain(torch.randn(2, 5, 8, 8))
    assert [int(block.norm.num_batches_tracked) for block in chain] == [3] * 4


def test_frozen_norms_use_and_keep_their_running_statistics(backend: str) -> None:
    chain, plain = pair(*blocks())
    for model in (chain, plain):
        model[1].norm.eval()
    before = chain[1].norm.running_mean.clone()
    x = torch.randn(2, 5, 8, 8)
    for ours, theirs in zip(step(chain, x), step(plain, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)
    assert torch.equal(chain[1].norm.running_mean, before)


def test_a_residual_joins_the_last_block(backend: str) -> None:
    chain, plain = pair(*blocks())
    x = torch.randn(2, 5, 8, 8)
    residual = torch.randn(2, 4, 4, 4, requires_grad=True)
    expected = plain[3](plain[:3](x), residual)
    output = chain(x, residual)
    torch.testing.assert_close(output, expected, rtol=2e-5, atol=2e-5)
    [ours] = torch.autograd.grad(output.sum(), residual)
    [theirs] = torch.autograd.grad(expected.sum(), residual)
    torch.testing.assert_close(ours, theirs)


def test_hooks_of_a_block_are_called() -> None:
    chain, plain = pair(*blocks())
    shapes: list[tuple[int, ...]] = []
    chain[1].register_forward_hook(lambda module, arguments, output: shapes.append(tuple(output.shape)))
    x = torch.randn(2, 5, 8, 8)
    torch.testing.assert_close(chain(x), plain(x))
    assert shapes == [(2, 8, 8, 8)]


def test_folds_and_synchronises_as_a_sequential_does() -> None:
    chain, _ = pair(*blocks())
    x = torch.randn(2, 5, 8, 8)
    chain(x)
    expected = chain.eval()(x)
    folded = fold(chain)
    assert len(folded.fold_report.folded) == 4
    torch.testing.assert_close(folded(x), expected, rtol=1e-4, atol=1e-4)
    converted = SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(chain))
    torch.testing.assert_close(converted(x), expected, rtol=1e-4, atol=1e-4)


def test_compiles_as_one_graph() -> None:
    chain, plain = pair(*blocks())
    compiled = torch.compile(chain, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 5, 8, 8)
    for ours, theirs in zip(step(compiled, x), step(plain, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)


def test_autocast() -> None:
    chain, plain = pair(*blocks())
    x = torch.randn(2, 5, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = chain(x), plain(x)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ([nn.Conv2d(3, 3, 1)], r"block 0 must be a ConvNormAct1d, .*; got Conv2d"),
        ([ConvNormAct2d(3, 3, 1), nn.ReLU()], r"block 1 must be .*; got ReLU"),
        ([], r"blocks must be one at least"),
    ],
)
def test_mistakes_are_told(made: list[nn.Module], message: str) -> None:
    with pytest.raises(TypeError, match=f"ConvNormActChain: {message}"):
        ConvNormActChain(*made)
