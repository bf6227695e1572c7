"""One-line mistakes, each of a kind that people make. The tests of the file's floor must notice it.

A mistake joins by a row in the file of its floor, ``mutations_<floor>.py``. ``old`` must occur exactly once in the file
that it is of: a row that fits the source no more fails.
"""

from __future__ import annotations

from tests.mutation import (
    mutations_convolution,
    mutations_cpu,
    mutations_cpu_convolution,
    mutations_cuda,
    mutations_dropout,
    mutations_nn,
    mutations_triton,
)
from tests.mutation.mutation import Mutation

MUTATIONS: list[Mutation] = [
    *mutations_nn.MUTATIONS,
    *mutations_cpu.MUTATIONS,
    *mutations_cpu_convolution.MUTATIONS,
    *mutations_dropout.MUTATIONS,
    *mutations_triton.MUTATIONS,
    *mutations_cuda.MUTATIONS,
    *mutations_convolution.MUTATIONS,
]
