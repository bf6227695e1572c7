"""The following of addresses in PTX, on a fixed text; without any compiler."""

from collections import Counter

import pytest

from fastdl.inspection import ptx

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
