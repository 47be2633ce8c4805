"""The style of all drawings; an empty one, and a finished one in both of its formats."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by every common kind of colour vision; the page swaps each
# for its own in the dark.
INK, QUIET, GRID = "#1b1f24", "#5c6670", "#d9dee3"
BEFORE, AFTER, SECOND, WARNING = "#9a6200", "#0072b2", "#b0418a", "#b3261e"
PUBLIC = "#00795c"
SIZE = (5.4, 3.8)
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "veilface",
    "font.family": ["sans-serif"],
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": QUIET,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True)
class Plot:
    """A drawing as a file name without ending, what it shows in words, and its two formats."""

    name: str
    title: str
    alt: str
    svg: str
    png: bytes


def new_figure(size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    """Return a figure of `size` inches with one grid; to be used under `STYLE`."""
    figure, (axes,) = new_panels(1, size)
    return figure, axes


def new_panels(
    count: int, size: tuple[float, float], *, stacked: bool = False
) -> tuple[Figure, tuple[Axes, ...]]:
    """Return a figure of `size` inches with `count` grids side by side, or one over the other."""
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    grid = (count, 1) if stacked else (1, count)
    panels = tuple(figure.add_subplot(*grid, place + 1) for place in range(count))
    for axes in panels:
        axes.grid(visible=True)
        axes.set_axisbelow(True)
    return figure, panels


def finished(name: str, title: str, alt: str, figure: Figure) -> Plot:
    """Return a figure as a plot, the same bytes for the same drawing."""
    svg, png = io.StringIO(), io.BytesIO()
    figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    figure.savefig(png, format="png", dpi=160, facecolor="white")
    return Plot(name, title, alt, svg.getvalue(), png.getvalue())
