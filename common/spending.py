"""What a ledger's reservations add up to; needs no torch, so that a look at a ledger is quick."""

from __future__ import annotations

import math
from collections.abc import Sequence

from common.accounting import (
    ConcentratedEvent,
    Event,
    GaussianEvent,
    PoissonEvent,
    cross_checked_epsilon,
    filtered_epsilon,
)
from common.errors import InputError
from common.ledger import Reservation
from common.ledger_format import Mechanism


def event_of(
    noise_multiplier: float, sample_rate: float, steps: int, mechanism: Mechanism = "gaussian"
) -> Event:
    """Return the accounting event of `steps` releases; the full batch is exactly Gaussian.

    Shared discrete noise is concentrated. Any other mechanism, or shared noise with sampling, is an
    InputError.
    """
    if mechanism == "discrete-shared" and sample_rate == 1.0:
        return ConcentratedEvent(noise_multiplier, steps)
    if mechanism != "gaussian":
        raise InputError(f"nothing is known of {mechanism} at sample rate {sample_rate:g}")
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


def reserved(
    reservations: Sequence[Reservation], delta: float, *, first: Reservation, budget: float
) -> float:
    """Return the epsilon by which a site decides whether another round fits: at least `spent`.

    Whoever starts a run chooses its noise and rate knowing what earlier runs released. A `budget`
    holds against such a choice for Gaussian and for concentrated rounds, where one number is spent,
    and for a Renyi filter, but that is not proven of privacy loss distributions: so with sampled
    rounds beside rounds of any other kind the Renyi bound decides, at one order for the life of a
    ledger, that of its `first` reservation.

    Let A be the outcomes that end with rounds of one kind, and B those that end with several. Each
    rule alone, stopped before what it refuses, gives (budget, delta), and on its own set the
    process is the same as that one; so both together give (budget, 2 delta) at the most. Where no
    choice depends on a release they give (budget, delta).
    """
    total = spent(reservations, delta)
    events = _events(reservations)
    sampled = any(isinstance(event, PoissonEvent) for event in events)
    if math.isinf(total) or not sampled or len(events) < 2:
        return total
    (alike,) = _events([first])
    return max(total, filtered_epsilon(events, delta, alike, budget))


def _events(reservations: Sequence[Reservation]) -> list[Event]:
    """One event for all rounds of the same noise, rate and mechanism."""
    merged: dict[tuple[float, float, Mechanism], int] = {}
    for r in reservations:
        key = (r.noise_multiplier, r.sample_rate, r.mechanism)
        merged[key] = merged.get(key, 0) + r.steps
    return [event_of(sigma, rate, steps, kind) for (sigma, rate, kind), steps in merged.items()]
