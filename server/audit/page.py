"""The report as one page: no script, no request; the evidence itself stands in it as data."""

from __future__ import annotations

import re
from html import escape
from typing import Final

from common.errors import InputError
from server.audit import accuracy, promise, records, spending
from server.audit.facts import Report
from server.audit.style import STYLE
from server.audit.view import View
from server.audit.wording import LANGUAGES, Language, Wording

_BEGIN: Final = '<script type="application/json" id="report">\n'
_END: Final = "</script>\n"
_LANGUAGE: Final = re.compile(r'<html lang="(\w+)">')
_NUMBER: Final = re.compile(r"\b[\d.]+e-\d+\b")
SECTIONS: Final = (
    promise.in_short, promise.meaning, promise.seen, spending.spending, promise.exact,
    records.access, records.mechanism, records.gaps, accuracy.utility, records.consent,
    records.refusals, records.vaults, records.software, records.mapping, records.check,
)  # fmt: skip


def render(report: Report, language: Language) -> str:
    """Return the page: the same text for the same report, wherever it is rendered."""
    view = View(report, Wording(language))
    body = _header(view) + "".join(section(view) for section in SECTIONS)
    body = _NUMBER.sub(r'<span class="n">\g<0></span>', body)
    title = f"{view.w('report.title')}: {escape(report.facts.run_id)}"
    return (
        f'<!doctype html>\n<html lang="{language}">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}</main>\n{_BEGIN}{report.to_text()}{_END}</body>\n</html>\n"
    )


def split(page: str) -> tuple[str, Language]:
    """Return the report's text and the language of a page; another document is an InputError."""
    start, end = page.find(_BEGIN), page.rfind(_END)
    language = _LANGUAGE.search(page)
    known: list[Language] = [one for one in LANGUAGES if language and one == language[1]]
    if start < 0 or end < start or not known:
        raise InputError("this is not the page of an audit report")
    return page[start + len(_BEGIN) : end], known[0]


def _header(view: View) -> str:
    w, report = view.w, view.report
    made = w(
        "report.made",
        created=report.created,
        version=report.veilface,
        federation=view.roster.federation,
        serial=view.roster.serial,
    )
    notes = [w("report.missing", sites=", ".join(view.missing))] if view.missing else []
    if any(one.simulated for one in view.statements):
        notes.append(w("report.simulated"))
    lines = "".join(f'<p class="note">{note}</p>\n' for note in notes)
    return (
        f"<header>\n<h1>{w('report.title')}</h1>\n"
        f'<p>{w("report.run", run=report.facts.run_id)}</p>\n<p class="quiet">{made}</p>\n'
        f"{lines}</header>\n"
    )
