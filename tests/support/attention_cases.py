"""The rows of attention's parity test, by subject."""

from __future__ import annotations

import torch

from tests.support.attention import Case
from tests.support.attention_layouts import ATTENTION_LAYOUTS

HALF = (torch.bfloat16, torch.float16)
SINGLE = (torch.float32,)

LAYOUT_CASES = tuple(
    Case(
        f"layout_{name}",
        (2, 3, 13, 8),
        layout=name,
        is_causal=i % 2 == 1,
        floor=0.5 if name == "expanded_keys" else 0.0,  # equal keys have equal weights: the softmax's gradient cancels
    )
    for i, name in enumerate(ATTENTION_LAYOUTS)
)

# Lengths around the edges of every block size in use, with keys of another length.
LENGTH_CASES = tuple(
    Case(f"length_{length}x{keys}", (1, 2, length, 16), keys=keys, floor=0.5 if keys <= 2 else 0.0)
    for length, keys in (
        (1, 1), (1, 2), (1, 100), (2, 1), (3, 5), (15, 17), (16, 16), (31, 33), (63, 65), (64, 64), (65, 130), (127, 1),
        (128, 96), (197, 197), (6, 300),
    )
)  # fmt: skip

FEATURE_CASES = tuple(
    Case(f"features_{features}_{values}", (1, 2, 19, features), keys=23, value_features=values, is_causal=True)
    for features, values in (
        (1, 1), (1, 5), (2, 3), (3, 8), (7, 7), (8, 16), (16, 32), (17, 15), (24, 24), (32, 32), (33, 31), (40, 40),
        (48, 64), (59, 59), (64, 64), (64, 16), (65, 64), (72, 72), (80, 80), (96, 96), (112, 48), (128, 128),
        (160, 160), (192, 128), (200, 1), (256, 256),
    )
)  # fmt: skip

HEAD_CASES = (
    Case("grouped_2", (2, 4, 17, 8), key_heads=2),
    Case("grouped_3_causal", (2, 6, 17, 8), key_heads=2, is_causal=True),
    Case("grouped_to_one", (1, 8, 9, 16), key_heads=1, keys=21),
    Case("grouped_heads_inside", (2, 6, 11, 8), key_heads=3, layout="heads_inside"),
    Case("grouped_with_mask", (2, 4, 10, 8), key_heads=2, mask="additive"),
    Case("grouped_with_dropout", (2, 4, 10, 8), key_heads=2, dropout_p=0.25),
    Case("one_head", (3, 1, 14, 8)),
    Case("one_head_heads_inside", (3, 1, 14, 8), layout="packed"),
    Case("many_heads", (1, 17, 5, 8)),
    Case("many_samples", (17, 1, 5, 8)),
)

WINDOW_CASES = (
    Case("causal", is_causal=True),
    Case("causal_short_keys", (1, 2, 40, 8), keys=20, is_causal=True),
    Case("causal_long_keys", (1, 2, 20, 8), keys=40, is_causal=True),
    Case("causal_lower_right", (1, 2, 20, 8), keys=40, is_causal=True, query_offset=20),
    Case("causal_sees_nothing_first", (1, 2, 20, 8), is_causal=True, query_offset=-7),
    Case("causal_sees_everything", (1, 2, 20, 8), is_causal=True, query_offset=1000),
    Case("causal_sees_nothing", (1, 2, 20, 8), is_causal=True, query_offset=-1000),
    Case("window_3_2", (2, 2, 33, 8), window=(3, 2)),
    Case("window_0_0", (2, 2, 33, 8), window=(0, 0), floor=1e-3),
    Case("window_left", (2, 2, 70, 8), window=(5, -1)),
    Case("window_right", (2, 2, 70, 8), window=(-1, 5)),
    Case("window_unbounded", (2, 2, 12, 8), window=(-1, -1)),
    Case("window_causal", (1, 2, 150, 16), window=(37, 11), is_causal=True),
    Case("window_beyond_the_keys", (1, 2, 40, 8), keys=20, window=(4, 4)),
    Case("window_with_offset", (1, 2, 40, 8), keys=90, window=(10, 3), query_offset=45),
    Case("offsets", (3, 2, 12, 8), keys=30, is_causal=True, offsets=(0, 18, -5)),
    Case("offsets_window", (3, 2, 12, 8), keys=30, window=(6, 2), offsets=(3, 40, 9)),
    Case("decoding", (4, 3, 1, 16), keys=130, is_causal=True, offsets=(0, 57, 128, 129)),
    Case("decoding_grouped", (2, 8, 1, 64), key_heads=2, keys=700, is_causal=True, offsets=(699, 300)),
    Case("decoding_few", (2, 4, 3, 32), keys=400, is_causal=True, query_offset=397),
    Case("long_causal", (1, 2, 320, 32), is_causal=True),
    Case("long_window", (1, 2, 400, 16), window=(64, 0)),
)

