"""An empty drawing in the report's style, and a finished one in both of its formats."""

from __future__ import annotations

import io

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from server.report.plots import SIZE, Plot


def new_figure(size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    """Return a figure of `size` inches with one grid; to be used under `plots.STYLE`."""
    figure, (axes,) = new_panels(1, size)
    return figure, axes


def new_panels(count: int, size: tuple[float, float]) -> tuple[Figure, tuple[Axes, ...]]:
    """Return a figure of `size` inches with `count` grids side by side."""
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    panels = tuple(figure.add_subplot(1, count, place + 1) for place in range(count))
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
