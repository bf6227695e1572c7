"""The host's conversions and fast mathematics, which stand for the GPU's."""

import numpy as np
import torch

from tests.simt.harness import Case, Output, build, run
from tests.simt.test_exchange import SOURCES


def test_conversions_are_those_of_torch() -> None:
    generator = np.random.default_rng(11)
    bits = generator.integers(0, 2**32, size=200_000, dtype=np.uint32)
    # Ties, and the ends of the ranges of half precision.
    special = [0.0, -0.0, np.inf, -np.inf, 65504, 65519.996, 65520, 2**-24, 2**-25, 1.5 * 2**-25, 3.4e38, 1e-45]
    near = np.arange(65536, dtype=np.uint32) << 16 | 0x8000
    values = np.concatenate([bits, near, np.array(special, np.float32).view(np.uint32)]).view(np.float32)
    values = values[~np.isnan(values)]
    n = len(values)
    outputs = {
        "from_half": Output((65536,), np.float32),
        "from_bfloat16": Output((65536,), np.float32),
        "to_half": Output((n,), np.uint16),
        "to_bfloat16": Output((n,), np.uint16),
        "to_pair": Output((n,), np.uint32),
        "to_tensor_float": Output((n,), np.uint32),
    }
    [result] = run(build(SOURCES, "plain"), [Case("convert", {"in": values, **outputs})])
    result.check()
    tensor, every = torch.from_numpy(values), torch.arange(65536, dtype=torch.int32).to(torch.uint16)
    half = tensor.to(torch.float16).view(torch.uint16).numpy()
    brain = tensor.to(torch.bfloat16).view(torch.uint16).numpy()
    np.testing.assert_array_equal(result.arrays["to_half"], half)
    np.testing.assert_array_equal(result.arrays["to_bfloat16"], brain)
    wide = [each.astype(np.uint32) for each in (half ^ brain, half[::-1] ^ brain[::-1])]
    np.testing.assert_array_equal(result.arrays["to_pair"], wide[0] | wide[1] << 16)
    np.testing.assert_array_equal(result.arrays["from_half"], every.view(torch.float16).to(torch.float32).numpy())
    np.testing.assert_array_equal(result.arrays["from_bfloat16"], every.view(torch.bfloat16).to(torch.float32).numpy())
    # tf32 keeps 10 bits of the mantissa, to nearest.
    finite = np.abs(values) < 3e38
    rounded = result.arrays["to_tensor_float"]
    assert not (rounded & 0x1FFF)[finite].any()
    step = np.spacing(np.abs(values[finite]).astype(np.float32)).astype(float) * 2**13
    assert (np.abs(rounded.view(np.float32)[finite].astype(float) - values[finite]) <= step / 2).all()


def test_narrowing_keeps_nan() -> None:
    values = np.array([np.nan, -np.nan], np.float32)
    values = np.concatenate([values, np.array([0x7F800001, 0xFFFFFFFF, 0x7FC00000], np.uint32).view(np.float32)])
    names = {"to_half": np.uint16, "to_bfloat16": np.uint16, "to_pair": np.uint32, "to_tensor_float": np.uint32}
    outputs = {name: Output((5,), dtype) for name, dtype in names.items()}
    outputs |= {name: Output((65536,), np.float32) for name in ("from_half", "from_bfloat16")}
    [result] = run(build(SOURCES, "plain"), [Case("convert", {"in": values, **outputs})])
    result.check()
    assert np.isnan(result.arrays["to_half"].view(np.float16)).all()
    assert np.isnan((result.arrays["to_bfloat16"].astype(np.uint32) << 16).view(np.float32)).all()


def test_fast_mathematics_is_as_exact_as_the_manual_says_and_no_more() -> None:
    values = np.concatenate([np.linspace(-20, 20, 4001), [1e-3, 1e-30, 1e30]]).astype(np.float32)
    [result] = run(
        build(SOURCES, "plain"), [Case("approximate", {"in": values, "out": Output((8, len(values)), np.float32)})]
    )
    result.check()
    wide = values.astype(float)
    with np.errstate(all="ignore"):
        truths = [wide**-0.5, 2**wide, np.exp(wide), np.log2(wide), np.tanh(wide), 1 / wide, 1.5 / wide, wide**-0.5]
    # Relative errors; exp has the rounding of x log2 e as well, log2 is absolute near 1, tanh has 11 bits.
    bounds = [2.0**-22, 2.0**-22, 20 * 2.0**-22, 2.0**-21, 2.0**-11, 2.0**-23, 2.0**-22, 2.0**-23]
    for found, truth, bound in zip(result.arrays["out"], truths, bounds, strict=True):
        usable = np.isfinite(truth) & (np.abs(truth) > 1e-37) & (np.abs(truth) < 1e38)
        scale = np.maximum(np.abs(truth[usable]), 1e-3)
        assert (np.abs(found[usable] - truth[usable]) <= bound * scale).all()
    # A kernel that is only right with an exact tanh must not pass here.
    assert np.abs(result.arrays["out"][4] - np.tanh(wide)).max() > 2.0**-13
