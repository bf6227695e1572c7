"""More than 2**31 elements on a GPU: where an offset kept in 32 bits wraps around, or a grid has too many blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import fastdl
from fastdl.ops import batch_norm, dropout, group_norm
from fastdl.reference.dropout import keep
from tests.support.backends import BACKENDS_UNDER_TEST
from tests.support.dropout import seed_after

pytestmark = pytest.mark.gpu

BEYOND = 2**31
# Input, output, its gradient, the input's gradient, and room for what is copied; and of one sample in float32, what the
# reference makes on its way.
TENSORS, INTERMEDIATES = 5, 10
GROUPS = 2
PART = 1 << 20


@pytest.fixture(params=["triton", "cuda"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    BACKENDS_UNDER_TEST[request.param].device()
    with fastdl.use_backend(request.param):
        yield request.param
    torch.cuda.empty_cache()


def need_memory(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    elements = torch.Size(shape).numel()
    needed = TENSORS * elements * dtype.itemsize + INTERMEDIATES * 4 * elements // shape[0]
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of free GPU memory")


def repeated(shape: tuple[int, ...], channels_last: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A tensor whose samples are all the same but for the last, and the two samples that it is made of, (2, C, H, W).

    So the truth is that of two samples, and a wrong offset meets values of another sample only at the end.
    """
    generator = torch.Generator(device="cuda").manual_seed(0)
    two = torch.randn((2, *shape[1:]), generator=generator, device="cuda").to(dtype)
    two[1] *= 3
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    whole = torch.empty(shape, dtype=dtype, device="cuda", memory_format=memory_format)
    whole.copy_(two[:1].expand(shape))
    whole[-1] = two[1]
    return whole, two


OPS: dict[str, Callable[[Tensor], Tensor]] = {
    "group_norm": lambda x: group_norm(x, GROUPS, activation="silu"),
    # Constants for statistics: those of so large a batch are the sums' business, below.
    "batch_norm_evaluation": lambda x: batch_norm(
        x, torch.zeros(x.shape[1], device="cuda"), torch.ones(x.shape[1], device="cuda"), activation="silu"
    ),
}


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    "shape",
    [(BEYOND // (64 * 128 * 128) + 1, 64, 128, 128), (BEYOND // (2 * 32768) + 1, 2, 256, 128), (2, 2, 32768, 16385)],
    ids=["many_samples", "more_groups_than_a_grid_is_high", "large_samples"],
)
def test_samples_beyond_two_to_the_31(op: str, shape: tuple[int, ...], channels_last: bool, backend: str) -> None:
    """Forward and backward; the first, the last but one and the last sample are those of a small tensor."""
    assert torch.Size(shape).numel() > BEYOND
    need_memory(shape, torch.bfloat16)
    x, two = repeated(shape, channels_last, torch.bfloat16)
    output = OPS[op](x.requires_grad_())
    (gradient,) = torch.autograd.grad(output, x, x.detach())
    for sample, indices in ((0, (0, shape[0] - 2)), (1, (shape[0] - 1,))):
        # Each sample has statistics of its own, so the reference needs one alone.
        leaf = two[sample : sample + 1].float().requires_grad_()
        with fastdl.use_backend("reference"):
            expected = OPS[op](leaf)
            (expected_gradient,) = torch.autograd.grad(expected, leaf, leaf.detach())
        for index in indices:
            assert_parts_close(output[index], expected[0])
            assert_parts_close(gradient[index], expected_gradient[0])
        del leaf, expected, expected_gradient


def assert_parts_close(found: Tensor, truth: Tensor) -> None:
    """The beginning, the middle and the end of a sample, of every channel."""
    found, truth = found.detach().flatten(1), truth.detach().flatten(1)
    length = found.shape[1]
    for begin in {0, max(0, length // 2 - PART // 2), max(0, length - PART)}:
        part = slice(begin, begin + PART)
        torch.testing.assert_close(found[:, part].float(), truth[:, part], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
def test_sums_over_more_than_two_to_the_31_values(channels_last: bool, backend: str) -> None:
    """batch_norm's own statistics and its parameters' gradients, with counts that 32 bits and float32 cannot hold."""
    shape = (4, 2, 16384, 16385)
    need_memory(shape, torch.bfloat16)
    x, two = repeated(shape, channels_last, torch.bfloat16)
    weight, bias = torch.ones(2, device="cuda"), torch.zeros(2, device="cuda")
    running = torch.zeros(2, device="cuda"), torch.ones(2, device="cuda")
    weight.requires_grad_()
    bias.requires_grad_()
    output = batch_norm(x, *running, weight, bias, training=True, momentum=1.0)
    gradients = torch.autograd.grad(output, (weight, bias), x)
    samples = two.double()
    share = torch.tensor([shape[0] - 1, 1], device="cuda").double() / shape[0]
    means = (samples.mean((2, 3)) * share[:, None]).sum(0)
    squares = (samples.square().mean((2, 3)) * share[:, None]).sum(0)
    variances = squares - means.square()
    torch.testing.assert_close(running[0].double(), means, rtol=1e-5, atol=1e-6)
    count = torch.Size(shape).numel() / 2
    torch.testing.assert_close(running[1].double(), variances * count / (count - 1), rtol=1e-5, atol=1e-6)
    # sum g xhat with g = x, and sum g.
    torch.testing.assert_close(
        gradients[0].double(), count * variances / (variances + 1e-5).sqrt(), rtol=1e-4, atol=1.0
    )
    torch.testing.assert_close(gradients[1].double(), count * means, rtol=1e-4, atol=count * 1e-6)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("width", [1, 7, 8])
def test_dropout_beyond_two_to_the_31(width: int, channels_last: bool, backend: str) -> None:
    """The choices of the last image are those of its rows; of one value, there are more rows than 32 bits count."""
    images = (2 * BEYOND if width == 1 else BEYOND) // (64 * 128 * width) + 2
    need_memory((images, 64, 128, width), torch.bfloat16)
    form = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.empty((images, 64, 128, width), dtype=torch.bfloat16, device="cuda", memory_format=form).fill_(1)
    seed = seed_after(1)
    torch.manual_seed(1)
    output = dropout(x, 0.5)
    for image in (0, images // 2, images - 1):
        rows = torch.arange(image * 64 * 128, (image + 1) * 64 * 128)[:, None]
        kept = keep(seed, 0.5, torch.zeros_like(rows), rows >> 32, rows & 0xFFFFFFFF, torch.arange(width))
        assert torch.equal(output[image].cpu().double(), 2 * kept.double().view(64, 128, width))
