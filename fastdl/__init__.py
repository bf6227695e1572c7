"""fastdl: fused training kernels for PyTorch (GroupNorm, BatchNorm, conv-norm-activation), and a laboratory on them."""

from fastdl import nn, ops, reference
from fastdl._layout import find_sibling_folders
from fastdl.memory import cpu_pool
from fastdl.ops.dispatch import BackendError, BackendStatus, backends, set_backend, use_backend

__version__ = "0.1.0"

find_sibling_folders()

__all__ = [
    "BackendError",
    "BackendStatus",
    "__version__",
    "backends",
    "cpu_pool",
    "nn",
    "ops",
    "reference",
    "set_backend",
    "use_backend",
]
