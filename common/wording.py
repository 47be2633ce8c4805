"""Words around figures, the same on every screen and page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from common.paired import Change, Difference

STAGES: Final = {
    "before": "before",
    "public": "public only",
    "alone": "alone",
    "after": "federated",
    "after_own": "federated and own",
}


def plural(count: int, noun: str) -> str:
    """A count with its noun: 1 person, 2 persons."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def percent(rate: float) -> str:
    """A rate in [0, 1] to a tenth of a percent."""
    return f"{100 * rate:.1f}%"


def points(change: float) -> str:
    """A signed difference of two rates in percentage points."""
    return f"{100 * change:+.1f}".replace("-", "\N{MINUS SIGN}")


def change(found: Change) -> str:
    """A difference in points and the ends of its 95% interval."""
    ends = f"{points(found.low)} to {points(found.high)}"
    return f"{points(found.value)} points (95% interval {ends})"


def compared(found: Difference, other: str) -> str:
    """Return a difference in points, with the interval that the verdict goes by."""
    return (
        f"From {other} to federated, TMR (the mean of both operating points) changed by "
        f"{change(found.tmr_mean)}, on the same test persons."
    )
