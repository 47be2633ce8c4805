"""Three drawings of a run: DET of every stage, TMR by round, epsilon by round.

Drawn with Matplotlib's object interface on the Agg canvas: no window, no global figure.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.special import ndtri

from common.storage import write_private
from common.wording import STAGES, percent, plural
from server.report.drawing import (
    AFTER,
    BEFORE,
    INK,
    PUBLIC,
    QUIET,
    SECOND,
    SIZE,
    STYLE,
    WARNING,
    Plot,
    finished,
    new_figure,
    new_panels,
)
from server.report.run_record import RunRecord
from server.report.utility import DetPoints
from server.report.wording import RATES, epsilon, epsilon_with_delta, power


@dataclass(frozen=True)
class Look:
    """How a stage is drawn everywhere: told apart by colour, by dashes and by mark."""

    colour: str
    dashes: tuple[float, tuple[float, ...]]
    marker: str


LOOKS: Final = {
    "before": Look(BEFORE, (0, (5, 2)), "o"),
    "public": Look(PUBLIC, (0, (6, 2, 1, 2)), "^"),
    "alone": Look(SECOND, (0, (1, 1.4)), "D"),
    "after": Look(AFTER, (0, ()), "s"),
    "after_own": Look(INK, (0, (3, 1)), "v"),
}
_TICKS = (1e-3, 1e-2, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99)


def write_plots(record: RunRecord, folder: Path) -> tuple[Path, ...]:
    """Write every plot as PNG and as SVG, each whole or not at all, and return their paths."""
    written = []
    for plot in draw_all(record):
        for suffix, data in (("png", plot.png), ("svg", plot.svg.encode())):
            written.append(folder / f"{plot.name}.{suffix}")
            write_private(written[-1], data)
    return tuple(written)


@lru_cache(maxsize=1)
def draw_all(record: RunRecord) -> tuple[Plot, ...]:
    """The plots of a run, in the order in which the page shows them; kept for the next caller."""
    return (draw_det(record), draw_tmr(record), draw_epsilon(record))


def draw_det(record: RunRecord) -> Plot:
    """FNMR over FMR on normal-deviate axes (Martin et al. 1997): lower left is better."""
    with mpl.rc_context(STYLE):
        figure, axes = new_figure((SIZE[0], 4.2))
        curves, rates = record.curves, dict(record.stages)
        left = _floor(*(curve.fmr for curve in curves.values()), least=2e-4)
        bottom = _floor(*(curve.fnmr for curve in curves.values()), least=1e-3)
        top = min(0.995, max(0.5, *(_highest(curve, left) for curve in curves.values())))
        for stage, curve in curves.items():
            look, found = LOOKS[stage], rates[stage]
            x, y = _inside(curve, left, bottom)
            axes.plot(x, y, color=look.colour, linestyle=look.dashes, zorder=3)
            for target, tmr in ((1e-3, found.tmr_at_fmr_1e3), (1e-2, found.tmr_at_fmr_1e2)):
                if bottom <= 1 - tmr < 1:
                    place = (ndtri(target), ndtri(1 - tmr))
                    axes.plot(*place, look.marker, color=look.colour, markersize=5, zorder=4)
        for target in (1e-3, 1e-2):
            at = float(ndtri(target))
            axes.axvline(at, color=QUIET, linewidth=1, linestyle=(0, (1, 2)))
            axes.annotate(
                f"FMR {power(target)}",
                (at, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 4),
                textcoords="offset points",
                ha="center",
                color=QUIET,
                fontsize=10,
            )
        _deviate_axis(axes.xaxis, left, 0.5)
        _deviate_axis(axes.yaxis, bottom, top)
        axes.set_xlim(float(ndtri(left)), float(ndtri(0.5)))
        axes.set_ylim(float(ndtri(bottom)), float(ndtri(top)))
        axes.set_xlabel("FMR (other person accepted)")
        axes.set_ylabel("FNMR (same person rejected)")
        _legend(figure, list(curves))
        return finished(
            "det", "Detection error trade-off", f"FNMR over FMR. {_said(record)}", figure
        )


def draw_tmr(record: RunRecord) -> Plot:
    """TMR at both operating points after each round, beside every other stage.

    Round 0 is where private training starts.
    """
    rounds = [0, *(point.round for point in record.rounds)]
    stages, start = dict(record.stages), record.public_only or record.before
    with mpl.rc_context(STYLE):
        figure, panels = new_panels(2, (SIZE[0], 5.6), stacked=True)
        for axes, field in zip(panels, ("tmr_at_fmr_1e2", "tmr_at_fmr_1e3"), strict=True):
            for stage, rates in stages.items():
                look = LOOKS[stage]
                if stage != "after":
                    level = getattr(rates, field)
                    axes.axhline(level, color=look.colour, linewidth=1.6, linestyle=look.dashes)
            values = [getattr(each, field) for each in (start, *record.rounds)]
            axes.plot(rounds, values, color=AFTER, marker=LOOKS["after"].marker, markersize=4)
            _round_axis(axes, rounds)
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
            axes.set_title(RATES[field], loc="left", fontsize=11)
        panels[0].set_xlabel("")
        _legend(figure, list(stages))
        alt = f"TMR over {plural(len(record.rounds), 'round')}. {_said(record)}"
        return finished("tmr", "TMR by round", alt, figure)


def _legend(figure: Figure, stages: list[str]) -> None:
    """Name the stages over the drawing, each with its line and mark."""
    handles = [
        Line2D([], [], color=look.colour, linestyle=look.dashes, marker=look.marker, markersize=5)
        for look in (LOOKS[stage] for stage in stages)
    ]
    labels = [STAGES[stage] for stage in stages]
    figure.legend(handles, labels, frameon=False, loc="outside upper left", ncols=3, fontsize=10)


def draw_epsilon(record: RunRecord) -> Plot:
    """Epsilon spent by each site after each round, up to the budgets."""
    privacy, rounds = record.privacy, [0, *(point.round for point in record.rounds)]
    rows = [[0.0 if e is None else e for e in point.epsilon] for point in record.rounds]
    spent = np.array([[0.0] * len(privacy.per_site), *rows])
    budgets = sorted({site.budget for site in privacy.per_site if site.budget is not None})
    with mpl.rc_context(STYLE):
        figure, axes = new_figure()
        if None in privacy.stated or not privacy.per_site:
            alt = "Epsilon has no bound: this run was not private."
            axes.text(0.5, 0.5, alt, transform=axes.transAxes, ha="center", color=WARNING)
            axes.set_axis_off()
            figure.set_size_inches(SIZE[0], 0.7)
            return finished("epsilon", "Epsilon by round", alt, figure)
        # Sites that spent alike share one line.
        for values in np.unique(spent, axis=1).T:
            axes.plot(rounds, values, color=AFTER, drawstyle="steps-pre")
        for budget in budgets:
            axes.axhline(budget, color=WARNING, linewidth=1.4, linestyle=(0, (5, 2)))
            _label(axes, budget, f"budget {epsilon(budget)}", WARNING)
        sites = len(privacy.per_site)
        title = f"{sites} sites, one line for those that spent alike" if sites > 1 else "1 site"
        axes.set_title(title, loc="right", fontsize=10, color=QUIET)
        axes.set_ylim(0, 1.12 * max([spent.max(), *budgets]))
        _round_axis(axes, rounds)
        axes.set_ylabel(f"epsilon spent (delta {power(privacy.delta)})")
        most = "at most " + epsilon_with_delta(float(spent.max()), privacy.delta)
        alt = f"Epsilon spent over {plural(len(rows), 'round')} at {plural(sites, 'site')}: {most}."
        if privacy.not_private:
            alt = f"NOT PRIVATE ({privacy.not_private}). {alt}"
            axes.text(0.5, 0.5, "NOT PRIVATE", transform=axes.transAxes, ha="center", color=WARNING)
        return finished("epsilon", "Epsilon by round", alt, figure)


def _said(record: RunRecord) -> str:
    """Every stage's rates in a sentence, for who does not see the drawing."""
    wide, strict = (
        ", ".join(f"{STAGES[stage]} {percent(getattr(rates, name))}" for stage, rates in stages)
        for name, stages in (
            ("tmr_at_fmr_1e2", record.stages),
            ("tmr_at_fmr_1e3", record.stages),
        )
    )
    return f"TMR at FMR 1e-2: {wide}; at FMR 1e-3: {strict}."


