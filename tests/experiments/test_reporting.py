"""Reports of made-up results: what they say, in both languages, and that pages and figures are whole."""

from __future__ import annotations

import base64
import importlib.util
import json
import re
import string
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("statsmodels")
pytest.importorskip("matplotlib")
pytest.importorskip("markdown")

import matplotlib
from PIL import Image

from fastdl.experiments.claims import Arm
from fastdl.experiments.definition import LANGUAGES, ExperimentDefinition
from fastdl.experiments.reporting import fonts, write_report
from fastdl.experiments.reporting.load import load_results
from fastdl.experiments.reporting.tables import escape, p_value
from fastdl.experiments.reporting.words import PHRASES, phrases
from tests.experiments.made_up_results import (
    CLAIMS,
    FIGURES,
    ONE_FACTOR,
    TWO_FACTORS,
    content_of,
    one_factor,
    two_factors,
)

Report = tuple[str, str, list[Path]]
Write = Callable[..., Report]


def report(
    folder: Path, content: dict[str, Any], language: str = "en", definition: ExperimentDefinition = TWO_FACTORS
) -> Report:
    """Write results and their report; returns Markdown, HTML and all paths."""
    if language == "ko":
        try:
            fonts.hangul_font()
        except ValueError as error:
            pytest.skip(str(error))
    (folder / "results.json").write_text(json.dumps(content), encoding="utf-8")
    paths = write_report(definition, folder, language)
    return paths[0].read_text(encoding="utf-8"), paths[1].read_text(encoding="utf-8"), paths


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`report` without figures, which take most of the time."""

    def made(content: dict[str, Any], language: str = "en", definition: ExperimentDefinition = TWO_FACTORS) -> Report:
        runs = [{name: value for name, value in run.items() if name not in ("evidence", "history")}
                for run in content["runs"]]  # fmt: skip
        return report(tmp_path, content | {"runs": runs}, language, replace(definition, figures=()))

    return made


@pytest.fixture(scope="module", params=LANGUAGES)
def language(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def drawn(language: str, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report of two factors with all its figures."""
    return report(tmp_path_factory.mktemp(f"drawn-{language}"), two_factors(), language)


