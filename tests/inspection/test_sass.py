"""The reading of what cuobjdump tells, on fixed texts; without any compiler."""

import pytest

from fastdl.inspection import sass


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
    assert found.instructions == {
        **dict.fromkeys(("LDC", "LDGSTS.E.BYPASS.128", "UTMALDG.2D", "STG", "STL", "LDL"), 1),
        **dict.fromkeys(("HGMMA.64x64x16.F32.BF16", "RED", "ATOMG"), 1),
        "LDG": 3,
    }


@pytest.mark.parametrize(
    ("recorded", "reserved", "static"),
    [
        (1024, 1024, 0),
        (3072, 1024, 2048),
        (2048, 0, 2048),
        (0, 1024, 0),  # a kernel without shared memory, of which some assemblers record nothing
    ],
)
def test_what_the_system_keeps_is_no_shared_memory_of_the_kernel(recorded: int, reserved: int, static: int) -> None:
    usage = f" Function f:\n  REG:40 STACK:0 SHARED:{recorded} LOCAL:0 CONSTANT[0]:400\n"
    (found,) = sass.parse(usage, "\t\tFunction : f\n", reserved).values()
    assert found.launch.static_shared_bytes == static
    assert found.shared_bytes == recorded
