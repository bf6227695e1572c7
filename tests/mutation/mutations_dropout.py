"""Mistakes in dropout: its definition's order of choices, on the CPU and in Triton, and its way through autograd."""

from __future__ import annotations

from tests.mutation.mutation import Mutation

CPU = "csrc/cpu/dropout.cpp"
PHILOX = "csrc/cpu/philox.h"
TRITON = "kernels/dropout.py"
OPS = "fastdl/ops/dropout.py"

MUTATIONS = [
    Mutation(
        "dropout_rows_in_place_of_octets", CPU, "rows_down[i] * call_.width + 8 *", "rows_down[i] * call_.width + 4 *"
    ),
    Mutation("dropout_short_rows_quotient", CPU, "int32_t(65536 / octets_ + 1)", "int32_t(65536 / octets_)"),
    Mutation("dropout_row_after_a_long_one", CPU, "-(place >= int32_t(octets_))", "-(place > int32_t(octets_))"),
    Mutation("dropout_scale_of_the_complement", CPU, "65536.0 / (65536 - call.dropped)", "65536.0 / call.dropped"),
    Mutation(
        "dropout_lines_of_an_image",
        CPU,
        "(sample * channels + channel) * call_.lines + line",
        "(sample * channels + channel) + line * channels",
    ),
    Mutation(
        "dropout_channels_one_line_apart",
        CPU,
        "(first_numbers() + i) * int32_t(call_.lines)",
        "(first_numbers() + i)",
    ),
    Mutation(
        "dropout_choices_of_the_next_word",
        PHILOX,
        "0x0303030303030303u << (2 * w)",
        "0x0303030303030303u << (6 - 2 * w)",
    ),
    Mutation(
        "dropout_nine_rounds",
        PHILOX,
        """#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {""",
        """#pragma GCC unroll 10
  for (int round = 0; round < 9; ++round) {""",
    ),
    Mutation(
        "dropout_levels_rounded_down",
        "csrc/dropout_tensors.h",
        "std::nearbyint(dropout_p * 65536.0)",
        "std::floor(dropout_p * 65536.0)",
    ),
    Mutation(
        "dropout_residual_of_other_strides", "csrc/bindings_dropout.cpp", "r = dense(*residual);", "r = *residual;"
    ),
    Mutation(
        "triton_dropout_of_channels",
        TRITON,
        "(sample_line // lines * channels + channel) * lines",
        "(sample_line // lines * channels) * lines",
    ),
    Mutation(
        "triton_dropout_without_a_word",
        TRITON,
        "philox(octet.to(tl.uint32), row.to(tl.uint32), row_high,",
        "philox(octet.to(tl.uint32), row.to(tl.uint32), zero,",
    ),
    Mutation(
        "triton_dropout_ragged_end",
        TRITON,
        "valid = (column < width) & (call < calls)[:, None]",
        "valid = (column < width - 1) & (call < calls)[:, None]",
    ),
    Mutation(
        "triton_dropout_chooses",
        TRITON,
        "tl.load(x + place, valid, 0.0).to(tl.float32) * tl.where(keep, scale, 0.0)",
        "tl.where(keep, tl.load(x + place, valid, 0.0).to(tl.float32) * scale, 0.0)",
    ),
    Mutation(
        "dropout_gradient_of_another_seed",
        OPS,
        "grad_input = forward(grad_output, None, seed, ctx.dropout_p)",
        "grad_input = forward(grad_output, None, seed + 1, ctx.dropout_p)",
    ),
    Mutation(
        "dropout_gradient_of_the_residual",
        OPS,
        "return None, grad_input, grad_output if of_residual else None, None, None",
        "return None, grad_input, grad_input if of_residual else None, None, None",
    ),
    Mutation(
        "dropout_traced_gradient",
        OPS,
        "return grad_input, grad_output if ctx.needs_input_grad[1] else None,",
        "return grad_output, grad_output if ctx.needs_input_grad[1] else None,",
    ),
]
