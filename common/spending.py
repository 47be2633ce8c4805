"""What a ledger's reservations add up to; needs no torch, so that a look at a ledger is quick."""

from __future__ import annotations

import math
from collections.abc import Sequence

from common.accounting import Event, GaussianEvent, PoissonEvent, cross_checked_epsilon
from common.ledger import Reservation


def event_of(noise_multiplier: float, sample_rate: float, steps: int) -> Event:
    """Return the accounting event of `steps` releases; the full batch is exactly Gaussian."""
    if sample_rate == 1.0:
        return GaussianEvent(noise_multiplier, steps)
    return PoissonEvent(noise_multiplier, sample_rate, steps)


def spent(reservations: Sequence[Reservation], delta: float) -> float:
    """Return the epsilon at `delta` of everything reserved, checked by two accountants.

    Infinite as soon as one reservation is not private (no noise, or seeded noise); 0 for none.
    """
    if not all(reservation.private for reservation in reservations):
        return math.inf
    merged: dict[tuple[float, float], int] = {}
    for r in reservations:
        key = (r.noise_multiplier, r.sample_rate)
        merged[key] = merged.get(key, 0) + r.steps
    events = [event_of(sigma, rate, steps) for (sigma, rate), steps in merged.items()]
    return cross_checked_epsilon(events, delta).epsilon