MASK_CASES = (
    *(
        Case(f"mask_{kind}_{shape or 'scalar'}", (2, 3, 9, 8), keys=13, mask=kind, mask_shape=shape)
        for kind in ("bool", "additive")
        for shape in ("", "S", "L", "LS", "HLS", "NLS", "NS", "HS", "N", "NL", "NHLS", "NHS")
    ),
    *(
        Case(f"mask_{kind}_{layout}", (2, 3, 9, 8), keys=13, mask=kind, mask_layout=layout)
        for kind in ("bool", "additive")
        for layout in ("transposed", "expanded", "sliced")
    ),
    Case("mask_float32", (2, 3, 9, 8), mask="additive_float32", mask_shape="HLS"),
    Case("mask_minus_infinity", (2, 3, 9, 8), mask="minus_infinity"),
    Case("mask_minus_infinity_rows", (2, 3, 9, 8), mask="minus_infinity", empty_rows=True),
    Case("mask_bool_rows", (2, 3, 9, 8), mask="bool", empty_rows=True),
    Case("mask_bool_rows_of_keys", (2, 3, 9, 8), mask="bool", mask_shape="NLS", empty_rows=True, with_log_sum=True),
    Case("mask_causal", (2, 3, 19, 8), mask="bool", mask_shape="NS", is_causal=True),
    Case("mask_additive_causal", (2, 3, 19, 8), mask="additive", mask_shape="HLS", is_causal=True),
    Case("mask_additive_window", (2, 2, 40, 8), mask="additive", mask_shape="LS", window=(4, 7)),
    # A gradient for each weight: what the window hides must be written too, as zeros.
    Case("mask_full_causal", (2, 3, 19, 8), mask="additive", is_causal=True),
    Case("mask_full_window", (2, 2, 40, 8), keys=33, mask="additive", window=(3, 2), query_offset=-5),
    Case("mask_full_softcap", (2, 2, 19, 8), mask="additive", softcap=1.5, is_causal=True),
    Case("mask_full_grouped", (2, 4, 19, 8), key_heads=2, mask="additive", is_causal=True),
    Case("mask_of_blocks", (1, 2, 140, 16), keys=150, mask="bool", mask_shape="LS"),
    Case("mask_additive_of_blocks", (2, 2, 140, 16), keys=150, mask="additive", mask_shape="HLS"),
    Case("mask_packed", (2, 3, 33, 16), layout="packed", mask="additive", mask_shape="NS"),
)

OPTION_CASES = (
    Case("scale", scale=0.7),
    Case("scale_negative", scale=-0.3),
    Case("scale_zero", scale=0.0, floor=1e-3),
    Case("softcap", (2, 2, 21, 16), softcap=1.5),
    Case("softcap_saturated", (2, 2, 21, 16), softcap=0.5, factor=10.0),
    Case("softcap_with_mask", (2, 2, 21, 16), softcap=2.0, mask="additive", mask_shape="HLS"),
    Case("softcap_causal", (1, 2, 70, 16), softcap=5.0, is_causal=True),
    Case("log_sum", with_log_sum=True),
    Case("log_sum_causal", (1, 2, 70, 16), with_log_sum=True, is_causal=True),
    Case("log_sum_with_mask", with_log_sum=True, mask="additive"),
    Case("log_sum_softcap", with_log_sum=True, softcap=1.0),
    Case("log_sum_sees_nothing", (1, 2, 20, 8), is_causal=True, query_offset=-7, with_log_sum=True),
)

