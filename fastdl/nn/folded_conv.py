"""A convolution with a norm folded into it, and residual and activation in its epilogue; for inference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastdl.nn.group_norm import describe_activation
from fastdl.ops.arguments import resolve_activation
from fastdl.ops.convolution import Convolution
from fastdl.ops.norm_act_conv import serving_call
from fastdl.reference.activations import activate
from fastdl.reference.conv_norm_act import CONVOLUTIONS

# Activations by oneDNN's names: (name, scalars from the parameter, algorithm). What is missing runs behind it.
_EPILOGUES: dict[str, tuple[str, bool, str]] = {
    "identity": ("none", False, ""),
    "relu": ("relu", False, ""),
    "leaky_relu": ("leaky_relu", True, ""),
    "sigmoid": ("sigmoid", False, ""),
    "tanh": ("tanh", False, ""),
    "silu": ("swish", False, ""),
    "gelu": ("gelu", False, "none"),
    "gelu_tanh": ("gelu", False, "tanh"),
    "hardswish": ("hardswish", False, ""),
}
_AFTER_A_SUM = frozenset({"identity", "relu"})


class FoldedConvAct(nn.Module):
    """``act(conv(x) + residual)``; what `fold` puts in the place of convolution, norm and activation.

    On the CPU in float32 and bfloat16 our own convolution, where it serves the call, else oneDNN's, adds and activates
    while the output is in the cache. Anywhere else, and where a gradient is recorded, these are torch's own ops.
    Weight and bias are buffers.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        conv: nn.Conv1d | nn.Conv2d | nn.Conv3d,
        weight: Tensor,
        bias: Tensor,
        activation: str = "identity",
        activation_param: float | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.stride = conv.stride
        self.padding = conv.padding
        self.dilation = conv.dilation
        self.groups = conv.groups
        self.set_activation(activation, activation_param)

    def set_activation(self, activation: str, parameter: float | None) -> None:
        self.activation = activation
        self.activation_param = parameter
        self._parameter = resolve_activation(type(self).__name__, activation, parameter)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        if self._has_epilogue(input, residual):
            output = self._by_our_own(input, residual)
            if output is not None:
                return output
            if residual is None and self.activation in _EPILOGUES:
                return self._by_onednn(input)
            if residual is not None and self.activation in _AFTER_A_SUM and residual.dtype == input.dtype:
                output = self._with_sum(input, residual)
                if output is not None:
                    return output
        convolution = CONVOLUTIONS[self.weight.ndim]
        output = convolution(input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        if residual is not None:
            output = output + residual
        if self.activation == "relu" and not output.requires_grad:
            return output.relu_()
        return activate(output, self.activation, self._parameter)

    def _has_epilogue(self, input: Tensor, residual: Tensor | None) -> bool:
        return (
            input.device.type == "cpu"
            and input.ndim == self.weight.ndim == 4
            and input.dtype == self.weight.dtype
            and input.numel() > 0
            and not isinstance(self.padding, str)
            and not (torch.is_grad_enabled() and (input.requires_grad or _requires_grad(residual)))
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
            and type(input) is Tensor
            and _onednn_computes(input.dtype)
        )

    def _by_our_own(self, input: Tensor, residual: Tensor | None) -> Tensor | None:
        """None where our own convolution does not serve, or the residual would have to be broadcast or converted."""
        convolution = Convolution(self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        served = serving_call(input, convolution)
        if served is None or served[0] != "cpu":
            return None
        if residual is not None and (residual.dtype != input.dtype or residual.shape != self._output_shape(input)):
            return None
        output: Tensor = torch.ops.fastdl_cpu.convolution_act.default(
            input, self.weight, self.bias, residual, *served[1], self.activation, self._parameter
        )
        return output

    def _by_onednn(self, input: Tensor) -> Tensor:
        name, has_parameter, algorithm = _EPILOGUES[self.activation]
        scalars = [self._parameter] if has_parameter else []
        output: Tensor = torch.ops.mkldnn._convolution_pointwise.default(
            input, self.weight, self.bias, *self._geometry(), name, scalars, algorithm
        )
        return output

    def _with_sum(self, input: Tensor, residual: Tensor) -> Tensor | None:
        """None where the residual would have to be broadcast, or oneDNN has no such sum.

        With groups, or of images that are not channels-last, torch falls back there on an op without bfloat16.
        """
        channels_last = input.is_contiguous(memory_format=torch.channels_last) and not input.is_contiguous()
        if self.groups != 1 or not channels_last or residual.shape != self._output_shape(input):
            return None
        output: Tensor = torch.ops.mkldnn._convolution_pointwise.binary(
            input, residual, self.weight, self.bias, *self._geometry(), "add", 1.0,
            "relu" if self.activation == "relu" else None, [], "",
        )  # fmt: skip
        return output

    def _geometry(self) -> tuple[Any, ...]:
        return (list(self.padding), list(self.stride), list(self.dilation), self.groups)

    def _output_shape(self, input: Tensor) -> tuple[int, ...]:
        padding: Any = self.padding
        spatial = (
            (size + 2 * padding[i] - self.dilation[i] * (self.weight.shape[i + 2] - 1) - 1) // self.stride[i] + 1
            for i, size in enumerate(input.shape[2:])
        )
        return (input.shape[0], self.weight.shape[0], *spatial)

    def extra_repr(self) -> str:
        outputs, inputs, *kernel = self.weight.shape
        text = f"{inputs * self.groups}, {outputs}, kernel_size={tuple(kernel)}, stride={self.stride}"
        return text + f", padding={self.padding}" + describe_activation(self.activation, self.activation_param)


def _requires_grad(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.requires_grad


def _onednn_computes(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


@torch.no_grad()
def folded(
    conv: nn.Conv1d | nn.Conv2d | nn.Conv3d,
    norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | None,
    activation: str = "identity",
    activation_param: float | None = None,
) -> FoldedConvAct:
    """``act(norm(conv(x)))`` as one convolution: ``s = gamma / sqrt(var + eps)``; weight s W, bias s (b - mean) + beta.

    The products are taken in float64 and rounded once to the weight's dtype.
    """
    weight = conv.weight.detach().double()
    bias = torch.zeros(weight.shape[0], dtype=torch.float64, device=weight.device)
    if conv.bias is not None:
        bias += conv.bias
    if norm is not None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight
        weight = weight * scale.view(-1, *[1] * (weight.ndim - 1))
        bias = (bias - norm.running_mean) * scale
        if norm.bias is not None:
            bias = bias + norm.bias
    layout = torch.channels_last if _is_channels_last(conv.weight) else torch.contiguous_format
    weight = weight.to(conv.weight.dtype).contiguous(memory_format=layout)
    return FoldedConvAct(conv, weight, bias.to(conv.weight.dtype), activation, activation_param)


def _is_channels_last(weight: Tensor) -> bool:
    return weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
