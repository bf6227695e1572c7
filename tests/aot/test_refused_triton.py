"""The gate's own tests: Triton kernels with a planted fault are refused, and what is clean passes."""

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("triton")

from fastdl.inspection import triton_code
from fastdl.kernels.shipped import ARCHITECTURES, Limits, Shipped

from .limits import check_triton

if not triton_code.is_usable():
    pytest.skip("Triton runs its interpreter, which compiles nothing", allow_module_level=True)

from . import toys

GENEROUS = Limits(registers=255, shared_bytes=100_000)


def shipped(kernel: Any, constants: dict[str, Any], limits: Limits = GENEROUS, **types: str) -> Shipped:
    """An entry whose pointers are aligned and whose integers are multiples of 16; ``types`` override ``*fp32``."""
    default = {name: "*fp32" if name.endswith("_pointer") else "i32" for name in kernel.arg_names}
    signature = {**default, **dict.fromkeys(constants, "constexpr"), **types}
    divisible = tuple(name for name, kind in signature.items() if kind.startswith(("*", "i")))
    return Shipped(f"toy/{kernel.fn.__name__}", kernel, signature, constants, divisible, 4, 2, limits)


def refusals(entry: Shipped, architecture: int = 90) -> list[str]:
    return check_triton(entry.name, architecture, triton_code.measure(entry, architecture), entry.limits)


SCALE = shipped(
    toys.scale,
    {"BLOCK": 2048},
    replace(GENEROUS, narrow=("factor_pointer",)),
    input_pointer="*bf16",
    output_pointer="*bf16",
)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_clean_kernel_passes(architecture: int) -> None:
    resources = triton_code.measure(SCALE, architecture)
    assert check_triton(SCALE.name, architecture, resources, SCALE.limits) == []
    # 2048 numbers of 2 bytes by 128 threads are two accesses of 16 bytes.
    assert resources.arguments["input_pointer"].loads == {16: 2}
    assert resources.arguments["output_pointer"].stores == {16: 2}
    assert resources.arguments["factor_pointer"].loads == {4: 1}
    assert resources.loads == {16: 2, 4: 1}
    assert 0 < resources.registers < 64


def test_an_access_is_refused_whose_row_length_is_not_known_to_be_a_multiple() -> None:
    entry = replace(SCALE, divisible=("input_pointer", "output_pointer"))
    assert refusals(entry) == [
        "toy/scale on sm_90: 16 loads of input_pointer are narrower than 16 bytes (16 of 2), limit 0",
        "toy/scale on sm_90: 16 stores of output_pointer are narrower than 16 bytes (16 of 2), limit 0",
    ]


def test_half_an_access_is_refused() -> None:
    # 512 numbers of 2 bytes by 128 threads: aligned, but a thread has only 8 bytes to read.
    found = refusals(replace(SCALE, constexprs={"BLOCK": 512}))
    assert found == [
        "toy/scale on sm_90: 1 loads of input_pointer are narrower than 16 bytes (1 of 8), limit 0",
        "toy/scale on sm_90: 1 stores of output_pointer are narrower than 16 bytes (1 of 8), limit 0",
    ]


def test_a_scalar_argument_is_refused_unless_it_is_declared() -> None:
    (sentence,) = refusals(replace(SCALE, limits=GENEROUS))
    assert sentence == "toy/scale on sm_90: 1 loads of factor_pointer are narrower than 16 bytes (1 of 4), limit 0"


def test_wide_loads_do_not_excuse_narrow_stores() -> None:
    (sentence,) = refusals(shipped(toys.reverse, {"BLOCK": 1024}))
    assert "stores of output_pointer are narrower than 16 bytes" in sentence


def test_a_tail_is_allowed_by_its_number_and_beside_wide_accesses_only() -> None:
    entry = shipped(toys.split_tail, {"BLOCK": 1024})
    tail = 1024 // (4 * 32)  # one number a thread and access
    assert refusals(replace(entry, limits=replace(GENEROUS, tail_accesses=tail))) == []
    assert len(refusals(replace(entry, limits=replace(GENEROUS, tail_accesses=tail - 1)))) == 2
    narrow = shipped(toys.reverse, {"BLOCK": 1024}, replace(GENEROUS, tail_accesses=1000))
    assert len(refusals(narrow)) == 1


