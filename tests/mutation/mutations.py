"""One-line mistakes in the kernels, each of a kind that people make. The tests of the kernel's floor must notice it.

A mistake joins by adding a row. ``old`` must occur exactly once in the file: a row that fits the source no more fails.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """``old`` becomes ``new`` in ``file``, a path in the repository, whose folder says which tests must notice."""

    name: str
    file: str
    old: str
    new: str


MUTATIONS = [
    # activations
    Mutation("silu_slope", "csrc/cpu/activations.h", "A(1) + u * (A(1) - s)", "A(1) + u * s"),
    Mutation(
        "leaky_relu_at_zero",
        "csrc/cpu/activations.h",
        "return u > A(0) ? g : g * parameter;",
        "return u < A(0) ? g * parameter : g;",
    ),
    Mutation("gelu_density", "csrc/cpu/activations.h", "A(0.3989422804014326779)", "A(0.3979422804014326779)"),
    Mutation(
        "hardswish_at_three",
        "csrc/cpu/activations.h",
        "slope = u < A(3) ? slope : g;",
        "slope = u <= A(3) ? slope : g;",
    ),
    Mutation("mish_slope", "csrc/cpu/activations.h", "A(4) * e * (A(1) + e)", "A(4) * e"),
    Mutation(
        "relu_swallows_nan", "csrc/cpu/activations.h", "return u <= A(0) ? V{} : u;", "return u > A(0) ? u : V{};"
    ),
    # the affine map and its derivative
    Mutation("dropped_eps", "csrc/cpu/normalize.h", "1 / std::sqrt(variance + norm.eps)", "1 / std::sqrt(variance)"),
    Mutation("dropped_remainder_of_mean", "csrc/cpu/normalize.h", "A(bias - remainder<A>() * scale)", "A(bias)"),
    Mutation(
        "dropped_remainder_in_product",
        "csrc/cpu/normalize.h",
        "reciprocal_deviation * (product_sum - remainder<A>() * gradient_sum)",
        "reciprocal_deviation * product_sum",
    ),
    Mutation("wrong_sign_in_slope", "csrc/cpu/normalize.h", "A(-d * d * m2)", "A(d * d * m2)"),
    Mutation(
        "dropped_mean_of_gradient",
        "csrc/cpu/normalize.h",
        "A(d * (d * m2 * remainder<A>() - m1))",
        "A(d * d * m2 * remainder<A>())",
    ),
    Mutation("wrong_scale_of_gradient", "csrc/cpu/normalize.h", "return {A(d * weight), A(", "return {A(weight), A("),
    # geometry
    Mutation(
        "wrong_channel_of_column",
        "csrc/cpu/normalize.h",
        "return column / inner % channels;",
        "return column % channels;",
    ),
    Mutation("dropped_last_row", "csrc/cpu/normalize.h", "if (end == blocks && rest) f(rows, int64_t(1), rest);", ""),
    Mutation("dropped_ragged_end", "csrc/cpu/vector.h", "if (i < n) body(i, First<A>{int(n - i)});", ""),
    Mutation(
        "wrong_group_of_slab",
        "csrc/cpu/group_norm.cpp",
        "merge_means(n * groups_ + group, &means[2 * group]);",
        "merge_means(n * groups_, &means[2 * group]);",
    ),
    Mutation(
        "wrong_count_in_group_norm",
        "csrc/cpu/group_norm.cpp",
        "double(width_) * double(norm_.positions);",
        "double(norm_.positions);",
    ),
    Mutation(
        "dropped_samples_of_weight",
        "csrc/cpu/group_norm.cpp",
        "weight += product_sums_[n * norm_.channels + c];",
        "weight = product_sums_[n * norm_.channels + c];",
    ),
    Mutation(
        "wrong_count_in_batch_norm",
        "csrc/cpu/batch_norm.cpp",
        "double(norm_.samples) * double(norm_.positions)",
        "double(norm_.positions)",
    ),
    Mutation(
        "statistics_never_constant", "csrc/cpu/batch_norm.cpp", "if (given_) return k.template slope<A>(0, 0);", ""
    ),
    # moments
    Mutation(
        "uncorrected_squares",
        "csrc/cpu/moments.h",
        "moments_.merge({n, double(shift_) + sum / n, squares - sum * sum / n});",
        "moments_.merge({n, double(shift_) + sum / n, squares});",
    ),
    Mutation("moments_without_shift", "csrc/cpu/moments.h", "shift_ = guess(x, m);", "shift_ = 0 * guess(x, m);"),
    Mutation(
        "wrong_merge_of_moments",
        "csrc/cpu/moments.h",
        "distance * distance * (count * other.count / total)",
        "distance * distance * other.count",
    ),
    Mutation(
        "dropped_squares_of_columns",
        "csrc/cpu/moments.h",
        "square[j] += double(squares[j]) - sum * sum / n + distance * distance * cross;",
        "square[j] += double(squares[j]) - sum * sum / n;",
    ),
    # storage and tiles
    Mutation("truncated_bfloat16", "csrc/cpu/storage.h", "(bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16", "bits >> 16"),
    Mutation("subtracted_residual", "csrc/cpu/engine.h", "z[i] += residual[i];", "z[i] -= residual[i];"),
    Mutation("dropped_late_residual", "csrc/cpu/spans_of.h", "u += part.load(r);", "u += 0 * part.load(r);"),
    # bindings
    Mutation("biased_running_variance", "csrc/bindings.cpp", "double(count) / double(count - 1)", "1.0"),
    Mutation(
        "wrong_layout_accepted", "csrc/tensors.h", "else if (given[i] != position * length) return std::nullopt;", ""
    ),
    # Triton, kept on chip
    Mutation(
        "triton_dropped_rest_of_mean",
        "kernels/on_chip.py",
        "mean.to(tl.float64) + rest.to(tl.float64)",
        "mean.to(tl.float64)",
    ),
    Mutation(
        "triton_wrong_sign_of_product",
        "kernels/on_chip.py",
        "g -= z * spread_by_group(m2,",
        "g += z * spread_by_group(m2,",
    ),
    Mutation(
        "triton_bias_scaled",
        "kernels/on_chip.py",
        "u = z * w[None, :] + load_parameter(bias, channel, bias_stride, in_groups, 0.0)[None, :]",
        "u = (z + load_parameter(bias, channel, bias_stride, in_groups, 0.0)[None, :]) * w[None, :]",
    ),
    # Triton, split
    Mutation(
        "triton_uncounted_deviation", "kernels/moments.py", "deviation * deviation * count", "deviation * deviation"
    ),
    Mutation(
        "triton_wrong_plane", "kernels/split.py", "tl.load(totals + outer * groups + index,", "tl.load(totals + index,"
    ),
    Mutation(
        "triton_weightless_totals",
        "kernels/split.py",
        "total += sum_by_group(tl.where(in_bound, sums * w, 0.0)",
        "total += sum_by_group(tl.where(in_bound, sums, 0.0)",
    ),
    # Triton, what they share
    Mutation(
        "triton_wrong_stride",
        "kernels/tiles.py",
        "offsets = channel * (line_stride * UNIT) + position",
        "offsets = channel * (sample_stride * UNIT) + position",
    ),
    Mutation("triton_last_rows_only", "kernels/parameters.py", "by_weight += tl.sum(", "by_weight = tl.sum("),
    Mutation("triton_biased_running_variance", "kernels/parameters.py", "other=0.0) * unbiased", "other=0.0)"),
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
    # attention on the CPU
    Mutation(
        "wrong_head_of_group", "csrc/cpu/attention_forward.h", "return key_head * call.group() + g;", "return key_head;"
    ),
    Mutation("window_off_by_one", "csrc/cpu/attention_rows.h", "+ call.window_right + 1, 0", "+ call.window_right, 0"),
    Mutation(
        "log_sum_without_its_maximum", "csrc/cpu/attention_forward.h", "largest * shaping.unit() + std::log", "std::log"
    ),
    Mutation(
        "dropout_of_another_row",
        "csrc/cpu/attention_gradient_rows.h",
        "uint32_t(row + r), uint32_t(head)",
        "uint32_t(row), uint32_t(head)",
    ),
    Mutation("dropout_of_another_head", "csrc/cpu/attention_dropout.h", "c[2][i] = place.head;", "c[2][i] = 0;"),
    Mutation(
        "wrong_row_of_output",
        "csrc/cpu/attention_gradient_rows.h",
        "matrix_of<T>(gradients.output, sequence.sample, head, query)",
        "matrix_of<T>(gradients.output, sequence.sample, head, 0)",
    ),
    Mutation(
        "unscaled_sums",
        "csrc/cpu/attention_forward.h",
        "if (!single && before != A(1)) scale_row",
        "if (false) scale_row",
    ),
    Mutation(
        "hidden_gradients_of_a_mask",
        "csrc/cpu/attention_backward.h",
        "writes_mask() && (call.window_left >= 0 || call.window_right >= 0)",
        "false",
    ),
    Mutation(
        "unscaled_gradient_of_query",
        "csrc/cpu/attention_backward.h",
        "keys.columns, call.features, A(call.scale));",
        "keys.columns, call.features, A(1));",
    ),
    Mutation(
        "mask_gradient_of_first_sample", "csrc/cpu/attention_mask_gradient.h", "Range{0, call.samples};", "Range{0, 1};"
    ),
    Mutation(
        "packing_of_another_row",
        "csrc/cpu/matrix_pack.h",
        "rows[i] = from.contiguous(r + i, columns, scratch[i]);",
        "rows[i] = from.contiguous(r, columns, scratch[i]);",
    ),
    Mutation(
        "packed_gradients_in_another_order",
        "csrc/attention_tensors.h",
        "strides.data(), i * row, &handle",
        "strides.data(), (2 - i) * row, &handle",
    ),
    # attention in Triton
    Mutation(
        "triton_cap_without_slope",
        "kernels/attention_backward.py",
        """                    ds = weights * (dp - d[None, :])
                    if CAPPED:
                        ds *= 1.0 - tangent * tangent
                    gradient_of_k = product(rounded(ds""",
        """                    ds = weights * (dp - d[None, :])
                    gradient_of_k = product(rounded(ds""",
    ),
    Mutation(
        "triton_wrong_head_of_group",
        "kernels/attention_short.py",
        "head = key_head * GROUP + member",
        "head = key_head * GROUP",
    ),
    Mutation("triton_window_off_by_one", "kernels/attention_scores.py", "column - row <= high", "column - row < high"),
    Mutation(
        "triton_dropout_order",
        "kernels/philox.py",
        "tl.join(tl.join(w0, w2), tl.join(w1, w3))",
        "tl.join(tl.join(w0, w1), tl.join(w2, w3))",
    ),
    Mutation(
        "triton_unmasked_boolean",
        "kernels/attention_scores.py",
        "values = tl.where(there != 0, values, -INFINITY)",
        "values = tl.where(there != 0, values, values)",
    ),
    Mutation(
        "triton_delta_without_log_sum",
        "kernels/attention_short.py",
        "                        d -= tl.load(grad_log_sum + place",
        "                        d -= 0 * tl.load(grad_log_sum + place",
    ),
    Mutation(
        "triton_merge_without_shrinking",
        "kernels/attention_forward.py",
        "merged = merged * shrunk[:, None] + part",
        "merged = merged + part",
    ),
    Mutation(
        "triton_mask_gradient_of_first_head",
        "kernels/attention_mask.py",
        "head = (own_head + outer % shared_heads)",
        "head = (own_head + outer * 0)",
    ),
    Mutation(
        "triton_sums_of_one_chunk",
        "kernels/attention_mask.py",
        "total += tl.load(partial + chunk *",
        "total += tl.load(partial + 0 *",
    ),
    Mutation(
        "triton_delta_of_another_row",
        "kernels/attention_backward.py",
        "tl.store(delta + at, found",
        "tl.store(delta + at, found * 0.5",
    ),
    Mutation(
        "triton_descriptor_of_first_head",
        "kernels/attention_descriptors.py",
        "descriptor.load([sample, first, head, 0])",
        "descriptor.load([sample, first, 0, 0])",
    ),
    Mutation(
        "triton_described_stride_of_another",
        "kernels/attention_descriptors.py",
        "(one.sample, one.head, one.row, 1)[at]",
        "(one.sample, one.row, one.head, 1)[at]",
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
]
