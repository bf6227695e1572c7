"""The ops: public functions with torch's argument order, differentiable, on whichever backend serves the call."""

from fastdl.ops.attention import ATTENTION, scaled_dot_product_attention, varlen_attention
from fastdl.ops.batch_norm import BATCH_NORM, batch_norm
from fastdl.ops.conv_norm_act import conv_norm_act
from fastdl.ops.dropout import DROPOUT, dropout
from fastdl.ops.group_norm import GROUP_NORM, group_norm
from fastdl.ops.layer_norm import LAYER_NORM, layer_norm
from fastdl.ops.norm_act_conv import NORM_ACT_CONV, norm_act_conv
from fastdl.ops.rms_norm import RMS_NORM, rms_norm

OPERATORS = {
    operator.name: operator
    for operator in (ATTENTION, BATCH_NORM, DROPOUT, GROUP_NORM, LAYER_NORM, NORM_ACT_CONV, RMS_NORM)
}

__all__ = [
    "batch_norm",
    "conv_norm_act",
    "dropout",
    "group_norm",
    "layer_norm",
    "norm_act_conv",
    "rms_norm",
    "scaled_dot_product_attention",
    "varlen_attention",
]