def test_a_pointer_that_nothing_reads_is_refused() -> None:
    (sentence,) = refusals(shipped(toys.centre, {"BLOCK": 1024}))
    assert sentence.startswith("toy/centre on sm_90: unused_pointer is neither loaded nor stored")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_spills_are_refused(architecture: int) -> None:
    # 65536 numbers by 128 threads are twice as many as there are registers.
    limits = replace(GENEROUS, narrow=("unused_pointer",))
    (sentence,) = refusals(shipped(toys.centre, {"BLOCK": 65536}, limits), architecture)
    assert sentence.startswith(f"toy/centre on sm_{architecture}: ")
    assert sentence.endswith(" bytes of local memory (spills), limit 0")
    assert refusals(shipped(toys.centre, {"BLOCK": 8192}, limits), architecture) == []


def test_too_many_registers_are_refused() -> None:
    used = triton_code.measure(SCALE, 90).registers
    assert refusals(replace(SCALE, limits=replace(SCALE.limits, registers=used))) == []
    assert refusals(replace(SCALE, limits=replace(SCALE.limits, registers=used - 1))) == [
        f"toy/scale on sm_90: {used} registers, limit {used - 1}"
    ]


def test_a_bound_on_registers_is_part_of_the_configuration() -> None:
    entry = shipped(toys.centre, {"BLOCK": 8192}, replace(GENEROUS, narrow=("unused_pointer",)))
    free = triton_code.measure(entry, 90).registers
    bounded = triton_code.measure(replace(entry, maxnreg=40), 90)
    assert bounded.registers <= 40 < free
    assert bounded.local_bytes > 0


MULTIPLY = shipped(toys.multiply, {"SIZE": 64, "MATRIX": True}, **dict.fromkeys(toys.multiply.arg_names[:3], "*bf16"))


@pytest.mark.parametrize(("architecture", "instruction"), [(80, "HMMA"), (90, "HGMMA"), (100, "UTCHMMA")])
def test_a_missing_matrix_instruction_is_refused(architecture: int, instruction: str) -> None:
    limits = replace(GENEROUS, matrix={80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"})
    assert refusals(replace(MULTIPLY, limits=limits), architecture) == []
    without = replace(MULTIPLY, constexprs={"SIZE": 64, "MATRIX": False}, limits=limits)
    assert refusals(without, architecture) == [
        f"toy/multiply on sm_{architecture}: no {instruction} instruction, which is required (none)"
    ]
    # Four warps and 64 rows make a warp group; less makes the older instruction of a warp, which is not enough.
    small = replace(MULTIPLY, constexprs={"SIZE": 32, "MATRIX": True}, limits=limits)
    assert architecture == 80 or f"no {instruction} instruction" in refusals(small, architecture)[0]


def test_too_much_shared_memory_is_refused() -> None:
    used = triton_code.measure(MULTIPLY, 90).shared_bytes
    assert used >= 2 * 64 * 64 * 2
    (sentence,) = refusals(replace(MULTIPLY, limits=replace(GENEROUS, shared_bytes=used - 1)))
    assert sentence == f"toy/multiply on sm_90: {used} bytes of shared memory, limit {used - 1}"


def test_a_descriptor_counts_as_wide_and_is_told_where_there_is_none() -> None:
    entry = shipped(toys.describe, {"SIZE": 64}, output_pointer="*bf16", input_descriptor="tensordesc<bf16[64, 64]>")
    assert refusals(entry) == []
    assert triton_code.measure(entry, 90).arguments["input_descriptor"].loads == {16: 1}
    with pytest.raises(ValueError, match=r"toy/describe: input_descriptor is a tensor descriptor"):
        refusals(entry, 80)


def test_float_atomics_are_refused() -> None:
    found = refusals(shipped(toys.accumulate, {"BLOCK": 1024}, replace(GENEROUS, narrow=("total_pointer",))))
    assert len(found) == 1
    assert "1 atomic additions of floating-point numbers" in found[0]


def test_an_access_that_no_argument_accounts_for_is_an_error() -> None:
    entry = shipped(toys.follow, {"BLOCK": 1024}, replace(GENEROUS, narrow=("table_pointer",)), table_pointer="*i64")
    with pytest.raises(ValueError, match="goes through no pointer argument"):
        refusals(entry)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"signature": {"input_pointer": "*bf16"}}, "the kernel takes"),
        ({"constexprs": {}}, r"\['BLOCK'\] are constants in one place only"),
        ({"divisible": ("column",)}, r"\['column'\] are no arguments"),
        ({"divisible": ("BLOCK",)}, r"\['BLOCK'\] are no arguments of the kernel, or are constants"),
        ({"limits": replace(GENEROUS, narrow=("factor",))}, r"\['factor'\] are no arguments"),
    ],
)
def test_an_entry_that_does_not_fit_its_kernel_is_an_error(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        refusals(replace(SCALE, **change))
