"""The files of limits, which kernel each is for, and the reading of PTX and disassembly; without any compiler."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from . import cuda_code, ptx, sass
from .limits import CudaLimits, assign, read_cuda_limits

GENEROUS = CudaLimits(255, 4096, wide_loads=0, wide_stores=0, narrow_loads=None, narrow_stores=None)


def test_a_kernel_without_limits_is_refused() -> None:
    found, wrong = assign(["ns::known<1>", "ns::new"], {"ns::known<*>": GENEROUS}, 90)
    assert found == {"ns::known<1>": GENEROUS}
    assert wrong == ["ns::new on sm_90 has no limits"]


def test_limits_that_overlap_or_fit_nothing_are_refused() -> None:
    limits = {"ns::*": GENEROUS, "ns::known": GENEROUS, "ns::gone*": GENEROUS}
    _, wrong = assign(["ns::known"], limits, 90)
    assert wrong == [
        "ns::known on sm_90 fits several limits: ns::*, ns::known",
        "the limits of ns::gone* fit no kernel on sm_90",
    ]


def test_limits_of_one_architecture_hold_there_alone() -> None:
    limits = {"ns::cluster": replace(GENEROUS, architectures=(90, 100))}
    assert assign(["ns::cluster"], limits, 90) == ({"ns::cluster": limits["ns::cluster"]}, [])
    assert assign([], limits, 80) == ({}, [])
    assert assign(["ns::cluster"], limits, 80)[1] == ["ns::cluster on sm_80 has no limits"]


def test_a_file_of_limits_is_read_and_its_faults_are_told(tmp_path: Path) -> None:
    path = tmp_path / "op.limits.json"
    with pytest.raises(ValueError, match=r"op\.limits\.json is missing"):
        read_cuda_limits(path)
    path.write_text(
        '{"ns::*": {"registers": 32, "shared_bytes": 0, "wide_loads": 1, "wide_stores": 1, '
        '"narrow_loads": null, "narrow_stores": 0, "matrix": {"90": "HGMMA"}, "architectures": [90]}}'
    )
    assert read_cuda_limits(path) == {
        "ns::*": CudaLimits(32, 0, 1, 1, None, 0, matrix={90: "HGMMA"}, architectures=(90,))
    }
    for text in ('{"ns::*": {"registers": 32}}', '{"ns::*": {"register": 32}}', "[]", "{"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"op\.limits\.json: "):
            read_cuda_limits(path)


def test_names_lose_their_arguments_and_the_types_of_their_constants() -> None:
    assert cuda_code._without_arguments("void ns::apply<float, (int)4, (bool)1>(ns::Problem<float>)") == (
        "ns::apply<float, 4, 1>"
    )
    assert cuda_code._without_arguments("ns::plain(float*)") == "ns::plain"
    assert cuda_code._without_arguments("void ns::(anonymous namespace)::hidden<2>(int)") == (
        "ns::(anonymous namespace)::hidden<2>"
    )


def test_the_disassembler_and_the_record_must_agree() -> None:
    with pytest.raises(ValueError, match="resources are given for"):
        sass.parse("Function a:\n REG:8 STACK:0 SHARED:0 LOCAL:0", "\t\tFunction : b\n")


def test_instructions_are_told_by_class_and_width() -> None:
    usage = "Resource usage:\n Function f:\n  REG:40 STACK:8 SHARED:1024 LOCAL:16 CONSTANT[0]:400\n"
    code = """
\t\tFunction : f
        /*0000*/                   LDC R1, c[0x0][0x37c] ;             /* 0x0000df00ff017b82 */
                                                                       /* 0x000e220000000800 */
        /*0010*/              @!P0 LDG.E.128 R8, [R20.64] ;            /* 0x0000000414088981 */
        /*0020*/              @UP1 LDG.E.ENL2.256 R8, R4, [R20.64] ;   /* 0x0000000414088981 */
        /*0030*/                   LDG.E.U16.CONSTANT R8, [R20.64] ;   /* 0x0000000414088981 */
        /*0040*/                   LDGSTS.E.BYPASS.128 [R1], [R2.64] ; /* 0x0000000414088981 */
        /*0050*/               @P2 UTMALDG.2D [UR8], [UR4] ;           /* 0x0000000414088981 */
        /*0060*/                   STG.E.64 [R2.64], R4 ;              /* 0x0000000414088981 */
        /*0070*/                   STL.128 [R1], R4 ;                  /* 0x0000000414088981 */
        /*0080*/                   LDL R4, [R1] ;                      /* 0x0000000414088981 */
        /*0090*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], R24, gsb0 ; /* 0x0 */
        /*00a0*/                   RED.E.ADD.F32.FTZ.RN.STRONG.GPU [R2.64], R5 ;        /* 0x0 */
        /*00b0*/                   ATOMG.E.ADD.STRONG.GPU PT, R2, [R2.64], R5 ;         /* 0x0 */
"""
    (found,) = sass.parse(usage, code).values()
    assert (found.registers, found.shared_bytes, found.local_bytes) == (40, 1024, 24)
    assert (found.spill_store_bytes, found.spill_load_bytes) == (16, 4)
    assert found.loads == {16: 3, 32: 1, 2: 1}
    assert found.stores == {8: 1}
    assert found.matrix == {"HGMMA": 1}
    assert found.float_atomics == 1


PTX = """
.visible .entry kernel(
    .param .u64 .ptr .global .align 1 kernel_param_0, .param .u64 kernel_param_1, .param .u32 kernel_param_2
)
{
    ld.param.b64 %rd1, [kernel_param_0];   // a comment; with a %rd9 in it
    ld.param.b64 %rd2, [kernel_param_1];
    ld.param.b32 %r1, [kernel_param_2];
    mov.u32 %r2, %tid.x;
    mad.wide.s32 %rd3, %r2, 16, %rd1;
    mov.b64 %rd4, %rd2;
$loop:
    @%p1 ld.global.L1::evict_first.v4.b32 { %r3, %r4, %r5, %r6 }, [ %rd3 + 0 ];
    ld.global.b16 %rs1, [%rd4+2];
    cp.async.cg.shared.global [ %r7 + 0 ], [ %rd3 + 32 ], 0x10, 0x10;
    selp.b64 %rd5, %rd3, %rd4, %p1;
    st.global.v2.b32 [%rd5], {%r3, %r4};
    add.s64 %rd4, %rd4, 2;
    ld.shared.b32 %r8, [%r7];
    cp.async.commit_group;
    bra $loop;
}
"""


def test_an_access_is_followed_to_its_argument() -> None:
    found = ptx.argument_accesses(PTX, ["input", "other", "count"], ["input", "other"])
    assert found["input"].loads == {16: 2}
    assert found["other"].loads == {2: 1}
    # Through an address that may be either's: it is held to both limits.
    assert found["input"].stores == found["other"].stores == {8: 1}
    assert Counter(width for _, width, _ in map(ptx.describe, ptx.read(PTX).accesses)) == {16: 2, 2: 1, 8: 1}


def test_an_access_through_no_pointer_is_an_error() -> None:
    with pytest.raises(ValueError, match="goes through no pointer argument"):
        ptx.argument_accesses(PTX, ["input", "other", "count"], ["input"])
