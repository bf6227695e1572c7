"""The hook in the plans: in what order sizes are found, what a trial clears, and that plans stay consistent."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="the triton package is missing")

from triton.runtime.errors import OutOfResources

from fastdl import native
from fastdl.kernels import attention_plan, configs, convolution_plan, dropout, row_norm_plan, tuned
from fastdl.kernels.convolution_layout import Geometry
from fastdl.kernels.launch import taking_down
from fastdl.kernels.row_norm_layout import Rows
from fastdl.kernels.shipped import all_shipped
from fastdl.tuning import store

ROWS = Rows(4096, 768, 4096, False, 8, 2)
NORM = configs.Problem(4, 8, 4, 4096, 4096, False, False, 4, False, 4)
ATTENTION = attention_plan.Problem(2, 4, 8, 8, 1000, 900, 64, 64, False, False, False, 90)
DEVICE = store.Device("NVIDIA H100", "9.0")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[None]:
    monkeypatch.setenv("FASTDL_CACHE", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv(store.SWITCH, raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    tuned.forget()
    yield
    monkeypatch.undo()
    tuned.forget()


def forward() -> row_norm_plan.OnChip:
    plan = row_norm_plan.forward_on_chip(ROWS, 132, row_norm_plan.LIMITS)
    assert plan is not None
    return plan


def key_of_rows() -> str:
    with tuned.asking() as asked:
        forward()
    assert [one.name for one in asked] == ["row_norm_forward"]
    return asked[0].key


def pretend_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(store, "gpu", lambda: DEVICE)


def test_a_trial_is_seen_and_taken_back() -> None:
    own = forward()
    with tuned.trying("row_norm_forward", (own.rows * 2, 16)):
        tried = forward()
        assert (tried.rows, tried.warps) == (own.rows * 2, 16)
        assert tried.programs == -(-ROWS.rows // tried.rows) != own.programs
        with tuned.trying("row_norm_forward", (1, 2), key_of_rows()):
            assert (forward().rows, forward().warps) == (1, 2)
        with tuned.trying("row_norm_forward", (1, 2), "another bucket"):
            assert forward() == tried
        assert forward() == tried
    assert forward() == own
    with pytest.raises(RuntimeError, match="stop"), tuned.trying("row_norm_forward", (1, 1)):
        raise RuntimeError("stop")
    assert forward() == own


@pytest.mark.parametrize("sizes", [(1,), (1, 2, 3), (0, 4), (1, 2.0), (True, 4)])
def test_sizes_that_are_none_are_refused(sizes: Any) -> None:
    with pytest.raises(ValueError, match=r"'row_norm_forward' must be 2 positive ints \(rows, warps\)"):
        tuned.trying("row_norm_forward", sizes).__enter__()
    with pytest.raises(ValueError, match=r"name must be one of attention_forward, .*; got 'nothing'"):
        tuned.trying("nothing", (1, 2)).__enter__()
    assert not tuned._trials


def test_the_stored_table_stands_between_trial_and_default(monkeypatch: pytest.MonkeyPatch) -> None:
    own, key = forward(), key_of_rows()
    store.update(DEVICE, sizes={"row_norm_forward": {key: {"sizes": [own.rows * 2, 8]}}})
    tuned.forget()
    assert forward() == own  # no GPU
    pretend_gpu(monkeypatch)
    tuned.forget()
    stored = forward()
    assert (stored.rows, stored.warps) == (own.rows * 2, 8)
    with tuned.trying("row_norm_forward", (1, 1)):
        assert (forward().rows, forward().warps) == (1, 1)
    assert forward() == stored
    monkeypatch.setenv(store.SWITCH, "0")
    tuned.forget()
    assert forward() == own
    monkeypatch.delenv(store.SWITCH)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    tuned.forget()
    assert forward() == own


def test_stored_sizes_that_do_not_compile_for_a_call_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """They were measured in another problem of the bucket. One warning, and the plans' own sizes from there on."""
    own, key = forward(), key_of_rows()

    def kernel(wanted: int) -> tuple[int, row_norm_plan.OnChip]:
        plan = forward()
        if plan != own:
            raise OutOfResources(300000, 232448, "shared memory")
        return wanted, plan

    assert tuned.guarded(kernel) is kernel  # where nothing is stored
    pretend_gpu(monkeypatch)
    store.update(DEVICE, sizes={"row_norm_forward": {key: {"sizes": [own.rows * 2, 8]}}})
    tuned.forget()
    guarded = tuned.guarded(kernel)
    assert guarded is not kernel
    with tuned.trying("row_norm_forward", (1, 1)), pytest.raises(OutOfResources):
        guarded(3)  # a trial is told
    with pytest.warns(native.FastdlWarning, match="OutOfResources: .*shared memory.*fastdl tune --clear") as caught:
        assert guarded(3) == (3, own)
    assert len(caught) == 1
    assert guarded(4) == (4, own)
    assert store.load(DEVICE).content is not None


