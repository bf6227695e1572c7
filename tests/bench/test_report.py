"""Blocks in the texts are made from the results and from nothing else."""

import json
import re
from dataclasses import replace

import pytest

from fastdl.bench import report, results
from fastdl.bench.records import Measurement
from tests.bench.samples import MACHINE, make_record, make_run

TEXT = """# Title

Before.

<!-- bench:{block} {language} -->
an old number: 99.9x
<!-- bench:end -->

After.
"""


@pytest.fixture
def folder(tmp_path):
    """A full run of a small and a large case, and a quick one that no text may quote."""
    small = make_record()
    off = tuple(replace(m, pool="off", times={**m.times, "ours": m.times["eager"]}) for m in small.measurements)
    large = make_record((4, 320, 64, 64), eager=8.0)
    large = replace(large, measurements=(*large.measurements, *off))
    path = tmp_path / "results" / "machine.json"
    machine = {**MACHINE, "instructions": "AVX512"}
    results.save(path, machine, make_run(), [small, large], finished=True)
    quick = make_run(selection={"shapes": "quick", "layout": "both", "dtype": "all", "pool": "both"})
    results.save(path.with_name("machine-quick.json"), machine, quick, [make_record(eager=77.0)], finished=True)
    return path.parent


@pytest.mark.parametrize("language", ["en", "ko"])
def test_summary(folder, language):
    text = report.rewrite(TEXT.format(block="summary", language=language), report.load_sections(folder))
    assert text.startswith("# Title\n\nBefore.\n")
    assert text.endswith("\nAfter.\n")
    assert "99.9x" not in text
    assert "77.0x" not in text
    assert "**4.00x**" in text  # the geometric mean of 2 and 8
    assert "0123456789ab" in text
    assert "2026-01-01" in text
    assert "40 GB/s" in text
    assert "50%" in text


def test_cases_and_memory(folder):
    sections = report.load_sections(folder)
    cases = report.rewrite(TEXT.format(block="cases", language="en"), sections)
    assert len(re.findall(r"^\| (?:2×64×8×8|4×320×64×64)/32 \|", cases, re.MULTILINE)) == 2
    memory = report.rewrite(TEXT.format(block="memory", language="en"), sections)
    rows = [line for line in memory.splitlines() if line.startswith("| GroupNorm")]
    assert len(rows) == 2  # the large case alone, forward and forward+backward
    assert all("4×320×64×64/32" in row and row.endswith("| 2.00s | 1.00s | 1.00x | 8.00x |") for row in rows)


def test_rewriting_again_changes_nothing(folder):
    sections = report.load_sections(folder)
    once = report.rewrite(TEXT.format(block="summary", language="en"), sections)
    assert report.rewrite(once, sections) == once


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("<!-- bench:speed en -->\n<!-- bench:end -->", "block 'speed' in language 'en' is unknown"),
        ("<!-- bench:summary fr -->\n<!-- bench:end -->", "in language 'fr' is unknown"),
        ("<!-- bench:summary en -->\nno end", "a block must be"),
        ("<!-- bench:summary -->\n<!-- bench:end -->", "a block must be"),
    ],
)
def test_a_block_that_cannot_be_made_is_an_error(folder, text, complaint):
    with pytest.raises(report.ReportError, match=complaint):
        report.rewrite(text, report.load_sections(folder), "README.md")


def test_command_writes_checks_and_leaves_other_files(folder, tmp_path, capsys):
    path = tmp_path / "README.md"
    path.write_text(TEXT.format(block="summary", language="en"))
    arguments = [str(path), "--results-dir", str(folder)]
    assert report.main([*arguments, "--check"]) == 1
    assert "99.9x" in path.read_text()
    assert report.main(arguments) == 0
    assert "**4.00x**" in path.read_text()
    assert report.main([*arguments, "--check"]) == 0
    assert "up to date" in capsys.readouterr().out


def test_command_without_results_says_what_to_do(tmp_path, capsys):
    path = tmp_path / "README.md"
    path.write_text(TEXT.format(block="summary", language="en"))
    before = path.read_text()
    assert report.main([str(path), "--results-dir", str(tmp_path)]) == 1
    assert "run `python -m bench` first" in capsys.readouterr().err
    assert path.read_text() == before


def test_both_languages_have_the_same_words():
    assert report.WORDS["en"].keys() == report.WORDS["ko"].keys()


def test_a_measurement_without_ours_is_left_out(folder):
    path = folder / "machine.json"
    content = json.loads(path.read_text())
    for measurement in content["operators"]["group_norm"]["cases"][0]["measurements"]:
        del measurement["times"]["ours"]
    path.write_text(json.dumps(content))
    sections = report.load_sections(folder)
    assert isinstance(sections[0].records[0].measurements[0], Measurement)
    text = report.rewrite(TEXT.format(block="cases", language="en"), sections)
    assert "2×64×8×8" not in text
    assert "4×320×64×64/32" in text
