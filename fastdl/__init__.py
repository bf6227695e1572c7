"""fastdl: fused training kernels for PyTorch (attention, norms, conv-norm-activation), and a laboratory on them."""

from fastdl._layout import find_sibling_folders

find_sibling_folders()  # before anything is imported that takes something from fastdl.kernels

from fastdl import nn, ops, reference  # noqa: E402
from fastdl.memory import cpu_pool  # noqa: E402
from fastdl.ops.dispatch import BackendError, BackendStatus, backends, set_backend, use_backend  # noqa: E402

__version__ = "0.1.0"

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
