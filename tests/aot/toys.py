"""Triton kernels with faults that are planted on purpose, and the same without: what the gate must refuse and pass."""

import triton
import triton.language as tl


@triton.jit
def scale(input_pointer, factor_pointer, output_pointer, columns, BLOCK: tl.constexpr):
    """Multiplies each row by its factor."""
    row = tl.program_id(0)
    factor = tl.load(factor_pointer + row)
    start = row.to(tl.int64) * columns
    for first in range(0, columns, BLOCK):
        column = first + tl.arange(0, BLOCK)
        values = tl.load(input_pointer + start + column, mask=column < columns).to(tl.float32)
        tl.store(output_pointer + start + column, values * factor, mask=column < columns)


@triton.jit
def reverse(input_pointer, output_pointer, BLOCK: tl.constexpr):
    """Reads in the order of memory and writes against it: the loads are wide, the stores cannot be."""
    offset = tl.arange(0, BLOCK)
    tl.store(output_pointer + BLOCK - 1 - offset, tl.load(input_pointer + offset))


@triton.jit
def split_tail(input_pointer, output_pointer, columns, BLOCK: tl.constexpr):
    """Whole blocks without a mask, and a ragged tail that is read and written one number at a time."""
    offset = tl.arange(0, BLOCK)
    for first in range(0, columns // BLOCK * BLOCK, BLOCK):
        tl.store(output_pointer + first + offset, tl.load(input_pointer + first + offset))
    tail = columns // BLOCK * BLOCK + 3 + offset
    tl.store(output_pointer + tail, tl.load(input_pointer + tail, mask=tail < columns), mask=tail < columns)


@triton.jit
def centre(input_pointer, unused_pointer, output_pointer, BLOCK: tl.constexpr):
    """Holds a whole block, since the mean is known only after its last number: a large one does not fit."""
    offset = tl.arange(0, BLOCK)
    block = tl.load(input_pointer + offset)
    tl.store(output_pointer + offset, block - tl.sum(block) / BLOCK)


@triton.jit
def multiply(left_pointer, right_pointer, output_pointer, depth, SIZE: tl.constexpr, MATRIX: tl.constexpr):
    """A square tile of a matrix product, by matrix instructions or, of the same numbers, by sums of products."""
    row = tl.arange(0, SIZE)[:, None]
    column = tl.arange(0, SIZE)[None]
    total = tl.zeros((SIZE, SIZE), tl.float32)
    for first in range(0, depth, SIZE):
        left = tl.load(left_pointer + row * depth + first + column)
        right = tl.load(right_pointer + (first + row) * SIZE + column)
        if MATRIX:
            total = tl.dot(left, right, total)
        else:
            total += left.to(tl.float32) * right.to(tl.float32)
    tl.store(output_pointer + row * SIZE + column, total.to(tl.bfloat16))


@triton.jit
def describe(input_descriptor, output_pointer, SIZE: tl.constexpr):
    """Reads a tile through a tensor descriptor."""
    offset = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None]
    tl.store(output_pointer + offset, input_descriptor.load([0, 0]))


@triton.jit
def accumulate(input_pointer, total_pointer, BLOCK: tl.constexpr):
    """Adds to one number from every program at once: the order, and so the rounding, differs from run to run."""
    values = tl.load(input_pointer + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))
    tl.atomic_add(total_pointer, tl.sum(values))


@triton.jit
def follow(table_pointer, output_pointer, BLOCK: tl.constexpr):
    """Goes through an address that was itself loaded, which no argument's limit covers."""
    address = tl.load(table_pointer).to(tl.pointer_type(tl.float32))
    offset = tl.arange(0, BLOCK)
    tl.store(output_pointer + offset, tl.load(address + offset))
