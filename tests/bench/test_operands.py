"""How many sets of inputs a case goes through."""

import pytest
import torch

from fastdl.bench import machine, registry
from fastdl.bench.cases import select
from fastdl.bench.operands import MOST_SETS, SMALL_MACHINE_SETS, count_sets, make_operands

CPU = torch.device("cpu")
MiB = 1 << 20


@pytest.fixture
def caches(monkeypatch):
    monkeypatch.setattr(machine, "cpu_caches", lambda: machine.Caches(private_bytes=1 * MiB, shared_bytes=32 * MiB))
    monkeypatch.setattr(machine, "available_memory", lambda: 8192 * MiB)


@pytest.mark.usefixtures("caches")
def test_a_case_in_the_cores_own_caches_uses_one_set():
    assert count_sets(MiB // 2, CPU, threads=2) == 1
    assert count_sets(MiB // 2 + 1, CPU, threads=2) > 1
    assert count_sets(MiB, CPU, threads=4) == 1


@pytest.mark.usefixtures("caches")
def test_other_cases_read_the_last_level_cache_full_between_two_uses():
    assert count_sets(4 * MiB, CPU, threads=2) == 8
    assert count_sets(5 * MiB, CPU, threads=2) == 7
    assert count_sets(512 * MiB, CPU, threads=2) == SMALL_MACHINE_SETS
    assert count_sets(MiB * 6 // 10, CPU, threads=2) == 54


def test_sets_are_bounded_by_memory_and_number(monkeypatch):
    monkeypatch.setattr(machine, "cpu_caches", lambda: machine.Caches(private_bytes=MiB, shared_bytes=1024 * MiB))
    monkeypatch.setattr(machine, "available_memory", lambda: 640 * MiB)
    assert count_sets(4 * MiB, CPU, threads=1) == 10  # 80 MiB for input and gradient
    monkeypatch.setattr(machine, "available_memory", lambda: 10**6 * MiB)
    assert count_sets(4 * MiB, CPU, threads=1) == MOST_SETS


@pytest.mark.parametrize("name", ["group_norm", "batch_norm"])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_operands_have_the_layout_and_dtype_of_the_case_and_addresses_of_their_own(name, layout):
    benchmark = registry.load(name)
    for case in select(benchmark.cases, layout=layout)[-2:]:
        operands = make_operands(benchmark, case, CPU, sets=3)
        format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        for tensor in (*operands.inputs, *operands.grads):
            assert tensor.is_contiguous(memory_format=format)
            assert str(tensor.dtype) == f"torch.{case.dtype}"
            assert tuple(tensor.shape) == case.size
        assert len({t.data_ptr() for t in (*operands.inputs, *operands.grads)}) == 6
        assert all(t.is_leaf and t.requires_grad for t in operands.inputs)
        assert len(operands.differentiable) == 2
