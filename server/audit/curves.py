"""Line charts as SVG text: the same bytes on every machine, so that a page can be compared.

Matplotlib's output changes with its version and fonts; a verifier must not depend on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

WIDTH, HEIGHT = 540, 350
_LEFT, _RIGHT, _TOP, _BOTTOM = 74, 30, 14, 52
_DASHED: Final = "6 4"

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A line through points, in a colour of the page's style; `label` stands in the key."""

    points: Sequence[Point]
    colour: str
    label: str
    dashed: bool = False
    stepped: bool = False
    dashes: str = ""

    @property
    def pattern(self) -> str:
        """Dashes and gaps, as SVG writes them; empty for a line without."""
        return self.dashes or (_DASHED if self.dashed else "")


@dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high`, its name, and where it has which mark."""

    low: float
    high: float
    name: str
    marks: Sequence[tuple[float, str]]

    def at(self, value: float) -> float:
        """Where a value lies, 0 to 1, cut off at the ends."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))


def chart(x: Axis, y: Axis, lines: Sequence[Line]) -> str:
    """Return the chart as one SVG element."""
    inner_w, inner_h = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM

    def place(point: Point) -> str:
        across, down = _LEFT + inner_w * x.at(point[0]), _TOP + inner_h * (1 - y.at(point[1]))
        return f"{across:.1f} {down:.1f}"

    parts = [
        f'<svg aria-hidden="true" viewBox="0 0 {WIDTH} {HEIGHT}" xmlns="http://www.w3.org/2000/svg">'
    ]
    for value, label in y.marks:
        down = _TOP + inner_h * (1 - y.at(value))
        parts.append(_stroke(f"M{_LEFT} {down:.1f}H{WIDTH - _RIGHT}", "grid", 1))
        parts.append(_text(_LEFT - 8, down + 5, label, "end"))
    for value, label in x.marks:
        across = _LEFT + inner_w * x.at(value)
        parts.append(_stroke(f"M{across:.1f} {_TOP}V{_TOP + inner_h}", "grid", 1))
        parts.append(_text(across, HEIGHT - _BOTTOM + 20, label, "middle"))
    for line in lines:
        path = _path([place(point) for point in line.points], stepped=line.stepped)
        parts.append(_stroke(path, line.colour, 2.5, line.pattern))
    parts.append(_text(_LEFT + inner_w / 2, HEIGHT - 8, x.name, "middle"))
    parts.append(
        _text(0, 0, y.name, "middle", f"translate(14 {_TOP + inner_h / 2:.1f}) rotate(-90)")
    )
    return "".join((*parts, "</svg>"))


def key(lines: Sequence[Line]) -> str:
    """Return what each line is, as HTML, for under the chart."""
    entries = "".join(
        f'<li><svg aria-hidden="true" viewBox="0 0 28 8" width="28" height="8">'
        f"{_stroke('M0 4H28', line.colour, 3, line.pattern)}</svg> "
        f"{escape(line.label)}</li>"
        for line in lines
    )
    return f'<ul class="key">{entries}</ul>'


def even(low: float, high: float, count: int = 5) -> list[tuple[float, str]]:
    """Return about `count` round marks between two values."""
    span = (high - low) / count
    size = next(s for e in range(-6, 9) for s in (10.0**e, 2 * 10.0**e, 5 * 10.0**e) if s >= span)
    first = int(-(-low // size))
    return [(n * size, f"{n * size:g}") for n in range(first, int(high // size) + 1)]


def _path(places: Sequence[str], *, stepped: bool) -> str:
    if not stepped:
        return "M" + "L".join(places)
    first, *rest = places
    return f"M{first}" + "".join(f"H{p.split()[0]}V{p.split()[1]}" for p in rest)


def _stroke(path: str, colour: str, width: float, dashes: str = "") -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<path d="{path}" fill="none" style="stroke:var(--{colour})" stroke-width="{width:g}"'
        f' stroke-linejoin="round"{dashed}/>'
    )


def _text(across: float, down: float, text: str, anchor: str, transform: str = "") -> str:
    moved = f' transform="{transform}"' if transform else ""
    return (
        f'<text x="{across:.1f}" y="{down:.1f}" text-anchor="{anchor}" font-size="15"'
        f' style="fill:var(--ink)"{moved}>{escape(text)}</text>'
    )
