"""The section on error rates: before and after, and by group."""

from __future__ import annotations

from scipy.special import ndtri

from common.metrics import Interval, Verification
from server.audit.curves import Axis, Line, chart, key
from server.audit.facts import Groups, Utility
from server.audit.promise import figure
from server.audit.view import View
from server.report.run_record import DetPoints
from server.report.wording import interval, percent

_LEFT, _LOW = 2e-4, 1e-3
_DET_MARKS = (1e-3, 1e-2, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)


def utility(view: View) -> str:
    """Error rates before and after, and by group."""
    parts = [view.plain("utility.plain")]
    found = view.facts.utility
    parts += _rates(view, found) if found else [view.plain("utility.none")]
    groups = view.facts.groups
    parts += _groups(view, groups) if groups else [view.quiet("utility.ungrouped")]
    return view.section("utility", *parts)


def _rates(view: View, found: Utility) -> list[str]:
    w = view.w
    measured = [("before", found.before), ("public", found.public_only), ("after", found.after)]
    shown = [(name, rates) for name, rates in measured if rates is not None]
    rows = [
        (label, *(_rate(rates, name) for _, rates in shown))
        for label, name in (
            ("TMR (FMR 1e-2)", "tmr_at_fmr_1e2"),
            ("TMR (FMR 1e-3)", "tmr_at_fmr_1e3"),
            ("EER", "eer"),
        )
    ]
    caption = w(
        "utility.caption", mated=f"{found.after.mated:,}", non_mated=f"{found.after.non_mated:,}"
    )
    heads = ("utility.rate", *(f"utility.{name}" for name, _ in shown))
    lines = (
        Line(_deviates(found.det_before), "before", w("utility.before"), dashed=True),
        Line(_deviates(found.det_after), "after", w("utility.after")),
    )
    marks = [(float(ndtri(rate)), f"{100 * rate:g}%") for rate in _DET_MARKS]
    right = float(ndtri(0.5))
    across = [mark for mark in marks if mark[0] < right]
    drawn = chart(
        Axis(float(ndtri(_LEFT)), right, w("utility.x"), across),
        Axis(float(ndtri(_LOW)), float(ndtri(0.9)), w("utility.y"), marks),
        lines,
    )
    return [
        view.table(caption, heads, rows),
        figure(w("utility.figure"), w("utility.alt"), drawn + key(lines)),
    ]


def _rate(rates: Verification, name: str) -> str:
    ends: Interval | None = getattr(rates.ci, name) if rates.ci else None
    return percent(getattr(rates, name)) + (f"<small>{interval(ends)}</small>" if ends else "")


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
        (
            one.group,
            f"{one.pairs:,}",
            percent(one.fmr),
            interval(Interval(one.fmr_low, one.fmr_high)),
            w("utility.unmeasured") if one.fnmr is None else percent(one.fnmr),
        )
        for one in groups.groups
    ]
    heads = [f"utility.{name}" for name in ("group", "pairs", "fmr", "interval", "fnmr")]
    caption = w("utility.groups", threshold=f"{groups.threshold:.4f}")
    found = [view.table(caption, heads, rows)]
    if groups.ratio is not None:
        found.append(view.plain("utility.worst", ratio=f"{groups.ratio:.1f}"))
    return found
