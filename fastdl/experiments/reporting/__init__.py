"""The report of an experiment, for people: text, tables and figures from ``results.json``, in English or Korean."""

from __future__ import annotations

from pathlib import Path

from fastdl.data.files import atomic_write
from fastdl.experiments.definition import ExperimentDefinition
from fastdl.experiments.reporting.load import load_results
from fastdl.experiments.reporting.words import phrases

__all__ = ["write_report"]


def write_report(
    definition: ExperimentDefinition, folder: Path, language: str = "en", *, output: Path | None = None
) -> list[Path]:
    """Write the report of the results in ``folder``: Markdown, one self-contained page of HTML, and figures.

    Verdicts are judged anew from the claims and the runs that ``results.json`` holds.

    Args:
        definition: of the experiment.
        folder: with ``results.json``.
        language: ``en`` or ``ko``; what is Korean has ``.ko`` in its name, so that both can stand side by side.
        output: folder to write to, made if it is missing; that of the results if it is not given.

    Returns:
        The files written: Markdown, HTML, then the figures as PNG and SVG.

    Raises:
        FileNotFoundError: there is no ``results.json``.
        ValueError: it is damaged or of another experiment, the language is unknown, or no font has its letters.
    """
    from fastdl.experiments.reporting.figures import draw_figures
    from fastdl.experiments.reporting.html import render_html
    from fastdl.experiments.reporting.markdown import render_markdown

    say = phrases(language)
    results = load_results(definition, folder)
    output = output or folder
    output.mkdir(parents=True, exist_ok=True)
    pictures = draw_figures(results, language, say, output)
    text = render_markdown(results, pictures, language, say)
    page = render_html(
        text,
        title=definition.title[language],
        language=language,
        pictures={picture.png.name: picture.svg for picture in pictures},
    )
    suffix = "" if language == "en" else f".{language}"
    written = []
    for kind, content in (("md", text), ("html", page)):
        path = output / f"report{suffix}.{kind}"
        with atomic_write(path) as file:
            file.write(content.encode())
        written.append(path)
    return [*written, *(path for picture in pictures for path in (picture.png, picture.svg))]
