"""The residual networks against torch's own modules, and what they keep, fold and refuse."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fastdl.bench.plain_resnet import PlainResNet
from fastdl.models import MODELS, build_model, initialize_weights
from fastdl.models.resnet import SIZES, ResNet, resnet
from fastdl.nn import SyncBatchNorm, fold
from tests.support.measure import saved_bytes

# torchvision's documentation, of 1,000 classes.
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
}


def pair(name: str, stem: str) -> tuple[ResNet, PlainResNet]:
    torch.manual_seed(0)
    block, depths = SIZES[name]
    ours = resnet(name, num_classes=7, stem=stem)
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 0.7, 0.2)
            nn.init.normal_(module.bias, 0.0, 0.2)
    plain = PlainResNet(block.expansion, depths, 7, stem)
    plain.load_state_dict(ours.state_dict())
    return ours, plain


def step(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    images = images.detach().requires_grad_()
    logits = model(images)
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(logits.square().mean(), [images, *parameters])
    results = dict(zip(["images", *names], gradients, strict=True))
    results |= {name: buffer.clone().double() for name, buffer in model.named_buffers()}
    return {"logits": logits.detach(), **results}


@pytest.mark.parametrize(("name", "stem", "size"), [("resnet18", "cifar", 16), ("resnet50", "imagenet", 64)])
@pytest.mark.parametrize("training", [True, False])
def test_it_computes_what_torchs_modules_compute(name: str, stem: str, size: int, training: bool) -> None:
    ours, plain = pair(name, stem)
    images = torch.randn(2, 3, size, size, dtype=torch.float64)
    found, expected = (step(model.double().train(training), images) for model in (ours, plain))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        scale = float(value.abs().max()) or 1.0
        torch.testing.assert_close(found[key] / scale, value / scale, rtol=0, atol=1e-9, msg=key)


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_the_papers(name: str) -> None:
    assert name in MODELS
    with torch.device("meta"):
        model = build_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


def test_training_keeps_less_than_eager() -> None:
    """A block keeps its input and what both convolutions put out: three tensors, where eager keeps four.

    Where the shortcut is a convolution its norm's output is kept as well, which eager does not need.
    """
    ours, plain = pair("resnet18", "cifar")
    images = torch.randn(4, 3, 32, 32)
    kept = {}
    for key, model in (("ours", ours), ("eager", plain.to(memory_format=torch.channels_last))):
        parameters = sum(parameter.numel() * 4 for parameter in model.parameters())
        kept[key] = saved_bytes(lambda model=model: model(images)) - parameters
    assert kept["ours"] <= 0.85 * kept["eager"]


def test_it_runs_in_channels_last_by_itself() -> None:
    model = resnet("resnet18", num_classes=7, stem="cifar")
    layouts = []
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(
                lambda module, arguments: layouts.append(arguments[0].is_contiguous(memory_format=torch.channels_last))
            )
    model(torch.randn(2, 3, 16, 16))
    assert len(layouts) == 20
    assert all(layouts)


def test_every_norm_folds() -> None:
    ours, _ = pair("resnet18", "cifar")
    images = torch.randn(2, 3, 16, 16)
    ours(images)
    expected = ours.eval()(images)
    folded = fold(ours)
    assert len(folded.fold_report.folded) == 20
    assert not folded.fold_report.refused
    torch.testing.assert_close(folded(images), expected, rtol=1e-4, atol=1e-4)


def test_hooks_and_synchronised_norms_are_served() -> None:
    ours, _ = pair("resnet18", "cifar")
    images = torch.randn(2, 3, 16, 16)
    other = SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(ours))
    called: list[str] = []
    hooked = copy.deepcopy(ours)
    hooked.layer1[0].bn1.register_forward_hook(lambda *arguments: called.append("bn1"))
    hooked.layer2[0].conv2.register_forward_hook(lambda *arguments: called.append("conv2"))
    expected = ours(images)
    torch.testing.assert_close(hooked(images), expected, rtol=1e-4, atol=1e-4)
    assert called == ["bn1", "conv2"]
    ours(images)
    for module, source in zip(other.modules(), ours.modules(), strict=True):
        if isinstance(source, nn.BatchNorm2d):
            module.load_state_dict(source.state_dict())
    torch.testing.assert_close(other.eval()(images), ours.eval()(images), rtol=1e-4, atol=1e-4)


def test_blocks_may_begin_as_their_shortcuts() -> None:
    torch.manual_seed(0)
    model = resnet("resnet50", num_classes=7, zero_init_residual=True)
    block = model.layer1[1]
    x = torch.randn(2, 256, 8, 8)
    torch.testing.assert_close(block(x), x.relu())


def test_weights_can_be_drawn_by_name() -> None:
    models = [resnet("resnet18", num_classes=7, stem="cifar") for _ in range(2)]
    for model in models:
        initialize_weights(model, 3)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stem": "mnist"}, "stem must be imagenet or cifar, got 'mnist'"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
    ],
)
def test_mistakes_are_told(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resnet("resnet18", **arguments)
    with pytest.raises(ValueError, match=r"name must be one of resnet18, .*, got 'resnet19'"):
        resnet("resnet19")


def test_hooks_on_a_projection_are_called():
    model = build_model("resnet18", num_classes=2, stem="cifar")
    called = []
    model.layer2[0].downsample.register_forward_hook(lambda *_: called.append("whole"))
    model.layer3[0].downsample[1].register_forward_hook(lambda *_: called.append("norm"))
    model(torch.randn(2, 3, 8, 8))
    assert called == ["whole", "norm"]
