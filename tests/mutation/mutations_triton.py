"""Mistakes in the Triton kernels."""

from __future__ import annotations

from tests.mutation.mutation import Mutation

MUTATIONS = [
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
    # norms over rows
    Mutation(
        "triton_residual_not_added",
        "kernels/row_norm_on_chip.py",
        "s += load(residual + starts",
        "s += 0 * load(residual + starts",
    ),
    Mutation(
        "triton_variance_about_a_rounded_mean",
        "kernels/row_norm_on_chip.py",
        "tl.sum(s * s, axis=1) / count - rest * rest",
        "tl.sum(s * s, axis=1) / count",
    ),
    Mutation(
        "triton_gradient_behind_the_width",
        "kernels/row_norm_on_chip.py",
        "z = tl.where(in_width[None, :], z - mean[:, None], 0.0)",
        "z = z - mean[:, None]",
    ),
    Mutation(
        "triton_row_of_another_run",
        "kernels/row_norm_on_chip.py",
        "starts += (row % inner)",
        "starts += (row // inner)",
    ),
    Mutation(
        "triton_moments_without_shift",
        "kernels/row_norm_wide.py",
        "shift = tl.sum(s, axis=0) / there",
        "shift = 0.0 * tl.sum(s, axis=0) / there",
    ),
    Mutation(
        "triton_uncounted_parts",
        "kernels/row_norm_wide.py",
        "squares += members * deviation * deviation",
        "squares += deviation * deviation",
    ),
    Mutation(
        "triton_gradient_of_the_sum_dropped",
        "kernels/row_norm_wide.py",
        "g += load(grad_sum_row + column, mask)",
        "g += 0 * load(grad_sum_row + column, mask)",
    ),
    Mutation(
        "triton_rest_of_another_row",
        "kernels/row_norm_columns.py",
        "z -= tl.load(rests + row,",
        "z -= tl.load(rests + row * 0,",
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
    # attention in Triton, products by chunks
    Mutation(
        "triton_features_behind_the_last",
        "kernels/attention_tiles.py",
        "inside = (start + feature < WIDTH)[None, :]",
        "inside = (feature < WIDTH)[None, :]",
    ),
    Mutation(
        "triton_products_of_the_last_chunk",
        "kernels/attention_tiles.py",
        "sums = product(a, tl.trans(b), sums)",
        "sums = product(a, tl.trans(b), 0 * sums)",
    ),
    Mutation(
        "triton_chunk_of_queries_of_other_rows",
        "kernels/attention_forward.py",
        "product_by_chunks(query + q_offsets, there, k_rows",
        "product_by_chunks(query + q_offsets * 0, there, k_rows",
    ),
    Mutation(
        "triton_chunks_of_first_queries",
        "kernels/attention_backward.py",
        "q_rows = pointers_to_rows(q_base, start, q_row,",
        "q_rows = pointers_to_rows(q_base, start * 0, q_row,",
    ),
    Mutation(
        "triton_chunks_of_first_keys",
        "kernels/attention_mask.py",
        "k_rows = pointers_to_rows(of_key, first, k_row",
        "k_rows = pointers_to_rows(of_key, first * 0, k_row",
    ),
]
