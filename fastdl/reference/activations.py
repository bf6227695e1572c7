"""The twelve activations, as the literature defines them: one differentiable function of a tensor each.

Every op, kernel and module takes its activation by one of these names. ``parameter`` is LeakyReLU's negative slope or
ELU's alpha and is ignored by the other ten.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "identity": lambda u, parameter: u,
    "relu": lambda u, parameter: torch.relu(u),
    "leaky_relu": lambda u, parameter: F.leaky_relu(u, parameter),
    "sigmoid": lambda u, parameter: torch.sigmoid(u),
    "tanh": lambda u, parameter: torch.tanh(u),
    # SiLU(u) = u sigma(u); Elfwing et al. 2017, arXiv:1702.03118, eq. 5
    "silu": lambda u, parameter: F.silu(u),
    # GELU(u) = u Phi(u), Phi the standard normal distribution function; Hendrycks & Gimpel 2016, arXiv:1606.08415, sec.
    # 2
    "gelu": lambda u, parameter: F.gelu(u),
    # u/2 (1 + tanh(sqrt(2/pi) (u + 0.044715 u^3))); the same paper's approximation
    "gelu_tanh": lambda u, parameter: F.gelu(u, approximate="tanh"),
    # u for u > 0, alpha (e^u - 1) otherwise; Clevert et al. 2015, arXiv:1511.07289, eq. 15
    "elu": lambda u, parameter: F.elu(u, parameter),
    # u min(max(u + 3, 0), 6) / 6; Howard et al. 2019, arXiv:1905.02244, sec. 5.2
    "hardswish": lambda u, parameter: F.hardswish(u),
    # u tanh(log(1 + e^u)); Misra 2019, arXiv:1908.08681, eq. 1
    "mish": lambda u, parameter: F.mish(u),
    # log(1 + e^u), and u itself above 20 as torch has it
    "softplus": lambda u, parameter: F.softplus(u),
}

DEFAULT_PARAMETERS: dict[str, float] = {"leaky_relu": 0.01, "elu": 1.0}


def activate(u: Tensor, activation: str = "identity", parameter: float | None = None) -> Tensor:
    """The activation called ``activation`` of ``u``, elementwise, in the dtype of ``u``."""
    value = DEFAULT_PARAMETERS.get(activation, 0.0) if parameter is None else parameter
    return ACTIVATIONS[activation](u, value)
