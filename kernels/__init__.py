"""Triton kernels, one module per op, imported as ``fastdl.kernels``."""
