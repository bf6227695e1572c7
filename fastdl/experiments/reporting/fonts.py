"""Fonts for the figures: any of the machine's, or for Korean one that has Hangul."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["font_settings", "hangul_font"]

_KOREAN = (
    "Noto Sans CJK KR",
    "Noto Sans KR",
    "NanumGothic",
    "NanumBarunGothic",
    "Malgun Gothic",
    "Apple SD Gothic Neo",
    "AppleGothic",
    "UnDotum",
    "Noto Sans CJK JP",  # the file of all languages, under the only name that matplotlib reads of it
)
_PACKAGE, _FILE = "koreanize_matplotlib", "fonts/NanumGothic.ttf"


def hangul_font() -> str:
    """Name of a font with Hangul that matplotlib knows, or is made to know from the package koreanize-matplotlib.

    The package is not imported, since that would change the settings of all figures of the process.

    Raises:
        ValueError: there is none.
    """
    from matplotlib import font_manager

    manager = font_manager.fontManager
    installed = {font.name for font in manager.ttflist}
    for name in _KOREAN:
        if name in installed:
            return name
    found = importlib.util.find_spec(_PACKAGE)
    path = Path(found.origin).parent / _FILE if found is not None and found.origin else None
    if path is None or not path.exists():
        raise ValueError(
            "no font with Hangul is installed, which the figures of a Korean report need; "
            "run: pip install koreanize-matplotlib"
        )
    manager.addfont(str(path))
    return font_manager.FontProperties(fname=str(path)).get_name()


def font_settings(language: str) -> Mapping[str, Any]:
    """What a figure in ``language`` sets for its text, for ``matplotlib.rc_context``."""
    if language != "ko":
        return {"font.family": ["DejaVu Sans"]}
    # Digits and symbols that the Korean font lacks come from the other; some Korean fonts have no minus sign.
    return {"font.family": [hangul_font(), "DejaVu Sans"], "axes.unicode_minus": False}
