"""Every configuration of attention's kernels that the plans choose, as `fastdl.kernels.shipped` lists them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fastdl.kernels import attention_plan
from fastdl.kernels.launch import Launch, taking_down
from fastdl.kernels.shipped import Limits, Shipped
from fastdl.kernels.variants import TYPES, element_of, type_of

# Numbers for each query, of the batch, and partial sums: read one by one.
NARROW = frozenset({
    "log_sum", "delta", "grad_log_sum", "query_offset", "starts_q", "starts_k", "seed", "partial_sums", "partial",
    "gradient",
})  # fmt: skip
REGISTERS = 255
# What a block may ask for on each architecture.
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}


def variants(calls: Iterable[tuple[str, Callable[[], Any]]]) -> tuple[Shipped, ...]:
    """What the labelled calls launch, each once; planned for each architecture, listed for those that agree."""
    found: dict[Any, list[Any]] = {}
    for label, call in calls:
        for architecture in SHARED_BYTES:
            for one in _launches(call, architecture):
                entry = found.setdefault(_key(one), [label, one, []])
                if architecture not in entry[2]:
                    entry[2].append(architecture)
    return tuple(_shipped(label, one, tuple(architectures)) for label, one, architectures in found.values())


def _launches(call: Callable[[], Any], architecture: int) -> list[Launch]:
    before = attention_plan.assumed_architecture
    attention_plan.assumed_architecture = architecture
    try:
        with taking_down() as launches:
            call()
    finally:
        attention_plan.assumed_architecture = before
    return launches


def _key(one: Launch) -> Any:
    names = one.kernel.arg_names
    values = dict(zip(names, one.arguments, strict=False)) | dict(one.constants)
    kinds = tuple(type_of(name, values[name], one) for name in names)
    return (one.kernel, kinds, tuple(sorted(one.constants.items())), one.warps, one.stages)


def _shipped(label: str, one: Launch, architectures: tuple[int, ...]) -> Shipped:
    names = one.kernel.arg_names
    values = dict(zip(names, one.arguments, strict=False)) | dict(one.constants)
    signature = {name: type_of(name, values[name], one) for name in names}
    pointers = [name for name, kind in signature.items() if kind.startswith("*")]
    constants = one.constants
    of_queries = signature.get("grad_query", "constexpr") != "constexpr" and "QUERY_ROWS" in constants
    of_keys = signature.get("grad_key", "constexpr") != "constexpr"
    tiles = [_tile(constants, "ROWS", "COLUMNS")] if of_keys or not of_queries else []
    tiles += [_tile(constants, "QUERY_ROWS", "QUERY_COLUMNS")] * of_queries
    tile = "+".join(tiles)
    part = (
        ""
        if "QUERY_ROWS" not in constants
        else "/all"
        if of_keys and of_queries
        else "/keys"
        if of_keys
        else "/queries"
    )
    dtype = next(
        TYPES[element_of(values[name])]
        for name in ("query", "output", "gradient")
        if isinstance(values.get(name), Tensor | TensorDescriptor)
    )
    half = dtype in ("bf16", "fp16") and "gradient" not in values
    narrow = set(NARROW)
    if _has_small_masks(one, values):
        narrow.add("mask")
    access, tail = _accesses(one)
    return Shipped(
        name=f"attention/{label}/{one.kernel.__name__}{part}/{tile}/{dtype}" + _on(architectures),
        kernel=one.kernel,
        signature=signature,
        constexprs={name: values[name] for name, kind in signature.items() if kind == "constexpr"},
        divisible=tuple(pointers),
        num_warps=one.warps,
        num_stages=one.stages,
        limits=Limits(
            registers=REGISTERS,
            shared_bytes=min(SHARED_BYTES[architecture] for architecture in architectures),
            access_bytes=access,
            narrow=tuple(name for name in pointers if name in narrow),
            tail_accesses=tail,
            matrix={90: "HGMMA"} if half and _leading_rows(one, of_keys, of_queries) >= 64 else None,
        ),
        architectures=architectures,
    )


def _tile(constants: Mapping[str, Any], rows: str, columns: str) -> str:
    numbers = [constants[name] for name in (rows, columns, "BLOCK") if name in constants]
    return "x".join(map(str, numbers))


def _leading_rows(one: Launch, of_keys: bool, of_queries: bool) -> int:
    """Rows of the products: of keys where tiles are held transposed. Hopper's own instructions take 64 at least."""
    if not any(name in one.constants for name in ("COLUMNS", "QUERY_COLUMNS")):
        return 0
    if of_keys:
        return int(one.constants["COLUMNS"])
    return int(one.constants["QUERY_ROWS" if of_queries and "QUERY_ROWS" in one.constants else "ROWS"])


