"""What an audit found: bounds beside the claim, figures with intervals, and whether to alarm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from simulations.attacks.bounds import (
    ALARM,
    READING,
    epsilon_of_mu,
    lower_rate,
    one_run_epsilon,
    one_run_mu,
)


@dataclass(frozen=True)
class Bound:
    """A lower bound on epsilon by one method.

    Attributes:
        epsilon: all bounds of an attack hold together with confidence 1 - `ALARM`; one above the
            claim is an alarm.
        reading: the same with confidence 95%: for the reader, never an alarm.
    """

    method: str
    epsilon: float
    reading: float


@dataclass(frozen=True)
class Figure:
    """A measured number with the interval [low, high] that `interval` names, where there is one."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    interval: str = ""


@dataclass(frozen=True, eq=False)
class Scores:
    """An attack's score of each secret coin, higher for "was in", and the coin, both [N]."""

    scores: NDArray[np.float64]
    members: NDArray[np.bool_]


def highest_tpr(
    fpr: NDArray[np.float64] | float, epsilon: float, delta: float
) -> NDArray[np.float64]:
    """Return the highest TPR that (epsilon, delta) allows at an FPR (Kairouz et al. 2015, 2.1)."""
    growth = math.exp(min(epsilon, 700.0))
    rising = growth * np.asarray(fpr) + delta
    falling = 1.0 - (1.0 - delta - np.asarray(fpr)) / growth
    return np.clip(np.minimum(rising, falling), 0.0, 1.0)


def rate_figure(name: str, successes: int, trials: int) -> Figure:
    """Return a rate of independent trials with its 95% interval (Clopper and Pearson 1934)."""
    return Figure(
        name,
        successes / trials,
        lower_rate(successes, trials, READING / 2),
        1.0 - lower_rate(trials - successes, trials, READING / 2),
        "95%, Clopper-Pearson",
    )


def refuted(canaries: int, attempts: Sequence[tuple[int, int]], delta: float) -> tuple[Bound, ...]:
    """Return what attempts of (guesses, right ones) on canaries in by fair coins refute.

    By both one-run theorems; the tests share `ALARM` and, for reading, 5% among them.
    """
    share = 2 * len(attempts)

    def pair(alpha: float) -> float:
        return max(one_run_epsilon(canaries, *attempt, delta, alpha) for attempt in attempts)

    def curve(alpha: float) -> float:
        return epsilon_of_mu(
            max(one_run_mu(canaries, *attempt, alpha) for attempt in attempts), delta
        )

    alarm, reading = ALARM / share, READING / share
    return (
        Bound("one run, Steinke et al. 2023", pair(alarm), pair(reading)),
        Bound("one run, f-DP, Mahloujifar et al. 2024", curve(alarm), curve(reading)),
    )


@dataclass(frozen=True)
class Finding:
    """One attack: what is claimed, what was shown, and in `broken` what must not be so.

    `claimed` is None for an attack on what has no epsilon; `judged` is False where the figures are
    for the reader alone.
    """

    attack: str
    adversary: str
    claimed: float | None
    bounds: tuple[Bound, ...]
    figures: tuple[Figure, ...]
    broken: tuple[str, ...] = ()
    judged: bool = True

    @property
    def alarm(self) -> bool:
        above = self.claimed is not None and any(b.epsilon > self.claimed for b in self.bounds)
        return above or bool(self.broken)

    @property
    def lower(self) -> Bound | None:
        """The strongest bound."""
        return max(self.bounds, key=lambda bound: (bound.epsilon, bound.reading), default=None)

    @property
    def verdict(self) -> str:
        if self.broken:
            return "; ".join(self.broken)
        if self.alarm:
            return "bound above the claim"
        if not self.judged:
            return "shown, not judged"
        return "within the claim" if self.bounds else "holds"


@dataclass(frozen=True)
class AttackReport:
    """All findings of one audit; `control` names the broken build that was audited, if any."""

    epsilon: float
    delta: float
    rounds: int
    control: str | None
    noise: str
    findings: tuple[Finding, ...]
    seconds: float

    @property
    def alarm(self) -> bool:
        return any(finding.alarm for finding in self.findings)

    def to_json(self) -> dict[str, object]:
        """The object that `--json` prints and `attack.json` holds; no number in it is infinite."""
        attacks = [
            {**_finite(asdict(finding)), "alarm": finding.alarm, "verdict": finding.verdict}
            for finding in self.findings
        ]
        return {
            "claimed": {"epsilon": self.epsilon, "delta": self.delta, "rounds": self.rounds},
            "control": self.control,
            "noise": self.noise,
            "confidence": {"alarm": 1 - ALARM, "reading": 1 - READING},
            "attacks": attacks,
            "alarm": self.alarm,
            "seconds": round(self.seconds, 1),
        }


def _finite(values: dict[str, object]) -> dict[str, object]:
    """JSON has no infinity: a bound that nothing limits is null."""

    def one(value: object) -> object:
        if isinstance(value, dict):
            return {key: one(inner) for key, inner in value.items()}
        if isinstance(value, tuple | list):
            return [one(inner) for inner in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {key: one(value) for key, value in values.items()}
