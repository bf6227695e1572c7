"""docs/performance.md: losses as plainly as wins, from the results alone; the committed page is up to date."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from fastdl.bench import figures, machine, performance, report, results
from fastdl.bench.sections import load_neighbours, load_sections, rank_of
from fastdl.bench.timing import Spread
from tests.bench.samples import make_record, make_run
from tests.bench.test_pictures import FULL, write

STEP = {"median": 1.0, "lower_quartile": 0.9, "upper_quartile": 1.1, "rounds": 9, "calls_per_round": 1}


def page_of(folder):
    sections = load_sections(folder)
    return performance.page(sections, load_neighbours(folder), figures.make_figures(sections))


def part(page, title):
    """The lines under a heading of the second order."""
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)[1]


def test_a_machine_its_runs_and_its_pictures(tmp_path):
    page = page_of(write(tmp_path, not_installed={"onnxruntime": "onnxruntime onnx"}))
    machines = part(page, "Machines")
    assert "**A Processor** (2 cores, AVX512)" in machines
    assert "| `group_norm` | 2026-01-01 | 0123456789ab | 2.13.0 | 3.11.7 | 2 | 2 |" in machines
    assert "Not installed there, and so not compared with: onnxruntime (`onnxruntime onnx`)." in machines
    glance = part(page, "At a glance")
    for what in ("ratios", "roofline"):
        for ending in ("png", "svg"):
            assert f"(images/performance-a-processor-2-cores-{what}.{ending})" in glance
    assert "(images/performance-a-processor-2-cores-group_norm.png)" in part(page, "GroupNorm + SiLU")
    # GroupNorm + SiLU: 2 and 8 over eager, both passes; 4 over compile, backward alone; won and lost: see below.
    assert "| GroupNorm + SiLU | 4.00x | - | 4.00x | 4.00x | 8 / 0 | 1 / 0 |" in glance


def test_no_loss_is_said_to_be_none(tmp_path):
    assert "Losses: none, in 9 comparisons (8 with eager and 1 with `torch.compile`)." in part(
        page_of(write(tmp_path)), "GroupNorm + SiLU"
    )


def test_every_loss_is_listed_and_those_within_the_spread_are_marked(tmp_path):
    """2.0 against 1.9 with quartiles ten percent away, and against 2.5 beyond any doubt."""
    sure = {"ours": Spread(2.5, 2.45, 2.55, 99, 1), "eager": Spread(2.0, 1.95, 2.05, 99, 1)}
    unsure = {name: Spread(t, 0.9 * t, 1.1 * t, 99, 1) for name, t in (("ours", 2.0), ("eager", 1.9), ("compile", 3.0))}
    record = make_record()
    lost, close = (replace(m, times=times) for m, times in zip(record.measurements, (sure, unsure), strict=True))
    results.save(tmp_path / "m.json", FULL, make_run(), [replace(record, measurements=(lost, close))], finished=True)
    page = page_of(tmp_path)
    text = part(page, "GroupNorm + SiLU")
    assert "Losses: 2 of 3 comparisons (2 with eager and 1 with `torch.compile`), 1 of them beyond the spread." in text
    rows = [line for line in text.splitlines() if line.startswith("| 2×64×8×8/32 ")]
    start = "| 2×64×8×8/32 | NCHW | float32 |"
    assert rows == [
        f"{start} forward | on | eager | 2.50s | 2.00s | 0.800 |  |",
        f"{start} forward + backward | on | eager | 2.00s | 1.90s | 0.950 | within the spread |",
    ]
    assert "| 0 / 2 | 1 / 0 |" in part(page, "At a glance")


def test_what_was_not_timed_and_who_else_was(tmp_path):
    record = make_record()
    times = {**record.measurements[0].times, "apex": Spread(1.5, 1.4, 1.6, 9, 1)}
    forward = replace(record.measurements[0], times=times)
    reasons = {"compile": "wrong answer: the output is off by 3.0e-01, at most 1.0e-05 is allowed", "liger": "no GPU"}
    record = replace(record, rejected=reasons, measurements=(forward,))
    results.save(tmp_path / "m.json", FULL, make_run(), [record], finished=True)
    text = part(page_of(tmp_path), "GroupNorm + SiLU")
    assert "- compile, wrong answer: the output: 2x64x8x8/32 nchw float32\n" in text
    assert "- liger, no GPU: 2x64x8x8/32 nchw float32\n" in text
    assert "| apex | forward | 1 | 1.50x | 1.50x |" in text


def test_training_and_neighbours(tmp_path):
    path = write(tmp_path) / "machine.json"
    content = json.loads(path.read_text())
    common = {"date": "2026-01-02T00:00:00", "commit": "f" * 40, "threads": 2}
    versions = {"torch": "2.13.0", "python": "3.11.7"}
    content["training"] = {
        "resnet18": {
            **common, "versions": versions, "operator": "training", "losses": None,
            "times": {"ours": STEP, "eager NHWC": {**STEP, "median": 1.5}},
            "peak_bytes": {"ours": 2**20, "eager NHWC": 2**21},
        }
    }  # fmt: skip
    fused = {"torch": STEP, "fused": {**STEP, "median": 0.5}}
    times = {
        "bias+gelu 8x8": {"forward": fused},
        "dropout": {"forward": {**fused, "at most": {**STEP, "median": 0.25}}},
    }
    content["neighbours"] = {**common, "versions": versions, "times": times}
    path.write_text(json.dumps(content))
    page = page_of(tmp_path)
    assert "| eager NHWC | 1.50s | 13% | **1.50x** | 2 MiB |" in part(page, "Training steps")
    neighbours = part(page, "Neighbours")
    assert "| bias+gelu 8×8 | forward | torch: 1.00s | fused: 500ms | 2.00x | - | - |" in neighbours
    assert "| dropout | forward | torch: 1.00s | fused: 500ms | 2.00x | at most: 250ms | 4.00x |" in neighbours


def test_a_gpus_page_has_its_clocks_its_peak_memory_and_its_replays(tmp_path):
    gpu = {"device": "cuda", "name": "NVIDIA H200", "capability": "9.0", "driver": "580.1"}
    record = make_record(ours=2.0, eager=1.5)
    forward, backward = (replace(m, pool=None) for m in record.measurements)
    state = {"graphics_mhz": 1755, "celsius": 40, "slowed_by": ["power cap"]}
    record = replace(
        record, measurements=(forward, replace(forward, pool="graph"), backward), peak_bytes={"ours": 30, "eager": 40},
        clocks={"before": state, "after": {"graphics_mhz": 1980, "celsius": 55, "slowed_by": []}},
    )  # fmt: skip
    run = make_run(versions={"torch": "2.11.0", "python": "3.12.1", "cuda": "13.0"})
    results.save(tmp_path / "nvidia-h200.json", gpu, run, [record], finished=True)
    page = page_of(tmp_path)
    machines = part(page, "Machines")
    assert "**NVIDIA H200** (CUDA 13.0, driver 580.1)" in machines
    assert "Before and after its cases: 1755 to 1980 MHz, 40 to 55 °C. Slowed down at times by: power cap." in machines
    text = part(page, "GroupNorm + SiLU")
    assert "Peak memory of a call: 75% of eager's (geometric mean), at most 75%." in text
    assert [line.split(" | ")[3:5] for line in text.splitlines() if line.startswith("| 2×64")] == [
        ["forward", "-"], ["forward", "CUDA graph"], ["forward + backward", "-"]
    ]  # fmt: skip
    assert "(images/performance-nvidia-h200-roofline.png)" in page


def test_the_default_run_is_quoted_where_there_is_no_full_one(tmp_path):
    default = {"shapes": "default", "layout": "both", "dtype": "all", "pool": "on"}
    quick = {"shapes": "quick", "layout": "both", "dtype": "all", "pool": "both"}
    full = make_run().selection
    tuned = {**full, "max_autotune": "yes"}
    assert rank_of(quick) == 0
    assert rank_of(tuned) > rank_of(full) > rank_of({**default, "max_autotune": "yes"}) > rank_of(default) > 0
    for name, selection in (("a-quick", quick), ("b-default", default)):
        run = make_run(selection=selection)
        results.save(tmp_path / f"{name}.json", FULL, run, [make_record(eager=3.0)], finished=True)
    (section,) = load_sections(tmp_path)
    assert section.run["selection"] == default
    results.save(tmp_path / "c.json", FULL, make_run(), [make_record(eager=5.0)], finished=True)
    (section,) = load_sections(tmp_path)
    assert section.run["selection"] == full


def test_the_command_writes_page_and_pictures_and_checks_both(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    folder, docs = write(tmp_path / "results"), tmp_path / "docs"
    arguments = ["--results-dir", str(folder), "--docs-dir", str(docs)]
    assert report.main([*arguments, "--check"]) == 1
    assert not docs.exists()
    assert report.main(arguments) == 0
    assert (docs / "performance.md").read_text(encoding="utf-8") == page_of(folder)
    images = re.findall(r"\]\((images/[^)]+)\)", (docs / "performance.md").read_text(encoding="utf-8"))
    assert len(images) == 2 * 4
    assert all((docs / image).stat().st_size > 1000 for image in images)
    assert report.main([*arguments, "--check"]) == 0
    assert "Everything is up to date." in capsys.readouterr().out
    write(folder, ours=0.5)
    assert report.main([*arguments, "--check"]) == 1
    told = capsys.readouterr().out
    assert f"out of date: {docs / 'performance.md'}" in told
    assert "performance-a-processor-2-cores-ratios.png" in told
    assert "attention" not in told
    assert report.main(arguments) == 0
    assert report.main([*arguments, "--check"]) == 0


def test_without_matplotlib_the_page_is_not_written_and_why_is_told(tmp_path, monkeypatch, capsys):
    folder, docs = write(tmp_path / "results"), tmp_path / "docs"
    monkeypatch.delitem(sys.modules, "fastdl.bench.pictures", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    import fastdl.bench

    monkeypatch.delattr(fastdl.bench, "pictures", raising=False)
    assert report.main(["--results-dir", str(folder), "--docs-dir", str(docs)]) == 1
    assert "the pictures need matplotlib: pip install 'fastdl[train]'" in capsys.readouterr().err
    assert not (docs / "performance.md").exists()


def test_the_committed_page_and_its_pictures_are_up_to_date(capsys):
    status = report.main(["--docs-dir", str(machine.CHECKOUT / "docs"), "--check"])
    assert status == 0, "run `python -m bench report`:\n" + capsys.readouterr().out
    docs = machine.CHECKOUT / "docs"
    links = re.findall(r"\]\(([^)]+)\)", (docs / "performance.md").read_text(encoding="utf-8"))
    assert len(links) > 4
    assert all((docs / link).is_file() for link in links)


def test_the_command_draws_nothing_and_needs_no_drawing_library_until_it_is_asked():
    code = "import sys, fastdl.bench.__main__; print('matplotlib' in sys.modules, 'PIL' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