def _has_small_masks(one: Launch, values: Mapping[str, Any]) -> bool:
    """Whether a tile of the mask, which may be a single row, is too small for 16 bytes a thread."""
    if values.get("mask") is None:
        return False
    numbers = 16 * 32 * one.warps // values["mask"].element_size()
    tiles = (("ROWS", "COLUMNS"), ("QUERY_ROWS", "QUERY_COLUMNS"))
    return values["mask_row"] == 0 or any(
        one.constants[rows] * one.constants[columns] < numbers for rows, columns in tiles if rows in one.constants
    )


def _accesses(one: Launch) -> tuple[int, int]:
    """The least width of accesses, and how many narrower ones there may be.

    A tile has a piece for every thread: one of 16 rows of 64 numbers in half precision has 8 bytes for each of 256.
    The rest of a sequence is such a tile, beside the whole ones.
    """
    constants = one.constants
    if "FEATURES" not in constants:
        return 16, 0
    values = dict(zip(one.kernel.arg_names, one.arguments, strict=False))
    features = min(constants[name] for name in ("FEATURE_BLOCK", "VALUE_BLOCK", "CHUNK") if name in constants)
    block = features * element_of(values["query"]).itemsize
    whole = [
        constants[name] * block for name in ("ROWS", "COLUMNS", "QUERY_ROWS", "QUERY_COLUMNS") if name in constants
    ]
    rest = [constants[name] * block for name in ("EDGE_ROWS", "EDGE_COLUMNS") if name in constants]
    threads = 32 * one.warps
    least = min(16, *(size // threads for size in whole))
    return least, 8 if min(rest, default=least * threads) < least * threads else 0


def _on(architectures: tuple[int, ...]) -> str:
    return "" if len(architectures) == len(SHARED_BYTES) else "/" + "-".join(f"sm_{number}" for number in architectures)


@dataclass(frozen=True)
class Shape:
    """The arguments of a call that is listed; ``mask``: ``bool`` for padded keys, ``bias`` for one a head.

    ``window``: how many keys on either side are seen; ``offsets``: each sample has its own.
    """

    samples: int
    heads: int
    length: int
    features: int
    dtype: torch.dtype = torch.bfloat16
    key_heads: int | None = None
    keys: int | None = None
    causal: bool = False
    window: int = -1
    offsets: bool = False
    softcap: float = 0.0
    mask: str | None = None
    dropout: float = 0.0
    packed: bool = False
    varlen: bool = False
    forward_only: bool = False

    def arguments(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """The eight tensors and the eight statics, with no memory behind the tensors."""
        heads, keys = self.key_heads or self.heads, self.keys or self.length
        if self.packed:
            shape = (self.samples, self.length, 3, self.heads, self.features)
            projection = torch.empty(shape, dtype=self.dtype, device="meta")
            q, k, v = (part.transpose(1, 2) for part in projection.unbind(2))
        else:
            q = _heads_inside(self.samples, self.heads, self.length, self.features, self.dtype)
            k, v = (_heads_inside(self.samples, heads, keys, self.features, self.dtype) for _ in range(2))
        mask = None
        if self.mask == "bool":
            mask = torch.empty((self.samples, 1, 1, keys), dtype=torch.bool, device="meta")
        elif self.mask == "bias":
            mask = torch.empty((1, self.heads, self.length, keys), dtype=self.dtype, device="meta")
        seed = torch.empty(1, dtype=torch.int64, device="meta") if self.dropout else None
        starts = torch.empty(9, dtype=torch.int32, device="meta") if self.varlen else None
        longest = (self.length // 8, keys // 8) if self.varlen else (self.length, keys)
        window = (self.window, 0 if self.causal else self.window)
        offsets = torch.empty(self.samples, dtype=torch.int64, device="meta") if self.offsets else None
        statics = (self.features**-0.5, self.softcap, *window, 0, self.dropout, *longest)
        return (q, k, v, mask, offsets, starts, starts, seed), statics


def _heads_inside(samples: int, heads: int, length: int, features: int, dtype: torch.dtype) -> Tensor:
    """(N, H, L, E), (N, L, H, E) in memory as a projection gives it."""
    return torch.empty((samples, length, heads, features), dtype=dtype, device="meta").transpose(1, 2)


MOST: dict[str, Any] = {"causal": True, "mask": "bias", "dropout": 0.1}
SHIPPED_SHAPES: tuple[tuple[str, Shape], ...] = (
    ("vit_65", Shape(64, 6, 65, 64, packed=True)),
    ("vit_197", Shape(32, 12, 197, 64, packed=True)),
    ("vit_577", Shape(8, 12, 577, 64, packed=True)),
    ("bert_128", Shape(32, 12, 128, 64, mask="bool", dropout=0.1)),
    ("bert_64", Shape(32, 12, 64, 64, mask="bool", dropout=0.1)),
    ("causal_128_of_128", Shape(32, 12, 128, 128, causal=True)),
    ("gpt_1024", Shape(8, 12, 1024, 64, causal=True)),
    ("bias_1024", Shape(8, 12, 1024, 64, **MOST)),
    ("grouped_2048", Shape(2, 32, 2048, 128, key_heads=8, causal=True)),
    ("bias_128_features", Shape(2, 16, 2048, 128, **MOST)),
    ("32_features", Shape(8, 12, 1024, 32, **MOST)),
    ("80_features", Shape(8, 16, 1024, 80)),
    ("96_features", Shape(8, 8, 1024, 96, causal=True)),
    ("window_4096", Shape(2, 16, 4096, 128, key_heads=8, causal=True, window=1024, softcap=50.0)),
    ("window_512", Shape(8, 12, 512, 64, window=128)),
    ("offsets", Shape(8, 32, 128, 128, key_heads=8, keys=2048, causal=True, offsets=True)),
    ("256_features", Shape(2, 8, 2048, 256, key_heads=4, causal=True)),
    ("varlen", Shape(1, 12, 4096, 64, causal=True, varlen=True)),
    ("decoding", Shape(8, 32, 1, 128, key_heads=8, keys=4096, causal=True, forward_only=True)),
    ("half_128", Shape(32, 12, 128, 64, torch.float16)),
    ("single_short", Shape(32, 12, 32, 64, torch.float32)),
    ("single_1024", Shape(8, 12, 1024, 64, torch.float32, causal=True)),
    ("single_bias", Shape(8, 12, 1024, 64, torch.float32, **MOST)),
    ("single_128_features", Shape(2, 16, 2048, 128, torch.float32, causal=True)),
    ("single_160_features", Shape(2, 8, 512, 160, torch.float32)),
    ("single_256_features", Shape(2, 8, 2048, 256, torch.float32, causal=True)),
    ("single_256_bias", Shape(2, 8, 2048, 256, torch.float32, **MOST)),
    (
        "single_256_decoding",
        Shape(8, 32, 1, 256, torch.float32, key_heads=8, keys=4096, causal=True, forward_only=True),
    ),
)