DROPOUT_CASES = (
    Case("dropout", (2, 3, 17, 8), dropout_p=0.1),
    Case("dropout_half", (2, 3, 40, 16), dropout_p=0.5),
    Case("dropout_all", (1, 2, 9, 8), dropout_p=1.0),
    Case("dropout_little", (1, 2, 9, 8), dropout_p=1e-7),
    Case("dropout_causal", (2, 2, 70, 16), dropout_p=0.3, is_causal=True),
    Case("dropout_mask", (2, 2, 33, 16), dropout_p=0.3, mask="additive", mask_shape="HLS"),
    Case("dropout_log_sum", (2, 2, 33, 16), dropout_p=0.3, with_log_sum=True),
    Case("dropout_decoding", (2, 2, 1, 16), keys=300, dropout_p=0.3),
    Case("dropout_of_blocks", (1, 2, 140, 16), keys=150, dropout_p=0.2, seed=-1),
    Case("dropout_packed", (2, 3, 33, 16), layout="packed", dropout_p=0.2, seed=1 << 40),
)

VALUE_CASES = (
    Case("large_scores", (2, 2, 33, 16), factor=50.0, large_scores=True),
    Case("huge_scores", (1, 2, 33, 16), factor=1e3, large_scores=True),
    Case("tiny", (1, 2, 33, 16), values="small"),
    # Not in float64: the truth's own rounding is that of torch's op, step by step, and ours is as right as either.
    Case("shifted_little", (1, 2, 33, 16), values="shifted_little", large_scores=True, dtypes=(torch.float32, *HALF)),
    Case("outlier", (1, 2, 33, 16), values="outlier", scale=0.01, large_scores=True),
    Case("zero", (1, 2, 20, 16), values="zero", floor=1e-2),
)

EMPTY_CASES = (
    Case("no_samples", (0, 3, 5, 8)),
    Case("no_heads", (2, 0, 5, 8)),
    Case("no_queries", (2, 3, 0, 8), keys=5),
    Case("no_keys", (2, 3, 5, 8), keys=0),
    Case("no_keys_no_queries", (2, 3, 0, 8)),
    Case("no_keys_with_mask", (2, 3, 5, 8), keys=0, mask="additive"),
)

# The shapes that ViT, BERT and GPT have, and lengths that take the paths for long sequences.
NETWORK_CASES = (
    Case("vit_small", (2, 6, 65, 64), layout="packed", dtypes=(torch.float32, *HALF)),
    Case("vit_base", (1, 4, 197, 64), layout="packed", dtypes=(torch.float32, *HALF)),
    Case("bert", (2, 4, 128, 64), mask="bool", mask_shape="NS", dtypes=(torch.float32, *HALF)),
    Case("bert_dropout", (1, 2, 128, 64), dropout_p=0.1, dtypes=(torch.float32, *HALF)),
    Case("gpt", (1, 2, 640, 64), is_causal=True, dtypes=(torch.float32, *HALF)),
    Case("gpt_long", (1, 2, 1100, 64), is_causal=True, dtypes=HALF),
    Case("long_grouped", (1, 4, 1050, 80), key_heads=2, window=(300, 20), layout="heads_inside", dtypes=HALF),
    Case("gpt_wide", (1, 2, 300, 128), is_causal=True, dtypes=(torch.float32, *HALF)),
    Case("cross", (1, 2, 77, 40), keys=600, dtypes=(torch.float32, *HALF)),
    Case("long_bias", (1, 2, 577, 64), mask="additive", mask_shape="HLS", dtypes=(torch.float32, torch.bfloat16)),
)

CASES = (
    *LAYOUT_CASES, *LENGTH_CASES, *FEATURE_CASES, *HEAD_CASES, *WINDOW_CASES, *MASK_CASES, *OPTION_CASES,
    *DROPOUT_CASES, *VALUE_CASES, *EMPTY_CASES, *NETWORK_CASES,
)  # fmt: skip
