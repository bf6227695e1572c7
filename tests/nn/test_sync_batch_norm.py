"""fastdl.nn.SyncBatchNorm: two processes, by gloo, give what one gives for both of their batches together."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdl import nn
from tests.nn.sync_batch_norm_processes import CASES, THIRDS, WHOLE, Case, WholeBatch, network, run_case, samples, train
from tests.support.accuracy import assert_as_right_as_torch, relative_error

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch.distributed is not in this build"
)  # fmt: skip


@pytest.fixture(scope="module")
def all_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of the three processes."""
    folder = tmp_path_factory.mktemp("processes")
    result = subprocess.run(
        [sys.executable, "-m", "tests.nn.sync_batch_norm_processes", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
        cwd=Path(__file__).parents[2],
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(3)]


@pytest.fixture
def processes(all_processes: list[dict[str, Any]], backend: str) -> list[dict[str, Any]]:
    """The results of the two that share the cases' batches."""
    return [results[backend] for results in all_processes[:2]]


def on_one_process(case: Case, dtype: torch.dtype, parameters: torch.dtype) -> dict[str, Any]:
    found = run_case(case, WHOLE, WholeBatch(case, parameters), dtype)
    for kind in ("gradients", "buffers"):
        found[kind] = {name.removeprefix("norm."): value for name, value in found[kind].items()}
    return found


@pytest.mark.parametrize("name", [name for name in CASES if name != "both_are_empty"])
def test_two_processes_give_what_one_gives(name: str, processes: list[dict[str, Any]]) -> None:
    case = CASES[name]
    truth, baseline = by_torch(name)
    # The largest error of a few numbers is a matter of luck: torch's is taken from other draws too.
    typical = [errors_of_torch(name, seed) for seed in (0, 100, 200)]

    def compare(what: str, found: Tensor, expected: Tensor, like: Tensor) -> None:
        assert_as_right_as_torch(what, found, expected, like, typical=max(errors[what] for errors in typical))

    ours = [results[name] for results in processes]
    compare("output", torch.cat([o["output"] for o in ours]), truth["output"], baseline["output"])
    assert ours[0]["gradients"].keys() == truth["gradients"].keys()
    for what, expected in truth["gradients"].items():
        parts = [o["gradients"][what] for o in ours]
        if expected is None:
            assert parts == [None, None]
            continue
        assert [part.shape for part in parts] == (
            [expected[case.share(rank)].shape for rank in range(2)]
            if what in ("input", "residual")
            else [expected.shape] * 2
        )
        joined = torch.cat(parts) if what in ("input", "residual") else sum_of(parts, case.parameters)
        compare(what, joined, expected, baseline["gradients"][what])
    for o in ours:
        assert o["buffers"].keys() == truth["buffers"].keys()
        for what, expected in truth["buffers"].items():
            if what == "num_batches_tracked":
                assert o["buffers"][what] == expected == case.steps
            else:
                compare(what, o["buffers"][what], expected, baseline["buffers"][what])


@cache
def by_torch(name: str, seed: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    """A case on one process, in float64 and in its own dtypes."""
    case = replace(CASES[name], seed=seed)
    return on_one_process(case, torch.float64, torch.float64), on_one_process(case, case.dtype, case.parameters)


@cache
def errors_of_torch(name: str, seed: int) -> dict[str, float]:
    """torch's error, relative to the scale, for each output, gradient and buffer."""

    def flat(results: dict[str, Any]) -> dict[str, Tensor]:
        every = {"output": results["output"], **results["gradients"], **results["buffers"]}
        return {what: value for what, value in every.items() if value is not None}

    truth, found = (flat(results) for results in by_torch(name, seed))
    return {what: relative_error(found[what], expected, expected) for what, expected in truth.items()}


def sum_of(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.stack(parts).double().sum(0).to(dtype)


def test_statistics_are_equal_to_the_last_bit_everywhere(processes: list[dict[str, Any]]) -> None:
    """Otherwise the processes' networks would drift apart in evaluation."""
    for name in CASES:
        first, second = (results[name]["buffers"] for results in processes)
        for what, value in first.items():
            assert torch.equal(value, second[what]), name


def test_layouts_are_kept(processes: list[dict[str, Any]]) -> None:
    for name in ("channels_last", "three_position_dimensions"):
        case = CASES[name]
        for rank, results in enumerate(processes):
            input = case.operands()[0][case.share(rank)]
            assert results[name]["output"].stride() == input.stride()
            assert results[name]["gradients"]["input"].stride() == input.stride()


def test_no_value_on_any_process_changes_nothing(processes: list[dict[str, Any]]) -> None:
    case = CASES["both_are_empty"]
    before = dict(case.module().named_buffers())
    for results in processes:
        found = results["both_are_empty"]
        assert found["output"].shape == found["gradients"]["input"].shape == (0, *case.rest)
        assert not any(found["gradients"][name].any() for name in ("weight", "bias"))
        assert torch.equal(found["buffers"]["running_mean"], before["running_mean"])
        assert torch.equal(found["buffers"]["running_var"], before["running_var"])
        assert found["buffers"]["num_batches_tracked"] == 1


def test_a_converted_network_trains_as_on_one_process(processes: list[dict[str, Any]]) -> None:
    """By DistributedDataParallel, through `ConvNormAct2d` and `BatchNorm2d`: parameters and statistics alike."""
    expected = train(network(), slice(None))
    for results in processes:
        assert results["network"].keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(results["network"][name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_what_torchs_own_conversion_puts_into_a_block_is_synchronized(processes: list[dict[str, Any]]) -> None:
    expected = network()[0](samples()).detach()
    for rank, results in enumerate(processes):
        torch.testing.assert_close(results["torchs_module_inside"], expected[rank::2])


def test_a_process_group_says_who_shares(all_processes: list[dict[str, Any]], backend: str) -> None:
    """By default all three processes, and none in a group of one."""
    case = CASES["silu"]
    whole = run_case(case, WHOLE, case.module())
    for results, part in zip(all_processes, THIRDS, strict=True):
        by_itself = run_case(case, part, case.module())
        for name, expected, own in (("alone", by_itself, WHOLE), ("everyone", whole, part)):
            found = results[backend][name]
            torch.testing.assert_close(found["buffers"], expected["buffers"])
            torch.testing.assert_close(found["output"], expected["output"][own])
            torch.testing.assert_close(
                found["gradients"]["input"], expected["gradients"]["input"][own], rtol=1e-4, atol=1e-5
            )


def test_evaluation_uses_the_running_statistics_and_waits_for_nobody(processes: list[dict[str, Any]]) -> None:
    case = CASES["silu"]
    module = case.module().eval()
    input = case.operands()[0]
    expected = F.silu(
        F.batch_norm(input, module.running_mean, module.running_var, module.weight, module.bias, False, 0.1, 1e-5)
    )
    torch.testing.assert_close(processes[0]["evaluation"], expected)


def test_nan_on_one_process_is_nan_on_all_in_its_channel_alone(processes: list[dict[str, Any]]) -> None:
    for results in processes:
        spoilt = results["spoilt"].isnan()
        assert spoilt[:, 2].all()
        assert not spoilt[:, [0, 1, 3, 4]].any()


def test_it_runs_compiled(processes: list[dict[str, Any]]) -> None:
    """With a break in the graph, at the communication."""
    for results in processes:
        for kind in ("output", "buffers"):
            torch.testing.assert_close(results["compiled"][kind], results["silu"][kind])
        expected = results["silu"]["gradients"]
        for name, gradient in results["compiled"]["gradients"].items():
            torch.testing.assert_close(gradient, expected[name])


def test_a_second_derivative_is_refused(processes: list[dict[str, Any]]) -> None:
    for results in processes:
        assert "differentiate twice" in results["second_derivative"]


def test_conversion_keeps_all_there_is_to_keep() -> None:
    model = torch.nn.Sequential(
        nn.BatchNorm1d(3, eps=0.1, momentum=None, activation="elu", activation_param=0.3, order="act_norm"),
        torch.nn.ModuleDict({"inner": torch.nn.BatchNorm3d(4, affine=False, dtype=torch.float64)}),
        torch.nn.BatchNorm2d(5, track_running_stats=False),
        nn.ConvNormAct2d(3, 8, 3),
        nn.GroupNorm(2, 4),
        nn.SyncBatchNorm(6, activation="silu"),
    ).eval()
    model[0].weight.requires_grad_(False)
    before, state = copy.deepcopy(model), model.state_dict(keep_vars=True)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert converted is model
    kinds = {name: type(module) for name, module in model.named_modules() if "Norm" in type(module).__name__}
    assert {name for name, kind in kinds.items() if kind is nn.SyncBatchNorm} == {"0", "1.inner", "2", "3.norm", "5"}
    assert type(model[4]) is nn.GroupNorm
    after = model.state_dict(keep_vars=True)
    assert list(after) == list(state)
    assert all(after[name] is value for name, value in state.items())
    for name in ("0", "1.inner", "2", "5"):
        old, new = before.get_submodule(name), model.get_submodule(name)
        for option in ("num_features", "eps", "momentum", "affine", "track_running_stats", "training"):
            assert getattr(new, option) == getattr(old, option)
    assert (model[0].activation, model[0].activation_param, model[0].order) == ("elu", 0.3, "act_norm")
    assert (model[2].activation, model[5].activation) == ("identity", "silu")
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(model[3](x), before[3](x))
    x = torch.randn(4, 3)
    torch.testing.assert_close(model[0](x), before[0](x))


def test_a_norm_by_itself_is_replaced_and_given_its_group() -> None:
    norm, group = nn.BatchNorm2d(3, activation="silu"), object()
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(norm, group)
    assert type(converted) is nn.SyncBatchNorm
    assert converted.process_group is group
    assert converted.weight is norm.weight
    assert repr(converted) == repr(norm).replace("BatchNorm2d", "SyncBatchNorm")


def test_a_subclass_converts_to_itself() -> None:
    class Other(nn.SyncBatchNorm):
        pass

    assert type(Other.convert_sync_batchnorm(torch.nn.BatchNorm2d(3))) is Other


def test_conversion_of_a_norm_without_a_bias() -> None:
    norm = torch.nn.BatchNorm2d(3)
    norm.bias = None
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(norm)
    assert list(converted.state_dict()) == list(norm.state_dict())
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(converted(x), norm(x))


def test_a_block_converted_without_processes_computes_what_it_did() -> None:
    """Activation, order and residual of the block are not lost with its norm's class."""
    for order in ("conv_norm_act", "conv_act_norm"):
        block = nn.ConvNormAct2d(3, 4, 3, padding=1, activation="silu", order=order)
        converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(block))
        x, residual = torch.randn(2, 3, 5, 5), torch.randn(2, 4, 5, 5)
        torch.testing.assert_close(converted(x, residual), block(x, residual))
        torch.testing.assert_close(converted.norm.running_var, block.norm.running_var)


def test_no_channels_are_refused_in_torchs_words() -> None:
    with pytest.raises(ValueError, match="number of input channels should be non-zero"):
        nn.SyncBatchNorm(1)(torch.randn(2, 0, 3))
