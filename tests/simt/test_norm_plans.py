"""What the CUDA norms launch on a GPU of a given size, and that steps of more than 2**31 values do not wrap around."""

from __future__ import annotations

import pytest

from tests.simt.harness import Case, Machine, run
from tests.simt.norms.calls import PATHS, runner

H100 = Machine(multiprocessors=132, shared_bytes=227 * 1024, capability=90)
A100 = Machine(multiprocessors=108, shared_bytes=163 * 1024, capability=80)
SMALL = Machine(multiprocessors=20, shared_bytes=99 * 1024, capability=86)
FLOAT32, BFLOAT16 = 0, 2

# samples, channels, positions, groups (0: batch norm)
SHAPES = [
    (1, 1, 2, 1), (1, 3, 50_000, 3), (2, 12, 35, 3), (4096, 1024, 1, 32), (1, 4096, 1, 1), (3, 1030, 9, 10),
    (2, 320, 64 * 64, 32), (2, 1280, 16 * 16, 32), (1, 128, 512 * 512, 32), (16, 2056, 4, 1), (1, 257, 10_000_000, 1),
    (8, 32_769, 7, 32_769), (70_000, 64, 3, 16), (1, 8, 2**33, 2), (2**20, 4, 1024, 4),
    (128, 64, 112 * 112, 0), (32, 256, 56 * 56, 0), (32, 2048, 7 * 7, 0), (700, 6, 1, 0), (2, 3, 5, 0),
    (1, 1, 2**32, 0), (16, 1, 2**29, 0), (100_000, 512, 1, 0),
]  # fmt: skip


def plan_case(
    shape: tuple[int, int, int, int],
    machine: Machine,
    *,
    dtype: int = BFLOAT16,
    last: bool = False,
    backward: bool = False,
    residual: bool = False,
    path: str = "automatic",
    address: int = 4096,
) -> Case:
    samples, channels, positions, groups = shape
    scalars: dict[str, int | float] = {
        "samples": samples, "channels": channels, "positions": positions, "groups": groups, "dtype": dtype,
        "channels_last": last or positions == 1, "backward": backward, "residual": residual, "path": PATHS.index(path),
        "address": address,
    }  # fmt: skip
    return Case("norm_plan", {}, scalars, machine)


def path_of(case: Case) -> str:
    return PATHS[int(case.scalars["path"])]


@pytest.mark.parametrize("machine", [H100, A100, SMALL], ids=["sm90", "sm80", "sm86"])
def test_every_plan_covers_its_tensor_and_fits_the_machine(machine: Machine) -> None:
    cases = [
        plan_case(shape, machine, dtype=dtype, last=last, backward=backward, residual=residual, path=path, address=at)
        for shape in SHAPES
        for last in (False, True)
        for backward, residual in ((False, False), (True, False), (True, True))
        for dtype, path, at in ((FLOAT32, "automatic", 4096), (BFLOAT16, "automatic", 4096), (BFLOAT16, "split", 4098))
    ]
    for case, result in zip(cases, run(runner("plain"), cases), strict=True):
        result.check()
        plan, scalars = result.reports, case.scalars
        where = f"{dict(scalars)}: {plan}"
        assert plan["plan.blocks"] > 0, where
        assert plan["threads"] % 32 == 0, where
        assert 32 <= plan["threads"] <= 512, where
        assert plan["shared_bytes"] <= machine.shared_bytes, where
        assert plan["cluster"] == (plan["plan.ranks"] if PATHS[plan["plan.path"]] != "split" else 1), where
        assert plan["cluster"] <= (8 if machine.capability >= 90 else 1), where
        width = (4 if scalars["dtype"] == FLOAT32 else 8) if plan["plan.vector"] else 1
        values = scalars["samples"] * scalars["channels"] * scalars["positions"]
        assert plan["plan.blocks"] * plan["threads"] * plan["slots"] * width >= values, where
        # Few values a slab make partial results count for more, as does a path that was forced.
        few = scalars["positions"] < 256 or path_of(case) == "split"
        assert few or plan["workspace"] < 16 * 1024 + 0.07 * values * (4 if scalars["dtype"] == FLOAT32 else 2), where


@pytest.mark.parametrize(
    ("shape", "last", "path"),
    [
        ((16, 256, 16 * 16, 32), False, "block"),
        ((64, 256, 16 * 16, 32), True, "block"),
        ((4096, 1024, 1, 32), True, "block"),
        ((2, 320, 64 * 64, 32), False, "cluster"),
        ((2, 320, 64 * 64, 32), True, "cluster"),
        ((32, 256, 56 * 56, 0), False, "cluster"),
        ((1, 128, 512 * 512, 32), False, "split"),  # 2 MB a group: more than the shared memory of eight blocks
        ((128, 64, 112 * 112, 0), False, "split"),
        ((128, 64, 112 * 112, 0), True, "split"),
    ],
)
def test_what_a_large_gpu_takes_for_networks_of_today(shape: tuple[int, int, int, int], last: bool, path: str) -> None:
    for backward in (False, True):
        [result] = run(runner("plain"), [plan_case(shape, H100, last=last, backward=backward)])
        result.check()
        plan = result.reports
        assert plan["plan.vector"]
        # Backward keeps two tensors, so that a block's slab may need a cluster.
        assert PATHS[plan["plan.path"]] == path or (backward and path == "block"), plan
        assert plan["plan.blocks"] >= 128


def test_a_machine_without_clusters_never_asks_for_one() -> None:
    cases = [plan_case(shape, A100, path="cluster") for shape in SHAPES]
    for result in run(runner("plain"), cases):
        result.check()
        assert result.reports["cluster"] == 1


BEYOND = 2**31 + 4096


@pytest.mark.parametrize("path", ["block", "cluster", "split"])
@pytest.mark.parametrize(
    ("shape", "strides", "last"),
    [
        (
            (2, 8, 35),
            (BEYOND, 35, 1),
            False,
        ),  # samples far apart, each at the same place of its 16 bytes as where dense
        ((2, 8, 35), (BEYOND, 1, 8), True),
        ((1, 4, 36), (3 * BEYOND, BEYOND, 1), False),  # channels far apart
        ((1, 4, 5), (4, 1, BEYOND), True),  # positions far apart
        ((3, 3, 7), (2**31 + 1, 7, 1), False),
    ],
    ids=["samples", "samples_last", "channels", "positions_last", "unaligned"],
)
def test_steps_beyond_31_bits(
    shape: tuple[int, int, int], strides: tuple[int, int, int], last: bool, path: str
) -> None:
    numbers = zip(
        ("samples", "channels", "positions", "sample", "channel", "position"), (*shape, *strides), strict=True
    )
    machine = Machine(shared_bytes=24 * 1024) if path == "split" else Machine()
    scalars = {**dict(numbers), "channels_last": last, "path": PATHS.index(path)}
    cases = [Case("far_apart", {}, {**scalars, "groups": groups}, machine) for groups in (shape[1] // 2 or 1, 0)]
    for result in run(runner("plain"), [case for case in cases if shape[1] % (case.scalars["groups"] or 1) == 0]):
        result.check()
        if result.reports["count"] == 0:
            pytest.skip("no address space for tensors of 8 GB and more")
        assert result.reports["extent"] > 2**31
        assert result.reports["equal"]
