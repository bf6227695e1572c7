"""Initial weights that depend on a seed and on a parameter's name, so that networks can be compared pairwise."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

__all__ = ["derive_seed", "initialize_module", "initialize_weights"]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed for the random numbers that ``parts`` name, as ``derive_seed(run_seed, "order", epoch)``.

    Equal parts give equal seeds on every machine; different parts give unrelated ones, where adding an epoch to a seed
    would let epoch 1 of seed 0 repeat epoch 0 of seed 1.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@torch.no_grad()
def initialize_weights(model: nn.Module, seed: int) -> None:
    """Set every parameter of ``model`` anew by the rules of `initialize_module`, each from a generator of its own.

    Two models that agree in the name and the shape of a parameter get the same values for it under the same seed.

    Raises:
        ValueError: a module holds parameters and there is no rule for it.
    """
    for name, module in model.named_modules():
        # Drawn on the CPU: the same numbers for every device.
        generator = torch.Generator().manual_seed(derive_seed(seed, "weight", name))
        if not initialize_module(module, generator) and next(module.parameters(recurse=False), None) is not None:
            raise ValueError(f"no rule for the initial weights of {name!r}, a {type(module).__name__}")


@torch.no_grad()
def initialize_module(module: nn.Module, generator: torch.Generator | None = None) -> bool:
    """Set the parameters of one module, those of its children left out, and return whether there is a rule for it.

    Convolutions: normal with variance 2 / fan_in (He et al., Delving Deep into Rectifiers, 2015, eq. 10), whatever
    the activation: where a norm follows, the scale of a convolution's weights has no effect on its output, and arms of
    an experiment should begin with the same numbers. Linear layers: uniform with variance 2 / (fan_in + fan_out)
    (Glorot and Bengio, Understanding the Difficulty of Training Deep Feedforward Networks, 2010, eq. 16). Biases are
    0, norms begin as the identity with their running statistics reset. A module with parameters of its own kind has a
    method ``initialize_parameters(generator)``.

    Args:
        generator: on the CPU; None is torch's default one.
    """
    if hasattr(module, "initialize_parameters"):
        module.initialize_parameters(generator)  # type: ignore[operator]
    elif isinstance(module, nn.Conv2d | nn.Linear):
        # In the default layout: the same numbers for every memory format.
        weight = torch.empty(module.weight.shape, device="cpu")
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
        else:
            nn.init.xavier_uniform_(weight, generator=generator)
        module.weight.copy_(weight)
        if module.bias is not None:
            module.bias.zero_()
    elif isinstance(module, _NORMS):
        module.reset_parameters()
    else:
        return False
    return True
