"""Mistakes in the CUDA C++ and in its bindings."""

from __future__ import annotations

from tests.mutation.mutation import Mutation

MUTATIONS = [
    # CUDA C++: wrong numbers
    Mutation(
        "cuda_dropped_rest_of_mean",
        "csrc/cuda/strips_forward.cu",
        "bias_of(call.bias, channel) - center.low * scale;",
        "bias_of(call.bias, channel);",
    ),
    Mutation(
        "cuda_wrong_sign_of_product",
        "csrc/cuda/strips_backward.cu",
        "slope.by_input = -d * d * m2;",
        "slope.by_input = d * d * m2;",
    ),
    Mutation(
        "cuda_wrong_place_of_residual",
        "csrc/cuda/rows_forward.cu",
        "u[i] = (u[i] + r[i] - high[i]) * scale[i] + shift[i];",
        "u[i] = (u[i] - high[i]) * scale[i] + shift[i] + r[i];",
    ),
    Mutation(
        "cuda_unscaled_slope",
        "csrc/cuda/rows_backward.cu",
        "x[i] = z[i] * scale[i] + shift[i];",
        "x[i] = z[i] + shift[i];",
    ),
    Mutation(
        "cuda_wrong_merge",
        "csrc/cuda/norm_merge.cu",
        "distance * distance * (a.count * b.count / count)",
        "distance * distance * b.count",
    ),
    # CUDA C++: races, which may leave the numbers right
    Mutation("cuda_missing_cluster_barrier", "csrc/cuda/strips_forward.cu", "      device::cluster_barrier();\n", ""),
    Mutation(
        "cuda_missing_wait_for_copies",
        "csrc/cuda/rows_backward.cu",
        "  device::cp_async_wait<0>();\n\n  // First the sums",
        "\n  // First the sums",
    ),
    Mutation(
        "cuda_missing_barrier_before_centers",
        "csrc/cuda/rows_forward.cu",
        "  device::block_barrier();\n\n  float high[V]",
        "\n  float high[V]",
    ),
    Mutation(
        "cuda_missing_barrier_in_merge",
        "csrc/cuda/norm_merge.cu",
        "    device::block_barrier();\n    if (lane < half)",
        "    if (lane < half)",
    ),
    # norms over rows
    Mutation("cuda_sums_in_one_array", "csrc/cuda/row_norm_rows.cuh", "      phase ^= 1;\n", ""),
    Mutation(
        "cuda_outer_step_of_rows",
        "csrc/cuda/row_norm_rows.cuh",
        "outer * tensor.strides.outer",
        "outer * tensor.strides.inner",
    ),
    Mutation(
        "cuda_mean_without_its_rest",
        "csrc/cuda/row_norm_forward.cuh",
        "return {mean, low, reciprocal_root",
        "return {mean, 0.0f, reciprocal_root",
    ),
    Mutation(
        "cuda_saved_mean_without_its_rest",
        "csrc/cuda/row_norm_forward.cuh",
        "call.statistics[row] = centre.mean + centre.low;",
        "call.statistics[row] = centre.mean;",
    ),
    Mutation(
        "cuda_input_in_place_of_the_sum",
        "csrc/cuda/row_norm_forward.cuh",
        "return residual ? device::load_vector<Pack<T, V>>(sum + column) : load<T, V>(input + column);",
        "return load<T, V>(input + column);",
    ),
    Mutation(
        "cuda_rest_of_mean_in_backward", "csrc/cuda/row_norm_backward.cuh", "    centre.low = sums[2] / width;\n", ""
    ),
    Mutation(
        "cuda_sign_of_the_rest",
        "csrc/cuda/row_norm_backward.cuh",
        "- centre.low * gradient)",
        "+ centre.low * gradient)",
    ),
    Mutation(
        "cuda_last_rows_of_a_share",
        "csrc/cuda/row_norm_backward.cuh",
        "begin + least + (part < rest ? 1 : 0)",
        "begin + least",
    ),
    Mutation(
        "cuda_lanes_of_the_same_columns",
        "csrc/cuda/row_norm_backward.cuh",
        "distance >= team.size;",
        "distance > team.size;",
    ),
    Mutation(
        "cuda_missing_barrier_between_turns", "csrc/cuda/row_norm_backward.cuh", "    device::block_barrier();\n", ""
    ),
    Mutation(
        "cuda_rests_of_streamed_rows",
        "csrc/cuda/row_norm_backward.cuh",
        "call.lows[row] = centre.low;",
        "call.lows[row] = 0.0f;",
    ),
    Mutation(
        "cuda_ragged_end_of_a_run",
        "csrc/cuda/row_norm_backward.cuh",
        "first < rows.end; first += S",
        "first + S <= rows.end; first += S",
    ),
    Mutation(
        "cuda_vectors_of_unaligned_rows",
        "csrc/cuda/row_norm_plan.cu",
        "    if (norm.inner > 1 && tensor.strides.inner % vector != 0) return false;\n",
        "",
    ),
    Mutation(
        "cuda_room_for_the_rests",
        "csrc/cuda/row_norm_plan.cu",
        "round_up(size_t(norm.rows) * sizeof(float))",
        "round_up(sizeof(float))",
    ),
    Mutation(
        "cuda_strided_weight_as_it_is",
        "csrc/cuda/bindings_row_norms.cpp",
        "is_read && given->is_contiguous() &&",
        "is_read &&",
    ),
    Mutation(
        "cuda_gradient_of_the_sum_dropped",
        "csrc/cuda/bindings_row_norms.cpp",
        "if (grad_sum && needs_input) sum",
        "if (grad_sum && !needs_input) sum",
    ),
    # attention in CUDA C++
    Mutation(
        "cuda_early_release_of_wgmma",
        "csrc/cuda/attention_forward_wgmma.cuh",
        "    device::wgmma_wait<1>();",
        "    device::wgmma_wait<2>();",
    ),
    Mutation(
        "cuda_parity_of_the_pipeline",
        "csrc/cuda/attention_forward_wgmma.cuh",
        "unsigned(step / stages + 1) & 1u",
        "unsigned(step / stages) & 1u",
    ),
    Mutation(
        "cuda_output_not_rescaled", "csrc/cuda/attention_forward_wgmma.cuh", "    rescale(output, correction);", ""
    ),
    Mutation(
        "cuda_dropout_order",
        "csrc/cuda/attention_dropout.cuh",
        "other % 2 * 2 + other / 2 % 2)",
        "other % 2 + other / 2 % 2 * 2)",
    ),
    Mutation("cuda_merge_without_reference", "csrc/cuda/attention_merge.cu", "most + logf(total)", "logf(total)"),
    Mutation(
        "cuda_turned_window",
        "csrc/cuda/attention_call.cuh",
        "return {right, left, -shift, rows};",
        "return {left, right, -shift, rows};",
    ),
    Mutation("cuda_sign_of_delta", "csrc/cuda/attention_delta.cu", "sum - (gradients", "sum + (gradients"),
    Mutation(
        "cuda_heads_of_a_mask",
        "csrc/cuda/attention_backward_mask.cuh",
        "(all_heads ? int(attention.heads) : own_head + 1)",
        "(own_head + 1)",
    ),
    # dropout in CUDA C++
    Mutation("cuda_round_of_philox", "csrc/cuda/philox.cuh", "round < 10;", "round < 9;"),
    Mutation(
        "cuda_dropout_of_another_word",
        "csrc/cuda/dropout.cuh",
        "words[i / 2] << 16 : words[i / 2])",
        "words[i / 2] << 16 : words[(i / 2) ^ 1])",
    ),
    Mutation(
        "cuda_dropout_of_rows_above_32_bits",
        "csrc/cuda/dropout.cuh",
        "words[2] = uint32_t(uint64_t(row) >> 32);",
        "words[2] = 0;",
    ),
    Mutation(
        "cuda_dropout_seed_of_the_host",
        "csrc/cuda/dropout.cuh",
        "call.seed_on_device ? uint64_t(*call.seed_on_device) : call.seed;",
        "call.seed;",
    ),
    Mutation(
        "cuda_dropout_scale",
        "csrc/cuda/dropout.cu",
        "65536.0f / float(65536 - given.dropped)",
        "65536.0f / float(65535 - given.dropped)",
    ),
    Mutation("cuda_dropout_next_row", "csrc/cuda/dropout.cu", "      ++row;\n", ""),
    Mutation(
        "cuda_dropout_not_exchanged", "csrc/cuda/dropout.cu", "(half ? own : other) >>", "(half ? other : own) >>"
    ),
    Mutation("cuda_dropout_vectors_at_8_bytes", "csrc/cuda/dropout.cu", "addresses % 16 == 0", "addresses % 8 == 0"),
    Mutation(
        "cuda_dropout_ragged_end",
        "csrc/cuda/dropout.cu",
        "if (rest < 8) bits &=",
        "if (rest < 7) bits &=",
    ),
    Mutation("cuda_dropout_beyond_the_bits", "csrc/cuda/dropout.cu", "if (next && word + 1 < words)", "if (next)"),
    Mutation(
        "cuda_dropout_missing_barrier",
        "csrc/cuda/dropout.cu",
        "  load_round(0);\n  device::block_barrier();\n",
        "  load_round(0);\n",
    ),
    Mutation(
        "cuda_dropout_order_of_channels", "csrc/cuda/dropout.cu", "i < V; ++i, row += call.lines", "i < V; ++i, ++row"
    ),
    Mutation(
        "cuda_dropout_narrow_division",
        "csrc/cuda/dropout.cu",
        "call.narrow = values < int64_t(1) << 31;",
        "call.narrow = values < int64_t(1) << 33;",
    ),
    Mutation(
        "cuda_dropout_of_strides_that_are_not_read",
        "csrc/cuda/bindings_dropout.cpp",
        "if (geometry.in_place(given)) return given;",
        "return given;",
    ),
]
