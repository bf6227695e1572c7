"""How many blocks of a kernel a multiprocessor holds at a time, and what stands in the way of more.

The rules are those of NVIDIA's occupancy calculator (``cuda_occupancy.h`` of the CUDA toolkit, which the tests compile
and compare with), the numbers those of the CUDA Programming Guide, "Compute Capabilities", table "Technical
Specifications per Compute Capability". Occupancy counts what fits. It is no measure of speed.
"""

from dataclasses import dataclass

WARP = 32
REGISTERS, SHARED, THREADS, BLOCKS = "registers", "shared", "threads", "blocks"


@dataclass(frozen=True)
class Architecture:
    """A multiprocessor's limits.

    ``shared_per_multiprocessor``, ``shared_per_block``: bytes; of the latter, what a block may ask for.
    ``reserved_shared``: bytes that the system takes for each block besides. ``register_unit``: registers are given to a
    warp in multiples of it; ``shared_unit``: shared memory to a block, in bytes. ``partitions``: a multiprocessor's
    registers and warps lie in so many equal parts, and a warp in one of them.
    """

    number: int
    shared_per_multiprocessor: int
    shared_per_block: int
    warps: int = 64
    blocks: int = 32
    threads_per_block: int = 1024
    registers: int = 65536
    registers_per_thread: int = 255
    register_unit: int = 256
    partitions: int = 4
    shared_unit: int = 128
    reserved_shared: int = 1024

    def __str__(self) -> str:
        return f"sm_{self.number}"


ARCHITECTURES = {
    80: Architecture(80, shared_per_multiprocessor=164 * 1024, shared_per_block=163 * 1024),
    90: Architecture(90, shared_per_multiprocessor=228 * 1024, shared_per_block=227 * 1024),
    100: Architecture(100, shared_per_multiprocessor=228 * 1024, shared_per_block=227 * 1024),
}


@dataclass(frozen=True)
class Occupancy:
    """``blocks`` and ``warps`` that a multiprocessor holds at a time, and ``share``, the latter of all it could hold.

    ``limits``: how many blocks each resource alone would allow. ``limited_by``: those that allow no more than
    ``blocks``. A kernel that cannot be launched at all has 0 blocks.
    """

    blocks: int
    warps: int
    share: float
    limits: dict[str, int]
    limited_by: tuple[str, ...]


def occupancy(architecture: Architecture, threads: int, registers: int, shared_bytes: int) -> Occupancy:
    """The occupancy of blocks of ``threads`` threads with ``registers`` registers each and ``shared_bytes`` a block.

    ``shared_bytes`` is static and dynamic shared memory together, without what the system reserves. Raises ValueError
    for a number that no kernel has: no thread, or fewer than 0 of the others.
    """
    if threads < 1:
        raise ValueError(f"threads must be 1 or more, got {threads}")
    if registers < 0:
        raise ValueError(f"registers must be 0 or more, got {registers}")
    if shared_bytes < 0:
        raise ValueError(f"shared_bytes must be 0 or more, got {shared_bytes}")
    warps = -(-threads // WARP)
    limits = {
        REGISTERS: _by_registers(architecture, warps, registers),
        SHARED: _by_shared_memory(architecture, shared_bytes),
        THREADS: 0 if threads > architecture.threads_per_block else architecture.warps // warps,
        BLOCKS: architecture.blocks,
    }
    blocks = min(limits.values())
    limited_by = tuple(name for name, limit in limits.items() if limit == blocks)
    return Occupancy(blocks, blocks * warps, blocks * warps / architecture.warps, limits, limited_by)


def _by_registers(architecture: Architecture, warps: int, registers: int) -> int:
    if registers == 0:
        return architecture.blocks
    if registers > architecture.registers_per_thread:
        return 0
    each = _round_up(registers * WARP, architecture.register_unit)
    in_a_part = architecture.registers // architecture.partitions // each
    return in_a_part * architecture.partitions // warps


def _by_shared_memory(architecture: Architecture, shared_bytes: int) -> int:
    allocated = _round_up(shared_bytes + architecture.reserved_shared, architecture.shared_unit)
    if allocated > architecture.shared_per_block + architecture.reserved_shared:
        return 0
    return architecture.shared_per_multiprocessor // allocated


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
