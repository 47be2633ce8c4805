"""The section on error rates: before and after, and by group."""

from __future__ import annotations

from html import escape

from scipy.special import ndtri

from common.metrics import Interval, Verification
from common.paired import Change
from common.wording import percent, points
from server.audit.curves import Axis, Line, chart, key
from server.audit.promise import figure
from server.audit.rates import GroupRate, Groups, Scores
from server.audit.view import View
from server.report.utility import DetPoints, Utility
from server.report.verdict import TONES
from server.report.wording import RATES

_LEFT, _LOW = 2e-4, 1e-3
_DASHES = {"before": "6 4", "public": "9 3 2 3", "after": ""}
_KEYS = {"helped": "helped", "no-difference": "no_difference", "worse": "worse"}
_DET_MARKS = (1e-3, 1e-2, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)


def utility(view: View) -> str:
    """Error rates before and after, and by group."""
    parts = [view.plain("utility.plain")]
    found = view.facts.utility
    scored = view.facts.scores
    unscored = _scores(view, scored) if scored else [view.plain("utility.none")]
    parts += _rates(view, found) if found else unscored
    groups = view.facts.groups
    parts += _groups(view, groups) if groups else [view.quiet("utility.ungrouped")]
    return view.section("utility", *parts)


def _scores(view: View, scores: tuple[Scores, ...]) -> list[str]:
    """What a deployed server measured in the first and the last round."""
    rows = [
        (str(one.round), percent(1 - one.fnmr_at_fmr_1e2), percent(1 - one.fnmr_at_fmr_1e3))
        for one in scores
    ]
    heads = ("utility.round", "utility.tmr_1e2", "utility.tmr_1e3")
    return [
        view.table(view.w("utility.scores"), heads, rows),
        view.quiet("utility.scores_note"),
    ]


def _rates(view: View, found: Utility) -> list[str]:
    w = view.w
    rows = [
        (w(f"utility.{name}"), *(_rate(rates, field) for field in RATES))
        for name, rates in found.stages
    ]
    if found.difference:
        changes = [getattr(found.difference, field) for field in RATES]
        rows.append((w("utility.change"), *map(_changed, changes)))
    caption = w(
        "utility.caption", mated=f"{found.after.mated:,}", non_mated=f"{found.after.non_mated:,}"
    )
    heads = ("utility.stage", "utility.tmr_1e2", "utility.tmr_1e3", "utility.eer")
    curves = {"before": found.det_before, "public": found.det_public, "after": found.det_after}
    lines = [
        Line(_deviates(curve), name, w(f"utility.{name}"), dashes=_DASHES[name])
        for name, curve in curves.items()
        if curve is not None
    ]
    marks = [(float(ndtri(rate)), f"{100 * rate:g}%") for rate in _DET_MARKS]
    right = float(ndtri(0.5))
    across = [mark for mark in marks if mark[0] < right]
    drawn = chart(
        Axis(float(ndtri(_LEFT)), right, w("utility.x"), across),
        Axis(float(ndtri(_LOW)), float(ndtri(0.9)), w("utility.y"), marks),
        lines,
    )
    return [
        _verdict(view, found),
        view.table(caption, heads, rows),
        figure(w("utility.figure"), w("utility.alt"), drawn + key(lines)),
    ]


def _verdict(view: View, found: Utility) -> str:
    """What training gave, in the colour that it has everywhere, and which model to use."""
    verdict = found.verdict
    if verdict is None or found.difference is None:
        return view.quiet("utility.no_verdict")
    w, mean = view.w, found.difference.tmr_mean
    compared = w(
        "utility.compared",
        start=w(f"utility.{found.best_public}"),
        value=points(mean.value),
        low=points(mean.low),
        high=points(mean.high),
    )
    parts = [compared]
    if found.recommended:
        parts.append(w("utility.recommended", model=w(f"utility.use_{found.recommended}")))
        parts.append(w("utility.chosen" if found.judges else "utility.unchosen", n=found.judges))
    role = ' role="alert"' if verdict == "worse" else ""
    return (
        f'<div class="verdict {TONES[verdict]}"{role}>\n<h3>{w(f"utility.{_KEYS[verdict]}")}</h3>\n'
        f"<p>{' '.join(parts)}</p>\n</div>"
    )


def _changed(found: Change) -> str:
    ends = f"{points(found.low)}\N{EN DASH}{points(found.high)}"
    return f"{points(found.value)}<small>{ends}</small>"


def _rate(rates: Verification, name: str) -> str:
    ends: Interval | None = getattr(rates.ci, name) if rates.ci else None
    return percent(getattr(rates, name)) + (
        f"<small>{_ends(ends.low, ends.high, 1)}</small>" if ends else ""
    )


def _ends(low: float, high: float, places: int) -> str:
    """An interval in percent, in signs that every language reads."""
    return f"{100 * low:.{places}f}\N{EN DASH}{100 * high:.{places}f}"


def _deviates(points: DetPoints) -> list[tuple[float, float]]:
    """The part of a DET curve that normal-deviate axes can show."""
    return [
        (float(ndtri(fmr)), float(ndtri(fnmr)))
        for fmr, fnmr in zip(points.fmr, points.fnmr, strict=True)
        if _LEFT <= fmr <= 0.5 and 0 < fnmr < 1
    ]


def _groups(view: View, groups: Groups) -> list[str]:
    w = view.w
    rows = [
        (escape(one.group), f"{one.pairs:,}", _group_rate(one.fmr), _missed(view, one.fnmr))
        for one in groups.groups
    ]
    heads = [f"utility.{name}" for name in ("group", "pairs", "fmr", "fnmr")]
    caption = w("utility.groups", threshold=f"{groups.threshold:.4f}")
    found = [view.table(caption, heads, rows)]
    for name, worst in (("worst", groups.worst), ("worst_missed", groups.worst_missed)):
        if worst is not None:
            text = view.plain(f"utility.{name}", group=worst.group, ratio=f"{worst.ratio:.1f}")
            found.append(text)
    return found


def _group_rate(rate: GroupRate) -> str:
    """A rate with its interval; false matches are rare, so to a thousandth of a percent."""
    return f"{100 * rate.rate:.3f}%<small>{_ends(rate.low, rate.high, 3)}</small>"


def _missed(view: View, rate: GroupRate | None) -> str:
    return view.w("utility.unmeasured") if rate is None else _group_rate(rate)
