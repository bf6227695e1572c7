"""Training on a GPU: captured steps against others, and a run of the experiments with batches that are captured."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from fastdl.models.conv_network import ConvNetwork
from fastdl.training import cuda_graph

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_captured_steps_give_the_numbers_of_others(norm: str, precision: str) -> None:
    torch.manual_seed(0)
    arguments = {"depth": 2, "width": 32, "norm": norm, **({"num_groups": 8} if norm == "group" else {})}
    plain = ConvNetwork(in_channels=3, num_classes=5, **arguments).cuda()  # type: ignore[arg-type]
    other = ConvNetwork(in_channels=3, num_classes=5, **arguments).cuda()  # type: ignore[arg-type]
    other.load_state_dict(plain.state_dict())
    images = [torch.randn(2, 3, 8, 8, device="cuda") for _ in range(4)]
    captured = cuda_graph.capture(other, images[0], precision)
    assert captured is not None
    lower = precision != "32-true"
    for batch in images:
        for network, model in ((plain, plain), (captured, other)):
            with torch.autocast("cuda", torch.bfloat16, enabled=lower):
                logits = network(batch)
            logits.float().square().sum().backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.01 * parameter.grad  # type: ignore[operator]
                    parameter.grad = None
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if lower else {}
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, **tolerance)


@pytest.mark.parametrize("batch_size", [4, 64])
def test_a_run_on_a_gpu_ends_and_repeats_itself(batch_size: int, tmp_path: Path) -> None:
    for package in ("lightning", "torchmetrics", "safetensors", "sklearn", "tyro", "tqdm"):
        pytest.importorskip(package)
    from fastdl.data import load_dataset
    from fastdl.experiments.options import complete
    from fastdl.experiments.sigmoid_vs_relu import DEFINITION, Options
    from fastdl.training import train_classifier

    dataset = load_dataset("digits")
    options = complete(Options(epochs=2, device="cuda", batch_size=batch_size, train_examples=400), DEFINITION)
    config = DEFINITION.configure(options, dataset.fingerprint, ("relu", 2), 0)
    runs = [
        train_classifier(
            config, dataset, tmp_path / name, evidence=("gradients", "batch_statistics", "modes"), trackers=()
        )
        for name in ("one", "other")
    ]
    assert runs[0].status == "finished"
    assert runs[0].history == runs[1].history
    assert runs[0].evidence == runs[1].evidence
    larger = dataclasses.replace(config, seed=1)
    assert train_classifier(larger, dataset, tmp_path / "third", trackers=()).history != runs[0].history
