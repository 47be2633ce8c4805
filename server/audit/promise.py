"""The sections that say what is promised: in short, what it means, exactly, and against whom."""

from __future__ import annotations

import math

from server.audit.curves import Axis, Line, chart, key
from server.audit.facts import Spending
from server.audit.sharing import assumption, certain, collusion
from server.audit.view import View
from server.audit.wording import in_hundred, nearly, share
from server.report.strength import STRENGTHS, TONES, scale, strength
from server.report.wording import power

BARS = 8  # more kinds of spending than that stand in the table only
_NARROW = 14  # a part of the bar that cannot hold its number
_SHOWN_ALARM = 0.01
_CENT = 0.01


def in_short(view: View) -> str:
    """What was promised, against whom, what is left: for who never heard of epsilon."""
    w, meaning, worst = view.w, view.findings.meaning, view.worst
    if meaning is None:
        return (
            '<section class="verdict bad" role="alert" id="short">\n'
            f"<h2>{w('short.headline_bad')}</h2>\n<p>{w('short.bad')}</p>\n</section>\n"
        )
    least = min(one.remaining for one in view.findings.spending)
    rest = w("short.used_up")
    if least >= _CENT:
        rest = w("short.some_left", budget=f"{worst.budget:g}", remaining=left(least))
    said, everyone = "short.promise", f"<p>{w('short.everyone')}</p>"
    if view.shared:
        said = "short.promise_shared"
        everyone = f"<p><strong>{assumption(view)}</strong></p><p>{w('short.if_so')}</p>"
        worst_alone = max(one.guess for one in view.findings.alone)
        everyone += f"<p>{w('short.if_not', guess=nearly(worst_alone))}</p>"
    promise = w(said, guess=in_hundred(meaning.guess))
    cards = (
        ("promised", f"<p>{promise}</p>{_odds(meaning.guess)}"),
        ("against", everyone),
        ("left", f"<p>{rest}</p>{_bars(view)}"),
    )
    body = "".join(
        f'<div class="card"><h3>{w(f"short.{name}")}</h3>{text}</div>\n' for name, text in cards
    )
    name = "short.headline_shared" if view.shared else "short.headline"
    headline = w(name, epsilon=w.epsilon(worst.spent), delta=power(worst.delta))
    found, caveats = strength(worst.spent), _caveats(view)
    # Green is for what is strong and whole; nothing that is wrong besides makes weak look better.
    tone = "amber" if found == "strong" and caveats else TONES[found]
    listed = "".join(f"<li>{one}</li>" for one in caveats)
    listed = f'<ul class="caveats">{listed}</ul>\n' if caveats else ""
    steps = {step: w(f"short.{step}") for step in STRENGTHS}
    return (
        f'<section class="verdict {tone}" id="short">\n<h2>{headline}</h2>\n'
        f"<p>{w(f'short.is_{found}')}</p>\n{listed}{scale(found, steps)}"
        f'<p class="quiet">{w("short.scale")}</p>\n</section>\n'
        f'<div class="cards">\n{body}</div>\n<p class="quiet">{w("short.small")}</p>\n'
    )


def _caveats(view: View) -> list[str]:
    """What a reader of the first lines must know besides epsilon: whom they do not speak of."""
    w, facts = view.w, view.facts
    found = [w("report.missing", sites=", ".join(view.missing))] if view.missing else []
    if view.worst.delta * view.findings.declared_persons >= 1:
        found.append(w("short.delta_large"))
    if facts.utility is not None and facts.utility.verdict == "worse":
        found.append(w("short.worse"))
    if facts.utility is None and len(facts.scores) > 1:
        first, last = (
            one.fnmr_at_fmr_1e2 + one.fnmr_at_fmr_1e3 for one in (facts.scores[0], facts.scores[-1])
        )
        if last > first:
            found.append(w("short.lower"))
    return found


def left(remaining: float) -> str:
    """What is left of a budget, rounded down: never more than there is."""
    return f"{math.floor(remaining / _CENT + 1e-6) * _CENT:.2f}"


def _odds(guess: float) -> str:
    """A bar of 100 guesses: the coin's 50, what the attack adds, and the wrong ones."""
    more = int(in_hundred(guess)) - 50
    inside, beside = (f"+{more}", "") if more > _NARROW else ("", f"+{more}")
    return (
        '<div class="odds" aria-hidden="true"><span class="coin" style="width:50%">50</span>'
        f'<span class="more" style="width:{more}%">{inside}</span>'
        f'<span class="beside">{beside}</span></div>'
    )


def _bars(view: View) -> str:
    """How much of its budget each site has spent; sites that spent alike together."""
    return "".join(
        f'<div class="budget"><span class="quiet">{_bar_text(view, names, one)}</span>'
        f'<div class="bar" aria-hidden="true"><span style="width:{_part(one):.1f}%"></span></div>'
        "</div>"
        for names, one in view.alike[:BARS]
    )


def _bar_text(view: View, names: str, one: Spending) -> str:
    return view.w(
        "short.bar", site=names, spent=view.w.epsilon(one.spent), budget=f"{one.budget:g}"
    )


def _part(one: Spending) -> float:
    return 100.0 * min(1.0, (one.spent or 0.0) / one.budget) if one.budget else 100.0


