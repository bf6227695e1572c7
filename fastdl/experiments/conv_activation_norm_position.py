"""The order of convolution, norm and activation in a network of 8 blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdl.experiments.claims import Arm, Claim, Difference, Equivalence
from fastdl.experiments.definition import ExperimentDefinition, Factor, Figure, Protocol, Text
from fastdl.experiments.networks import block_network_config
from fastdl.experiments.options import CommonOptions, protocol_of
from fastdl.training.config import RunConfig

__all__ = ["BLOCKS", "DEFINITION", "Options", "run"]

BLOCKS: Mapping[str, Mapping[str, Any]] = {
    "conv_norm_relu": {"order": "conv_norm_act", "norm": "batch", "activation": "relu"},
    "conv_relu_norm": {"order": "conv_act_norm", "norm": "batch", "activation": "relu"},
    "conv_leaky_relu_norm": {"order": "conv_act_norm", "norm": "batch", "activation": "leaky_relu"},
    "conv_group_norm_relu": {"order": "conv_norm_act", "norm": "group", "activation": "relu"},
    "norm_relu_conv": {"order": "norm_act_conv", "norm": "batch", "activation": "relu"},
}
"""What a block is made of, by the name of the arm; the last two are beyond what was published."""

_LABELS: Mapping[str, Text] = {
    "conv_norm_relu": {"en": "Conv-BN-ReLU", "ko": "Conv-BN-ReLU"},
    "conv_relu_norm": {"en": "Conv-ReLU-BN", "ko": "Conv-ReLU-BN"},
    "conv_leaky_relu_norm": {"en": "Conv-LeakyReLU-BN", "ko": "Conv-LeakyReLU-BN"},
    "conv_group_norm_relu": {"en": "Conv-GN-ReLU", "ko": "Conv-GN-ReLU"},
    "norm_relu_conv": {"en": "BN-ReLU-Conv", "ko": "BN-ReLU-Conv"},
}
_STANDARD, _OTHERS = "conv_norm_relu", ("conv_relu_norm", "conv_leaky_relu_norm")
MARGIN = 0.02
_GROUPS = 8


@dataclass(frozen=True)
class Options(CommonOptions):
    """Compare orders of convolution, norm and activation in a network of equal blocks, over several seeds."""

    blocks: tuple[str, ...] | None = None
    """Which arms to run, as conv_norm_relu conv_relu_norm; all if it is not given."""


def arms(options: Options) -> tuple[Arm, ...]:
    """One for each block."""
    chosen = options.blocks or ()
    if not chosen or (unknown := [block for block in chosen if block not in BLOCKS]):
        raise ValueError(f"blocks must be of {', '.join(BLOCKS)}, got {', '.join(unknown if chosen else ())}")
    return tuple((block,) for block in chosen)


def configure(options: Options, fingerprint: str, arm: Arm, seed: int) -> RunConfig:
    """The arms differ in what a block is made of and in what order, and in nothing else."""
    block = BLOCKS[str(arm[0])]
    groups = {"num_groups": _GROUPS} if block["norm"] == "group" else {}
    model = {**protocol_of(options, DEFINITION)[1].model, **block, **groups}
    return block_network_config(options, fingerprint, model, seed)


def claims(arms: Sequence[Arm]) -> tuple[Claim, ...]:
    """The differences are small, and the standard order is the best."""
    present = {arm[0] for arm in arms}
    made: list[Claim] = []
    for other in _OTHERS:
        if not {_STANDARD, other} <= present:
            continue
        name = _LABELS[other]
        made += [
            Equivalence(
                f"{other}_is_close",
                {
                    "en": f"{name['en']} is within 2 points of Conv-BN-ReLU",
                    "ko": f"{name['ko']}와 Conv-BN-ReLU의 차이는 2%p 이내이다",
                },
                (other,), (_STANDARD,), MARGIN,
            ),
            Difference(
                f"standard_beats_{other}",
                {
                    "en": f"Conv-BN-ReLU is more accurate than {name['en']}",
                    "ko": f"Conv-BN-ReLU가 {name['ko']}보다 정확하다",
                },
                (_STANDARD,), (other,),
            ),
        ]  # fmt: skip
    return tuple(made)


DEFINITION = ExperimentDefinition(
    name="conv_activation_norm_position",
    title={"en": "Order of convolution, norm and activation", "ko": "합성곱, 정규화, 활성화 함수의 순서"},
    question={
        "en": "Does it matter whether the norm stands before or behind the activation? Networks of 8 blocks are "
        "trained that differ in what a block is made of and in what order; weights, order of the images and "
        "augmentation are the same.",
        "ko": "정규화를 활성화 함수의 앞에 두는지 뒤에 두는지가 중요한가? 블록의 구성과 순서만 다른 8블록 신경망들을 "
        "학습한다. 초기 가중치, 이미지 순서, 데이터 증강은 모두 같다.",
    },
    options=Options,
    factors=(Factor("block", {"en": "block", "ko": "블록"}, _LABELS),),
    protocols={
        "smoke": Protocol(
            "digits", epochs=3, batch_size=32, learning_rate=0.1, seeds=3,
            model={"width": 32, "stride": 1, "depth": 8}, levels={"blocks": tuple(BLOCKS)},
        ),
        "cpu": Protocol(
            "cifar10", epochs=3, batch_size=128, learning_rate=0.2, seeds=5,
            model={"width": 32, "stride": 2, "depth": 8, "pool": 4}, levels={"blocks": tuple(BLOCKS)},
        ),
        "full": Protocol(
            "cifar10", epochs=40, batch_size=256, learning_rate=0.2, seeds=5,
            model={"width": 128, "stride": 2, "depth": 8, "pool": 8, "hidden": 1024},
            levels={"blocks": tuple(BLOCKS)}, threads=None, precision="bf16-mixed",
        ),
    },
    arms=arms,
    configure=configure,
    varies=(
        "model.arguments.order", "model.arguments.norm", "model.arguments.num_groups", "model.arguments.activation",
    ),
    claims=claims,
    published={("conv_norm_relu",): 0.831, ("conv_relu_norm",): 0.824, ("conv_leaky_relu_norm",): 0.828},
    source={
        "en": "A published course experiment on CIFAR-10 with one run an arm; its network and training are not known "
        "in detail, so that levels need not agree, only the comparison.",
        "ko": "CIFAR-10으로 조건마다 한 번씩 실행해 공개된 강의 실험이다. 신경망과 학습 설정이 자세히 알려져 있지 "
        "않으므로 값 자체가 아니라 비교 결과를 본다.",
    },
    figures=(
        Figure(
            "accuracy_by_block", along="block",
            title={"en": "Test accuracy by the order in a block", "ko": "블록 안의 순서에 따른 테스트 정확도"},
        ),
    ),
    evidence=("gradients",),
)  # fmt: skip


def run(options: Options) -> Path:
    """Run the experiment and return the folder of the results; see `fastdl.experiments.conduct.conduct`."""
    from fastdl.experiments.conduct import conduct

    return conduct(DEFINITION, options)
