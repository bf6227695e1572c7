"""cp.async, tensor tiles and clusters against NumPy."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.simt.cases import Operand
from tests.simt.harness import ORDERS, VARIANTS, Case, InOut, Machine, Output, build, run
from tests.simt.test_exchange import SOURCES


def normal(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_cp_async(variant: str, order: str) -> None:
    inputs = [normal(n, n) for n in (128, 301, 640)]
    cases = [Case("two_stages", {"in": x, "out": Output((128,), np.float32)}) for x in inputs]
    cases.append(Case("arriving", {"in": inputs[0], "out": Output((128,), np.float32)}))
    *sums, arriving = run(build(SOURCES, variant), cases, order, seed=8)
    for x, result in zip(inputs, sums, strict=True):
        result.check()
        padded = np.pad(x, (0, -len(x) % 128)).reshape(-1, 128)
        np.testing.assert_allclose(result.arrays["out"], padded.sum(0), rtol=1e-6, atol=1e-6)
    arriving.check()
    np.testing.assert_array_equal(arriving.arrays["out"], inputs[0][::-1])


# Sizes, box, first coordinates, swizzle; the innermost dimension first.
TILES = [
    ([96], [32], [64], 0),
    ([96], [32], [-4], 0),
    ([20, 7], [8, 4], [16, 5], 0),
    ([64, 12], [32, 8], [0, 2], 3),
    ([64, 12], [16, 8], [20, -3], 2),
    ([64, 12], [8, 16], [60, 2], 1),
    ([8, 5, 6], [4, 3, 2], [4, 1, 5], 0),
    ([8, 5, 6, 3], [8, 2, 3, 2], [0, 4, -1, 2], 0),
    ([4, 3, 5, 2, 3], [4, 2, 2, 2, 2], [0, 2, 1, 0, 2], 0),
]


def swizzled(box: NDArray[np.float32], swizzle: int) -> NDArray[np.float32]:
    """The box as it lies in shared memory, at an address that is a multiple of 1024."""
    if swizzle == 0:
        return box.ravel()
    chunks = box.reshape(-1, 4)
    at = np.arange(len(chunks))
    return chunks[at ^ (at >> 3 & (2**swizzle - 1))].ravel()


def loaded_and_stored(
    tensor: NDArray[np.float32], box: list[int], at: list[int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The box, with zeros outside of the tensor, and a tensor of zeros to which it was stored."""
    loaded = np.zeros(box[::-1], np.float32)
    stored = np.zeros_like(tensor)
    for inside in np.ndindex(*box[::-1]):
        place = tuple(first + i for first, i in zip(at[::-1], inside, strict=True))
        if all(0 <= i < size for i, size in zip(place, tensor.shape, strict=True)):
            loaded[inside] = stored[place] = tensor[place]
    return loaded, stored


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_tiles(variant: str, order: str) -> None:
    cases: list[Case] = []
    truths = []
    for sizes, box, at, swizzle in TILES:
        tensor = normal(len(cases), *reversed(sizes))
        arrays: dict[str, Operand] = {
            "in": tensor,
            "out": InOut(np.zeros_like(tensor)),
            "shared": Output((int(np.prod(box)),), np.float32),
            "sizes": np.array(sizes, np.uint64),
            "box": np.array(box, np.uint32),
            "at": np.array(at, np.int32),
        }
        cases.append(Case("tile", arrays, {"rank": len(sizes), "swizzle": swizzle}))
        loaded, stored = loaded_and_stored(tensor, box, at)
        truths.append((swizzled(loaded, swizzle), stored))
    for result, (shared, out) in zip(run(build(SOURCES, variant), cases, order, seed=9), truths, strict=True):
        result.check()
        np.testing.assert_array_equal(result.arrays["shared"], shared)
        np.testing.assert_array_equal(result.arrays["out"], out)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_clusters(variant: str, order: str) -> None:
    sizes = (1, 2, 8, 16)
    inputs = [normal(size, 2, size, 32) for size in sizes]
    cases = [
        Case("cluster_sum", {"in": x, "out": Output(x.shape, np.float32)}, {"size": size})
        for size, x in zip(sizes, inputs, strict=True)
    ]
    cases.append(Case("gather", {"in": inputs[0].ravel()[:8], "out": Output((8,), np.float32)}))
    *sums, gather = run(build(SOURCES, variant), cases, order, seed=10)
    for x, result in zip(inputs, sums, strict=True):
        result.check()
        truth = x.sum((1, 2), keepdims=True) + 1000 * np.roll(x, -1, axis=1)
        np.testing.assert_allclose(result.arrays["out"], truth, rtol=1e-5, atol=1e-3)
    gather.check()
    np.testing.assert_array_equal(gather.arrays["out"], 2 * inputs[0].ravel()[:8])


def test_clusters_are_refused_where_the_machine_has_none() -> None:
    x = normal(0, 2, 2, 32)
    case = Case("cluster_sum", {"in": x, "out": Output(x.shape, np.float32)}, {"size": 2}, Machine(capability=80))
    [result] = run(build(SOURCES, "plain"), [case])
    assert result.kind == "launch"
