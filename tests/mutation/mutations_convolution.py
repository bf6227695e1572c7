"""Mistakes in the convolutions with a norm before them, in CUDA C++ and in Triton."""

from __future__ import annotations

from tests.mutation.mutation import Mutation

CUDA = "csrc/cuda/"

MUTATIONS = [
    Mutation(
        "cuda_rest_of_the_mean_before_a_convolution",
        CUDA + "convolution_prologue.cuh",
        "x[i] = fmaf((x[i] - high[i]) - low[i], scale[i], bias[i]);",
        "x[i] = fmaf(x[i] - high[i], scale[i], bias[i]);",
    ),
    Mutation(
        "cuda_slope_without_the_norms_bias",
        CUDA + "convolution_prologue.cuh",
        "u[i] = fmaf(z[i], channels.scale[i], channels.bias[i]);",
        "u[i] = z[i] * channels.scale[i];",
    ),
    Mutation(
        "cuda_padding_that_is_activated",
        CUDA + "convolution_depthwise.cuh",
        "    if (place(slot, line, column)) enter",
        "    if (place(slot, line, column) || own.active) enter",
    ),
    Mutation(
        "cuda_gradient_between_strides",
        CUDA + "convolution_depthwise_input.cu",
        "return output * stride == at && output < outputs ? output : -1;",
        "return output < outputs ? output : -1;",
    ),
    Mutation(
        "cuda_moments_of_the_last_tile",
        CUDA + "convolution_pointwise_forward.cu",
        "total = merge(total, column_moments(out + thread / 4, count))",
        "total = column_moments(out + thread / 4, count)",
    ),
    Mutation(
        "cuda_no_barrier_before_the_output",
        CUDA + "convolution_pointwise_forward.cu",
        "    device::block_barrier();\n\n    T* const out = stages;",
        "    T* const out = stages;",
    ),
    Mutation(
        "cuda_feedback_by_the_first_weight",
        CUDA + "convolution_merge.cu",
        "const double w = double(weight_of(weight, channel));",
        "const double w = double(weight_of(weight, first));",
    ),
    Mutation(
        "cuda_one_buffer_of_two",
        CUDA + "convolution_pointwise_weight.cu",
        "fetch(first + step_rows, stage ^ 1);",
        "fetch(first + step_rows, stage);",
    ),
    Mutation(
        "cuda_known_statistics_are_constants",
        CUDA + "norm_act_conv.cu",
        "needs_feedback = gradients.input && has_norm(call) && !call.constant;",
        "needs_feedback = gradients.input && has_norm(call) && !is_given(call);",
    ),
    Mutation(
        "cuda_pointwise_with_padding",
        CUDA + "norm_act_conv.cu",
        "sizes.padding_height == 0 && sizes.padding_width == 0;",
        "sizes.padding_width == 0;",
    ),
    Mutation(
        "cuda_taps_transposed",
        CUDA + "convolution_depthwise_weight.cu",
        "tap / shape.kernel_width * tiles.down.tap_step * tiles.across.slots +",
        "tap % shape.kernel_height * tiles.down.tap_step * tiles.across.slots +",
    ),
    Mutation(
        "cuda_gaps_of_one",
        CUDA + "convolution_feedback.cu",
        "g[i] = nothing[i];",
        "g[i] = 1.0f;",
    ),
    Mutation(
        "triton_padding_before_the_activation",
        "kernels/convolution_tiles.py",
        "values = rounded(tl.where(mask, z, 0.0), pointers.dtype.element_ty)",
        "values = rounded(z, pointers.dtype.element_ty)",
    ),
    Mutation(
        "triton_mean_without_its_rest",
        "kernels/convolution_tiles.py",
        "z = ((z - mean) - rest) * scale + shift",
        "z = (z - mean) * scale + shift",
    ),
    Mutation(
        "triton_squares_not_corrected",
        "kernels/convolution_tiles.py",
        "- middle * middle * count",
        "- middle * middle",
    ),
    Mutation(
        "triton_slope_without_the_norms_bias",
        "kernels/convolution_tiles.py",
        "g = slope_times(g, centred * scale[None, :] + shift[None, :], parameter, ACTIVATION)",
        "g = slope_times(g, centred * scale[None, :], parameter, ACTIVATION)",
    ),
    Mutation(
        "triton_group_of_the_first_channels",
        "kernels/convolution_forward.py",
        "source = group * depth + member",
        "source = member",
    ),
    Mutation(
        "triton_phase_of_the_padding",
        "kernels/convolution_data.py",
        "(phase + PADDING - k * DILATION + STRIDE",
        "(phase - k * DILATION + STRIDE",
    ),
    Mutation(
        "triton_one_split_merged",
        "kernels/convolution_weight.py",
        "tl.load(partials + split * count + number",
        "tl.load(partials + number",
    ),
    Mutation(
        "triton_weight_of_the_first_member",
        "kernels/convolution_direct.py",
        "number * IN_GROUP + column % IN_GROUP)",
        "number * IN_GROUP)",
    ),
    Mutation(
        "triton_bias_gradient_of_one_chunk",
        "kernels/convolution_statistics.py",
        "end = tl.minimum((part + 1) * ITEMS, chunks)",
        "end = part * ITEMS + 1",
    ),
    Mutation(
        "triton_slope_twice",
        "kernels/norm_act_conv.py",
        'norm = call.norm if call.activation_first else call.norm._replace(activation="identity")',
        "norm = call.norm",
    ),
]
