"""fastdl.nn.LayerNorm and RMSNorm stand in for torch.nn's: weights, results, the residual and its sum, module tools."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdl import nn
from tests.support.accuracy import assert_as_right_as_torch

pytestmark = pytest.mark.usefixtures("backend")


@dataclass(frozen=True)
class Kind:
    name: str

    def make(self, shape: int | tuple[int, ...] = 12, **options: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
        """Ours and torch's with the same random parameters."""
        ours, theirs = (getattr(library, self.name)(shape, **options) for library in (nn, torch.nn))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for value in theirs.parameters():
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
        ours.load_state_dict(theirs.state_dict())
        return ours, theirs


KINDS = pytest.mark.parametrize("kind", [Kind("LayerNorm"), Kind("RMSNorm")], ids=lambda kind: kind.name)


def tokens(seed: int = 0, shift: float = 1.0) -> Tensor:
    return 2 * torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(seed)) + shift


@KINDS
@pytest.mark.parametrize("affine", [True, False])
def test_state_dicts_are_interchangeable(kind: Kind, affine: bool) -> None:
    ours, theirs = kind.make(elementwise_affine=affine)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    _, back = kind.make(elementwise_affine=affine)
    assert back.load_state_dict(ours.state_dict()) == torch.nn.modules.module._IncompatibleKeys([], [])
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)
        assert torch.equal(back.state_dict()[name], value)


@KINDS
@pytest.mark.parametrize("shape", [12, (12,), (5, 12), (3, 5, 12)])
@pytest.mark.parametrize("options", [{}, {"elementwise_affine": False}, {"eps": 0.1}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_and_gradients_are_torchs(
    kind: Kind, shape: int | tuple[int, ...], options: dict[str, Any], dtype: torch.dtype
) -> None:
    results = []
    for module in kind.make(shape, dtype=dtype, **options):
        leaf = tokens().to(dtype, copy=True).requires_grad_()
        output = module(leaf)
        output.sin().sum().backward()
        results.append([output, leaf.grad, *(p.grad for p in module.parameters())])
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other)


@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("parameters", ["of_the_inputs_dtype", "float32"])
@pytest.mark.parametrize("shift", [1.0, 1e4])
def test_every_dtype_is_as_right_as_torch(kind: Kind, dtype: torch.dtype, parameters: str, shift: float) -> None:
    """The smallest epsilon that torch's RMSNorm takes by itself depends on the dtype: it is left to the module."""
    ours, theirs = kind.make()
    x = tokens(shift=shift).to(dtype)
    exact = copy.deepcopy(theirs).double()
    if parameters == "float32":
        baseline = theirs(x.float()).to(dtype)
    else:
        for module in (ours, theirs):
            module.to(dtype)
        exact = copy.deepcopy(theirs).double()
        baseline = theirs(x)
    assert_as_right_as_torch("output", ours(x), exact(x.double()), baseline)


@KINDS
def test_an_epsilon_that_is_left_out_is_torchs(kind: Kind) -> None:
    """Where the input is as small as the epsilon it decides the result."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        ours, theirs = (module.to(dtype) for module in kind.make(elementwise_affine=False))
        x = (tokens(shift=0.0) * 2e-3).to(dtype)
        torch.testing.assert_close(ours(x), theirs(x))


@KINDS
@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded", "one_row", "no_rows"])
def test_views(kind: Kind, layout: str) -> None:
    ours, theirs = kind.make()
    x = {
        "transposed": lambda: tokens().transpose(0, 1),
        "sliced": lambda: torch.cat([tokens(), tokens(1)], -1)[::2, 1:4, 5:17],
        "expanded": lambda: tokens()[:, :1].expand(3, 4, 12),
        "one_row": lambda: tokens()[0, 0],
        "no_rows": lambda: tokens()[:, :0],
    }[layout]()
    results = []
    for module in (ours, theirs):
        leaf = x.detach().requires_grad_()
        output = module(leaf)
        output.sin().sum().backward()
        results.append([output, leaf.grad, *(p.grad for p in module.parameters())])
        module.zero_grad()
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other)


@KINDS
def test_one_feature(kind: Kind) -> None:
    ours, theirs = kind.make(1)
    torch.testing.assert_close(ours(tokens()[..., :1]), theirs(tokens()[..., :1]))


@KINDS
def test_a_residual_is_added_and_the_sum_returned(kind: Kind) -> None:
    """Both results have a gradient: the next block adds to the sum, and its attention reads what is normalised."""
    ours, theirs = kind.make()
    results = []
    for fused in (True, False):
        x, residual = tokens().requires_grad_(), tokens(1).requires_grad_()
        if fused:
            output, total = ours(x, residual)
        else:
            total = x + residual
            output = theirs(total)
        (output.sin().sum() + (total * tokens(2)).sum()).backward()
        parameters = (ours if fused else theirs).parameters()
        results.append([output, total, x.grad, residual.grad, *(p.grad for p in parameters)])
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other)


def test_layer_norm_without_a_bias() -> None:
    ours, theirs = Kind("LayerNorm").make(bias=False)
    assert list(ours.state_dict()) == ["weight"]
    torch.testing.assert_close(ours(tokens()), theirs(tokens()))


@KINDS
def test_another_shape_is_refused(kind: Kind) -> None:
    ours, _ = kind.make()
    with pytest.raises(ValueError, match=r"layer_norm|rms_norm"):
        ours(torch.randn(3, 5))
    with pytest.raises(ValueError, match="residual"):
        ours(tokens(), tokens()[:1])


@KINDS
def test_copies_pickles_and_repr_are_whole(kind: Kind) -> None:
    module, theirs = kind.make()
    saved = io.BytesIO()
    torch.save(module.state_dict(), saved)
    saved.seek(0)
    loaded, _ = kind.make()
    loaded.load_state_dict(torch.load(saved, weights_only=True))
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded):
        assert torch.equal(twin(tokens()), module(tokens()))
        assert repr(twin) == repr(theirs)
    assert isinstance(module, type(theirs))


@KINDS
def test_devices_and_dtypes_are_passed_to_the_parameters(kind: Kind) -> None:
    module = getattr(nn, kind.name)(12, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in module.parameters()} == {("meta", torch.bfloat16)}
    assert next(module.to_empty(device="cpu").parameters()).device.type == "cpu"


@KINDS
@pytest.mark.parametrize("with_residual", [True, False])
def test_they_compile_whole(kind: Kind, with_residual: bool, backend: str) -> None:
    if backend == "cpu":
        pytest.skip("one backend shows it; compiling takes seconds")
    module, _ = kind.make()
    given = (tokens(), tokens(1)) if with_residual else (tokens(),)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*given), module(*given))
    torch._dynamo.reset()
