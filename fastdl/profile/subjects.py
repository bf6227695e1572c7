"""What can be profiled by name: an op on tensors of a shape, and a step of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdl import ops

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
IMAGE_LAYOUTS, ATTENTION_LAYOUTS = ("nchw", "channels_last"), ("separate", "packed")
SEED = 0


@dataclass(frozen=True)
class Subject:
    """``step()`` does the work once; ``title`` says what it is."""

    title: str
    step: Callable[[], object]


@dataclass(frozen=True)
class OpSettings:
    """How an op is called; None is the op's own default.

    Attributes:
        shape: of the input: (N, C, H, W), attention's (N, heads, L, E), or rows of any number of dimensions.
        layout: ``nchw`` or ``channels_last`` for images; attention's tensors ``separate``, or ``packed`` as slices of
            one projection.
        num_groups: of group_norm.
        kernel: width of a convolution's, from as many channels to as many.
        residual: whether the op is given one.
        causal: attention's.
        backward: whether a step is forward and backward.
    """

    shape: tuple[int, ...] | None = None
    dtype: str = "float32"
    layout: str | None = None
    device: str = "cpu"
    activation: str | None = None
    num_groups: int = 32
    kernel: int = 3
    residual: bool = False
    causal: bool = False
    backward: bool = True


@dataclass(frozen=True)
class OpSubject:
    """An op: its call, the input's dimensions (None for any), layouts, activation, and usual shapes by device."""

    call: Callable[[OpSettings, _Operands], Any]
    dimensions: int | None
    layouts: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    activation: str | None = None
    takes: tuple[str, ...] = ()


