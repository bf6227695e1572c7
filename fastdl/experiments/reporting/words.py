"""What a report says, in each of its languages."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from fastdl.experiments.definition import LANGUAGES, Text

__all__ = ["PHRASES", "Phrases", "phrases"]

Phrases = Callable[..., str]
"""Returns the phrase of a name, with values in its gaps, as ``say("incomplete", done=3, planned=40)``."""


def phrases(language: str) -> Phrases:
    """The phrases of a language; raises ValueError for one that reports are not written in."""
    if language not in LANGUAGES:
        raise ValueError(f"language must be one of {', '.join(LANGUAGES)}, got {language!r}")
    return partial(_phrase, language)


def _phrase(language: str, name: str, /, **values: Any) -> str:
    return PHRASES[name][language].format(**values)


PHRASES: dict[str, Text] = {
    # Headings
    "question": {"en": "Question", "ko": "연구 질문"},
    "setup": {"en": "What was run", "ko": "실험 구성"},
    "verdicts": {"en": "Verdicts", "ko": "판정"},
    "accuracies": {"en": "Test accuracy", "ko": "테스트 정확도"},
    "figures": {"en": "Figures", "ko": "그림"},
    "reproduction": {"en": "How to reproduce", "ko": "재현 방법"},
    "environment": {"en": "Environment", "ko": "실행 환경"},
    "conduct": {"en": "Conduct of the runs", "ko": "실행 기록"},
    # Notices
    "incomplete": {
        "en": "Incomplete: {done} of {planned} runs. The verdicts below may change.",
        "ko": "미완료: 전체 {planned}회 중 {done}회만 실행되었다. 아래 판정은 달라질 수 있다.",
    },
    "touched_again": {
        "en": "The test split was evaluated more than once in {count} of {runs} runs: {names}. Their test accuracies "
        "may have been chosen among several.",
        "ko": "전체 {runs}회 중 {count}회의 실행에서 테스트 데이터를 두 번 이상 평가했다: {names}. 이 테스트 정확도는 "
        "여러 값 가운데 고른 것일 수 있다.",
    },
    "times": {"en": "{name} ({count} times)", "ko": "{name} ({count}번)"},
    "failed_notice": {
        "en": "Failed runs: {count}; see “Conduct of the runs”.",
        "ko": "실패한 실행이 {count}회 있다. “실행 기록”을 보라.",
    },
    "no_runs": {"en": "No run has been made yet.", "ko": "아직 끝난 실행이 없다."},
    # What was run
    "protocol": {"en": "Protocol", "ko": "실험 규모"},
    "arms": {"en": "Arms", "ko": "비교 조건"},
    "seeds": {"en": "Seeds", "ko": "시드"},
    "runs": {"en": "Runs", "ko": "실행 횟수"},
    "runs_of": {"en": "{done} of {planned}", "ko": "{planned}회 중 {done}회"},
    "data": {"en": "Data", "ko": "데이터"},
    "model": {"en": "Network", "ko": "신경망"},
    "optimizer": {"en": "Optimiser", "ko": "최적화"},
    "training": {"en": "Training", "ko": "학습"},
    "other": {"en": "Other settings", "ko": "그 밖의 설정"},
    "item": {"en": "Item", "ko": "항목"},
    "value": {"en": "Value", "ko": "값"},
    # Verdicts
    "claim": {"en": "Claim", "ko": "주장"},
    "verdict": {"en": "Verdict", "ko": "판정"},
    "supported": {"en": "supported", "ko": "지지됨"},
    "contradicted": {"en": "contradicted", "ko": "반박됨"},
    "undecided": {"en": "undecided", "ko": "판단 보류"},
    "contrast": {"en": "Mean contrast [95 % interval], points", "ko": "대비(contrast)의 평균 [95% 신뢰구간], %p"},
    "criterion": {"en": "Claimed", "ko": "주장의 기준"},
    "adjusted_p": {"en": "p (Holm)", "ko": "p값 (Holm 보정)"},
    "effect": {"en": "Effect size g", "ko": "효과 크기 g"},
    "pairs": {"en": "Seeds", "ko": "시드 수"},
    "remarks": {"en": "Remarks", "ko": "비고"},
    "above": {"en": "difference > {margin}", "ko": "차이 > {margin}"},
    "within": {"en": "{low} < difference < {high}", "ko": "{low} < 차이 < {high}"},
    "rises": {"en": "rise per unit of “{label}” > 0", "ko": "“{label}” 1단위당 상승폭 > 0"},
    "falls": {"en": "fall per unit of “{label}” > 0", "ko": "“{label}” 1단위당 하락폭 > 0"},
    "seeds_needed": {
        "en": "about {count} seeds would decide it (power 0.8)",
        "ko": "판정하려면 시드 약 {count}개 필요 (검정력 0.8)",
    },
    "missing": {"en": "nothing from seeds {seeds}", "ko": "시드 {seeds}의 결과 없음"},
    "too_few": {
        "en": "not tested: complete seeds: {count}, and two at least are needed",
        "ko": "검정하지 못함: 결과가 모두 있는 시드가 {count}개이며, 2개 이상 필요",
    },
    "no_variation": {
        "en": "not tested: all seeds gave the same number, so that there is no variation to judge by",
        "ko": "검정하지 못함: 모든 시드의 값이 같아 변동을 추정할 수 없음",
    },
    "no_claims": {
        "en": "No claim was made about these arms.",
        "ko": "이 비교 조건들에 대해 세운 주장이 없다.",
    },
    "verdict_counts": {
        "en": "Of {total} claims {supported} are supported, {contradicted} contradicted and {undecided} undecided.",
        "ko": "주장 {total}개 중 지지됨 {supported}개, 반박됨 {contradicted}개, 판단 보류 {undecided}개.",
    },
    "verdict_note": {
        "en": "The claims were written down before the runs. A contrast is the mean over seeds of the difference of "
        "two arms with the same seed, or of the slope over arms, positive as claimed; intervals are of each claim by "
        "itself. A verdict needs a Holm-adjusted p of at most {alpha}, which bounds the probability of any wrong "
        "verdict in the table. Undecided means that these runs do not tell: neither that the claim holds, nor that it "
        "does not. g is Hedges' g: the contrast beyond its margin, for an equivalence from 0, in standard deviations. "
        "The number of seeds takes the measured effect and deviation for the true ones.",
        "ko": "주장은 실행 전에 정해 두었다. 대비는 시드가 같은 두 조건의 차이를, 추세라면 주장한 방향을 양수로 둔 "
        "기울기를 시드에 대해 평균한 값이다. 신뢰구간은 주장마다 따로 구했다. Holm 방법으로 보정한 p값이 {alpha} "
        "이하일 때만 판정하며, 따라서 표 전체에서 하나라도 잘못 판정할 확률이 이 값을 넘지 않는다. 판단 보류는 이 "
        "실행들만으로는 주장이 맞는지도 틀리는지도 알 수 없다는 뜻이다. g는 Hedges의 g로, 대비에서 기준값(동등성 "
        "주장은 0)을 뺀 것을 표준편차로 나눈 값이다. 필요한 시드 수는 측정된 효과와 표준편차를 "
        "참값으로 보고 계산했다.",
    },
    # Accuracies
    "arm": {"en": "Arm", "ko": "조건"},
    "ours": {"en": "Test accuracy, %, mean ± 95 % interval", "ko": "테스트 정확도(%), 평균 ± 95% 신뢰구간"},
    "spread": {"en": "(sd {deviation}, n {count})", "ko": "(표준편차 {deviation}, n {count})"},
    "single": {"en": "(n {count})", "ko": "(n {count})"},
    "diverged": {"en": "Diverged", "ko": "발산"},
    "published": {"en": "Published, %", "ko": "공개된 값(%)"},
    "less_published": {"en": "Ours − published, points", "ko": "공개된 값과의 차이(%p)"},
    "seconds": {"en": "Training, s per run", "ko": "실행당 학습 시간(초)"},
    "speed": {"en": "Images/s", "ko": "초당 이미지 수"},
    "fused": {"en": "Fused ops, % of a step", "ko": "융합 연산 비중(%)"},
    "chance": {
        "en": "Guessing among {classes} classes gives {chance} %. A diverged run enters no mean.",
        "ko": "클래스 {classes}개 중 무작위로 고르면 {chance}%이다. 발산한 실행은 평균에 넣지 않았다.",
    },
    "other_data": {
        "en": "These runs are on {dataset}, the whole experiment is on {published}: compare directions with the "
        "published numbers, not the numbers themselves.",
        "ko": "이 실행의 데이터셋은 {dataset}, 전체 규모 실험의 데이터셋은 {published}이다. 공개된 수치와는 값이 "
        "아니라 방향만 비교해야 한다.",
    },
    "source": {"en": "The published numbers: {source}", "ko": "공개된 값의 출처: {source}"},
    # Figures: text in them
    "accuracy_axis": {"en": "test accuracy in %", "ko": "테스트 정확도 (%)"},
    "accuracy_axis_zoomed": {
        "en": "test accuracy in % (axis does not begin at 0)",
        "ko": "테스트 정확도 (%, 축이 0에서 시작하지 않음)",
    },
    "validation_axis": {"en": "validation accuracy in %", "ko": "검증 정확도 (%)"},
    "epoch_axis": {"en": "epoch", "ko": "에포크"},
    "block_axis": {"en": "block, first to last", "ko": "블록 (입력 쪽부터)"},
    "gradient_axis": {"en": "norm of the gradient", "ko": "그래디언트 노름"},
    "saturation_axis": {"en": "saturated activations in %", "ko": "포화된 활성값 비율 (%)"},
    "batch_axis": {"en": "batch size", "ko": "배치 크기"},
    "noise_axis": {"en": "noise, relative", "ko": "상대 잡음"},
    "gap_axis": {"en": "training mode − evaluation mode, points", "ko": "학습 모드 − 평가 모드 (%p)"},
    "legend_intervals": {"en": "mean, 95 % interval", "ko": "평균, 95% 신뢰구간"},
    "legend_published": {"en": "published", "ko": "공개된 값"},
    "legend_chance": {"en": "chance", "ko": "무작위 추측"},
    "legend_diverged": {"en": "diverged run", "ko": "발산한 실행"},
    "legend_runs": {"en": "single run", "ko": "개별 실행"},
    "legend_guide": {"en": "1/√n", "ko": "1/√n"},
    "legend_all": {"en": "all runs", "ko": "전체 실행"},
    "at_epoch": {"en": "epoch {epoch}", "ko": "에포크 {epoch}"},
    "curves_title": {"en": "Learning curves", "ko": "학습 곡선"},
    "gradient_title": {"en": "Gradient by block", "ko": "블록별 그래디언트"},
    "saturation_title": {"en": "Saturation by block", "ko": "블록별 포화 비율"},
    "noise_title": {"en": "Noise of batch statistics", "ko": "배치 통계의 잡음"},
    "mean_noise_title": {"en": "Noise of a batch's mean", "ko": "배치 평균의 잡음"},
    "variance_noise_title": {"en": "Noise of a batch's variance", "ko": "배치 분산의 잡음"},
    "modes_title": {"en": "Training mode against evaluation mode", "ko": "학습 모드와 평가 모드의 차이"},
    # Figures: captions
    "accuracy_caption": {
        "en": "{title}: means over seeds with 95 % intervals, and each run as a faint point{published}. Look for lines "
        "that part by more than their intervals.",
        "ko": "{title}. 시드에 대한 평균과 95% 신뢰구간, 개별 실행은 옅은 점{published}. 두 선이 신뢰구간보다 크게 "
        "벌어지는 곳을 보라.",
    },
    "dots_caption": {
        "en": "{title}: means over seeds with 95 % intervals, and each run as a faint point{published}. The axis is "
        "zoomed to the data and does not begin at 0: look at how wide the intervals are beside the differences.",
        "ko": "{title}. 시드에 대한 평균과 95% 신뢰구간, 개별 실행은 옅은 점{published}. 축은 데이터 범위로 확대했으며 "
        "0에서 시작하지 않는다. 조건 사이의 차이에 비해 신뢰구간이 얼마나 넓은지 보라.",
    },
    "with_published": {
        "en": "; hollow markers are published values",
        "ko": ", 속이 빈 표식은 공개된 값",
    },
    "curves_caption": {
        "en": "Validation accuracy by epoch: mean over the runs that finished, and a band from the lowest to the "
        "highest of them; a run that diverged is a thin line that ends in a cross. Look for where curves part, and "
        "whether they still rise at the end.",
        "ko": "에포크별 검증 정확도. 끝까지 학습한 실행들의 평균과 최솟값에서 최댓값까지의 띠이며, 발산한 실행은 "
        "가위표로 끝나는 가는 선이다. 곡선이 갈라지는 시점과 끝에서도 여전히 오르고 있는지 보라.",
    },
    "gradient_caption": {
        "en": "Norm of each block's gradient in the deepest networks at the first, middle and last step that was "
        "looked at: geometric mean over seeds, band from the lowest to the highest. Look for norms that shrink towards "
        "the first block: gradients that vanish on their way back.",
        "ko": "가장 깊은 신경망에서 처음, 중간, 마지막으로 측정한 스텝의 블록별 그래디언트 노름. 시드에 대한 "
        "기하평균과 최솟값에서 최댓값까지의 띠이다. 입력 쪽 블록으로 갈수록 노름이 작아지는지, 곧 그래디언트 소실이 "
        "일어나는지 보라.",
    },
    "saturation_caption": {
        "en": "Share of activations that pass hardly any gradient (outputs of 0 for ReLU; a derivative below a "
        "twentieth of its maximum for Sigmoid), at the same steps, mean and range over seeds. Look for blocks that "
        "saturate as training goes on.",
        "ko": "그래디언트를 거의 전달하지 않는 활성값의 비율 (ReLU는 출력이 0인 경우, Sigmoid는 도함수가 최댓값의 "
        "1/20보다 작은 경우). 같은 스텝에서 시드에 대한 평균과 범위이다. 학습이 진행되면서 포화되는 블록이 있는지 "
        "보라.",
    },
    "noise_caption": {
        "en": "How far mean and variance of a batch lie from those of many images: mean over blocks and seeds, bars "
        "from the lowest to the highest block. Look at whether the noise falls like the dotted 1/√n (n: batch size), "
        "and how large it is in small batches.",
        "ko": "배치의 평균과 분산이 많은 이미지에서 구한 값에서 벗어나는 정도. 블록과 시드에 대한 평균이며, 막대는 "
        "블록별 최솟값에서 최댓값까지이다. 잡음이 점선 1/√n(n은 배치 크기)을 따라 줄어드는지, 작은 배치에서 얼마나 "
        "큰지 보라.",
    },
    "modes_caption": {
        "en": "Accuracy of the trained network with the statistics of each batch less that with the running statistics "
        "of training: mean over seeds with 95 % intervals. Look for batch sizes at which the bars leave 0: there the "
        "network is not the one it was trained as.",
        "ko": "학습된 신경망을 배치 통계로 평가한 정확도에서 학습 중 누적한 이동 평균 통계로 평가한 정확도를 뺀 값. "
        "시드에 대한 평균과 95% 신뢰구간이다. 0에서 벗어나는 배치 크기가 있으면 학습할 때와 평가할 때의 신경망이 "
        "서로 다르게 동작한다는 뜻이다.",
    },
    # Reproduction and conduct
    "command": {"en": "The exact command:", "ko": "실행한 명령:"},
    "report_command": {
        "en": "The same command in the same folder continues what was interrupted. This report is written again, "
        "without a run, by `{command}`.",
        "ko": "같은 폴더에서 같은 명령을 다시 실행하면 중단된 지점부터 이어진다. 이 보고서만 다시 만들려면 "
        "`{command}`를 실행한다.",
    },
    "commit": {"en": "Commit of the source: `{commit}`.", "ko": "소스 코드 커밋: `{commit}`."},
    "dirty": {
        "en": "The source held changes beyond that commit.",
        "ko": "소스 코드에 이 커밋 이후의 수정 사항이 있었다.",
    },
    "no_commit": {
        "en": "The commit of the source is not known: the package was installed, not run from a checkout.",
        "ko": "소스 코드 커밋은 알 수 없다. 저장소가 아니라 설치된 패키지로 실행했다.",
    },
    "touched_once": {
        "en": "The test split was evaluated at most once in each run, {total} times in all.",
        "ko": "테스트 데이터는 실행마다 많아야 한 번, 모두 {total}번 평가했다.",
    },
    "touched_total": {
        "en": "The test split was evaluated {total} times in all.",
        "ko": "테스트 데이터는 모두 {total}번 평가했다.",
    },
    "untold": {
        "en": "How often the test split was evaluated was not recorded.",
        "ko": "테스트 데이터를 몇 번 평가했는지는 기록되지 않았다.",
    },
    "diverged_runs": {
        "en": "Diverged (the loss became infinite or not a number): {names}.",
        "ko": "발산한 실행(손실이 무한대 또는 NaN): {names}.",
    },
    "after_steps": {"en": "{name} after {steps} steps", "ko": "{name} ({steps}스텝 뒤)"},
    "none_diverged": {"en": "No run diverged.", "ko": "발산한 실행은 없다."},
    "failed_runs": {"en": "Failed runs, which are in no table:", "ko": "오류로 실패해 표에 없는 실행:"},
    "none_failed": {"en": "No run failed.", "ko": "오류로 실패한 실행은 없다."},
    "environments": {
        "en": "The runs were made in {count} environments, which differ in {names}; `results.json` has each run's.",
        "ko": "실행 환경이 {count}가지였으며 {names}에서 다르다. 실행별 환경은 `results.json`에 있다.",
    },
}
