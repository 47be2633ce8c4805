"""What a sweep found: means over seeds with confidence bands, as text, CSV, JSON and a drawing."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from scipy.stats import t as student

from common.metrics import Interval, Verification
from common.wording import percent, points
from server.report import drawing
from server.report.drawing import AFTER, BEFORE, INK, QUIET, SECOND, Plot, finished, new_panels
from server.report.run_record import RunRecord
from simulations.sweep import Cell, Trust

RATES = (("tmr_at_fmr_1e2", "TMR at FMR 1e-2"), ("tmr_at_fmr_1e3", "TMR at FMR 1e-3"))
_STYLES: dict[Trust, tuple[str, str]] = {
    "local": (AFTER, "o"),
    "central": (SECOND, "s"),
    "secagg": (INK, "^"),
    "none": (BEFORE, "D"),
}
_NAMES: dict[Trust, str] = {
    "local": "local: each site adds all noise",
    "central": "central: one site holds all",
    "secagg": "secagg: the sum is noised",
    "none": "no privacy",
}


@dataclass(frozen=True)
class Band:
    """A mean over seeds and its 95% confidence band."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Point:
    """What runs alike but for their seed gave: rates after training, and gains over `before`.

    `stated` is the largest epsilon of any of them against whom it was made to withstand (with
    secure aggregation not if more sites collude or masks fail); None without privacy.
    """

    trust: Trust
    epsilon: float | None
    stated: float | None
    seeds: tuple[int, ...]
    after_1e2: Band
    after_1e3: Band
    gain_1e2: Band
    gain_1e3: Band

    def after(self, rate: str) -> Band:
        return self.after_1e2 if rate == RATES[0][0] else self.after_1e3


@dataclass(frozen=True)
class Results:
    """All points of a sweep, and where all of them start: the public model, before and after its
    training on public images (None where there was none)."""

    points: tuple[Point, ...]
    before: tuple[Band, Band]
    public_only: tuple[Band, Band] | None

    def to_json(self) -> dict[str, object]:
        """The object that `veilface sweep --json` prints."""
        return asdict(self)


