"""One self-contained page of a run: no script, no request, every value escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape
from itertools import groupby
from pathlib import Path

from common.metrics import Interval, Verification
from common.paired import Change
from common.storage import write_private
from common.wording import STAGES, percent, points
from server.report import drawing
from server.report.plots import draw_all
from server.report.run_record import RunRecord, SiteSpending, by_size
from server.report.strength import SOURCE, TONES, WORDS, scale, strength
from server.report.style import STYLE
from server.report.verdict import MEANING, recommended, told, told_alone
from server.report.wording import (
    RATES,
    detection,
    duration,
    epsilon,
    epsilon_with_delta,
    interval,
    power,
)

_COLUMNS = 5  # more than that do not fit a phone
# Each drawn colour becomes a variable of the page, so that plots follow light and dark.
_COLOURS = {
    drawing.INK: "ink",
    drawing.QUIET: "quiet",
    drawing.GRID: "grid",
    drawing.BEFORE: "before",
    drawing.AFTER: "after",
    drawing.SECOND: "second",
    drawing.WARNING: "warning",
    drawing.PUBLIC: "public",
}


def write_page(record: RunRecord, folder: Path) -> Path:
    """Write `index.html`, whole or not at all, and return its path."""
    path = folder / "index.html"
    write_private(path, render(record, draw_all(record)).encode())
    return path


def render(record: RunRecord, drawn: tuple[drawing.Plot, ...]) -> str:
    """The page as HTML text."""
    upper = (_header, _verdict, _gain, _warnings, _outcome, _adversaries)
    body = "".join(
        (
            *(_unbroken(part(record)) for part in upper),
            *(_figure(plot) for plot in drawn),
            *(_unbroken(part(record)) for part in (_sites, _details)),
        )
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>Veilface run {escape(record.run_id)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def _unbroken(html: str) -> str:
    """Keep numbers such as 1e-4 on one line."""
    return re.sub(r"\b[\d.]+e-\d+\b", r'<span class="n">\g<0></span>', html)


def _header(record: RunRecord) -> str:
    return (
        f'<header>\n<p class="quiet">Veilface run report</p>\n<h1>{escape(record.run_id)}</h1>\n'
        f'<p class="quiet">Finished {escape(record.created)}, took {duration(record.seconds)} and '
        f"{record.peak_mb:,.0f} MB of memory</p>\n"
        f'<p class="quiet">Model <code>{escape(record.model)}</code></p>\n</header>\n'
    )


def _verdict(record: RunRecord) -> str:
    privacy = record.privacy
    worst = privacy.worst
    if not privacy.private or worst is None:
        reason = privacy.not_private or "an adversary has no bound"
        return (
            '<section class="verdict bad" role="alert">\n<h2>NOT PRIVATE</h2>\n'
            f"<p>{escape(reason)}. This model may reveal who is in the training images; do not "
            "release it as private.</p>\n</section>\n"
        )
    found = strength(worst)
    return (
        f'<section class="verdict {TONES[found]}">\n'
        f"<h2>{found.capitalize()} privacy: {epsilon_with_delta(worst, privacy.delta)}</h2>\n"
        f"<p>Unit: {escape(privacy.unit)}. Neighbours: {escape(privacy.adjacency)}. A smaller "
        f"epsilon is more private.</p>\n{scale(found, WORDS)}"
        f'<p class="quiet">{SOURCE}</p>\n</section>\n'
    )


def _warnings(record: RunRecord) -> str:
    if not record.warnings:
        return ""
    items = "".join(f"<li>{escape(warning)}</li>" for warning in record.warnings)
    return f'<section class="warnings">\n<h2>Warnings</h2>\n<ul>{items}</ul>\n</section>\n'


def _gain(record: RunRecord) -> str:
    """What training gave, and which model to use."""
    found = [told(record.utility), told_alone(record)]
    use = recommended(record.utility)
    parts = []
    for number, said in enumerate(each for each in found if each is not None):
        shown = [said.text, use if number == 0 else ""]
        text = "".join(f"<p>{escape(each)}</p>\n" for each in shown if each)
        role = ' role="alert"' if said.tone == "amber" else ""
        parts.append(
            f'<section class="verdict {said.tone}"{role}>\n<h2>{escape(said.head)}</h2>\n{text}'
            "</section>\n"
        )
    return "".join(parts)


def _outcome(record: RunRecord) -> str:
    after = record.after
    rows = [
        (
            f"{STAGES[stage]}{_noted(stage)}",
            *(percent(getattr(rates, name)) + _ends(rates, name) for name in RATES),
        )
        for stage, rates in record.stages
    ]
    for label, found in (
        ("change from the better public stage", record.difference),
        ("change from alone", record.unreleased.difference if record.unreleased else None),
    ):
        if found is not None:
            rows.append((label, *(_changed(getattr(found, name)) for name in RATES)))
    note = (
        f"Measured on {after.mated:,} pairs of the same person and {after.non_mated:,} pairs of "
        "different persons, none of whom was trained on. Higher TMR and lower EER are better. "
    )
    if after.ci:
        note += "Below each rate: its 95% interval over persons. "
    if record.difference:
        note += (
            "Changes are in points, of federated, on the same persons: their intervals are paired, "
            "and narrower than those of two rates side by side."
        )
    meanings = "; ".join(f"{STAGES[stage]}: {MEANING[stage]}" for stage, _ in record.stages)
    return (
        "<section>\n<h2>Every stage</h2>\n"
        + table("Verification at each stage", ("stage", *RATES.values()), rows)
        + f'<p class="quiet">{note}</p>\n<p class="quiet">{escape(meanings)}.</p>\n'
        + f"{_alone(record)}</section>\n"
    )


def _noted(stage: str) -> str:
    return "<small>not noised: simulations only</small>" if stage in ("alone", "after_own") else ""


def _changed(found: Change) -> str:
    return f"{points(found.value)}<small>{points(found.low)} to {points(found.high)}</small>"


def _alone(record: RunRecord) -> str:
    """What sites reach alone, by how many persons they have."""
    if record.unreleased is None or len(record.unreleased.by_site) < 2:
        return ""
    rows = [
        (f"{size.persons:,}", f"{size.sites:,}", *map(percent, size.rates))
        for size in by_size(record.unreleased.by_site)
    ]
    heads = ("persons", "sites", *RATES.values())
    return table("Each site alone, by how many persons it has", heads, rows)


def _ends(rates: Verification, name: str) -> str:
    ci: Interval | None = getattr(rates.ci, name) if rates.ci else None
    return f"<small>{interval(ci)}</small>" if ci else ""


def _adversaries(record: RunRecord) -> str:
    privacy = record.privacy
    if not privacy.adversaries:
        return ""
    rows = []
    for adversary in privacy.adversaries[: privacy.promised]:
        meaning = detection(adversary.epsilon, privacy.delta)
        if privacy.not_private:
            meaning = "This does not hold: the run is not private."
        rows.append(
            f"<dt>{escape(adversary.name)}</dt>\n"
            f"<dd><strong>{epsilon_with_delta(adversary.epsilon, privacy.delta)}</strong></dd>\n"
            f"<dd>{meaning}</dd>\n"
        )
    return (
        f"<section>\n<h2>What each adversary can find out</h2>\n"
        f"<dl>\n{''.join(rows)}</dl>\n{_collusion(record)}</section>\n"
    )


def _collusion(record: RunRecord) -> str:
    """The adversaries beyond what the run was made to withstand."""
    privacy = record.privacy
    beyond = () if privacy.promised is None else privacy.adversaries[privacy.promised :]
    if not beyond:
        return ""
    rows = [(escape(a.name), epsilon(a.epsilon)) for a in beyond]
    delta = power(privacy.delta)
    return "<p>Sites that collude know their own shares of noise. What is left then:</p>\n" + table(
        f"Beyond what was agreed, at delta {delta}", ("against", "epsilon"), rows
    )


def _figure(plot: drawing.Plot) -> str:
    title, alt = escape(plot.title), escape(plot.alt)
    return (
        f'<section>\n<h2>{title}</h2>\n<figure role="img" aria-label="{alt}">\n'
        f'{inline(plot)}\n</figure>\n<p class="quiet">{alt}</p>\n</section>\n'
    )


def inline(plot: drawing.Plot) -> str:
    """A plot's SVG as part of a page: identifiers of its own, no namespaces, page colours."""
    svg = plot.svg[plot.svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{plot.name}-", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"font: [^;\"]*?(\d[\d.]*px)[^;\"]*", r"font-size: \1", svg)
    for colour, name in _COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg.strip().replace("<svg ", '<svg aria-hidden="true" ', 1)


def _sites(record: RunRecord) -> str:
    sites = record.privacy.per_site
    if not sites:
        return ""

    def spending(site: SiteSpending) -> tuple[object, ...]:
        return (site.epsilon, site.budget, site.noise_multiplier, site.steps)

    rows = []
    for _, group in groupby(sites, key=spending):
        alike = list(group)
        first, last = alike[0], alike[-1]
        name = first.site if len(alike) == 1 else f"{first.site} to {last.site} ({len(alike)})"
        rows.append(
            (
                escape(name),
                epsilon(first.epsilon),
                epsilon(first.budget),
                f"{first.noise_multiplier:.3f}",
                f"{first.steps:,}",
            )
        )
    delta = power(record.privacy.delta)
    head = ("site", "epsilon spent", "budget", "noise multiplier", "steps")
    rows_table = table(
        f"Spending by site, at delta {delta}; sites that spent alike share a row", head, rows
    )
    return f"<section>\n<h2>Sites</h2>\n{rows_table}</section>\n"


def _details(record: RunRecord) -> str:
    parts = []
    if record.settings:
        rows = [(escape(s.name), escape(s.value)) for s in record.settings]
        parts.append("<h2>Settings</h2>\n" + table("As used", ("setting", "value"), rows, "wordy"))
    if record.skipped:
        rows = [(escape(s.reason), f"{s.count:,}") for s in record.skipped]
        parts.append(
            "<h2>Images not used</h2>\n" + table("Skipped, by reason", ("reason", "images"), rows)
        )
    if record.files:
        items = "".join(f"<li><code>{escape(name)}</code></li>" for name in record.files)
        parts.append(f"<h2>Files of this run</h2>\n<ul>{items}</ul>\n")
    return "".join(f"<section>\n{part}</section>\n" for part in parts)


def table(caption: str, head: Iterable[str], rows: Iterable[Iterable[str]], kind: str = "") -> str:
    """A table of cells that are HTML already; the first of each row names it.

    One of many columns tells each cell its head and a reader aloud what is what: on a phone its
    rows are cards.
    """
    heads = list(head)
    many = len(heads) > _COLUMNS
    kind = f"{kind} many".strip() if many else kind
    of, row, cell, name_of = (
        f' role="{role}"' if many else "" for role in ("table", "row", "cell", "rowheader")
    )
    lines = [
        f'<div class="scroll">\n<table class="{kind}"{of}>\n<caption>{caption}</caption>\n'
        f"<thead><tr{row}>"
    ]
    lines += [f'<th scope="col">{one}</th>' for one in heads]
    lines.append("</tr></thead>\n<tbody>\n")
    told = [f' data-head="{_bare(one)}"' if many else "" for one in heads]
    for name, *cells in rows:
        values = "".join(
            f"<td{cell}{label}>{value}</td>" for label, value in zip(told[1:], cells, strict=True)
        )
        lines.append(f'<tr{row}><th scope="row"{name_of}{told[0]}>{name}</th>{values}</tr>\n')
    lines.append("</tbody>\n</table>\n</div>\n")
    return "".join(lines)


def _bare(html: str) -> str:
    """The text of HTML, as the value of an attribute."""
    return re.sub("<[^>]*>", "", html).replace('"', "&quot;")
