"""The section that shows what was spent: over rounds, by site, by round."""

from __future__ import annotations

from html import escape

from server.audit.curves import Axis, Line, chart, even, key
from server.audit.facts import Spending
from server.audit.promise import BARS, exact_epsilon, figure, left
from server.audit.view import View
from server.report.wording import power


def spending(view: View) -> str:
    """Epsilon over rounds, by site and by round."""
    w, worst = view.w, view.worst
    parts = [view.plain("spending.plain")]
    if view.bounded and worst.rounds:
        lines = [
            Line(
                [
                    (0.0, 0.0),
                    *((float(n), row.total or 0.0) for n, row in enumerate(one.rounds, 1)),
                ],
                "after",
                names,
                stepped=True,
            )
            for names, one in view.alike[:BARS]
        ]
        last = max(len(one.rounds) for _, one in view.alike)
        budgets = sorted({one.budget for _, one in view.alike})
        lines += [
            Line(
                [(0.0, b), (last, b)], "warning", w("spending.budget", budget=f"{b:g}"), dashed=True
            )
            for b in budgets
        ]
        top = 1.1 * max([*budgets, worst.spent or 0.0])
        rounds = [(at, name) for at, name in even(0, last) if at == int(at)]
        drawn = chart(
            Axis(0.0, last, w("spending.x"), rounds),
            Axis(0.0, top, w("spending.y"), even(0, top)),
            lines,
        )
        alt = w("spending.alt", spent=w.epsilon(worst.spent), budget=f"{budgets[-1]:g}")
        parts.append(figure(w("spending.figure"), alt, drawn + key(lines)))
    rows = [
        (names, w.epsilon(one.spent), f"{one.budget:g}", left(one.remaining))
        for names, one in view.alike
    ]
    heads = ("spending.site", "spending.spent", "spending.of", "spending.remaining")
    parts.append(view.table(w("spending.caption", delta=power(worst.delta)), heads, rows))
    tables = [_by_round(view, names, one) for names, one in view.alike]
    parts.append(view.exactly(*tables, view.quiet("spending.not_additive")))
    if view.shared:
        parts.insert(1, view.plain("spending.shared"))
    return view.section("spending", *parts)


def _by_round(view: View, names: str, one: Spending) -> str:
    w = view.w
    runs = {row.run_id for row in one.rounds}
    rows = [
        (
            str(row.round) if len(runs) == 1 else escape(f"{row.round} ({row.run_id})"),
            f"{row.noise_multiplier:g}",
            f"{row.sample_rate:g}",
            str(row.steps),
            w("spending.yes" if row.released else "spending.no"),
            exact_epsilon(view, row.alone),
            exact_epsilon(view, row.total),
        )
        for row in one.rounds
    ]
    heads = [
        f"spending.{name}"
        for name in ("round", "noise", "rate", "steps", "left_site", "alone", "total")
    ]
    return view.table(f"{w('spending.by_round')}: {names}", heads, rows, "dense")
