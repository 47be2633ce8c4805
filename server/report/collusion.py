"""Whom a run with secure aggregation withstands, in words: every adversary and its epsilon."""

from __future__ import annotations

from collections.abc import Sequence

from common.contract import Contract
from common.errors import InputError
from common.masking import adversaries
from server.checkpoint import RoundRecord
from server.report.run_record import Adversary


def masked_adversaries(
    contract: Contract, history: Sequence[RoundRecord], *, private: bool
) -> tuple[int, tuple[Adversary, ...]]:
    """Return how many adversaries the terms cover, and all of them, those first.

    Epsilon is for the actual survivors of each round; a round that gave no sum counts with the
    fewest that were agreed. Without privacy there is no bound against anyone. A contract without
    secure aggregation is an InputError.
    """
    masking = contract.masking
    if masking is None:
        raise InputError("the run was agreed without secure aggregation")
    terms = masking.terms
    survivors = [record.accepted or terms.minimum for record in history]
    most = max(survivors, default=terms.minimum)
    if not private:
        nothing = tuple(Adversary(name, None) for name in _names(most, terms.colluders))
        return terms.colluders + 3, nothing
    found = adversaries(
        masking.noise(contract.privacy.max_grad_norm),
        survivors or [terms.minimum],
        contract.privacy.delta,
        minimum=terms.minimum,
        colluders=terms.colluders,
    )
    c = terms.colluders
    values = (
        *(found.model, found.server, *found.colluding[:c], found.hostile[c]),
        *(*found.colluding[c:], found.unmasked),
    )
    named = zip(_names(most, c), values, strict=True)
    return c + 3, tuple(Adversary(name, epsilon) for name, epsilon in named)


def _names(most: int, colluders: int) -> tuple[str, ...]:
    """Name the adversaries of a run with at most so many survivors, those covered first."""
    together = [f"the server with {_sites(count)}" for count in range(1, most)]
    helped = f", with {_sites(colluders)}" if colluders else ""
    return (
        "anyone outside the sites who holds the released model",
        "the server, which sees sums over sites only",
        *together[:colluders],
        f"a server that lies to the sites{helped}",
        *together[colluders:],
        "the server, if masks fail and it sees every site's update",
    )


def _sites(count: int) -> str:
    return f"{count} colluding site" + ("s" if count > 1 else "")
