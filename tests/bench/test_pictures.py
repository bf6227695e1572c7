"""The pictures: their data by known answers, their files not empty, and whether they are up to date without drawing."""

import json
from dataclasses import replace

import pytest

from fastdl.bench import figures, registry, results
from fastdl.bench.cases import Case
from fastdl.bench.figures import make_figures
from fastdl.bench.records import GRAPH
from fastdl.bench.sections import load_sections
from fastdl.bench.timing import Spread
from tests.bench.samples import MACHINE, make_record, make_run

FULL = {**MACHINE, "instructions": "AVX512"}


def write(folder, *, ours=1.0, name="machine", **run):
    """A full run of two cases of GroupNorm and one of attention; ``ours`` changes the first case's time."""
    small, large = make_record(ours=ours, eager=2.0), make_record((4, 320, 64, 64), eager=8.0)
    compiled = {**large.measurements[1].times, "compile": Spread(4.0, 3.9, 4.1, 9, 1)}
    passes = (large.measurements[0], replace(large.measurements[1], times=compiled))
    slow = tuple(replace(m, pool=pool, times=small.measurements[0].times) for m in passes for pool in ("off", GRAPH))
    large = replace(large, measurements=(*slow, *passes))
    path = folder / f"{name}.json"
    results.save(path, FULL, make_run(**run), [small, large], finished=True)
    case = Case((4, 12, 197, 64), "packed", "bfloat16", "identity", "ViT-B/16 at 224x224")
    rates = {"float32": 2e11, "bfloat16": 9e11}
    attention = make_run("attention", title="Attention", memory_copy_bandwidth=2e10, matrix_rates=rates, **run)
    results.save(path, FULL, attention, [replace(make_record(eager=3.0), case=case)], finished=True)
    return folder


@pytest.fixture
def made(tmp_path):
    found = make_figures(load_sections(write(tmp_path)))
    return {figure.kind + figure.name.rpartition("-")[2]: figure for figure in found}


def test_a_machine_has_a_roofline_its_ratios_and_a_picture_an_op(made):
    assert [figure.name for figure in made.values()] == [
        f"performance-a-processor-2-cores-{what}" for what in ("roofline", "ratios", "group_norm", "attention")
    ]
    assert made["rooflineroofline"].title == "Roofline: A Processor"


def test_roofs_are_those_of_the_machine_and_points_those_of_the_works(made):
    data = made["rooflineroofline"].data
    assert data["bandwidths"] == [2e10, 4e10]
    assert data["matrix_rates"] == {"float32": 2e11, "bfloat16": 9e11}
    assert data["dtypes"] == ["float32", "bfloat16"]
    small, large, attention = data["points"]
    # Forward and backward of float32 GroupNorm: 23 operations an element and 5 tensors of 4 bytes, and a little more.
    assert small["intensity"] == pytest.approx(23 / 20, rel=0.2)
    assert large["intensity"] == pytest.approx(23 / 20, rel=1e-3)
    elements = 4 * 320 * 64 * 64
    assert large["ours"] == pytest.approx(23 * elements / 1.0)  # with the pool on, and called: not `slow`
    assert large["eager"] == pytest.approx(23 * elements / 8.0)
    pairs = 4 * 12 * 197 * 197
    assert attention["ours"] == pytest.approx(14 * 64 * pairs)
    assert attention["dtype"] == "bfloat16"


def test_ratios_are_torchs_times_over_ours(made):
    passes = made["ratiosratios"].data["passes"]
    assert list(passes) == ["forward+backward", "forward"]
    group, attention = passes["forward+backward"]
    assert group["eager"] == {"mean": pytest.approx(4.0), "cases": [2.0, 8.0]}
    assert group["compile"] == {"mean": pytest.approx(4.0), "cases": [4.0]}
    assert attention["eager"]["cases"] == [3.0]
    assert "compile" not in attention


def test_every_case_has_a_row(made):
    rows = made["casesgroup_norm"].data["rows"]
    assert [row["label"] for row in rows] == ["2×64×8×8/32 NCHW float32", "4×320×64×64/32 NCHW float32"]
    assert rows[1] == {
        "label": rows[1]["label"],
        "forward": {"eager": 8.0},
        "forward+backward": {"eager": 8.0, "compile": 4.0},
    }


