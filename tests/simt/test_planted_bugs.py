"""Every bug that the harness is for, planted in a small kernel: each is reported, and the kernel without it is not."""

import re

import numpy as np
import pytest

from tests.simt.harness import HERE, ORDERS, VARIANTS, Case, Output, Result, build, run

SOURCES = sorted((HERE / "planted").glob("*.cu"))


def every(kind: str) -> dict[str, set[str]]:
    return {variant: {kind} for variant in VARIANTS}


# What the builds report: a kind of Result.kind, or "wrong" for a result that differs from that of the kernel without
# the bug. A build that is not named need not see it. Several kinds where the order decides which thread comes first.
RACE = {"race": {"race"}}
BUGS: dict[str, dict[str, set[str]]] = {
    "missing_barrier": {**RACE, "plain": {"wrong"}},
    "missing_second_barrier": {**RACE, "plain": {"wrong"}},
    "missing_warp_barrier": {**RACE, "plain": {"wrong"}},
    "static_overflow": {"address": {"address"}, "race": {"out of bounds"}, "plain": {"wrong"}},
    "dynamic_overflow": {"address": {"address"}, "race": {"out of bounds"}, "plain": {"out of bounds"}},
    "tensor_overflow": {"address": {"address"}, "race": {"out of bounds"}, "plain": {"out of bounds"}},
    "tensor_overflow_by_vectors": every("out of bounds"),
    "misaligned_vector": every("misaligned"),
    "wrong_mask": every("wrong mask"),
    "outside_of_mask": every("wrong mask"),
    "wrong_distance": every("wrong"),
    "plain_addition": RACE,
    "float_atomics": {},  # no build by itself, but the orders together: see below
    "divergent_barrier": {**every("divergent barrier"), "race": {"divergent barrier", "race"}},
    "barrier_after_exit": every("divergent barrier"),
    "uninitialised_shared": every("wrong"),
    "missing_copy_wait": {**RACE, "plain": {"wrong"}},
    "missing_wait_for_full": {**RACE, "plain": {"deadlock"}},
    "missing_wait_for_empty": every("mbarrier"),
    "wrong_parity": {**RACE, "plain": {"mbarrier", "deadlock"}},
    "wrong_first_parity": every("deadlock"),
    "too_many_bytes": every("deadlock"),
    "missing_initialisation_barrier": {"race": {"race", "mbarrier"}},
    "missing_cluster_barrier": {"plain": {"wrong"}, "address": {"address"}, "race": {"race", "out of bounds"}},
    "missing_last_cluster_barrier": {"plain": {"wrong"}, "address": {"address"}, "race": {"out of bounds"}},
    "missing_store_wait": {**RACE, "plain": {"wrong"}},
    "missing_proxy_fence": {"race": {"missing proxy fence"}},
    "missing_wgmma_wait": {"plain": {"wrong"}, "address": {"wrong"}, "race": {"wrong"}},
    "blocks_that_overlap": RACE,
    "missing_thread_fence": RACE,
}


def run_all(variant: str, order: str, planted: bool) -> dict[str, Result]:
    cases = []
    for name in BUGS:
        # No multiple of a vector of four.
        n = 126 if name == "tensor_overflow_by_vectors" else 128
        values = np.random.default_rng(1).normal(size=n).astype(np.float32)
        cases.append(Case(name, {"in": values, "out": Output((n,), np.float32)}, {"planted": planted}))
    results = run(build(SOURCES, variant, together=True), cases, order, seed=7)
    return dict(zip(BUGS, results, strict=True))


def test_every_planted_bug_is_in_the_table() -> None:
    found = {name for source in SOURCES for name in re.findall(r"SIMT_CASE\((\w+)\)", source.read_text())}
    assert found == set(BUGS)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_planted_bugs_are_reported_and_the_kernels_without_them_are_not(variant: str, order: str) -> None:
    right = run_all(variant, order, planted=False)
    for result in right.values():
        result.check()
        assert np.isfinite(result.arrays["out"]).all(), result.case.name
    outcomes = {}
    for name, result in run_all(variant, order, planted=True).items():
        kind = result.kind
        if kind is None and not np.array_equal(result.arrays["out"], right[name].arrays["out"]):
            kind = "wrong"
        outcomes[name] = kind
    missed = {
        name: (outcomes[name], builds[variant])
        for name, builds in BUGS.items()
        if variant in builds and outcomes[name] not in builds[variant]
    }
    assert not missed


def test_a_sum_by_float_atomics_depends_on_the_order_and_a_sum_by_shuffles_does_not() -> None:
    def sums(planted: bool) -> set[bytes]:
        return {run_all("plain", order, planted)["float_atomics"].arrays["out"].tobytes() for order in ORDERS}

    assert len(sums(planted=True)) > 1
    assert len(sums(planted=False)) == 1


@pytest.mark.parametrize(
    ("name", "variant", "words"),
    [
        # Both places, by file and line, and both threads.
        ("missing_barrier", "race", r"thread \(\d+, 0, 0\) (reads|writes) byte.*'staged'.*missing_barrier\.cu:\d+"),
        ("missing_barrier", "race", r"\n  at missing_barrier\.cu:\d+\n  in missing_barrier::reverse<true>, block"),
        ("static_overflow", "race", r"past the end of shared 'staged' of 512 bytes"),
        ("tensor_overflow", "plain", r"0 bytes past the end of array 'out' of 512 bytes"),
        ("too_many_bytes", "plain", r"warp 0 lanes ffffffff: at an mbarrier, .*pipeline_bugs\.cu:\d+, for parity 0"),
        ("wrong_mask", "plain", r"which it names, leaves the kernel\n  at .*wrong_mask\.cu:\d+"),
        ("divergent_barrier", "plain", r"at .*divergent_barrier\.cu:\d+"),
        ("static_overflow", "address", r"use-after-poison[\s\S]*static_overflow"),
    ],
)
def test_reports_say_what_and_where(name: str, variant: str, words: str) -> None:
    failure = run_all(variant, "forward", planted=True)[name].failure
    assert failure is not None
    assert re.search(words, failure), failure
