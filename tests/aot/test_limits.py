"""The files of limits, and which kernel each is for; without any compiler."""

from dataclasses import replace
from pathlib import Path

import pytest

from .limits import CudaLimits, assign, read_cuda_limits

GENEROUS = CudaLimits(255, 4096, wide_loads=0, wide_stores=0, narrow_loads=None, narrow_stores=None)


def test_a_kernel_without_limits_is_refused() -> None:
    found, wrong = assign(["ns::known<1>", "ns::new"], {"ns::known<*>": GENEROUS}, 90)
    assert found == {"ns::known<1>": GENEROUS}
    assert wrong == ["ns::new on sm_90 has no limits"]


def test_limits_that_overlap_or_fit_nothing_are_refused() -> None:
    limits = {"ns::*": GENEROUS, "ns::known": GENEROUS, "ns::gone*": GENEROUS}
    _, wrong = assign(["ns::known"], limits, 90)
    assert wrong == [
        "ns::known on sm_90 fits several limits: ns::*, ns::known",
        "the limits of ns::gone* fit no kernel on sm_90",
    ]


def test_limits_of_one_architecture_hold_there_alone() -> None:
    limits = {"ns::cluster": replace(GENEROUS, architectures=(90, 100))}
    assert assign(["ns::cluster"], limits, 90) == ({"ns::cluster": limits["ns::cluster"]}, [])
    assert assign([], limits, 80) == ({}, [])
    assert assign(["ns::cluster"], limits, 80)[1] == ["ns::cluster on sm_80 has no limits"]


def test_a_file_of_limits_is_read_and_its_faults_are_told(tmp_path: Path) -> None:
    path = tmp_path / "op.limits.json"
    with pytest.raises(ValueError, match=r"op\.limits\.json is missing"):
        read_cuda_limits(path)
    path.write_text(
        '{"ns::*": {"registers": 32, "shared_bytes": 0, "wide_loads": 1, "wide_stores": 1, '
        '"narrow_loads": null, "narrow_stores": 0, "matrix": {"90": "HGMMA"}, "architectures": [90]}}'
    )
    assert read_cuda_limits(path) == {
        "ns::*": CudaLimits(32, 0, 1, 1, None, 0, matrix={90: "HGMMA"}, architectures=(90,))
    }
    for text in ('{"ns::*": {"registers": 32}}', '{"ns::*": {"register": 32}}', "[]", "{"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"op\.limits\.json: "):
            read_cuda_limits(path)