def test_an_op_without_a_benchmark_or_without_operations_has_no_point(tmp_path, monkeypatch):
    sections = load_sections(write(tmp_path))
    group = [section for section in sections if section.run["operator"] == "group_norm"]
    assert len(figures.points_of(group[0])) == 2
    assert figures.points_of(replace(group[0], run={**group[0].run, "operator": "softmax"})) == []
    benchmark = registry.load("group_norm")
    none = lambda case: replace(benchmark.forward_work(case), vector_operations=0)  # noqa: E731
    monkeypatch.setattr(
        figures.registry, "load", lambda name: replace(benchmark, forward_work=none, backward_work=none)
    )
    assert figures.points_of(group[0]) == []
    assert [figure.kind for figure in make_figures(group)] == ["ratios", "cases"]


def test_the_fingerprint_is_that_of_the_data_to_six_digits(made):
    figure = made["ratiosratios"]
    assert figure.fingerprint == replace(figure).fingerprint
    assert len({one.fingerprint for one in made.values()}) == len(made)

    def with_mean(value):
        data = json.loads(json.dumps(figure.data))
        data["passes"]["forward"][0]["eager"]["mean"] = value
        return replace(figure, data=data).fingerprint

    assert with_mean(4.0) == with_mean(4.0000000001)
    assert with_mean(4.0) != with_mean(4.001)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The command's pictures of `write`'s results."""
    pictures = pytest.importorskip("fastdl.bench.pictures", reason="needs matplotlib")
    folder, images = write(tmp_path_factory.mktemp("results")), tmp_path_factory.mktemp("images")
    assert pictures.main(["--results-dir", str(folder), "--output-dir", str(images)]) == 0
    return folder, images


def test_files_are_written_and_show_something(drawn):
    from PIL import Image

    folder, images = drawn
    made = make_figures(load_sections(folder))
    assert sorted(path.name for path in images.iterdir()) == sorted(name for one in made for name in one.files)
    for figure in made:
        png, svg = (images / name for name in figure.files)
        picture = Image.open(png).convert("RGB")
        assert min(picture.size) >= 200
        colours = {colour for _, colour in picture.getcolors(picture.width * picture.height)}
        assert len(colours) > 10
        assert (255, 255, 255) in colours
        text = svg.read_text(encoding="utf-8")
        assert text.startswith("<?xml")
        assert "</svg>" in text
        assert "<dc:date>" not in text
        assert figures.fingerprint_of(png) == figures.fingerprint_of(svg) == figure.fingerprint


def test_other_data_missing_files_and_leftovers_are_seen_and_mended(drawn, tmp_path, capsys):
    from fastdl.bench import pictures

    folder, before = drawn
    images = tmp_path / "images"
    images.mkdir()
    for path in before.iterdir():
        (images / path.name).write_bytes(path.read_bytes())
    arguments = ["--results-dir", str(folder), "--output-dir", str(images)]
    assert pictures.main(arguments) == 0
    assert "Every picture is up to date." in capsys.readouterr().out
    made = make_figures(load_sections(folder))
    assert figures.stale(made, images) == []
    (images / made[0].files[0]).unlink()
    (images / made[1].files[1]).write_bytes((images / made[2].files[1]).read_bytes())
    (images / "performance-another-machine-ratios.png").write_bytes(b"old")
    (images / "attention.png").write_bytes(b"not ours")
    assert figures.stale(made, images) == made[:2]
    assert pictures.main(arguments) == 0
    assert figures.stale(made, images) == []
    assert not (images / "performance-another-machine-ratios.png").exists()
    assert (images / "attention.png").read_bytes() == b"not ours"


def test_drawing_again_gives_the_same_file(drawn, tmp_path):
    from fastdl.bench import pictures

    folder, images = drawn
    figure = make_figures(load_sections(folder))[0]
    for path in pictures.draw(figure, tmp_path):
        assert path.read_bytes() == (images / path.name).read_bytes()


def test_without_results_the_command_says_what_to_do(tmp_path, capsys):
    pictures = pytest.importorskip("fastdl.bench.pictures", reason="needs matplotlib")
    assert pictures.main(["--results-dir", str(tmp_path), "--output-dir", str(tmp_path / "images")]) == 1
    assert "run `python -m bench` first" in capsys.readouterr().err
    assert not (tmp_path / "images").exists()