def _floor(*rates: tuple[float, ...], least: float) -> float:
    """Where an axis begins: a little below the lowest rate that is not zero, or at `least`."""
    low = [rate for row in rates for rate in row if 0 < rate < 0.4]
    return max(least, 0.7 * min(low, default=least))


def _inside(
    points: DetPoints, left: float, bottom: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The part of a curve that normal-deviate axes can show, in deviates."""
    fmr, fnmr = np.array(points.fmr), np.array(points.fnmr)
    shown = (fmr >= left) & (fmr < 1) & (fnmr >= bottom) & (fnmr < 1)
    return np.asarray(ndtri(fmr[shown])), np.asarray(ndtri(fnmr[shown]))


def _highest(points: DetPoints, left: float) -> float:
    """The highest FNMR that a curve has where the FMR axis shows it."""
    return max((n for f, n in zip(points.fmr, points.fnmr, strict=True) if f >= left), default=0)


def _deviate_axis(axis: Axis, low: float, high: float) -> None:
    ticks = [rate for rate in _TICKS if low <= rate <= high]
    axis.set_ticks(ndtri(ticks).tolist(), [f"{100 * rate:g}%" for rate in ticks])


def _round_axis(axes: Axes, rounds: list[int]) -> None:
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(0, max(1, rounds[-1]))


def _label(axes: Axes, value: float, text: str, colour: str) -> None:
    """Name a line at its right end, outside the axes."""
    axes.annotate(
        text,
        (1.0, value),
        xycoords=("axes fraction", "data"),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        color=colour,
        annotation_clip=False,
    )
