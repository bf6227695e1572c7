"""The reading of launch bounds and dynamic shared memory in PTX, on fixed texts."""

from fastdl.inspection.entries import Entry, read_entries

PTX = """
.extern .shared .align 128 .b8 _Z7dynamic[];
.visible .entry _Z5first(
    .param .align 8 .b8 _Z5first_param_0[368],  // with (a comment) {
    .param .u64 _Z5first_param_1
)
.maxntid 128, 2, 1
.minnctapersm 3
{
    .shared .align 4 .b8 fixed[64];
    mov.u32 %r1, _Z7dynamic;
}
.entry _Z6second(.param .u64 _Z6second_param_0)
{
    ld.shared.u32 %r1, [_Z7dynamic2];
}
.visible .entry third(
    .param .u64 third_param_0
)
.reqntid 256
{
    st.shared.v4.f32 [_Z7dynamic+512], {%f1, %f2, %f3, %f4};
}
"""


def test_each_kernel_has_its_own_bounds() -> None:
    assert read_entries(PTX) == {
        "_Z5first": Entry(256, exact=False, minimum_blocks=3, uses_dynamic_shared=True),
        "_Z6second": Entry(None, exact=False, minimum_blocks=0, uses_dynamic_shared=False),
        "third": Entry(256, exact=True, minimum_blocks=0, uses_dynamic_shared=True),
    }


def test_a_text_without_dynamic_shared_memory_uses_none() -> None:
    text = PTX.replace(".extern .shared .align 128 .b8 _Z7dynamic[];", "")
    assert not any(entry.uses_dynamic_shared for entry in read_entries(text).values())
