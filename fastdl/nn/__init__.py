"""Modules over the ops, each loading the state_dict of its torch.nn counterpart unchanged."""

from fastdl.nn.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from fastdl.nn.conv_norm_act import ConvNormAct1d, ConvNormAct2d, ConvNormAct3d
from fastdl.nn.conv_norm_act_chain import ConvNormActChain
from fastdl.nn.dropout import Dropout
from fastdl.nn.folding import FoldReport, fold
from fastdl.nn.group_norm import GroupNorm
from fastdl.nn.instance_norm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from fastdl.nn.key_value_cache import KeyValueCache
from fastdl.nn.layer_norm import LayerNorm
from fastdl.nn.multihead_attention import MultiheadAttention
from fastdl.nn.rms_norm import RMSNorm
from fastdl.nn.sync_batch_norm import SyncBatchNorm

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "ConvNormAct1d",
    "ConvNormAct2d",
    "ConvNormAct3d",
    "ConvNormActChain",
    "Dropout",
    "FoldReport",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "KeyValueCache",
    "LayerNorm",
    "MultiheadAttention",
    "RMSNorm",
    "SyncBatchNorm",
    "fold",
]
