"""Mistakes in the CPU's own convolutions."""

from __future__ import annotations

from tests.mutation.mutation import Mutation

GATHER = "csrc/cpu/convolution_gather.h"
FINISH = "csrc/cpu/convolution_finish.h"
PACK = "csrc/cpu/convolution_pack.h"
WEIGHT = "csrc/cpu/convolution_weight.cpp"
CONVOLUTION = "csrc/cpu/convolution.cpp"
BLOCK = "fastdl/ops/conv_norm_block.py"

MUTATIONS = [
    Mutation("cpu_padding_above_and_below", GATHER, "(uint64_t(b) < uint64_t(size[1])) &", "(b == b) &"),
    Mutation("cpu_blocks_of_depths", GATHER, "tile.accumulate = tap > 0 || depth > 0;", "tile.accumulate = tap > 0;"),
    Mutation("cpu_blocks_of_taps", GATHER, "int32_t(tap + taps_each)) - taps", "int32_t(tap + taps_each - 1)) - taps"),
    Mutation(
        "cpu_positions_without_a_tap",
        GATHER,
        "std::fill_n(places_->results[i], gather_.columns, 0.0f);",
        "std::fill_n(places_->results[i], gather_.columns / 2, 0.0f);",
    ),
    Mutation(
        "cpu_finish_of_every_block",
        GATHER,
        ">= gather_.depth ? gather_.finish : nullptr;",
        "> 0 ? gather_.finish : nullptr;",
    ),
    Mutation(
        "cpu_a_task_without_its_last_tile",
        GATHER,
        "first_of(task + 1) - first_of(task);",
        "std::max<int64_t>(1, first_of(task + 1) - first_of(task) - 8);",
    ),
    Mutation(
        "cpu_residual_of_the_first_rows", FINISH, "finish.residual + (to - finish.result)", "finish.residual + column"
    ),
    Mutation("cpu_flattened_with_padding", CONVOLUTION, " || c.padding[d] != 0) return c;", ") return c;"),
    Mutation("cpu_moments_from_the_first_position", GATHER, "sums[1][c] - mean * sums[0][c]", "sums[1][c]"),
    Mutation("cpu_moments_of_a_task", CONVOLUTION, "distance * distance * double(count) * share", "0"),
    Mutation(
        "cpu_gradient_from_the_wrong_output",
        CONVOLUTION,
        "push_back({i, distance / c.stride[d]})",
        "push_back({i, distance})",
    ),
    Mutation("cpu_gradient_between_strides", CONVOLUTION, "if (distance % c.stride[d] == 0) found", "found"),
    Mutation("cpu_first_output_inside", WEIGHT, "(-offset + stride - 1) / stride : 0", "-offset / stride : 0"),
    Mutation(
        "cpu_last_output_inside",
        WEIGHT,
        "(c_.in[2] - offset + stride - 1) / stride : 0",
        "(c_.in[2] - offset) / stride : 0",
    ),
    Mutation(
        "cpu_parts_of_the_weights_gradient",
        PACK,
        "for (int64_t p = 1; p < part_count; ++p)",
        "for (int64_t p = 2; p < part_count; ++p)",
    ),
    Mutation("cpu_transposed_halves", PACK, "_mm512_add_epi32(first, _mm512_set1_epi32(8))", "first"),
    Mutation("cpu_dilation_of_the_taps", PACK, "k * c.dilation[2] - c.padding[2]", "k - c.padding[2]"),
    Mutation(
        "cpu_strides_of_the_weight",
        "csrc/bindings_convolution.cpp",
        "c.weight_strides[d + 2] = weight.stride(i + 2);",
        "c.weight_strides[d + 2] = 1;",
    ),
    Mutation("one_node_statistics_before_an_activation", BLOCK, "batch and not behind.activation_first", "batch"),
    Mutation(
        "one_node_gradients_in_their_order", BLOCK, "*plan.moves, needs[0], needs[1]", "*plan.moves, needs[1], needs[0]"
    ),
    Mutation(
        "one_node_without_its_bias",
        BLOCK,
        "torch.convolution(input, weight, bias, *self.moves",
        "torch.convolution(input, weight, None, *self.moves",
    ),
]
