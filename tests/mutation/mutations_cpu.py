"""Mistakes in the C++ of the CPU and in the bindings."""

from __future__ import annotations

from tests.mutation.mutation import Mutation

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
    # norms over rows
    Mutation(
        "residual_not_added", "csrc/cpu/row_norm_forward.h", "part.load(x + i) + part.load(r + i)", "part.load(x + i)"
    ),
    Mutation(
        "remainder_of_a_row_dropped",
        "csrc/cpu/row_norm_forward.h",
        "return {center, A(rstd), A(-remainder * rstd)};",
        "return {center, A(rstd), A(0)};",
    ),
    Mutation(
        "ragged_end_of_a_row_in_its_mean",
        "csrc/cpu/row_norm_forward.h",
        "part.clear_rest(first_input(i, part) - from)",
        "first_input(i, part) - from",
    ),
    Mutation(
        "gradient_of_the_sum_dropped",
        "csrc/cpu/row_norm_backward.h",
        "if constexpr (has_sum) result += part.load(gs + j);",
        "",
    ),
    Mutation(
        "unscaled_product_of_a_row", "csrc/cpu/row_norm_backward.h", "A(-rstd * mean_product)", "A(-mean_product)"
    ),
    Mutation(
        "sums_of_the_first_parameter",
        "csrc/cpu/row_norm_backward.h",
        "sums + i / blocks * width + first",
        "sums + first",
    ),
    Mutation("rows_of_one_run", "csrc/cpu/row_norm_rows.h", "      ++outer_;\n", ""),
    Mutation(
        "streamed_rows_without_their_beginning",
        "csrc/cpu/row_norm_rows.h",
        "if (head) body(int64_t(0), First<A>{int(head)});",
        "",
    ),
    # sums over blocks of rows
    Mutation(
        "sums_of_the_last_columns",
        "csrc/cpu/row_sums.h",
        "product_sums[plan.channel(j)] += sums[stride + j];",
        "product_sums[plan.channel(j)] = sums[stride + j];",
    ),
    Mutation(
        "blocks_without_their_distance",
        "csrc/cpu/row_sums.h",
        "squares[c] += square[c] + distance * distance * cross;",
        "squares[c] += square[c];",
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
    Mutation(
        "dropout_of_another_head",
        "csrc/cpu/attention_dropout.h",
        "words.word[2][i] = place.head;",
        "words.word[2][i] = 0;",
    ),
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
]