class _Operands:
    """Random tensors of a call, each a leaf with a gradient that was asked for once and is kept."""

    def __init__(self, settings: OpSettings) -> None:
        self.settings = settings
        self.device = torch.device(settings.device)
        self.generator = torch.Generator(device=self.device).manual_seed(SEED)
        self.leaves: dict[str, Tensor] = {}

    @property
    def shape(self) -> tuple[int, ...]:
        assert self.settings.shape is not None
        return self.settings.shape

    def draw(self, shape: tuple[int, ...], mean: float = 0.0, scale: float = 1.0) -> Tensor:
        return mean + scale * torch.randn(shape, generator=self.generator, device=self.device)

    def leaf(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        if name not in self.leaves:
            self.leaves[name] = make().requires_grad_(self.settings.backward)
        return self.leaves[name]

    def image(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        last = self.settings.layout == "channels_last"
        layout = torch.channels_last if last else torch.contiguous_format
        dtype = DTYPES[self.settings.dtype]
        return self.leaf(name, lambda: self.draw(shape or self.shape).to(dtype).contiguous(memory_format=layout))

    def heads(self, name: str) -> Tensor:
        """Packed: (N, L, H, E) in memory, with room for the other two between positions."""
        dtype = DTYPES[self.settings.dtype]
        samples, heads, length, features = self.shape

        def make() -> Tensor:
            values = self.draw(self.shape).to(dtype)
            if self.settings.layout == "separate":
                return values
            memory = values.new_empty(samples, length, 3, heads, features)
            return memory[:, :, 0].transpose(1, 2).copy_(values).detach()

        return self.leaf(name, make)

    def parameter(self, name: str, size: int, mean: float, dtype: torch.dtype | None = None) -> Tensor:
        return self.leaf(name, lambda: self.draw((size,), mean, 0.1).to(dtype or DTYPES[self.settings.dtype]))

    def buffer(self, name: str, value: float) -> Tensor:
        if name not in self.leaves:
            self.leaves[name] = torch.full((self.shape[1],), value, device=self.device)
        return self.leaves[name]


def _group_norm(s: OpSettings, t: _Operands) -> Any:
    channels = t.shape[1]
    weight, bias = t.parameter("weight", channels, 1.0), t.parameter("bias", channels, 0.0)
    return ops.group_norm(t.image("input"), s.num_groups, weight, bias, activation=s.activation or "identity")


def _batch_norm(s: OpSettings, t: _Operands) -> Any:
    channels, single = t.shape[1], torch.float32
    return ops.batch_norm(
        t.image("input"), t.buffer("running_mean", 0.0), t.buffer("running_var", 1.0),
        t.parameter("weight", channels, 1.0, single), t.parameter("bias", channels, 0.0, single), s.backward,
        activation=s.activation or "identity", residual=t.image("residual") if s.residual else None,
    )  # fmt: skip


def _convolution(s: OpSettings, t: _Operands, op: Callable[..., Any]) -> Any:
    channels, single = t.shape[1], torch.float32
    return op(
        t.image("input"), t.image("kernel", (channels, channels, s.kernel, s.kernel)), padding=s.kernel // 2,
        norm_weight=t.parameter("weight", channels, 1.0, single), norm_bias=t.parameter("bias", channels, 0.0, single),
        running_mean=t.buffer("running_mean", 0.0), running_var=t.buffer("running_var", 1.0), training=s.backward,
        activation=s.activation or "identity",
        **({"residual": t.image("residual")} if s.residual else {}),
    )  # fmt: skip


def _layer_norm(s: OpSettings, t: _Operands) -> Any:
    width = t.shape[-1]
    weight, bias = t.parameter("weight", width, 1.0), t.parameter("bias", width, 0.0)
    residual = t.image("residual") if s.residual else None
    return ops.layer_norm(t.image("input"), width, weight, bias, residual=residual)


def _rms_norm(s: OpSettings, t: _Operands) -> Any:
    residual = t.image("residual") if s.residual else None
    return ops.rms_norm(t.image("input"), t.shape[-1], t.parameter("weight", t.shape[-1], 1.0), residual=residual)


def _dropout(s: OpSettings, t: _Operands) -> Any:
    return ops.dropout(t.image("input"), 0.1, residual=t.image("residual") if s.residual else None)


def _attention(s: OpSettings, t: _Operands) -> Any:
    return ops.scaled_dot_product_attention(t.heads("query"), t.heads("key"), t.heads("value"), is_causal=s.causal)


_IMAGES = {"cpu": (16, 128, 32, 32), "cuda": (128, 256, 56, 56)}
_ROWS = {"cpu": (8, 197, 768), "cuda": (64, 197, 768)}

OPS: dict[str, OpSubject] = {
    "attention": OpSubject(
        _attention, 4, ATTENTION_LAYOUTS, {"cpu": (4, 12, 197, 64), "cuda": (64, 12, 197, 64)}, takes=("causal",)
    ),
    "batch_norm": OpSubject(_batch_norm, 4, IMAGE_LAYOUTS, _IMAGES, "relu", ("residual",)),
    "conv_norm_act": OpSubject(
        partial(_convolution, op=ops.conv_norm_act), 4, IMAGE_LAYOUTS, _IMAGES, "relu", ("residual", "kernel")
    ),
    "dropout": OpSubject(_dropout, None, (), _ROWS, takes=("residual",)),
    "group_norm": OpSubject(
        _group_norm, 4, IMAGE_LAYOUTS, {"cpu": (2, 640, 32, 32), "cuda": (4, 320, 64, 64)}, "silu", ("num_groups",)
    ),
    "layer_norm": OpSubject(_layer_norm, None, (), _ROWS, takes=("residual",)),
    "norm_act_conv": OpSubject(
        partial(_convolution, op=ops.norm_act_conv), 4, IMAGE_LAYOUTS, _IMAGES, "relu", ("kernel",)
    ),
    "rms_norm": OpSubject(_rms_norm, None, (), {"cpu": (2, 1024, 1024), "cuda": (8, 1024, 4096)}, takes=("residual",)),
}
"""The ops by their public names; conv_norm_act is not an operator of its own, but a convolution and a norm."""


def op_subject(name: str, settings: OpSettings) -> Subject:
    """A call of an op, forward and backward.

    Raises:
        ValueError: there is no such op, or it does not take a setting; the message names it.
    """
    if name not in OPS:
        raise ValueError(f"there is no op {name!r} to profile; there are: {', '.join(OPS)}")
    subject = OPS[name]
    s = _checked(name, subject, settings)
    operands = _Operands(s)

    def forward() -> Any:
        output = subject.call(s, operands)
        return output if isinstance(output, tuple) else (output,)

    title = f"{name} of {'x'.join(map(str, s.shape or ()))}, {s.dtype}" + (f", {s.layout}" if s.layout else "")
    for text in (f"activation {s.activation}" * bool(s.activation), "residual" * s.residual, "causal" * s.causal):
        title += f", {text}" if text else ""
    if not s.backward:

        def infer() -> object:
            with torch.no_grad():
                return forward()

        return Subject(f"{title}, forward", infer)
    outputs = forward()
    leaves = [leaf for leaf in operands.leaves.values() if leaf.requires_grad]
    grads = [torch.randn_like(output) for output in outputs]
    return Subject(f"{title}, forward and backward", lambda: torch.autograd.grad(forward(), leaves, grads))


def _checked(name: str, subject: OpSubject, s: OpSettings) -> OpSettings:
    """The settings with the op's defaults filled in."""
    shape = s.shape or subject.shapes[torch.device(s.device).type]
    if subject.dimensions is not None and len(shape) != subject.dimensions:
        raise ValueError(f"shape must have {subject.dimensions} dimensions for {name}; got {','.join(map(str, shape))}")
    if s.dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {s.dtype!r}")
    if s.layout is not None and s.layout not in subject.layouts:
        accepted = f"must be one of {', '.join(subject.layouts)}" if subject.layouts else "cannot be chosen"
        raise ValueError(f"layout {accepted} for {name}; got {s.layout!r}")
    usual = OpSettings()
    for field in ("residual", "causal", "kernel", "num_groups"):
        if getattr(s, field) != getattr(usual, field) and field not in subject.takes:
            raise ValueError(f"{field} is not for {name}; got {getattr(s, field)!r}")
    if s.activation is not None and subject.activation is None:
        raise ValueError(f"activation is not for {name}; got {s.activation!r}")
    layout = s.layout or (subject.layouts[0] if subject.layouts else None)
    return OpSettings(
        shape, s.dtype, layout, s.device, s.activation or subject.activation, s.num_groups, s.kernel, s.residual,
        s.causal, s.backward,
    )  # fmt: skip


# -- models -----------------------------------------------------------------------------------------------------------

TRAIN, INFERENCE = "train", "inference"
CLASSES = 10
SMALL_IMAGE = 64


@dataclass(frozen=True)
class ModelSettings:
    """How a model is run: on ``batch`` random images of ``image_size`` squared, None for what the model is made for.

    Half precision is autocast's, as networks are trained; float64 is the model's own.
    """

    batch: int = 16
    image_size: int | None = None
    dtype: str = "float32"
    device: str = "cpu"
    step: str = TRAIN


def model_arguments(name: str, image_size: int | None) -> tuple[dict[str, Any], int]:
    """What builds a model of `fastdl.models` for images of that size, and the size."""
    if name == "conv_network":
        return {"in_channels": 3, "depth": 4, "num_classes": CLASSES}, image_size or 32
    if name == "vit":
        size = image_size or 32
        sizes = {"patch_size": 4, "depth": 6, "width": 192, "num_heads": 3}
        return {"image_size": size, "num_classes": CLASSES, **sizes}, size
    size = image_size or 224
    if name.startswith("resnet"):
        return {"num_classes": CLASSES, "stem": "cifar" if size <= SMALL_IMAGE else "imagenet"}, size
    return {"num_classes": CLASSES, "image_size": size}, size


def model_subject(name: str, settings: ModelSettings) -> Subject:
    """A step of a model: forward, cross-entropy, backward and SGD with momentum, or inference.

    Raises:
        ValueError: there is no such model, or it does not take a setting; the message names it.
    """
    from fastdl.models import MODELS, build_model

    s = settings
    if name not in MODELS:
        raise ValueError(f"there is no model {name!r} to profile; there are: {', '.join(MODELS)}")
    for field in ("batch", "image_size"):
        value = getattr(s, field)
        if value is not None and value < 1:
            raise ValueError(f"{field} must be at least 1; got {value}")
    if s.dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {s.dtype!r}")
    if s.step not in (TRAIN, INFERENCE):
        raise ValueError(f"step must be {TRAIN} or {INFERENCE}; got {s.step!r}")
    torch.manual_seed(SEED)
    arguments, size = model_arguments(name, s.image_size)
    own = torch.float64 if s.dtype == "float64" else torch.float32
    model = build_model(name, **arguments).to(s.device, own).train(s.step == TRAIN)
    images = torch.randn(s.batch, 3, size, size, device=s.device, dtype=own)
    labels = torch.randint(0, CLASSES, (s.batch,), device=s.device)
    half = DTYPES[s.dtype] if s.dtype in ("bfloat16", "float16") else None
    cast = partial(torch.autocast, torch.device(s.device).type, half, enabled=half is not None)
    title = f"{name}, {s.batch} images of {size}x{size}, {s.dtype}{', by autocast' if half else ''}"
    if s.step == INFERENCE:

        def infer() -> object:
            with torch.inference_mode(), cast():
                return model(images)

        return Subject(f"{title}, inference", infer)
    return Subject(f"{title}, a training step", _training_step(model, images, labels, cast))


def _training_step(
    model: nn.Module, images: Tensor, labels: Tensor, cast: Callable[[], torch.autocast]
) -> Callable[[], object]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step() -> object:
        with cast():
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step
