"""What a name asks for."""

import json
from pathlib import Path
from types import FunctionType, SimpleNamespace

import pytest

from fastdl.inspection import catalog
from fastdl.inspection.catalog import Item, cuda_item, kernel_of_dtype, of_dtype, select, short_name, triton_item, wants
from fastdl.kernels.shipped import Limits, Shipped


def shipped(name: str, module: str, kernel: str) -> Item:
    """A configuration of a kernel that is never compiled."""
    function = FunctionType((lambda: None).__code__, {"__name__": f"fastdl.kernels.{module}"}, kernel)
    entry = Shipped(name, SimpleNamespace(fn=function), {}, {}, (), 4, 3, Limits(255, 0), (80, 90))
    return triton_item(entry)


def source(folder: Path, name: str, *kernels: str) -> Item:
    (folder / name).write_text("")
    if kernels:
        patterns = {f"fastdl::cuda::{kernel}": {} for kernel in kernels}
        (folder / name).with_suffix(".limits.json").write_text(json.dumps(patterns))
    return cuda_item(folder / name)


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    return [
        shipped("group_norm/4x64/nchw/on_chip_forward/64x16/bf16", "on_chip", "on_chip_forward"),
        shipped("group_norm/4x64/nchw/on_chip_forward/64x16/fp32", "on_chip", "on_chip_forward"),
        shipped("attention/gpt/attend_forward/128x64/bf16/sm_80", "attention_forward", "attend_forward"),
        shipped("norm_act_conv/resnet/convolve_data/64x64/fp16", "convolution_data", "convolve_data"),
        source(tmp_path, "strips_forward.cu", "strips_forward::kernel<*, 1>", "strips_forward::kernel<*, 8>"),
        source(tmp_path, "attention_forward_bfloat16.cu", "attention_forward_mma::kernel<*>"),
        source(tmp_path, "attention_forward_float.cu", "attention_forward_mma::kernel<*>"),
        source(tmp_path, "norm_merge.cu", "norm_merge::moments", "norm_merge::sums"),
    ]


GROUP_NORM, ATTENTION, CONVOLUTION = [0, 1], 2, 3
STRIPS, BFLOAT16, FLOAT, MERGE = 4, 5, 6, 7


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("group_norm", [*GROUP_NORM, STRIPS, MERGE]),
        ("batch_norm", [STRIPS, MERGE]),
        ("attention", [ATTENTION, BFLOAT16, FLOAT]),
        ("norm_act_conv", [CONVOLUTION]),
        ("convolution", [CONVOLUTION]),
        ("on_chip", GROUP_NORM),
        ("on_chip_forward", GROUP_NORM),
        ("on_chip.on_chip_forward", GROUP_NORM),
        ("attend_forward", [ATTENTION]),
        ("attention_forward", [ATTENTION, BFLOAT16, FLOAT]),
        ("attention_forward_float.cu", [FLOAT]),
        ("attention_forward_float", [FLOAT]),
        ("group_norm/4x64/nchw/on_chip_forward/64x16/fp32", [1]),
        ("*/bf16*", [0, ATTENTION]),
        ("attention_forward_*.cu", [BFLOAT16, FLOAT]),
        ("norm_merge::moments", [MERGE]),
        ("fastdl::cuda::norm_merge::moments", [MERGE]),
        ("strips_forward::kernel<bf16, 8>", [STRIPS]),
        ("*_mma::kernel<fp32*", [BFLOAT16, FLOAT]),
    ],
)
def test_words_ask_for_ops_kernels_configurations_and_files(word: str, expected: list[int], items: list[Item]) -> None:
    assert [items.index(item) for item in select([word], items)] == expected


def test_several_words_ask_for_each_item_once_and_in_order(items: list[Item]) -> None:
    assert select(["norm_merge", "group_norm", "on_chip"], items) == select(["group_norm"], items)


def test_an_unknown_name_is_told_with_those_there_are(items: list[Item]) -> None:
    with pytest.raises(ValueError, match=r"no kernel 'grup_norm'\. Did you mean 'group_norm'") as caught:
        select(["group_norm", "grup_norm"], items)
    assert "the ops attention, batch_norm, group_norm, norm_act_conv, and what" in str(caught.value)
    with pytest.raises(ValueError, match=r"no kernel 'zzz'\. There are"):
        select(["zzz"], items)
    for word in ("grou", "forward", "attention_forward_bf", "bf16*"):
        with pytest.raises(ValueError, match="no kernel"):
            select([word], items)


def test_a_kernel_of_a_file_is_told_from_the_others(items: list[Item]) -> None:
    moments, sums = "norm_merge::moments", "norm_merge::sums"
    assert wants(["norm_merge::moments"], items[MERGE], moments)
    assert not wants(["norm_merge::moments"], items[MERGE], sums)
    assert wants(["fastdl::cuda::norm_merge::sums"], items[MERGE], sums)
    assert wants(["group_norm"], items[MERGE], sums)
    assert wants(["strips_forward::kernel<bf16*"], items[STRIPS], "strips_forward::kernel<bf16, 8>")
    assert not wants(["strips_forward::kernel<bf16*"], items[STRIPS], "strips_forward::kernel<fp16, 8>")


def test_types_are_told_by_names(items: list[Item]) -> None:
    assert [index for index, item in enumerate(items) if of_dtype(["bf16"], item)] == [0, 2, STRIPS, BFLOAT16, MERGE]
    assert [index for index, item in enumerate(items) if of_dtype(["fp32", "fp16"], item)] == [
        1,
        3,
        STRIPS,
        FLOAT,
        MERGE,
    ]
    assert all(of_dtype([], item) for item in items)
    assert kernel_of_dtype(["bf16"], "strips_forward::kernel<bf16, 8>")
    assert not kernel_of_dtype(["bf16"], "strips_forward::kernel<fp32, 4>")
    assert kernel_of_dtype(["bf16"], "norm_merge::sums")


def test_names_are_shortened() -> None:
    part = "(fastdl::cuda::attention_backward_key::Part)1"
    name = f"fastdl::cuda::attention_backward_key::kernel<fastdl::device::half_bits, 192, {part}>"
    assert short_name(name) == "attention_backward_key::kernel<fp16, 192, (Part)1>"
    assert short_name("fastdl::cuda::x::kernel<float, 4>") == "x::kernel<fp32, 4>"
    assert short_name("fastdl::cuda::norm_merge::sums") == "norm_merge::sums"


def test_a_source_of_host_code_is_nothing_to_inspect(tmp_path: Path) -> None:
    assert source(tmp_path, "norm_plan.cu").kernels == ()


def test_everything_that_ships_is_found_under_its_op() -> None:
    items, missing = catalog.catalog()
    if catalog.TRITON in missing:
        pytest.skip(missing[catalog.TRITON])
    for name in ("attention", "batch_norm", "group_norm", "layer_norm", "norm_act_conv", "rms_norm"):
        languages = {item.language for item in select([name], items)}
        assert languages == {catalog.TRITON, catalog.CUDA}, name
    assert [item.subject for item in items if not item.operators and not item.kernels] == []
