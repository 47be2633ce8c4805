"""What a ledger's reservations add up to; needs no torch, so that a look at a ledger is quick."""

from __future__ import annotations

import math
from collections.abc import Sequence

from common.accounting import (
    Event,
    GaussianEvent,
    PoissonEvent,
    RdpOdometer,
    cross_checked_epsilon,
)
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
    return cross_checked_epsilon(_events(reservations), delta).epsilon


def reserved(reservations: Sequence[Reservation], delta: float) -> float:
    """Return the epsilon by which a site decides whether another round fits: at least `spent`.

    Whoever starts a run chooses its noise and rate knowing what earlier runs released. A budget
    holds against such a choice for Gaussian and for Renyi accounting (Feldman and Zrnic 2021,
    arXiv:2008.11193, a Renyi filter), but that is not proven of privacy loss distributions: so with
    sampled rounds of more than one kind the Renyi bound decides.
    """
    total = spent(reservations, delta)
    events = _events(reservations)
    if math.isinf(total) or sum(isinstance(event, PoissonEvent) for event in events) < 2:
        return total
    odometer = RdpOdometer(delta)
    for event in events:
        odometer.spend(event)
    return max(total, odometer.epsilon)


def _events(reservations: Sequence[Reservation]) -> list[Event]:
    """One event for all rounds of the same noise and rate."""
    merged: dict[tuple[float, float], int] = {}
    for r in reservations:
        key = (r.noise_multiplier, r.sample_rate)
        merged[key] = merged.get(key, 0) + r.steps
    return [event_of(sigma, rate, steps) for (sigma, rate), steps in merged.items()]
