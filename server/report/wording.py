"""Numbers of a run in words, the same in plots, page and table; an epsilon never without delta."""

from __future__ import annotations

import math

from common.metrics import Interval
from common.wording import percent

# The rates that are shown, by their fields, in the order in which they stand.
RATES = {
    "tmr_at_fmr_1e2": "TMR at FMR 1e-2",
    "tmr_at_fmr_1e3": "TMR at FMR 1e-3",
    "eer": "EER",
}


def interval(ci: Interval | None) -> str:
    """The ends of a confidence interval, or nothing where none was computed."""
    return f"{100 * ci.low:.1f} to {100 * ci.high:.1f}" if ci else ""


def power(value: float) -> str:
    """A small number as printed in the commands: 0.0001 -> 1e-4."""
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def epsilon(value: float | None) -> str:
    """An epsilon to two places, rounded up so that it never says less than was spent."""
    if value is None:
        return "no bound"
    # A budget of 4 that was met to within rounding is 4, not 4.01.
    return f"{math.ceil(100 * value - 1e-6) / 100:.2f}"


def epsilon_with_delta(value: float | None, delta: float) -> str:
    """The guarantee in short."""
    if value is None:
        return "epsilon has no bound"
    return f"epsilon {epsilon(value)} at delta {power(delta)}"


def detection(value: float | None, delta: float) -> str:
    """What (epsilon, delta) lets the best possible membership test reach, in a sentence.

    At a false-alarm rate a, any test's power is at most the smaller of e^epsilon a + delta and
    1 - e^-epsilon (1 - a - delta) (Kairouz, Oh and Viswanath 2015, theorem 2.1); a is 1% here.
    """
    if value is None:
        return "Nothing limits what can be found out about a person."
    alarm = 0.01
    limit = min(
        1.0,
        math.exp(min(value, 50)) * alarm + delta,
        1 - math.exp(-value) * (1 - alarm - delta),
    )
    if limit > 0.9995:
        return (
            "This bound is weak: it does not rule out a test that finds nearly everyone who took "
            f"part and wrongly accuses {percent(alarm)} of those who did not."
        )
    share = f"{math.ceil(1000 * limit - 1e-6) / 10:.1f}%"
    return (
        f"The best possible test for whether a person took part finds at most {share} of those "
        f"who did, if it may wrongly accuse {percent(alarm)} of those who did not."
    )


def duration(seconds: float) -> str:
    """Wall-clock time in the two largest units that matter."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