@pytest.mark.parametrize("error", [ValueError("a shape"), RuntimeError("CUDA error")])
def test_other_errors_are_not_the_sizes(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch)
    store.update(DEVICE, sizes={"row_norm_forward": {"a": {"sizes": [2, 8]}}})
    tuned.forget()
    calls = []

    def kernel() -> None:
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        tuned.guarded(kernel)()
    assert len(calls) == 1
    assert tuned._table


def test_another_number_of_sizes_in_the_table_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    own, key = forward(), key_of_rows()
    pretend_gpu(monkeypatch)
    store.update(DEVICE, sizes={"row_norm_forward": {key: {"sizes": [2, 8, 3]}}})
    tuned.forget()
    assert forward() == own


def test_the_table_is_read_once_and_not_by_lists_of_what_ships(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it is read, after, and with plans in the caches that came from it."""
    plain = [(entry.name, dict(entry.constexprs), entry.num_warps, entry.num_stages) for entry in all_shipped()]
    own, key = forward(), key_of_rows()
    pretend_gpu(monkeypatch)
    everything = {name: {key: {"sizes": [16] * len(fields)}} for name, fields in tuned.FIELDS.items()}
    store.update(DEVICE, sizes=everything)
    reads: list[store.Device | None] = []
    read = store.sizes_of

    def counted(device: store.Device | None) -> Any:
        reads.append(device)
        table = read(device)
        # Whatever the bucket.
        return {name: AnyKey(next(iter(buckets.values()))) for name, buckets in table.items()}

    monkeypatch.setattr(store, "sizes_of", counted)
    tuned.forget()
    with taking_down():
        assert forward() == own
    assert not reads
    with tuned.asking(), taking_down():
        assert forward() == own
    for _ in range(2):
        found = [(entry.name, dict(entry.constexprs), entry.num_warps, entry.num_stages) for entry in all_shipped()]
        assert found == plain
        assert (forward().rows, forward().warps) == (16, 16)
    assert reads == [DEVICE]


class AnyKey(dict[str, tuple[int, ...]]):
    """A table that has one answer for every bucket."""

    def __init__(self, answer: tuple[int, ...]) -> None:
        self.answer = answer

    def __bool__(self) -> bool:
        return True

    def get(self, key: str, default: Any = None) -> Any:
        return self.answer


def test_without_a_gpu_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(store, "gpu", lambda: pytest.fail("asked for the GPU"))
    tuned.forget()
    forward()
    configs.split.cache_clear()
    configs.split(NORM, 1024, configs.LIMITS)


def test_every_cached_plan_that_asks_is_registered() -> None:
    cached = {
        function
        for module in (attention_plan, configs, convolution_plan, dropout, row_norm_plan)
        for name, function in vars(module).items()
        if hasattr(function, "cache_clear") and function.__module__ == module.__name__ and not name.startswith("_")
    }
    helpers = {configs.problem_of, configs.merge}  # which ask for no sizes
    assert cached - helpers <= set(tuned._plans)


def drawn(name: str, draw: random.Random) -> tuple[int, ...]:
    """Sizes as a table may hold them: powers of two, of matrices from 16 on."""
    least = 4 if name.startswith(("attention", "convolution")) else 0
    return tuple(
        1 << draw.randint(0, 4) if field == "warps" else draw.randint(1, 5) if field == "stages"
        else 1 << draw.randint(least, 8)
        for field in tuned.FIELDS[name]
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(25))
def test_plans_are_consistent_for_any_sizes(seed: int) -> None:
    """What is derived covers the problem exactly once, whatever sizes are tried."""
    draw = random.Random(seed)
    problem = NORM._replace(
        outer=draw.randint(1, 9), groups=draw.randint(1, 12), width=draw.choice([1, 3, 16]),
        positions=draw.randint(1, 9000), channels_last=draw.random() < 0.5,
    )  # fmt: skip
    for name in ("norm_moments", "norm_sums", "norm_apply_forward", "norm_apply_backward"):
        sizes = drawn(name, draw)
        with tuned.trying(name, sizes):
            plan = configs.split(problem, draw.choice([1, 64, 1024]), configs.LIMITS, name=name)
        assert (plan.positions, plan.channels, plan.warps) == sizes
        covered = plan.positions * plan.tiles * plan.chunks
        assert covered >= problem.positions > covered - plan.positions * plan.tiles
        assert plan.programs == problem.outer * -(-problem.channels // plan.channels) * plan.chunks
    for backward, name in ((False, "norm_forward"), (True, "norm_backward")):
        sizes = drawn(name, draw)
        with tuned.trying(name, sizes):
            tile = configs.on_chip(problem, backward, configs.LIMITS)
        if tile is not None:
            assert 1 <= tile.groups <= min(problem.groups, sizes[0])
            assert tile.channels >= tile.groups * problem.width > tile.channels // 2
            assert tile.table >= tile.groups
            assert tile.warps == sizes[1]
    rows = ROWS._replace(rows=draw.randint(1, 5000), width=draw.randint(1, 40000))
    limits = row_norm_plan.LIMITS
    sizes = drawn("row_norm_backward", draw)
    with tuned.trying("row_norm_backward", sizes):
        kept = row_norm_plan.backward_on_chip(rows, 132, True, 3, limits)
    if kept is not None:
        tiles = -(-rows.rows // kept.rows)
        assert (kept.rows, kept.warps) == sizes[:2]
        assert 1 <= kept.programs <= tiles
        assert 1 <= kept.stages <= min(sizes[2], -(-tiles // kept.programs))
    with tuned.trying("row_norm_wide", drawn("row_norm_wide", draw)):
        wide = row_norm_plan.wide(rows, 132, limits)
    covered = wide.columns * wide.tiles * wide.parts
    assert covered >= rows.width > covered - wide.columns * wide.tiles
    with tuned.trying("row_norm_columns", drawn("row_norm_columns", draw)):
        blocks = row_norm_plan.column_blocks(rows, 132, limits)
    assert blocks.programs == blocks.chunks * -(-rows.width // blocks.columns)
    assert blocks.chunks <= -(-rows.rows // blocks.rows)


@pytest.mark.parametrize("seed", range(25))
def test_plans_of_products_are_consistent_for_any_sizes(seed: int) -> None:
    draw = random.Random(seed)
    problem = ATTENTION._replace(length=draw.randint(17, 2000), keys=draw.randint(300, 2000))
    sizes = drawn("attention_forward", draw)
    with tuned.trying("attention_forward", sizes):
        tile = attention_plan.forward(problem, attention_plan.LIMITS).tile
    assert (tile.columns, tile.warps, tile.stages) == sizes[1:]
    assert tile.rows <= sizes[0]
    assert tile.edges == (problem.keys % tile.columns > 0)
    assert tile.interior == (problem.keys >= tile.columns)
    assert tile.edge >= problem.keys % tile.columns
    sizes = drawn("attention_backward_keys", draw)
    with tuned.trying("attention_backward_keys", sizes):
        keys = attention_plan.backward(problem, attention_plan.LIMITS).keys
    assert (keys.rows, keys.columns, keys.warps, keys.stages) == sizes
    assert keys.edges == (problem.length % keys.rows > 0)
    shape = (1, 8, problem.length, problem.keys)
    with tuned.trying("attention_mask_gradient", drawn("attention_mask_gradient", draw)):
        mask = attention_plan.mask_gradient(problem, shape, attention_plan.LIMITS)
    assert mask.tiles == 8 * -(-problem.length // mask.rows) * -(-problem.keys // mask.columns)
    groups = draw.choice([1, 2, 64])
    geometry = Geometry(
        2, 64, (draw.randint(3, 40), 17), 64, (draw.randint(1, 40), 17), (3, 3), (1, 1), (1, 1), (1, 1), groups
    )
    call = convolution_plan.Problem(geometry, 2, 1, False, False, 90)
    direct = "direct_" if convolution_plan.is_direct(geometry, convolution_plan.LIMITS) else ""
    for function, rows in (("forward", 2 * geometry.out_positions), ("data", convolution_plan.rows_of_phase(call))):
        name = f"{direct}convolution_{function}"
        sizes = drawn(name, draw)
        with tuned.trying(name, sizes):
            found = getattr(convolution_plan, function)(call, convolution_plan.LIMITS)
        assert (found.rows, found.columns, found.warps) == (*sizes[:2], sizes[2 if direct else 3])
        assert found.chunks == -(-rows // found.rows)
    name = f"{direct}convolution_weight"
    with tuned.trying(name, drawn(name, draw)):
        weight = convolution_plan.weight(call, convolution_plan.LIMITS)
    step = weight.tile.rows if direct else weight.tile.depth
    assert weight.tile.chunks == -(-2 * geometry.out_positions // step)
    assert weight.tiles * weight.splits >= weight.tile.chunks > weight.tiles * (weight.splits - 1)


def test_keys_are_text_of_what_they_hold() -> None:
    assert tuned.key_of({"itemsize": 2, "windowed": True, "more": False, "one": 1}) == "itemsize=2 windowed one=1"
    key = key_of_rows()
    assert key == "itemsize=2 unit=8 width=1024 rows=4096"


def test_dropout_takes_a_trial() -> None:
    x = torch.empty(64, 512, device="meta")
    with tuned.trying("dropout", (64, 2)), taking_down() as launches:
        dropout.forward(x, None, torch.empty(1, dtype=torch.int64, device="meta"), 0.1)
    assert (launches[0].constants["CALLS"], launches[0].warps) == (64, 2)
    assert launches[0].programs == 64 * 512 // 8 // 64
