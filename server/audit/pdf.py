"""The page on paper: WeasyPrint lays the same HTML out, with the plain colours of print."""

from __future__ import annotations

import logging
import re
from typing import Final

from matplotlib.font_manager import findSystemFonts
from matplotlib.ft2font import FT2Font

from common.errors import InputError
from server.audit.facts import Report
from server.audit.page import render
from server.audit.wording import Language
from server.report import drawing

_INKS: Final = {
    "ink": drawing.INK,
    "quiet": drawing.QUIET,
    "grid": drawing.GRID,
    "before": drawing.BEFORE,
    "public": drawing.PUBLIC,
    "after": drawing.AFTER,
    "warning": drawing.WARNING,
}
_NEEDED: Final = "隐私审计"
_INSTALL: Final = "apt install libpango-1.0-0 libpangoft2-1.0-0 libharfbuzz-subset0, or --no-pdf"


def to_pdf(report: Report, language: Language) -> bytes:
    """Return the report as PDF, A4; a missing library or font is an InputError."""
    try:  # here, since it loads Pango, which the rest does not need
        from weasyprint import HTML  # type: ignore[import-untyped]
    except ImportError as error:
        raise InputError(
            "the PDF needs WeasyPrint", hint="pip install 'veilface[server]'"
        ) from error
    except OSError as error:
        raise InputError(f"the PDF needs Pango: {error}", hint=_INSTALL) from error
    if language == "zh" and not _has_chinese_font():
        raise InputError(
            "no font of this machine has Chinese characters",
            hint="apt install fonts-noto-cjk, or --no-pdf",
        )
    # WeasyPrint knows variables in style sheets, but not inside drawings.
    page = re.sub(
        r'style="(stroke|fill):var\(--(\w+)\)"',
        lambda found: f'{found[1]}="{_INKS[found[2]]}"',
        render(report, language),
    )
    # It warns of each rule that is for screens only.
    logging.getLogger("weasyprint").setLevel(logging.ERROR)
    return bytes(HTML(string=page).write_pdf())


def _has_chinese_font() -> bool:
    return any(_has(path) for path in findSystemFonts())


def _has(path: str) -> bool:
    try:
        font = FT2Font(path)
    except RuntimeError:  # a font that FreeType cannot open
        return False
    return all(font.get_char_index(ord(character)) for character in _NEEDED)
