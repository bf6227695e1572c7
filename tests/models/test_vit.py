"""The Vision Transformer: its logits are those of the paper's equations, its sizes those of the paper's tables."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdl.models import MODELS, build_model, initialize_weights
from fastdl.models.vit import VisionTransformer, vision_transformer
from fastdl.models.vit_embedding import LearnedPositions, PatchEmbedding, SinusoidalPositions, resample_positions
from fastdl.models.vit_encoder import StochasticDepth
from fastdl.nn import heads
from tests.models.plain_vit import HEADS, IMAGE, PATCH, SIZES, WIDTH, random_parameters

pytestmark = pytest.mark.usefixtures("one_thread", "backend")


def images(height: int = IMAGE, width: int | None = None, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, height, width or height, generator=generator, dtype=torch.float64)


def built(**options: Any) -> VisionTransformer:
    model = random_parameters(VisionTransformer(**{**SIZES, **options}))
    assert isinstance(model, VisionTransformer)
    return model


def by_equations(model: VisionTransformer, x: Tensor) -> Tensor:
    """Eqs. 1 to 8 of the paper, one head and one patch at a time where the paper writes them so."""
    p = model.state_dict()
    N, C, H, W = x.shape
    E = p["patch_embedding.projection.weight"].flatten(1).T
    patches = [
        x[:, :, i : i + PATCH, j : j + PATCH].reshape(N, C * PATCH * PATCH) @ E + p["patch_embedding.projection.bias"]
        for i in range(0, H, PATCH)
        for j in range(0, W, PATCH)
    ]
    if model.class_token is not None:
        patches = [p["class_token.token"].expand(N, -1), *patches]
    positions = model.positions
    table = (
        p["positions.table"] if isinstance(positions, LearnedPositions) else positions.table((H // PATCH, W // PATCH))
    )
    z = torch.stack(patches, dim=1) + table
    for block in range(len(model.encoder)):
        at = f"encoder.{block}."

        def norm(y: Tensor, name: str) -> Tensor:
            y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()
            return y * p[name + ".weight"] + p[name + ".bias"]

        U, bias = p[at + "attention.query_key_value.weight"].T, p.get(at + "attention.query_key_value.bias", 0.0)
        q, k, v = (norm(z, at + "attention_norm") @ U + bias).chunk(3, -1)
        D_h = WIDTH // HEADS
        heads = []
        for h in range(HEADS):
            part = slice(h * D_h, (h + 1) * D_h)
            A = torch.softmax(q[..., part] @ k[..., part].mT / math.sqrt(D_h), -1)
            heads.append(A @ v[..., part])
        z = z + torch.cat(heads, -1) @ p[at + "attention.output.weight"].T + p[at + "attention.output.bias"]
        hidden = norm(z, at + "mlp_norm") @ p[at + "mlp.expand.weight"].T + p[at + "mlp.expand.bias"]
        hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
        z = z + hidden @ p[at + "mlp.contract.weight"].T + p[at + "mlp.contract.bias"]
    y = norm(z, "norm")
    y = y[:, 0] if model.class_token is not None else y.mean(1)
    if model.representation is not None:
        y = torch.tanh(y @ p["representation.0.weight"].T + p["representation.0.bias"])
    return y @ p["head.weight"].T + p["head.bias"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pooling": "mean"},
        {"positions": "sinusoidal"},
        {"pooling": "mean", "positions": "sinusoidal"},
        {"qkv_bias": False},
        {"representation_size": 10},
        {"image_size": (IMAGE, 3 * PATCH)},
        {"dropout": 0.5, "attention_dropout": 0.5, "stochastic_depth": 0.5},  # without effect in evaluation
    ],
    ids=str,
)
def test_logits_are_those_of_the_equations(options: dict[str, Any]) -> None:
    model = built(**options)
    x = images(*options["image_size"]) if "image_size" in options else images()
    torch.testing.assert_close(model(x), by_equations(model, x))


def test_gradients_are_those_of_the_equations() -> None:
    model = built()
    found = torch.autograd.grad(model(images()).sin().sum(), list(model.parameters()))
    leaves = {name: value.clone().requires_grad_() for name, value in model.named_parameters()}
    model.state_dict = lambda: leaves  # type: ignore[method-assign, assignment]
    expected = torch.autograd.grad(by_equations(model, images()).sin().sum(), list(leaves.values()))
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other)


# Table 1 of the paper has 86, 307 and 632 millions for B, L and H; exactly, these are what timm and torchvision have
# for 224 x 224 pixels and 1,000 classes.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("vit_ti_16", 5_717_416),
        ("vit_s_16", 22_050_664),
        ("vit_b_16", 86_567_656),
        ("vit_b_32", 88_224_232),
        ("vit_l_16", 304_326_632),
        ("vit_l_32", 306_535_400),
        ("vit_h_14", 632_045_800),
    ],
)
def test_named_sizes(name: str, parameters: int, backend: str) -> None:
    with torch.device("meta"):
        model = build_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert name in MODELS


def test_names_and_arguments() -> None:
    model = vision_transformer("vit_ti_8", image_size=32, num_classes=10, depth=1)
    assert model(images(32).float()).shape == (2, 10)
    assert model.patch_embedding.patch_size == 8
    assert isinstance(build_model("vit", **SIZES), VisionTransformer)
    for name in ("vit_x_16", "vit_b", "vit_b_0", "vit_b_16_", "vib_b_16"):
        with pytest.raises(ValueError, match="name must be vit_<size>_<patch size>"):
            vision_transformer(name)
    with pytest.raises(ValueError, match="name must be one of conv_network, vit, vit_ti_16"):
        build_model("vit_x_16")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 15}, "image_size must be a multiple of the patch size 4, got 15"),
        ({"num_heads": 5}, "num_heads must divide the width 24; got 5"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"pooling": "max"}, "pooling must be 'class' or 'mean', got 'max'"),
        ({"positions": "rotary"}, "positions must be 'learned' or 'sinusoidal', got 'rotary'"),
        ({"positions": "sinusoidal", "width": 6, "num_heads": 1}, "width must be a multiple of 4"),
        ({"stochastic_depth": 1.0}, "probability must be at least 0 and below 1; got 1.0"),
    ],
)
def test_wrong_sizes_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VisionTransformer(**{**SIZES, **options})


def test_an_image_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of the patch size 4; got 16 x 18"):
        built()(images(16, 18))


def test_images_of_another_size() -> None:
    for positions in ("learned", "sinusoidal"):
        model = built(positions=positions)
        assert model(images(2 * IMAGE, IMAGE)).shape == (2, 7)
    model = built()
    before = model.positions.table.clone()
    model(images(2 * IMAGE))
    assert torch.equal(model.positions.table, before)


def test_positions_are_interpolated_as_an_image() -> None:
    """A table that rises linearly along the columns still does so after it has doubled in size."""
    ramp = torch.arange(6.0).expand(6, 6).reshape(36, 1)
    table = torch.cat([torch.tensor([[-7.0]]), ramp])
    assert resample_positions(table, (6, 6), (6, 6), 1) is table
    doubled = resample_positions(table, (6, 6), (12, 12), 1)
    assert doubled[0] == -7
    grid = doubled[1:].view(12, 12)
    torch.testing.assert_close(grid, grid[:1].expand(12, 12))
    # In the middle, away from the borders: sample centres at (j + 0.5) / 2 - 0.5.
    torch.testing.assert_close(grid[0, 4:8], (torch.arange(4.0, 8.0) + 0.5) / 2 - 0.5, atol=1e-5, rtol=0)


def test_sinusoids_tell_places_apart() -> None:
    table = SinusoidalPositions(WIDTH, prefix=1).table((8, 8))
    assert table[0].eq(0).all()
    distances = torch.cdist(table[1:], table[1:]) + torch.eye(64) * 9
    assert distances.min() > 0.5
    # sin and cos of the column: the first patches of two rows share that half.
    assert torch.equal(table[1, : WIDTH // 2], table[9, : WIDTH // 2])
    assert not torch.equal(table[1, WIDTH // 2 :], table[9, WIDTH // 2 :])


def test_patches_are_rows_of_the_image() -> None:
    embedding = PatchEmbedding(2, 1, 4).double()
    with torch.no_grad():
        embedding.projection.weight.copy_(torch.eye(4).view(4, 1, 2, 2))
        embedding.projection.bias.zero_()
    image = torch.arange(16.0, dtype=torch.float64).view(1, 1, 4, 4)
    assert embedding(image)[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_stochastic_depth_leaves_out_whole_images_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer = StochasticDepth(0.25)
    x = torch.ones(4000, 2, 3)
    y = layer(x)
    values = y[:, 0, 0]
    assert torch.equal(y, values[:, None, None].expand_as(y))
    torch.testing.assert_close(values.unique(), torch.tensor([0, 1 / 0.75]))
    # Four deviations of the share that is left out: 4 * sqrt(0.25 * 0.75 / 4000).
    assert abs(values.eq(0).double().mean() - 0.25) < 0.028
    assert layer.eval()(x) is x


def test_deeper_blocks_are_left_out_more_often() -> None:
    model = VisionTransformer(**{**SIZES, "depth": 5}, stochastic_depth=0.4)
    assert [block.stochastic_depth.probability for block in model.encoder] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_dropout_everywhere_in_training() -> None:
    torch.manual_seed(2)  # two images may by chance lose the same branches twice
    for name in ("dropout", "attention_dropout", "stochastic_depth"):
        model = built(**{name: 0.5}).train()
        assert not torch.equal(model(images()), model(images())), name


def test_initial_weights_depend_on_the_seed_and_the_name() -> None:
    first, second, other = (VisionTransformer(**SIZES) for _ in range(3))
    for model, seed in ((first, 1), (second, 1), (other, 2)):
        initialize_weights(model, seed)
    for (name, a), b, c in zip(first.named_parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        constant = name.endswith("bias") or "norm" in name or name == "class_token.token"
        assert torch.equal(a, c) == constant, name


def test_weight_decay_is_for_weights_of_products() -> None:
    assert set(built().no_weight_decay()) == {"class_token.token", "positions.table"}
    assert set(built(positions="sinusoidal", pooling="mean").no_weight_decay()) == set()


def test_heads_are_neither_taken_apart_nor_put_together_by_copies(backend: str) -> None:
    """The gradient of the packed projection is the buffer that attention's backward wrote, on kernels that pack it."""
    if backend != "cpu":
        pytest.skip("the reference gives three gradients")
    model = built().float().train()
    attention = model.encoder[0].attention
    seen: list[int] = []

    def watch_gradient(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        output.register_hook(lambda gradient: seen.append(gradient.data_ptr()))

    attention.query_key_value.register_forward_hook(watch_gradient)
    found: list[int | None] = []
    original = heads.packed_buffer

    def watched(slices: tuple[Tensor | None, ...]) -> Tensor | None:
        together = original(slices)
        found.append(None if together is None else together.data_ptr())
        return together

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heads, "packed_buffer", watched)
        model(images().float()).sum().backward()
    assert None not in found
    assert seen[0] in found


