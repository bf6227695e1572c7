"""Machine instructions by what they do, after the Instruction Set Reference of NVIDIA's "CUDA Binary Utilities".

The counts are of instructions in the code, not of those that are executed: one inside a loop counts once.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

TENSOR, SPECIAL, FP32, FP16, FP64, INTEGER = "tensor", "special", "fp32", "fp16", "fp64", "integer"
GLOBAL_LOAD, GLOBAL_STORE, COPY, ATOMIC = "global_load", "global_store", "copy", "atomic"
SHARED, LOCAL, CONSTANT, TENSOR_MEMORY = "shared", "local", "constant", "tensor_memory"
CONVERSION, MOVE, WARP, CONTROL, OTHER = "conversion", "move", "warp", "control", "other"
MEMORY = (GLOBAL_LOAD, GLOBAL_STORE, COPY, ATOMIC, SHARED, LOCAL, CONSTANT, TENSOR_MEMORY)

# The special-function unit; the part of the opcode after it names the function.
SPECIAL_FUNCTION = "MUFU"
# Fills the code up to a whole number of lines; it is never executed and counted nowhere.
PADDING = "NOP"

_TABLE = {
    SPECIAL: "MUFU",
    FP32: """FADD FADD2 FADD32I FCHK FFMA FFMA2 FFMA32I FHADD FHFMA FMNMX FMNMX3 FMUL FMUL2 FMUL32I FSEL FSET FSETP
        FSWZADD""",
    FP16: "HADD2 HADD2_32I HFMA2 HFMA2_32I HMNMX2 HMUL2 HMUL2_32I HSET2 HSETP2 VHMNMX",
    FP64: "DADD DFMA DMNMX DMUL DSET DSETP",
    INTEGER: """BMSK BREV FLO IABS IADD IADD3 IADD32I IDP IDP4A IMAD IMNMX IMUL IMUL32I ISCADD ISCADD32I ISETP LEA LOP
        LOP3 LOP32I POPC SHF SHL SHR VABSDIFF VABSDIFF4 VIADD VIADDMNMX VIMNMX VIMNMX3 UCLEA UVIADD UVIMNMX""",
    GLOBAL_LOAD: "LD LDG LDGMC",
    GLOBAL_STORE: "ST STG",
    # Asynchronous: cp.async, and the bulk copies and tensor maps of the tensor memory accelerator.
    COPY: "LDGSTS UBLKCP UBLKPF UBLKRED UTMALDG UTMAPF UTMAREDG UTMASTG",
    ATOMIC: "ATOM ATOMG ATOMS RED REDAS REDG UREDGR",
    SHARED: "LDS LDSM STAS STS STSM UMEMSETS",
    LOCAL: "LDL STL",
    CONSTANT: "LDC LDCU ULDC",
    # Blackwell's; UTCCP copies from shared memory into it.
    TENSOR_MEMORY: "LDT LDTM STT STTM UTCATOMSWS UTCCP UTCSHIFT",
    CONVERSION: "F2F F2FP F2I F2IP FRND I2F I2FP I2I I2IP",
    MOVE: """CS2R CS2UR MOV MOV32I MOVM P2R PLOP3 PRMT PSETP R2P R2UR S2R S2UR SEL SGXT UP2UR UR2UP UR2R B2R R2B
        UPLOP3 UPSETP USETP""",
    # Between the threads of a warp.
    WARP: "CREDUX ELECT MATCH REDUX SHFL VOTE VOTEU",
    CONTROL: """ACQBULK ACQSHMINIT ARRIVES BAR BMOV BPT BRA BREAK BRX BRXU BSSY BSYNC CALL CCTL CCTLL CCTLT CGAERRBAR
        CSMTEST DEPBAR ENDCOLLECTIVE ERRBAR EXIT FENCE GETLMEMBASE JMP JMX JMXU KILL LDGDEPBAR LEPC MEMBAR NANOSLEEP
        PMTRIG PREEXIT QSPC RET RPCMOV RTT SETCTAID SETLMEMBASE SYNCS UCGABAR_ARV UCGABAR_WAIT UGETNEXTWORKID USETMAXREG
        UTCBAR UTMACCTL UTMACMDFLUSH UVIRTCOUNT WARPGROUP WARPGROUPSET WARPSYNC YIELD""",
}
_CLASS_OF = {opcode: name for name, opcodes in _TABLE.items() for opcode in opcodes.split()}


def key(opcode: Sequence[str]) -> str:
    """What an opcode (``["LDG", "E", "128"]``) is counted as: its name, or all of it where the rest tells what it does.

    That is so of matrix products (their shape and types), special functions, and copies (their width or kind).
    """
    whole = opcode[0] == SPECIAL_FUNCTION or class_of(opcode[0]) in (TENSOR, COPY)
    return ".".join(opcode) if whole else opcode[0]


def class_of(key: str) -> str:
    """What an instruction does, by its name or what ``key`` gives for it; "other" where the tables do not know it."""
    name = key.partition(".")[0]
    if name.endswith("MMA"):
        return TENSOR
    found = _CLASS_OF.get(name)
    if found is None and name.startswith("U"):
        # The uniform path repeats instructions under a name with a U: UIADD3, UMOV, USEL.
        found = _CLASS_OF.get(name[1:])
    return found or OTHER


def count(opcodes: Iterable[Sequence[str]]) -> dict[str, int]:
    """How many instructions there are of each key, without padding."""
    return dict(Counter(key(opcode) for opcode in opcodes if opcode[0] != PADDING))


def by_class(counts: Mapping[str, int]) -> dict[str, int]:
    """The same by class, for the classes that there are."""
    found: Counter[str] = Counter()
    for name, number in counts.items():
        found[class_of(name)] += number
    return dict(found)


def by_name(counts: Mapping[str, int], kind: str) -> dict[str, int]:
    """Of one class: how many instructions there are of each name, the most frequent first."""
    found: Counter[str] = Counter()
    for name, number in counts.items():
        if class_of(name) == kind:
            found[name.partition(".")[0]] += number
    return dict(found.most_common())
