"""Mistakes in the modules, which are Python alone."""

from __future__ import annotations

from tests.mutation.mutation import Mutation

MUTATIONS = [
    # statistics and modes
    Mutation(
        "shares_of_equal_batches",
        "fastdl/nn/sync_batch_norm.py",
        "shares = counts / total.clamp(min=1)",
        "shares = torch.full_like(counts, 1 / len(gathered))",
    ),
    Mutation(
        "variance_without_the_means",
        "fastdl/nn/sync_batch_norm.py",
        "(variances + (means - mean).square())",
        "variances",
    ),
    Mutation(
        "mode_of_the_block",
        "fastdl/nn/conv_norm_act.py",
        "batch is not None and takes_batch_statistics(batch)",
        "self.training",
    ),
    Mutation(
        "biased_running_variance_of_instances",
        "fastdl/nn/instance_norm.py",
        "variances * (positions / (positions - 1))",
        "variances",
    ),
]