def band(values: Sequence[float], within: Sequence[Interval | None]) -> Band:
    """Return the mean of `values`, one a seed, with a band for seeds and for test persons.

    half^2 = (t s / sqrt(n))^2 + the mean of the runs' own half^2. s is the standard deviation over
    seeds and t Student's quantile; the runs' intervals over persons do not shrink with n, since
    splits of one data set share most of their test persons. So the band errs on the wide side.
    With one seed it is that of the run.
    """
    mean, n = float(np.mean(values)), len(values)
    between = 0.0
    if n > 1:
        between = float(student.ppf(0.975, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    own = [((ends.high - ends.low) / 2) ** 2 for ends in within if ends is not None]
    half = math.sqrt(between**2 + (float(np.mean(own)) if own else 0.0))
    return Band(mean, mean - half, mean + half)


def results(runs: Mapping[Cell, RunRecord]) -> Results:
    """Return what finished runs add up to, in the order of trust and epsilon."""
    groups: dict[tuple[Trust, float | None], list[Cell]] = {}
    for cell in runs:
        groups.setdefault((cell.trust, cell.epsilon), []).append(cell)
    order = sorted(groups, key=lambda key: (list(_STYLES).index(key[0]), key[1] or 0.0))
    by_seed = {cell.seed: record for cell, record in runs.items()}  # the start is that of the seed
    starts = list(by_seed.values())
    public = [record.public_only for record in starts if record.public_only is not None]
    return Results(
        tuple(_point(groups[key], runs) for key in order),
        _pair([record.before for record in starts]),
        _pair(public) if len(public) == len(starts) else None,
    )


def _pair(rates: Sequence[Verification]) -> tuple[Band, Band]:
    """Bands of both rates, which never leave [0, 1] as those of gains may."""
    first, second = (
        band([getattr(r, name) for r in rates], [_ends(r, name) for r in rates])
        for name, _ in RATES
    )
    return _clipped(first), _clipped(second)


def _clipped(each: Band) -> Band:
    return Band(each.mean, max(0.0, each.low), min(1.0, each.high))


def _ends(rates: Verification, name: str) -> Interval | None:
    found: Interval | None = getattr(rates.ci, name) if rates.ci else None
    return found


def _point(alike: Sequence[Cell], runs: Mapping[Cell, RunRecord]) -> Point:
    records = [runs[cell] for cell in alike]
    # A gain is measured on the same test persons, so their choice weighs on it through seeds alone.
    gains = (
        band([getattr(r.after, name) - getattr(r.before, name) for r in records], [])
        for name, _ in RATES
    )
    worst = [record.privacy.worst for record in records if record.privacy.private]
    stated = [epsilon for epsilon in worst if epsilon is not None]
    return Point(
        alike[0].trust,
        alike[0].epsilon,
        max(stated) if len(stated) == len(records) else None,
        tuple(cell.seed for cell in alike),
        *_pair([record.after for record in records]),
        *gains,
    )


def table(found: Results) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return head and rows of the table that is shown."""

    def shown(each: Band) -> str:
        return f"{percent(each.mean)} ({100 * each.low:.1f} to {100 * each.high:.1f})"

    def gained(each: Band) -> str:
        return f"{points(each.mean)} ({points(each.low)} to {points(each.high)})"

    def row(name: str, epsilon: str, seeds: str, both: tuple[Band, Band], *gain: str) -> None:
        rows.append((name, epsilon, seeds, *map(shown, both), *(gain or ("", ""))))

    rows: list[tuple[str, ...]] = []
    row("before", "", "", found.before)
    if found.public_only:
        row("public only", "", "", found.public_only)
    for p in found.points:
        epsilon = "no bound" if p.epsilon is None else f"{p.epsilon:g}"
        gains = (gained(p.gain_1e2), gained(p.gain_1e3))
        row(p.trust, epsilon, str(len(p.seeds)), (p.after_1e2, p.after_1e3), *gains)
    names = [name for _, name in RATES]
    return ("trust", "epsilon", "seeds", *names, *(f"gain, {name}" for name in names)), rows


def as_csv(found: Results) -> str:
    """Return one row a point and rate, numbers unrounded."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("trust", "epsilon", "seeds", "measure", "mean", "low", "high"))

    def put(trust: str, epsilon: float | None, seeds: int, measure: str, each: Band) -> None:
        cell = "" if epsilon is None else f"{epsilon:g}"
        writer.writerow((trust, cell, seeds, measure, each.mean, each.low, each.high))

    for start, both in (("before", found.before), ("public only", found.public_only)):
        for (name, _), each in zip(RATES, both or (), strict=False):
            put(start, None, 0, name, each)
    for p in found.points:
        for measure in ("after_1e2", "after_1e3", "gain_1e2", "gain_1e3"):
            put(p.trust, p.epsilon, len(p.seeds), measure, getattr(p, measure))
    return text.getvalue()


def draw(found: Results) -> Plot:
    """Draw TMR over epsilon, one line a trust, with its band; horizontal lines have no epsilon."""
    with mpl.rc_context(drawing.STYLE):
        figure, panels = new_panels(len(RATES), (9.6, 4.2))
        for place, (axes, (rate, name)) in enumerate(zip(panels, RATES, strict=True)):
            _panel(axes, found, rate, place)
            axes.set_title(name, loc="left", fontsize=11)
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=3)
        return finished("sweep", "Epsilon against TMR", _said(found), figure)


def _panel(axes: Axes, found: Results, rate: str, place: int) -> None:
    epsilons = sorted({p.epsilon for p in found.points if p.epsilon is not None})
    for trust, (colour, marker) in _STYLES.items():
        mine = [p for p in found.points if p.trust == trust]
        if trust == "none" and mine:
            each = mine[0].after(rate)
            axes.axhspan(each.low, each.high, color=colour, alpha=0.1, linewidth=0)
            axes.axhline(each.mean, color=colour, linestyle=(0, (5, 2)), label=_NAMES[trust])
        elif mine:
            x = [p.epsilon for p in mine if p.epsilon is not None]
            bands = [p.after(rate) for p in mine]
            low, high = [b.low for b in bands], [b.high for b in bands]
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            means = [b.mean for b in bands]
            axes.plot(x, means, color=colour, marker=marker, label=_NAMES[trust])
    axes.axhline(found.before[place].mean, color=QUIET, linestyle=(0, (1, 2)), label="before")
    if found.public_only:
        start = found.public_only[place].mean
        axes.axhline(start, color=QUIET, linestyle=(0, (4, 3)), label="public images only")
    if epsilons:
        axes.set_xscale("log")
        axes.set_xticks(epsilons, [f"{epsilon:g}" for epsilon in epsilons])
        axes.set_xticks([], minor=True)
    else:
        axes.set_xticks([])
    axes.set_xlabel("epsilon (smaller is more private)")


def _said(found: Results) -> str:
    said = [
        f"{p.trust}{'' if p.epsilon is None else f' at epsilon {p.epsilon:g}'} "
        f"{percent(p.after_1e3.mean)}"
        for p in found.points
    ]
    start = percent(found.before[1].mean)
    return f"TMR at FMR 1e-3 over epsilon: {', '.join(said)}; before training {start}."
