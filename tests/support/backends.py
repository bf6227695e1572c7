"""The table of backends under test. One joins every test by a row; one that cannot run is skipped with its reason."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import fastdl
from fastdl.ops.dispatch import BACKENDS

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class BackendUnderTest:
    """A backend by name, and the kinds of device that its tests run on, best first."""

    name: str
    devices: tuple[str, ...]

    def device(self) -> torch.device:
        """The device of this backend's tests; skips the test, with the reason, where there is none."""
        status = fastdl.backends()[self.name]
        if not status.available:
            pytest.skip(f"backend {self.name!r}: {status.reason}")
        for device in self.devices:
            served = self.name == "reference" or device in BACKENDS[self.name].devices
            if served and (device == "cpu" or torch.cuda.is_available()):
                return torch.device(device)
        pytest.skip(f"backend {self.name!r}: none of its devices ({', '.join(self.devices)}) is here")

    def dtypes(self) -> frozenset[torch.dtype]:
        return frozenset(FLOATING) if self.name == "reference" else BACKENDS[self.name].dtypes


BACKENDS_UNDER_TEST = {
    backend.name: backend
    for backend in (
        BackendUnderTest("reference", ("cpu",)),
        BackendUnderTest("cpu", ("cpu",)),
        BackendUnderTest("triton", ("cuda", "cpu")),
        BackendUnderTest("cuda", ("cuda",)),
    )
}


def short(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``: test ids."""
    return str(dtype).removeprefix("torch.")
