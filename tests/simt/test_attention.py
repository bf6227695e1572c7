"""Attention's CUDA kernels on the host: the parity table's rows by every path, in every build and order of threads."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdl.reference.attention import attention
from tests.simt.attention import suite
from tests.simt.attention.calls import Arguments, make_case, results_of, runner
from tests.simt.attention.suite import AMPERE, HALF, HOPPER, WIDE
from tests.simt.harness import Machine, run
from tests.support.accuracy import assert_as_right_as_torch
from tests.support.attention import Case
from tests.support.attention_cases import CASES

PARTS = 6

# Sizes that the table has for other blocks; a letter of each option that meets them.
HOPPER_CASES = (
    Case("wgmma", (1, 2, 130, 64)),
    Case("wgmma_causal", (2, 2, 150, 64), is_causal=True),
    Case("wgmma_several_steps", (1, 2, 200, 128), keys=300, is_causal=True, query_offset=100),
    Case("wgmma_grouped", (1, 4, 100, 64), key_heads=2, is_causal=True),
    Case("wgmma_odd_features", (1, 2, 70, 80), keys=90, value_features=96),
    Case("wgmma_narrow_keys", (1, 1, 70, 40), value_features=128),
    Case("wgmma_narrow_values", (1, 1, 70, 120), keys=33, value_features=40),
    Case("wgmma_packed", (2, 2, 197, 64), layout="packed"),
    Case("wgmma_expanded_batch", (2, 2, 100, 64), layout="expanded_batch"),
    Case("wgmma_expanded_heads", (2, 2, 100, 64), layout="expanded_heads"),
    Case("wgmma_length_first", (2, 3, 100, 64), layout="length_first"),
    Case("wgmma_window", (1, 2, 300, 64), window=(40, 20)),
    Case("wgmma_offsets", (3, 1, 100, 64), keys=200, is_causal=True, offsets=(0, 150, -50)),
    Case("wgmma_sees_nothing", (1, 2, 100, 64), is_causal=True, query_offset=-1000),
    Case("wgmma_bool", (2, 2, 100, 64), keys=140, mask="bool", mask_shape="NS"),
    Case("wgmma_additive", (1, 2, 100, 128), keys=140, mask="additive", mask_shape="HLS"),
    Case("wgmma_empty_rows", (1, 2, 100, 128), keys=140, mask="minus_infinity", empty_rows=True),
    Case("wgmma_softcap", (1, 2, 100, 64), softcap=2.0),
    Case("wgmma_dropout", (1, 2, 130, 64), keys=270, dropout_p=0.3, is_causal=True),
    Case("wgmma_dropout_wide", (1, 2, 100, 128), dropout_p=0.5, seed=-77),
    Case("wgmma_log_sum", (1, 2, 100, 64), with_log_sum=True),
)

# One for each kernel of each width, with blocks and steps that are not full; all options meet in some.
EVERY_WIDTH = tuple(
    Case(f"width_{features}", (1, 2, 70, features), keys=75, is_causal=True, mask="additive", mask_shape="HS")
    for features in (24, 64, 90, 128, 180, 256)
)
SPLIT_CASES = (
    Case("split", (2, 2, 1, 64), keys=1100),
    Case("split_grouped", (1, 8, 3, 32), key_heads=2, keys=1100, is_causal=True, query_offset=1097),
    Case("split_sees_little", (2, 2, 2, 16), keys=1500, is_causal=True, offsets=(3, 1400)),
    Case("split_sees_nothing", (1, 2, 2, 16), keys=1100, is_causal=True, query_offset=-5),
    Case("split_bool", (1, 2, 1, 16), keys=1100, mask="bool", mask_shape="S"),
    Case("split_dropout", (1, 2, 1, 16), keys=1100, dropout_p=0.3),
    Case("split_window", (1, 2, 1, 16), keys=3000, window=(1200, 0), query_offset=2500),
)


@pytest.mark.parametrize("part", range(PARTS))
def test_parity(part: int) -> None:
    rows = suite.prepare(suite.small_rows(CASES, 9000)[part::PARTS])
    suite.check_rows(rows, HOPPER)
    suite.check_rows(rows[::3], AMPERE, order="random")
    suite.check_rows(rows[::4], WIDE, order="reversed")


@pytest.mark.parametrize("dtype", HALF)
def test_parity_by_wgmma(dtype: torch.dtype) -> None:
    rows = suite.prepare((case, dtype) for case in HOPPER_CASES)
    launched = suite.check_rows(rows, HOPPER)
    assert sum(count for name, count in launched.items() if name.startswith("attention_forward_wgmma")) == len(rows)


@pytest.mark.parametrize(
    "variant", ["plain", *(pytest.param(name, marks=pytest.mark.slow) for name in ("race", "address"))]
)
def test_every_kernel_is_right_in_every_build(variant: str) -> None:
    dtypes = (torch.float32, *HALF) if variant == "plain" else (torch.float32, torch.bfloat16)
    rows = [(case, dtype) for case in EVERY_WIDTH for dtype in dtypes]
    launched = suite.check_rows(suite.prepare(rows), AMPERE, variant, "random")
    launched += suite.check_rows(
        suite.prepare((c, torch.float16) for c in HOPPER_CASES[::2]), HOPPER, variant, "reversed"
    )
    launched += suite.check_rows(suite.prepare((c, torch.bfloat16) for c in SPLIT_CASES), WIDE, variant, "random")
    names = {name.partition("::")[0] for name in launched}
    assert names == {
        "attention_forward_mma", "attention_forward_wgmma", "attention_merge", "attention_delta",
        "attention_backward_query", "attention_backward_key", "attention_backward_mask",
    }  # fmt: skip
    widths = Counter(name for name in launched if name.startswith("attention_forward_mma"))
    assert len(widths) >= (3 + 6 * (len(dtypes) - 1))


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_keys_split_over_blocks(dtype: torch.dtype) -> None:
    launched = suite.check_rows(suite.prepare((case, dtype) for case in SPLIT_CASES), WIDE)
    assert sum(count for name, count in launched.items() if name.startswith("attention_merge")) == len(SPLIT_CASES)


def test_the_same_bits_in_every_order() -> None:
    rows = [(case, torch.bfloat16) for case in (*EVERY_WIDTH[::2], *HOPPER_CASES[::4], *SPLIT_CASES[::3])]
    calls = [suite.arguments_of(row, machine) for row in suite.prepare(rows) for machine in (HOPPER, WIDE)]
    suite.check_orders(calls)


# -- sequences one after another ---------------------------------------------------------------------------------------


def sequences(
    lengths: list[tuple[int, int]], features: int, dtype: torch.dtype, *, rest: int = 0, wide: bool = False, **more: Any
) -> Arguments:
    """Sequences of these numbers of queries and keys; ``rest`` rows behind the last belong to none."""
    generator = torch.Generator().manual_seed(len(lengths) + features)

    def rows(count: int, heads: int) -> Tensor:
        return torch.randn(count, heads, features, generator=generator).to(dtype).transpose(0, 1)[None]

    ends = torch.tensor([(0, 0), *lengths]).cumsum(0)
    starts = ends.to(torch.int64 if wide else torch.int32)
    queries, keys = int(ends[-1, 0]) + rest, int(ends[-1, 1]) + rest
    return Arguments(
        rows(queries, 4), rows(keys, 2), rows(keys, 2), starts=(starts[:, 0].contiguous(), starts[:, 1].contiguous()),
        grad_output=rows(queries, 4), **more,
    )  # fmt: skip


SEQUENCES = {
    "several": sequences([(5, 7), (70, 70), (1, 130)], 16, torch.float32),
    "causal": sequences([(40, 40), (3, 3), (90, 90)], 64, torch.bfloat16, window=(-1, 0)),
    "empty_ones": sequences([(0, 4), (5, 0), (0, 0), (9, 9)], 8, torch.float32, window=(-1, 0)),
    "a_rest": sequences([(5, 7), (6, 6)], 16, torch.float16, rest=11, wide=True),
    "window": sequences([(100, 100), (30, 30)], 32, torch.bfloat16, window=(7, 3), wide=True),
    "dropout": sequences([(20, 40), (75, 75)], 16, torch.float32, dropout_p=0.25, seed=99),
    "dropout_from_device": sequences([(20, 40)], 16, torch.float32, dropout_p=0.25, seed=-99, seed_on_device=True),
    "none": sequences([], 8, torch.float32, rest=4),
}


def definition(given: Arguments, *, double: bool) -> dict[str, Tensor]:
    dtype = torch.float64 if double else given.query.dtype
    query, key, value = leaves = [
        tensor.detach().to(dtype).requires_grad_() for tensor in (given.query, given.key, given.value)
    ]
    starts_q, starts_k = given.starts or (None, None)
    output, log_sum = attention(
        query, key, value, None, None, starts_q, starts_k, torch.tensor([given.seed]),
        1 / math.sqrt(given.query.shape[3]), 0.0, given.window[0], given.window[1], 0, given.dropout_p, 0, 0,
    )  # fmt: skip
    assert given.grad_output is not None
    found = torch.autograd.grad(output, leaves, given.grad_output.to(dtype))
    names = ("gradient of query", "gradient of key", "gradient of value")
    return {"output": output.detach(), "log_sum": log_sum.detach()} | dict(zip(names, found, strict=True))


# With every thread order a build with a sanitizer takes the better part of a minute: slow, but for the plain one.
@pytest.mark.parametrize(
    "variant", ["plain", *(pytest.param(name, marks=pytest.mark.slow) for name in ("race", "address"))]
)
@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences(name: str, variant: str) -> None:
    given = SEQUENCES[name]
    [result] = suite.solve([given], variant, "random")
    found, truth = results_of(result, given), definition(given, double=True)
    baseline = definition(given, double=False)
    assert given.starts is not None
    inside = {"query": int(given.starts[0][-1]), "key": int(given.starts[1][-1])}
    for what, ours in found.items():
        rows = inside["key"] if what.endswith(("key", "value")) else inside["query"]
        assert ours[:, :, rows:].isnan().all(), f"{what}: something was written that is in no sequence"
        assert_as_right_as_torch(
            f"{name}: {what}", ours[:, :, :rows], truth[what][:, :, :rows], baseline[what][:, :, :rows].to(ours.dtype),
            factor=2.5, floor=1.0, units=suite.UNITS_OF_GRADIENTS,
        )  # fmt: skip


@pytest.mark.parametrize("starts", [[0, 900, 9], [-5, 3, 7], [6, 2, 9], [0, 4, -1]])
def test_starts_that_are_wrong_touch_nothing_else(starts: list[int]) -> None:
    given = SEQUENCES["several"]
    wrong = torch.tensor(starts, dtype=torch.int32)
    given = replace(given, starts=(wrong, wrong))
    case = make_case(given)
    case = replace(case, scalars={**case.scalars, "longest_query": 90, "longest_key": 90})
    [result] = run(runner("address"), [case])
    result.check()


# -- what no row of the table asks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [(), ("query",), ("key",), ("value", "mask"), ("mask",), ("query", "value")])
@pytest.mark.parametrize("features", [64, 256])
def test_gradients_that_are_not_asked_for(wanted: tuple[str, ...], features: int) -> None:
    case = Case(f"wanted_{features}", (1, 2, 20, features), keys=30, mask="additive", mask_shape="HS")
    [row] = suite.prepare([(case, torch.bfloat16)])
    whole = suite.arguments_of(row, AMPERE)
    first, second = suite.solve([whole, replace(whole, wanted=wanted)])
    first.check()
    second.check()
    for name in wanted:
        assert first.arrays[f"grad_{name}"].tobytes() == second.arrays[f"grad_{name}"].tobytes()
    assert sum(name.startswith("grad_") for name in second.arrays) == len(wanted)


@pytest.mark.parametrize("machine", [AMPERE, HOPPER], ids=["mma", "wgmma"])
@pytest.mark.parametrize("dtype", HALF)
def test_a_value_that_is_not_a_number_is_seen_where_it_is_seen(machine: Machine, dtype: torch.dtype) -> None:
    """In a query its row, in a key and in a value the rows that see it; causal, so that some do not."""
    case = Case("nonfinite", (1, 2, 100, 64), is_causal=True)
    [row] = suite.prepare([(case, dtype)])
    whole = suite.arguments_of(row, machine)
    for where in ("query", "key", "value"):
        tensors = {name: getattr(whole, name).clone() for name in ("query", "key", "value")}
        tensors[where][0, 1, 40, 3] = float("nan")
        given = replace(whole, **tensors)
        [result] = suite.solve([given])
        output = results_of(result, given)["output"]
        wrong = output.isnan().any(-1)
        assert not wrong[0, 0].any()
        rows = wrong[0, 1].nonzero().flatten().tolist()
        seen = [40] if where == "query" else list(range(40, 100))
        # A value that no query of a row sees still meets a weight of zero where the block's other rows see it.
        assert set(seen) <= set(rows), where
        if where != "value":
            assert rows == seen, where