def row(markdown: str, start: str) -> list[str]:
    """The cells of the table's row whose first cell begins with ``start``."""
    (line,) = [line for line in markdown.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


# -- what is said -----------------------------------------------------------------------------------------------------


def test_verdicts_in_words(write: Write) -> None:
    markdown, _, _ = write(two_factors())
    ahead = row(markdown, "Group is ahead at 2")
    assert ahead[1] == "**supported**"
    assert ahead[2].startswith("+22.43 [+")
    assert ahead[3] == "difference > +3.00"
    assert row(markdown, "Batch is ahead at 2")[1] == "**contradicted**"
    equal = row(markdown, "Equal at 32")
    assert equal[1] == "**undecided**"
    assert equal[3] == "-0.10 < difference < +0.10"
    assert "seeds would decide it" in equal[-1]
    rises = row(markdown, "Batch rises")
    assert rises[3] == "rise per unit of “batch size” > 0"
    assert "nothing from seeds 1" in rises[-1]
    assert rises[6] == "2"
    assert "Of 4 claims" in markdown


def test_a_claim_that_is_not_decided_is_never_called_supported(write: Write) -> None:
    content = two_factors()
    for run in content["runs"]:
        if run["norm"] == "group" and run["batch_size"] == 2:
            run["test_accuracy"] = {0: 0.40, 1: 0.60, 2: 0.55}[run["seed"]]
    for language, word in (("en", "undecided"), ("ko", "판단 보류")):
        markdown, _, _ = write(content, language)
        rows = [line for line in markdown.splitlines() if line.startswith("| ") and "**" in line]
        assert len(rows) == len(CLAIMS)
        assert not any(f"**{phrases(language)('supported')}**" in line for line in rows)
        assert f"**{word}**" in row(markdown, CLAIMS[0].text[language])[1]


def test_accuracies_stand_beside_what_was_published(write: Write) -> None:
    markdown, _, _ = write(two_factors())
    cells = row(markdown, "Batch, batch size 2 ")
    assert cells == ["Batch, batch size 2", "42.00 ± 2.48 (sd 1.00, n 3)", "0", "42.3", "-0.3", "12.5", "4,321", "50"]
    assert row(markdown, "Batch, batch size 8 ")[1:5] == ["67.50 ± 6.35 (sd 0.71, n 2)", "1", "–", "–"]
    assert "Guessing among 10 classes gives 10 %" in markdown
    assert "The published numbers: a course" in markdown
    assert "These runs are on `digits`, the whole experiment is on `cifar10`" in markdown


def test_korean(write: Write) -> None:
    markdown, page, paths = write(two_factors(), "ko")
    assert [path.name for path in paths] == ["report.ko.md", "report.ko.html"]
    assert row(markdown, "크기 2에서 Group이 앞선다")[1] == "**지지됨**"
    assert row(markdown, "크기 2에서 Batch가 앞선다")[1] == "**반박됨**"
    assert row(markdown, "크기 32에서 같다")[1] == "**판단 보류**"
    assert "(표준편차 1.00, n 3)" in markdown
    assert '<html lang="ko">' in page
    prose = re.sub(r"`[^`]*`|\([^)]*\.ko\.\w+\)|```.*?```", "", markdown, flags=re.DOTALL)
    for english in ("supported", "seeds", "interval", "accuracy", "test", "Runs", "published"):
        assert english not in prose


def test_conduct_and_reproduction(write: Write) -> None:
    markdown, _, _ = write(two_factors())
    assert "evaluated at most once in each run, 17 times in all" in markdown
    assert "`batch_8_seed-1` after 20 steps" in markdown
    assert "fastdl experiment norms --protocol smoke" in markdown
    assert "Commit of the source: `abc123`." in markdown
    assert "Incomplete" not in markdown
    assert "`2.11`" in markdown


def test_a_second_look_at_the_test_split_is_plain(write: Write) -> None:
    content = two_factors()
    content["test_evaluations"]["group_2_seed-0"] = 3
    for language, words in (("en", "more than once in 1 of 18 runs"), ("ko", "두 번 이상 평가했다")):
        markdown, _, _ = write(content, language)
        head = markdown.split("\n## ")[0]
        assert words in head
        assert "`group_2_seed-0`" in head
        assert "at most once" not in markdown


def test_incomplete_failed_and_mixed_environments(write: Write) -> None:
    content = two_factors()
    content |= {"complete": False, "planned": 40, "commit": "abc123-dirty"}
    content["failed"] = [{"run": "batch_64_seed-0", "error": "RuntimeError: <b>out</b> of | memory\nhere"}]
    content["runs"][0]["environment"] = {"versions": {"torch": "2.12"}, "threads": 2}
    markdown, page, _ = write(content)
    assert "> **Incomplete: 18 of 40 runs." in markdown.split("\n## ")[0]
    assert "`batch_64_seed-0`: RuntimeError: &lt;b&gt;out&lt;/b&gt; of \\| memory here" in markdown
    assert "<b>out" not in page
    assert "changes beyond that commit" in markdown
    assert "in 2 environments, which differ in `versions.torch`" in markdown
    assert "미완료: 전체 40회 중 18회" in write(content, "ko")[0]


def test_one_seed(tmp_path: Path) -> None:
    values: dict[Arm, Sequence[float | None]] = {("batch", 2): [0.4], ("group", 2): [0.6]}
    markdown, _, paths = report(tmp_path, content_of(TWO_FACTORS, values, CLAIMS[:2], depth=2))
    assert row(markdown, "Group is ahead")[1:3] == ["**undecided**", "+20.00"]
    assert "not tested: complete seeds: 1" in row(markdown, "Group is ahead")[-1]
    assert row(markdown, "Batch, batch size 2")[1] == "40.00 (n 1)"
    assert len(paths) == 2 + 2 * len(FIGURES)


def test_all_diverged(tmp_path: Path, language: str) -> None:
    values: dict[Arm, Sequence[float | None]] = {("batch", 2): [None, None], ("group", 2): [None, None]}
    content = content_of(TWO_FACTORS, values, CLAIMS[:2])
    for run in content["runs"]:
        run |= {"evidence": {}}
    markdown, _, paths = report(tmp_path, content, language)
    assert len(paths) == 2 + 2 * 2
    say = phrases(language)
    assert row(markdown, CLAIMS[0].text[language])[1:3] == [f"**{say('undecided')}**", "–"]
    assert row(markdown, TWO_FACTORS.describe(("batch", 2), language))[1:3] == ["–", "2"]
    one = content_of(ONE_FACTOR, {("a",): [None], ("b",): [None]}, (), depth=0)
    assert say("no_claims") in report(tmp_path, one, language, ONE_FACTOR)[0]


def test_no_runs(write: Write, language: str) -> None:
    content = two_factors() | {"runs": [], "complete": False, "test_evaluations": {}}
    markdown, _, paths = write(content, language)
    assert phrases(language)("no_runs") in markdown
    assert len(paths) == 2


def test_both_languages_say_the_same() -> None:
    def gaps(phrase: str) -> set[str]:
        return {name for _, name, _, _ in string.Formatter().parse(phrase) if name}

    for name, phrase in PHRASES.items():
        assert set(phrase) == set(LANGUAGES), name
        assert gaps(phrase["en"]) == gaps(phrase["ko"]), name
    with pytest.raises(ValueError, match="one of en, ko, got 'fr'"):
        phrases("fr")


def test_p_values_do_not_round_to_the_level() -> None:
    assert [p_value(p) for p in (None, 0.0004, 0.0123, 0.05, 0.0500004)] == [
        "–",
        "< 0.001",
        "0.012",
        "0.050",
        "0.0500004",
    ]
    assert escape("a|b_<c>\n*d*") == "a\\|b\\_&lt;c&gt; \\*d\\*"


# -- pages and pictures -----------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_else(drawn: Report, language: str) -> None:
    _, page, paths = drawn
    root = ElementTree.fromstring(page.split("\n", 1)[1])
    images = root.findall(".//img")
    assert len(images) == len(FIGURES)
    for image in images:
        kind, data = image.attrib["src"].split(",", 1)
        assert kind == "data:image/svg+xml;base64"
        assert ElementTree.fromstring(base64.b64decode(data)).tag.endswith("svg")
        assert image.attrib["alt"]
    assert not root.findall(".//script")
    assert not root.findall(".//link")
    assert "http" not in page
    assert len(root.findall(".//table")) == 4
    assert root.findtext(".//h1") == TWO_FACTORS.title[language]
    assert all(path.exists() for path in paths)


def test_figures_are_pictures_in_their_colours(drawn: Report, language: str) -> None:
    paths = drawn[2]
    suffix = "" if language == "en" else ".ko"
    assert {path.name for path in paths[2:]} == {
        f"{name}{suffix}.{kind}" for name in FIGURES for kind in ("png", "svg")
    }
    for path in paths[2:]:
        if path.suffix == ".png":
            pixels = np.asarray(Image.open(path).convert("RGB"))
            assert pixels.shape[0] > 300
            assert pixels.shape[1] > 800
            assert np.ptp(pixels) > 200
        else:
            drawing = path.read_text(encoding="utf-8").lower()
            assert "<date>" not in drawing.replace("dc:", "")
            assert "#d55e00" in drawing
    by_size = (paths[0].parent / f"by_size{suffix}.svg").read_text(encoding="utf-8").lower()
    assert "#0072b2" in by_size
    pixels = np.asarray(Image.open(paths[0].parent / f"by_size{suffix}.png").convert("RGB")).reshape(-1, 3)
    for color in ((0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2)):
        assert (pixels == color).all(axis=1).sum() > 100


def test_arms_without_an_order_stand_side_by_side(
    tmp_path: Path, language: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = dict(matplotlib.rcParams)
    markdown, _, paths = report(tmp_path, one_factor(), language, ONE_FACTOR)
    assert {path.name.split(".")[0] for path in paths[2:]} == {"by_block", *FIGURES} - {"by_size"}
    assert phrases(language)("no_claims") in markdown
    assert ("does not begin at 0" if language == "en" else "0에서 시작하지 않는다") in markdown
    # Text that the font lacks is a warning, which fails a test, and within formulas a line of the log.
    assert "does not have a glyph" not in caplog.text
    assert dict(matplotlib.rcParams) == before


def test_equal_results_give_equal_files(tmp_path: Path) -> None:
    content = content_of(TWO_FACTORS, {("batch", 2): [0.4, 0.5], ("batch", 8): [0.6, 0.7]}, (), depth=0)
    first = [path.read_bytes() for path in report(tmp_path, content)[2]]
    assert first == [path.read_bytes() for path in report(tmp_path, content)[2]]


def test_hangul_without_an_installed_font(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib.font_manager")
    monkeypatch.setattr(fonts, "_KOREAN", ())
    if importlib.util.find_spec("koreanize_matplotlib") is not None:
        assert fonts.hangul_font() == "NanumGothic"
        assert "koreanize_matplotlib" not in sys.modules
    monkeypatch.setattr(fonts, "_PACKAGE", "no_such_package_of_fonts")
    with pytest.raises(ValueError, match="pip install koreanize-matplotlib"):
        fonts.hangul_font()


def test_without_evidence_or_history(tmp_path: Path) -> None:
    content = two_factors()
    for run in content["runs"]:
        run["history"] = []
        del run["evidence"]
    names = [path.name for path in report(tmp_path, content)[2]]
    assert names == ["report.md", "report.html", "by_size.png", "by_size.svg"]


# -- files ------------------------------------------------------------------------------------------------------------


def test_another_folder(tmp_path: Path) -> None:
    content = content_of(ONE_FACTOR, {("a",): [0.5]}, (), depth=0)
    (tmp_path / "results.json").write_text(json.dumps(content), encoding="utf-8")
    paths = write_report(replace(ONE_FACTOR, figures=()), tmp_path, output=tmp_path / "to" / "here")
    assert {path.parent for path in paths} == {tmp_path / "to" / "here"}
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["results.json"]


def test_missing_results(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"there is no .*results\.json; .* fastdl experiment norms --output-dir"
    ):
        write_report(TWO_FACTORS, tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: json.dumps(content)[:-9], "cannot be read"),
        (lambda content: "[]", "does not hold the results"),
        (lambda content: json.dumps(content | {"experiment": "other"}), "holds results of 'other', not of 'norms'"),
        (lambda content: json.dumps({k: v for k, v in content.items() if k != "arms"}), "is damaged .KeyError: 'arms'"),
        (lambda content: json.dumps(content | {"arms": [["batch", 2]]}), "none of the arms"),
        (lambda content: json.dumps(content | {"arms": [["batch"]]}), "1 levels for 2 factors"),
        (lambda content: json.dumps(content | {"claims": [{"kind": "guess"}]}), "a claim must be one of"),
    ],
)
def test_damaged_results(tmp_path: Path, damage: Callable[[dict[str, Any]], str], message: str) -> None:
    (tmp_path / "results.json").write_text(damage(two_factors()), encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        load_results(TWO_FACTORS, tmp_path)
    assert "results.json" in str(caught.value)
    assert "fastdl experiment norms --output-dir" in str(caught.value)
