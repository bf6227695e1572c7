"""The cases that ship."""

import pytest
import torch

from fastdl.bench import registry
from fastdl.bench.cases import DTYPES, select


def test_every_benchmark_is_found_by_its_file():
    assert registry.names() == [
        "attention",
        "batch_norm",
        "conv_norm_act",
        "conv_norm_act_chain",
        "dropout",
        "group_norm",
        "layer_norm",
        "rms_norm",
    ]
    with pytest.raises(ValueError, match="no benchmark of 'softmax'; there are: attention, batch_norm, conv_norm_act"):
        registry.load("softmax")


@pytest.mark.parametrize("name", ["batch_norm", "group_norm"])
def test_every_shape_comes_in_both_layouts_in_float32_and_some_in_bfloat16(name):
    cases = registry.load(name).cases
    assert len({case.key for case in cases}) == len(cases)
    shapes = {case.size for case in cases}
    assert len(shapes) >= 8
    for dtype, least in (("float32", len(shapes)), ("bfloat16", 2)):
        by_layout = [
            {c.size for c in cases if c.layout == layout and c.dtype == dtype} for layout in ("nchw", "channels_last")
        ]
        assert by_layout[0] == by_layout[1]
        assert len(by_layout[0]) >= least
    assert registry.load(name).overhead_size in shapes
    assert all(case.num_groups is None or case.size[1] % case.num_groups == 0 for case in cases)


@pytest.mark.parametrize("name", ["batch_norm", "group_norm"])
def test_selection(name):
    cases = registry.load(name).cases
    quick = select(cases, shapes="quick")
    assert len(quick) == 6
    assert {case.layout for case in quick} == {"nchw", "channels_last"}
    assert {case.layout for case in select(cases, layout="nchw")} == {"nchw"}
    assert {case.dtype for case in select(cases, dtype="bfloat16")} == {"bfloat16"}
    assert select(cases) == cases
    default = select(cases, shapes="default")
    assert 8 <= len(default) < 0.7 * len(cases)
    assert {(c.layout, c.dtype) for c in default} == {(c.layout, c.dtype) for c in cases}
    assert not any(case.extra for case in default)
    with pytest.raises(ValueError, match="dtype='float16'; dtypes there: bfloat16, float32"):
        select(cases, dtype="float16")


@pytest.mark.parametrize("name", registry.names())
def test_the_default_shapes_have_every_layout_dtype_and_variant_and_the_small_call(name):
    benchmark = registry.load(name)
    default = select(benchmark.cases, shapes="default")
    for attribute in ("layout", "dtype", "variant"):
        assert {getattr(c, attribute) for c in default} == {getattr(c, attribute) for c in benchmark.cases}
    assert benchmark.overhead_size in {case.size for case in default}


def test_bytes_and_label_of_a_case():
    case = next(c for c in registry.load("group_norm").cases if c.size == (4, 320, 64, 64) and c.dtype == "bfloat16")
    assert case.tensor_bytes == 4 * 320 * 64 * 64 * DTYPES["bfloat16"].itemsize
    assert case.label == "4x320x64x64/32"


def test_attention_comes_separate_and_packed_and_with_what_masks_it():
    cases = registry.load("attention").cases
    assert len({case.key for case in cases}) == len(cases)
    for size in ((16, 6, 65, 64), (4, 12, 197, 64), (8, 12, 128, 64), (1, 12, 1024, 64)):
        found = {(case.layout, case.dtype) for case in cases if case.size == size}
        assert found == {(layout, dtype) for layout in ("separate", "packed") for dtype in ("float32", "bfloat16")}
    assert {case.variant for case in cases} == {"", "causal", "padding", "bias"}
    assert next(case for case in cases if case.variant == "causal").label == "1x12x1024x64 causal"
    assert {case.layout for case in select(cases, layout="packed")} == {"packed"}


def test_attentions_inputs_lie_as_the_layout_says():
    benchmark = registry.load("attention")
    for case in select(benchmark.cases, shapes="quick"):
        values = torch.randn(case.size)
        arranged = benchmark.arrange(case, values)
        assert torch.equal(arranged, values)
        heads = case.size[1] * case.size[3]
        expected = (
            (case.size[2] * heads * 3, case.size[3], heads * 3, 1) if case.layout == "packed" else values.stride()
        )
        assert arranged.stride() == expected


def test_the_operations_of_attention_are_counted():
    benchmark = registry.load("attention")
    case = next(case for case in benchmark.cases if case.size == (4, 12, 197, 64) and case.dtype == "float32")
    assert benchmark.forward_work(case).matrix_operations == 4 * 4 * 12 * 197 * 197 * 64
    assert benchmark.backward_work(case).matrix_operations == 10 * 4 * 12 * 197 * 197 * 64
    causal = next(case for case in benchmark.cases if case.variant == "causal")
    n, h, length, features = causal.size
    assert benchmark.forward_work(causal).matrix_operations == 4 * n * h * features * length * (length + 1) // 2


def test_norms_stands_for_every_norm():
    norms = ["batch_norm", "group_norm", "layer_norm", "rms_norm"]
    assert registry.expanded(["norms"]) == norms
    assert registry.expanded(["rms_norm", "norms", "attention"]) == ["rms_norm", *norms[:3], "attention"]
    assert registry.expanded([]) == registry.in_order()
