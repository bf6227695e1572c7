"""The definitions: every op of fastdl in plain, differentiable PyTorch, as short as its formula.

These are what the kernels are tested against (in float64 they are the truth), and what runs where no kernel can.
"""

from fastdl.reference.activations import ACTIVATIONS, DEFAULT_PARAMETERS, activate
from fastdl.reference.batch_norm import batch_norm
from fastdl.reference.conv_norm_act import conv_norm_act
from fastdl.reference.group_norm import group_norm
from fastdl.reference.layer_norm import layer_norm
from fastdl.reference.norm_act_conv import norm_act_conv
from fastdl.reference.rms_norm import rms_norm

__all__ = [
    "ACTIVATIONS",
    "DEFAULT_PARAMETERS",
    "activate",
    "batch_norm",
    "conv_norm_act",
    "group_norm",
    "layer_norm",
    "norm_act_conv",
    "rms_norm",
]
