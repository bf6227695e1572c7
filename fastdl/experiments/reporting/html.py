"""A report in one HTML file, which needs neither a network nor a script."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from pathlib import Path

__all__ = ["render_html"]

_STYLE = """
:root { color-scheme: light dark; --line: #c8c8c8; --soft: #f3f3f3; --text: #1b1b1b; --page: #ffffff; --link: #0057a0; }
@media (prefers-color-scheme: dark) {
  :root { --line: #4a4a4a; --soft: #262626; --text: #e8e8e8; --page: #161616; --link: #8cc4ff; }
}
body { margin: 0 auto; padding: 1rem; max-width: 62rem; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui, "Noto Sans KR", "Apple SD Gothic Neo", "Malgun Gothic", sans-serif; }
h1, h2 { line-height: 1.25; } h2 { margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
a { color: var(--link); }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.92rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { background: var(--soft); }
blockquote { margin: 1rem 0; padding: 0.1rem 1rem; border-left: 4px solid #d55e00; background: var(--soft); }
code { font-size: 0.9em; overflow-wrap: anywhere; } pre { padding: 0.7rem; overflow-x: auto; background: var(--soft); }
img { max-width: 100%; height: auto; background: #ffffff; }
@media print { body { max-width: none; font-size: 10pt; color: #000; background: #fff; } .table { overflow: visible; }
  img, tr { break-inside: avoid; } h2 { break-after: avoid; } pre { white-space: pre-wrap; } }
"""

_PAGE = """<!DOCTYPE html>
<html lang="{{ language }}">
<head>
<meta charset="utf-8" />
<meta name="viewport" content="width=device-width, initial-scale=1" />
<title>{{ title }}</title>
<style>{{ style | safe }}</style>
</head>
<body>
{{ body | safe }}
</body>
</html>
"""


def render_html(text: str, *, title: str, language: str, pictures: Mapping[str, Path]) -> str:
    """Return Markdown as one page of HTML, which is well-formed XML, too.

    Args:
        text: Markdown, whose images are named as in ``pictures``.
        title: of the page.
        language: its code, as ``en``.
        pictures: the SVG file that stands for an image, by the image's address in ``text``.
    """
    import jinja2
    import markdown

    body = markdown.markdown(text, extensions=["tables", "fenced_code"], output_format="xhtml")
    body = body.replace("<table>", '<div class="table">\n<table>').replace("</table>", "</table>\n</div>")

    def embed(found: re.Match[str]) -> str:
        picture = pictures.get(found[1])
        if picture is None:
            return found[0]
        return f'src="data:image/svg+xml;base64,{base64.b64encode(picture.read_bytes()).decode()}"'

    body = re.sub(r'src="([^"]*)"', embed, body)
    page = jinja2.Environment(autoescape=True).from_string(_PAGE)
    return page.render(title=title, language=language, style=_STYLE, body=body) + "\n"
