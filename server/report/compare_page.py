"""One self-contained page that shows runs side by side, and its drawing."""

from __future__ import annotations

from html import escape

import matplotlib as mpl

from common.metrics import Interval, Verification
from common.wording import percent, points
from server.report import drawing
from server.report.comparison import Comparison, Run
from server.report.drawing import AFTER, BEFORE, SECOND, Plot, finished, new_figure
from server.report.page import inline, table
from server.report.style import STYLE
from server.report.wording import duration, epsilon, interval, power

RATES = (
    ("TMR at FMR 1e-2", "tmr_at_fmr_1e2"),
    ("TMR at FMR 1e-3", "tmr_at_fmr_1e3"),
    ("EER", "eer"),
)
STAGES = (
    ("before", "before", BEFORE, "o"),
    ("public only", "public_only", SECOND, "^"),
    ("after", "after", AFTER, "s"),
)
NOT_COMPARED = "not comparable"


def stage(run: Run, name: str) -> Verification | None:
    """The rates of a run at one of `STAGES`; None where it has no such stage."""
    found: Verification | None = getattr(run.record, name)
    return found


def rows_of(comparison: Comparison) -> list[tuple[str, list[tuple[str, str]]]]:
    """What is shown of each run: (label, a cell a run), a cell being (value, its interval).

    Rates of a run that was tested on something else are not shown beside the others.
    """
    runs = comparison.runs
    rows = [("comparable", [("yes" if run.comparable else "NO", "") for run in runs])]
    adversaries = dict.fromkeys(a.name for run in runs for a in run.record.privacy.adversaries)
    for name in adversaries:
        rows.append((f"epsilon against {name}", [(_epsilon(run, name), "") for run in runs]))
    rows.append(("delta", [(power(run.record.privacy.delta), "") for run in runs]))
    for label, field in RATES:
        for shown, attribute, _, _ in STAGES:
            if any(stage(run, attribute) for run in runs):
                rows.append((f"{label}, {shown}", [_rate(run, attribute, field) for run in runs]))
        rows.append((f"{label}, change", [(_change(run, field), "") for run in runs]))
    rows.append(("took", [(duration(run.record.seconds), "") for run in runs]))
    rows.append(("memory", [(f"{run.record.peak_mb:,.0f} MB", "") for run in runs]))
    return rows


def _epsilon(run: Run, adversary: str) -> str:
    if run.record.privacy.not_private:
        return "not private"
    found = [a.epsilon for a in run.record.privacy.adversaries if a.name == adversary]
    return epsilon(found[0]) if found else "not stated"


def _rate(run: Run, attribute: str, field: str) -> tuple[str, str]:
    rates = stage(run, attribute)
    if not run.comparable or rates is None:
        return (NOT_COMPARED if rates else "none", "")
    ends: Interval | None = getattr(rates.ci, field) if rates.ci else None
    return percent(getattr(rates, field)), interval(ends)


def _change(run: Run, field: str) -> str:
    if not run.comparable:
        return NOT_COMPARED
    return points(getattr(run.record.after, field) - getattr(run.record.before, field))


def draw(comparison: Comparison) -> Plot:
    """TMR at FMR 1e-3 of each comparable run, in its stages, with 95% intervals over persons."""
    runs = [run for run in comparison.runs if run.comparable]
    with mpl.rc_context(drawing.STYLE):
        figure, axes = new_figure((5.4, 1.2 + 0.62 * len(runs)))
        for row, run in enumerate(runs):
            for place, (label, attribute, colour, marker) in enumerate(STAGES):
                rates = stage(run, attribute)
                if rates is None:
                    continue
                value, height = 100 * rates.tmr_at_fmr_1e3, row + 0.22 * (place - 1)
                if rates.ci:
                    ends = rates.ci.tmr_at_fmr_1e3
                    axes.plot([100 * ends.low, 100 * ends.high], [height, height], color=colour)
                named = label if row == 0 else None
                axes.plot([value], [height], marker, color=colour, linestyle="none", label=named)
        axes.set_yticks(range(len(runs)), [_short(run.name) for run in runs])
        axes.set_ylim(len(runs) - 0.5, -0.5)
        axes.set_xlabel("TMR at FMR 1e-3, % (with its 95% interval over persons)")
        figure.legend(frameon=False, loc="outside upper right", ncols=3)
        said = "; ".join(
            f"{run.name} {percent(run.record.after.tmr_at_fmr_1e3)} after "
            f"{percent(run.record.before.tmr_at_fmr_1e3)} before"
            for run in runs
        )
        return finished("compare", "TMR at FMR 1e-3", f"TMR at FMR 1e-3: {said}.", figure)


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}\N{HORIZONTAL ELLIPSIS}"


def render(comparison: Comparison, drawn: Plot) -> str:
    """The page as HTML text: no script, no request, every value escaped."""
    names = [escape(run.name) for run in comparison.runs]
    warnings = "".join(f"<li>{escape(text)}</li>" for text in comparison.warnings)
    rows = [(escape(label), *map(_cell, cells)) for label, cells in rows_of(comparison)]
    settings = [(escape(d.setting), *map(escape, d.values)) for d in comparison.differences]
    body = (
        f'<header>\n<p class="quiet">Veilface comparison</p>\n<h1>{len(names)} runs side by side'
        "</h1>\n</header>\n"
    )
    if warnings:
        body += f'<section class="warnings">\n<h2>Warnings</h2>\n<ul>{warnings}</ul>\n</section>\n'
    body += "<section>\n<h2>What they promise and what they gave</h2>\n"
    body += table(
        "Rates on the test persons; a smaller epsilon is more private", ("", *names), rows
    )
    body += f'</section>\n<section>\n<h2>{escape(drawn.title)}</h2>\n<figure role="img" '
    body += f'aria-label="{escape(drawn.alt)}">\n{inline(drawn)}\n</figure>\n</section>\n'
    body += "<section>\n<h2>Settings that differ</h2>\n"
    if settings:
        body += table("As used", ("setting", *names), settings)
    else:
        body += "<p>None: the runs repeat one another.</p>\n"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<title>Veilface: runs side by side'
        f"</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</section>\n</main>\n"
        "</body>\n</html>\n"
    )


def _cell(cell: tuple[str, str]) -> str:
    value, ends = cell
    return escape(value) + (f"<small>{ends}</small>" if ends else "")
