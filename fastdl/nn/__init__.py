"""Modules over the ops, each loading the state_dict of its torch.nn counterpart unchanged."""

from fastdl.nn.batch_norm import BatchNorm2d
from fastdl.nn.conv_norm_act import ConvNormAct2d
from fastdl.nn.group_norm import GroupNorm
from fastdl.nn.key_value_cache import KeyValueCache
from fastdl.nn.multihead_attention import MultiheadAttention

__all__ = ["BatchNorm2d", "ConvNormAct2d", "GroupNorm", "KeyValueCache", "MultiheadAttention"]
