"""One-line mistakes in the C++ kernels, each of a kind that people make. The parity suite must notice every one.

A mistake joins by adding a row. ``old`` must occur exactly once in the file: a row that fits the source no more fails.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """``old`` becomes ``new`` in ``file``, a path below csrc/."""

    name: str
    file: str
    old: str
    new: str


MUTATIONS = [
    # activations
    Mutation("silu_slope", "cpu/activations.h", "A(1) + u * (A(1) - s)", "A(1) + u * s"),
    Mutation(
        "leaky_relu_at_zero",
        "cpu/activations.h",
        "return u > A(0) ? g : g * parameter;",
        "return u < A(0) ? g * parameter : g;",
    ),
    Mutation("gelu_density", "cpu/activations.h", "A(0.3989422804014326779)", "A(0.3979422804014326779)"),
    Mutation(
        "hardswish_at_three", "cpu/activations.h", "slope = u < A(3) ? slope : g;", "slope = u <= A(3) ? slope : g;"
    ),
    Mutation("mish_slope", "cpu/activations.h", "A(4) * e * (A(1) + e)", "A(4) * e"),
    Mutation("relu_swallows_nan", "cpu/activations.h", "return u <= A(0) ? V{} : u;", "return u > A(0) ? u : V{};"),
    # the affine map and its derivative
    Mutation("dropped_eps", "cpu/normalize.h", "1 / std::sqrt(variance + norm.eps)", "1 / std::sqrt(variance)"),
    Mutation("dropped_remainder_of_mean", "cpu/normalize.h", "A(bias - remainder<A>() * scale)", "A(bias)"),
    Mutation(
        "dropped_remainder_in_product",
        "cpu/normalize.h",
        "reciprocal_deviation * (product_sum - remainder<A>() * gradient_sum)",
        "reciprocal_deviation * product_sum",
    ),
    Mutation("wrong_sign_in_slope", "cpu/normalize.h", "A(-d * d * m2)", "A(d * d * m2)"),
    Mutation(
        "dropped_mean_of_gradient",
        "cpu/normalize.h",
        "A(d * (d * m2 * remainder<A>() - m1))",
        "A(d * d * m2 * remainder<A>())",
    ),
    Mutation("wrong_scale_of_gradient", "cpu/normalize.h", "return {A(d * weight), A(", "return {A(weight), A("),
    # geometry
    Mutation(
        "wrong_channel_of_column", "cpu/normalize.h", "return column / inner % channels;", "return column % channels;"
    ),
    Mutation("dropped_last_row", "cpu/normalize.h", "if (end == blocks && rest) f(rows, int64_t(1), rest);", ""),
    Mutation("dropped_ragged_end", "cpu/vector.h", "if (i < n) body(i, First<A>{int(n - i)});", ""),
    Mutation(
        "wrong_group_of_slab",
        "cpu/group_norm.cpp",
        "merge_means(n * groups_ + group, &means[2 * group]);",
        "merge_means(n * groups_, &means[2 * group]);",
    ),
    Mutation(
        "wrong_count_in_group_norm",
        "cpu/group_norm.cpp",
        "double(width_) * double(norm_.positions);",
        "double(norm_.positions);",
    ),
    Mutation(
        "dropped_samples_of_weight",
        "cpu/group_norm.cpp",
        "weight += product_sums_[n * norm_.channels + c];",
        "weight = product_sums_[n * norm_.channels + c];",
    ),
    Mutation(
        "wrong_count_in_batch_norm",
        "cpu/batch_norm.cpp",
        "double(norm_.samples) * double(norm_.positions)",
        "double(norm_.positions)",
    ),
    Mutation("statistics_never_constant", "cpu/batch_norm.cpp", "if (given_) return k.template slope<A>(0, 0);", ""),
    # moments
    Mutation(
        "uncorrected_squares",
        "cpu/moments.h",
        "moments_.merge({n, double(shift_) + sum / n, squares - sum * sum / n});",
        "moments_.merge({n, double(shift_) + sum / n, squares});",
    ),
    Mutation("moments_without_shift", "cpu/moments.h", "shift_ = mean_of(x, ", "shift_ = 0 * mean_of(x, "),
    Mutation(
        "wrong_merge_of_moments",
        "cpu/moments.h",
        "distance * distance * (count * other.count / total)",
        "distance * distance * other.count",
    ),
    Mutation(
        "dropped_squares_of_columns",
        "cpu/moments.h",
        "square[j] += double(squares[j]) - sum * sum / n + distance * distance * cross;",
        "square[j] += double(squares[j]) - sum * sum / n;",
    ),
    # storage and tiles
    Mutation("truncated_bfloat16", "cpu/storage.h", "(bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16", "bits >> 16"),
    Mutation("subtracted_residual", "cpu/engine.h", "z[i] += residual[i];", "z[i] -= residual[i];"),
    Mutation("dropped_late_residual", "cpu/spans_of.h", "u += part.load(r);", "u += 0 * part.load(r);"),
    # bindings
    Mutation("biased_running_variance", "bindings.cpp", "double(count) / double(count - 1)", "1.0"),
    Mutation(
        "wrong_layout_accepted", "bindings.cpp", "else if (given[i] != position * length) return std::nullopt;", ""
    ),
]