def meaning(view: View) -> str:
    """The trade-off curve, and how sure an attacker becomes."""
    w, found = view.w, view.findings.meaning
    if found is None:
        return view.section("meaning", view.plain("meaning.plain"), view.plain("meaning.none"))
    curve, bound = found.trade_off, bool(view.known_by_bound)
    points = list(zip((0.0, *curve.false_alarm), (1.0, *curve.missed), strict=True))
    lines = (
        Line(points, "after", w("meaning.attack_bound" if bound else "meaning.attack")),
        Line([(0.0, 1.0), (1.0, 0.0)], "quiet", w("meaning.blind"), dashed=True),
    )
    marks = [(mark, f"{100 * mark:g}%") for mark in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)]
    drawn = chart(
        Axis(0.0, 1.0, w("meaning.x"), marks), Axis(0.0, 1.0, w("meaning.y"), marks), lines
    )
    at = curve.false_alarm.index(_SHOWN_ALARM)
    alt = w("meaning.alt", alarm=f"{_SHOWN_ALARM:.0%}", found=share(1 - curve.missed[at]))
    rows = [
        (f"{p.prior:.0%}", share(p.typical), share(p.unlucky), share(p.bound))
        for p in found.posteriors
    ]
    heads = ("meaning.before", "meaning.typical", "meaning.unlucky", "meaning.bound")
    form = "meaning.gaussian" if found.mu is not None else "meaning.sampled"
    form = "meaning.bounded" if found.site in view.known_by_bound else form
    values = {"mu": f"{found.mu:.4f}"} if found.mu is not None else {}
    return view.section(
        "meaning",
        view.plain("meaning.plain"),
        view.plain("meaning.plain_bound") if bound else "",
        figure(w("meaning.figure_bound" if bound else "meaning.figure"), alt, drawn + key(lines)),
        view.table(w("meaning.caption"), heads, rows),
        view.quiet(
            "meaning.note_bound" if bound else "meaning.note", delta=power(view.worst.delta)
        ),
        view.exactly(
            view.quiet(form, site=found.site, **values),
            view.quiet("meaning.several") if len(view.alike) > 1 else "",
        ),
    )


def exact(view: View) -> str:
    """Unit, neighbours, statement, numbers."""
    w, contract, worst = view.w, view.facts.contract, view.worst
    persons = view.findings.declared_persons
    fits = "exact.delta_small" if worst.delta * persons < 1 else "exact.delta_large"
    delta = w(
        "exact.delta_value",
        delta=power(worst.delta),
        persons=f"{persons:g}",
        product=f"{worst.delta * persons:.3g}",
    )
    contribution = w(
        "exact.contribution_value",
        clip=f"{contract.privacy.max_grad_norm:g}",
        images=contract.images_per_person,
    )
    statement = "exact.statement_shared" if view.shared else "exact.statement_value"
    rows = [
        *([("assumption", assumption(view))] if view.shared else []),
        ("unit", w("exact.unit_value")),
        ("adjacency", w("exact.adjacency_value")),
        ("statement", w(statement).replace("<=", "&le;")),
        ("epsilon", exact_epsilon(view, worst.spent)),
        ("delta", f"{delta} ({w(fits)})"),
        ("contribution", contribution),
    ]
    for one in view.findings.adversaries:
        if one.who in ("two-sites", "replaced"):
            name = "two" if one.who == "two-sites" else "replaced"
            rows.append((name, f"epsilon {exact_epsilon(view, one.epsilon)}"))
    return view.section("exact", view.plain("exact.plain"), view.terms("exact", rows))


def exact_epsilon(view: View, value: float | None) -> str:
    return view.w("exact.limit") if value is None else f"{value:.6f}"


def seen(view: View) -> str:
    """Who sees what, and epsilon against each; colluders where the server sees sums only."""
    w = view.w
    rows = [
        (
            w(f"seen.{one.who}"),
            w(f"seen.{one.who}_{'shared' if view.shared and one.who == 'two-sites' else 'sees'}"),
            w.epsilon(one.epsilon),
            (nearly if view.shared else in_hundred)(one.guess),
        )
        for one in view.findings.adversaries
    ]
    heads = ("seen.who", "seen.sees", "seen.epsilon", "seen.guess")
    table = view.table(w("seen.caption"), heads, rows, "second-wordy")
    if not view.shared:
        local = "seen.local" if view.bounded else "seen.unbounded"
        return view.section("seen", view.plain(local), table, view.quiet("seen.own"))
    parts = [view.plain("seen.secagg"), f"<p><strong>{assumption(view)}</strong></p>"]
    parts.append("" if view.bounded else view.plain("seen.unbounded_shared"))
    more = (*collusion(view), *certain(view))
    return view.section(
        "seen", *parts, table, view.quiet("seen.shared_note"), *more, view.quiet("seen.own")
    )


def figure(title: str, alt: str, drawn: str) -> str:
    """A figure with its title above and what it shows in words below."""
    return (
        f'<h3>{title}</h3>\n<figure role="img" aria-label="{alt}">\n{drawn}\n</figure>\n'
        f'<p class="quiet">{alt}</p>'
    )