def test_half_precision_and_autocast() -> None:
    model = VisionTransformer(**SIZES).eval()
    x = images().float()
    expected = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(x)
    # bfloat16 has 8 bits: a few roundings of values of the size of the largest.
    assert (found.float() - expected).abs().max() < 0.05 * expected.abs().max()
    assert model.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_it_compiles_whole(backend: str) -> None:
    if backend == "cpu":
        pytest.skip("one backend shows it; compiling takes seconds")
    model = built(depth=1)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(images()), model(images()))
    torch._dynamo.reset()


def test_mean_pooling_is_blind_to_the_order_of_patches_without_positions() -> None:
    """A property of attention: with all position embeddings zero, exchanging patches changes nothing."""
    model = built(pooling="mean")
    with torch.no_grad():
        model.positions.table.zero_()
    x = images()
    exchanged = x.clone()
    exchanged[:, :, :PATCH, :PATCH], exchanged[:, :, -PATCH:, -PATCH:] = (
        x[:, :, -PATCH:, -PATCH:],
        x[:, :, :PATCH, :PATCH],
    )
    torch.testing.assert_close(model(exchanged), model(x))
    assert not torch.allclose(built(pooling="mean")(exchanged), built(pooling="mean")(x))


def test_channels_last_gives_the_same() -> None:
    model = built()
    expected = model(images())
    model = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(images().to(memory_format=torch.channels_last)), expected)


def test_cross_entropy_falls() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(**SIZES).train()
    x, labels = images(count=16).float(), torch.arange(16) % 7
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    losses = []
    for _ in range(15):
        loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
