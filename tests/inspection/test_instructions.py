"""What instructions do, on a fixed piece of machine code of every kind."""

import pytest

from fastdl.inspection import instructions, sass

CODE = """
\t\tFunction : f
        /*0000*/                   LDC R1, c[0x0][0x37c] ;                            /* 0x0 */
        /*0010*/                   ULDC.64 UR4, c[0x0][0x208] ;                       /* 0x0 */
        /*0020*/                   S2R R0, SR_TID.X ;                                 /* 0x0 */
        /*0030*/                   IMAD.WIDE R2, R0, 0x10, R2 ;                       /* 0x0 */
        /*0040*/                   UIADD3 UR4, UR4, 0x1, URZ ;                        /* 0x0 */
        /*0050*/              @!P0 LDG.E.128 R8, desc[UR4][R2.64] ;                   /* 0x0 */
        /*0060*/                   LDG.E.U16.CONSTANT R4, desc[UR4][R2.64] ;          /* 0x0 */
        /*0070*/                   LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64] ;       /* 0x0 */
        /*0080*/              @UP1 UTMALDG.2D [UR8], [UR6] ;                          /* 0x0 */
        /*0090*/                   LDSM.16.M88.4 R12, [R1] ;                          /* 0x0 */
        /*00a0*/                   STS.128 [R1], R12 ;                                /* 0x0 */
        /*00b0*/                   HMMA.16816.F32.BF16 R24, R4, R8, R24 ;             /* 0x0 */
        /*00c0*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24 ;    /* 0x0 */
        /*00d0*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24 ;    /* 0x0 */
        /*00e0*/                   UTCHMMA gdesc[UR4], gdesc[UR8], tmem[UR10] ;       /* 0x0 */
        /*00f0*/                   LDTM.x32 R4, tmem[UR10] ;                          /* 0x0 */
        /*0100*/                   MUFU.EX2 R4, R4 ;                                  /* 0x0 */
        /*0110*/                   MUFU.RCP R5, R4 ;                                  /* 0x0 */
        /*0120*/                   FFMA.FTZ R4, R4, R5, R6 ;                          /* 0x0 */
        /*0130*/                   FADD2 R4, R4, R6 ;                                 /* 0x0 */
        /*0140*/                   FSETP.GT.AND P0, PT, R4, RZ, PT ;                  /* 0x0 */
        /*0150*/                   HFMA2.MMA.BF16_V2 R4, R4, R5, R6 ;                 /* 0x0 */
        /*0160*/                   DFMA R4, R4, R6, R8 ;                              /* 0x0 */
        /*0170*/                   F2FP.BF16.F32.PACK_AB R4, R5, R4 ;                 /* 0x0 */
        /*0180*/                   SHFL.BFLY PT, R5, R4, 0x1, 0x1f ;                  /* 0x0 */
        /*0190*/                   RED.E.ADD.S32.STRONG.GPU [R2.64], R5 ;             /* 0x0 */
        /*01a0*/                   STL [R1], R4 ;                                     /* 0x0 */
        /*01b0*/                   STG.E.64 desc[UR4][R2.64], R4 ;                    /* 0x0 */
        /*01c0*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;                      /* 0x0 */
        /*01d0*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;                    /* 0x0 */
        /*01e0*/                   XNEW.SOMETHING R1, R2 ;                            /* 0x0 */
        /*01f0*/                   EXIT ;                                             /* 0x0 */
        /*0200*/                   BRA 0x200;                                         /* 0x0 */
        /*0210*/                   NOP;                                               /* 0x0 */
        /*0220*/                   NOP;                                               /* 0x0 */
"""


@pytest.fixture(scope="module")
def counts() -> dict[str, int]:
    (opcodes,) = dict(sass.functions(CODE.splitlines())).values()
    return instructions.count(opcodes)


def test_every_kind_is_counted_and_padding_is_not(counts: dict[str, int]) -> None:
    assert instructions.by_class(counts) == {
        **dict.fromkeys(("move", "tensor_memory", "fp16", "fp64", "conversion", "warp", "atomic", "local"), 1),
        **dict.fromkeys(("global_store", "other"), 1),
        **dict.fromkeys(("constant", "integer", "global_load", "copy", "shared", "special"), 2),
        "fp32": 3,
        "tensor": 4,
        "control": 4,
    }


def test_matrix_products_functions_and_copies_keep_what_they_do(counts: dict[str, int]) -> None:
    assert counts["HGMMA.64x128x16.F32.BF16"] == 2
    assert counts["MUFU.EX2"] == counts["MUFU.RCP"] == counts["LDGSTS.E.BYPASS.128"] == 1
    assert counts["LDG"] == 2
    assert instructions.by_name(counts, instructions.TENSOR) == {"HGMMA": 2, "HMMA": 1, "UTCHMMA": 1}
    assert instructions.by_name(counts, instructions.COPY) == {"LDGSTS": 1, "UTMALDG": 1}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("IMMA", "tensor"),
        ("UTCQMMA.2CTA", "tensor"),
        ("HFMA2", "fp16"),
        ("UFFMA", "fp32"),
        ("UISETP", "integer"),
        ("UVIMNMX", "integer"),
        ("USEL", "move"),
        ("UI2F", "conversion"),
        ("LDCU", "constant"),
        ("UTMASTG.2D", "copy"),
        ("UBLKCP", "copy"),
        ("STAS", "shared"),
        ("USETMAXREG", "control"),
        ("UNKNOWN", "other"),
    ],
)
def test_names(name: str, kind: str) -> None:
    assert instructions.class_of(name) == kind
