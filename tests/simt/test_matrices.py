"""ldmatrix, stmatrix, mma and wgmma against NumPy."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.simt.harness import HERE, ORDERS, VARIANTS, Case, InOut, Output, build, run
from tests.simt.test_exchange import SOURCES

WARP_GROUPS = [HERE / "kernels" / "warp_groups.cu"]


def bfloat16(values: NDArray[np.float32]) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
    """Values with few enough bits for bfloat16, as its bits and as themselves."""
    rounded = (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return (rounded.view(np.uint32) >> 16).astype(np.uint16), rounded


def normal(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_ldmatrix_and_stmatrix(variant: str, order: str) -> None:
    shapes = [(count, transposed) for count in (1, 2, 4) for transposed in (0, 1)]
    matrices = np.arange(256, dtype=np.uint16).reshape(4, 8, 8)
    cases = [
        Case(
            "ldmatrix",
            {"in": matrices[:count], "out": Output((count, 32), np.uint32)},
            {"count": count, "transposed": transposed},
        )
        for count, transposed in shapes
    ]
    cases.append(Case("stmatrix", {"in": matrices, "out": Output((4, 8, 8), np.uint16)}))
    *loads, store = run(build(SOURCES, variant), cases, order, seed=4)
    for (count, transposed), result in zip(shapes, loads, strict=True):
        result.check()
        seen = matrices[:count].transpose(0, 2, 1) if transposed else matrices[:count]
        # Lane 4 r + c holds elements (r, 2 c) and (r, 2 c + 1), the first in the low half.
        pairs = seen.reshape(count, 32, 2).astype(np.uint32)
        np.testing.assert_array_equal(result.arrays["out"], pairs[..., 0] | pairs[..., 1] << 16)
    store.check()
    np.testing.assert_array_equal(store.arrays["out"], matrices)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_mma(variant: str, order: str) -> None:
    a, b, start = normal(5, 16, 16), normal(6, 16, 8), normal(7, 16, 8)
    half = (a.astype(np.float16), b.astype(np.float16))
    (a_bits, a_brain), (b_bits, b_brain) = bfloat16(a), bfloat16(b)
    cases = [
        Case("mma_float16", {"a": half[0], "b": half[1], "out": InOut(start)}),
        Case("mma_bfloat16", {"a": a_bits, "b": b_bits, "out": InOut(start)}),
        Case("mma_tf32", {"a": a_brain[:, :8].copy(), "b": b_brain[:8], "out": InOut(start)}),
    ]
    truths = [half[0].astype(float) @ half[1].astype(float), a_brain @ b_brain, a_brain[:, :8] @ b_brain[:8]]
    for result, truth in zip(run(build(SOURCES, variant), cases, order, seed=5), truths, strict=True):
        result.check()
        # 16 products are added in float32: a few units in the last place of sums of size 4 to 16.
        np.testing.assert_allclose(result.arrays["out"], start + truth, rtol=0, atol=1e-5)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_wgmma_on_tiles_through_a_pipeline_of_two_stages(variant: str, order: str) -> None:
    cases, truths = [], []
    # Race detection takes time for each byte, and the number of columns changes no path.
    for n, k in ((8, 192), (24, 256)) if variant == "race" else ((8, 192), (24, 256), (256, 128)):
        (a, a_wide), (b, b_wide) = bfloat16(normal(n, 64, k)), bfloat16(normal(n + 1, n, k))
        cases.append(Case("wgmma_tiles", {"a": a, "b": b, "out": Output((64, n), np.float32)}, {"n": n, "k": k}))
        truths.append(a_wide.astype(float) @ b_wide.astype(float).T)
    (a, a_wide), (b, b_wide) = bfloat16(normal(8, 64, 64)), bfloat16(normal(9, 64, 128))
    cases.append(Case("wgmma_transposed_tiles", {"a": a, "b": b, "out": Output((64, 128), np.float32)}))
    truths.append(a_wide.astype(float) @ b_wide.astype(float))
    for result, truth in zip(run(build(WARP_GROUPS, variant), cases, order, seed=6), truths, strict=True):
        result.check()
        np.testing.assert_allclose(result.arrays["out"], truth, rtol=0, atol=1e-4)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_wgmma_on_core_matrices_and_registers(variant: str, order: str) -> None:
    a, b = normal(10, 64, 16).astype(np.float16), normal(11, 16, 16).astype(np.float16)
    cases = [
        Case("wgmma_core", {"a": a, "b": b, "out": Output((64, 16), np.float32)}, {"form": form}) for form in range(6)
    ]
    for result in run(build(WARP_GROUPS, variant), cases, order, seed=7):
        result.check()
        truth = 1 + a.astype(float) @ b.astype(float)
        np.testing.assert_allclose(result.arrays["out"], truth, rtol=0, atol=1e-5)
