"""Measured tables in the texts, written from the results, so that no number is typed by hand.

A block looks like this, and what lies between its marks is replaced::

    <!-- bench:summary en -->
    <!-- bench:end -->

Blocks: ``summary`` (means over all cases), ``cases`` (every case), ``memory`` (the output pool on and off), ``added``
(what is added to a part of the work alone), ``training`` (whole steps of a network); languages ``en`` and ``ko``. With
an op's name before the language, as in ``bench:cases layer_norm en``, a block is of that op alone. docs/performance.md
is written as a whole, with its pictures.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from . import figures, machine, performance, results
from .blocks import BLOCKS
from .sections import ReportError, Section, load_neighbours, load_sections
from .wording import WORDS

__all__ = ["BLOCKS", "WORDS", "ReportError", "load_sections", "main", "rewrite"]

MARK = re.compile(
    r"<!-- bench:(?P<name>[a-z]+)(?: (?P<op>[a-z]+(?:_[a-z]+)*))? (?P<language>[a-z]+) -->\n"
    r"(?P<body>.*?)<!-- bench:end -->",
    re.DOTALL,
)
PAGE = "performance.md"
OPENING = re.compile(r"<!-- bench:(?!end )")


def rewrite(text: str, sections: Sequence[Section], name: str = "text") -> str:
    """The text with every block made anew. Raises ReportError for a block that is unknown or has no end."""
    if len(OPENING.findall(text)) != len(MARK.findall(text)):
        raise ReportError(
            f"{name}: a block must be `<!-- bench:NAME LANGUAGE -->`, lines, `<!-- bench:end -->`; one is not"
        )

    def replace(match: re.Match[str]) -> str:
        block, op, language = match["name"], match["op"], match["language"]
        if block not in BLOCKS or language not in WORDS:
            raise ReportError(
                f"{name}: block {block!r} in language {language!r} is unknown; blocks: {', '.join(BLOCKS)}; "
                f"languages: {', '.join(WORDS)}"
            )
        chosen = [s for s in sections if bool(s.training) == (block == "training")]
        if op is not None:
            chosen = [section for section in chosen if section.run["operator"] == op]
        if not chosen:
            raise ReportError(f"{name}: nothing was measured for the block {block!r}" + (f" of {op!r}" if op else ""))
        head = " ".join(filter(None, (block, op, language)))
        return f"<!-- bench:{head} -->\n{BLOCKS[block](chosen, WORDS[language])}<!-- bench:end -->"

    return MARK.sub(replace, text)


def main(argv: list[str]) -> int:
    """``report``: rewrites what is out of date; ``--check`` only tells, by status 1, whether something is."""
    parser = argparse.ArgumentParser(
        prog="python -m bench report",
        description="Writes the measured tables into the texts, docs/performance.md, and its pictures.",
    )
    parser.add_argument(
        "files", nargs="*", type=Path, help="texts with marked blocks, and nothing else; all of the checkout's if none"
    )
    parser.add_argument("--results-dir", type=Path, default=machine.BENCH / "results", help="folder of the results")
    parser.add_argument("--docs-dir", type=Path, help="where performance.md and images/ lie; docs if not given")
    parser.add_argument("--check", action="store_true", help="change nothing; status 1 where a text is not up to date")
    options = parser.parse_args(argv)
    docs = options.docs_dir or (None if options.files else machine.CHECKOUT / "docs")
    try:
        sections = load_sections(options.results_dir)
        made = {}
        for path in options.files or ([] if options.docs_dir else _texts()):
            made[path] = rewrite(path.read_text(encoding="utf-8"), sections, path.name)
        pictures = figures.make_figures(sections) if docs else []
        if docs:
            made[docs / PAGE] = performance.page(sections, load_neighbours(options.results_dir), pictures)
        stale = [path for path, text in made.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
        images = docs / performance.IMAGES if docs else None
        drawings = figures.stale(pictures, images) if images else []
        extra = figures.leftovers(pictures, images) if images else []
        if not options.check:
            if drawings and images:
                _draw(drawings, images)
            for path in extra:
                path.unlink()
            for path in stale:
                results.write_text(path, made[path])
    except (ReportError, results.ResultsError, OSError) as error:
        print(f"bench report: {error}", file=sys.stderr)
        return 1
    changed = [*stale, *((images or Path()) / name for drawing in drawings for name in drawing.files), *extra]
    for path in changed:
        word = "out of date" if options.check else "removed" if path in extra else "rewritten"
        print(f"{word}: {path}")
    if not changed:
        print("Everything is up to date." if docs else "Every block is up to date.")
    return 1 if options.check and changed else 0


def _draw(drawings: Sequence[figures.Figure], folder: Path) -> None:
    """Raises ReportError where there is no matplotlib to draw with."""
    try:
        from . import pictures
    except ModuleNotFoundError as error:
        raise ReportError(f"the pictures need {error.name}: pip install 'fastdl[train]'") from error
    pictures.write(drawings, folder)


def _texts() -> list[Path]:
    """The checkout's Markdown files that hold a block."""
    candidates = [*machine.CHECKOUT.glob("*.md"), *(machine.CHECKOUT / "docs").rglob("*.md")]
    return sorted(path for path in candidates if OPENING.search(path.read_text(encoding="utf-8")))
