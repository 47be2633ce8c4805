"""Shamir's secret sharing of 256-bit secrets over the integers modulo 2^256 + 297 (Shamir 1979)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from common.errors import InputError
from common.randomness import KEY_BYTES, KeyStream

PRIME: Final = 2**256 + 297  # the smallest prime above 2^256, so that every 32 bytes are a secret
SHARE_BYTES: Final = 33
_DRAW: Final = 6  # words a coefficient: 384 bits, so that modulo PRIME it is uniform to 2^-128


def split(secret: bytes, threshold: int, holders: int, stream: KeyStream) -> list[bytes]:
    """Return one share of 33 bytes for each holder; any `threshold` of them give the secret back.

    Fewer tell nothing about it, to within 2^-127 a coefficient. The polynomial is drawn from
    `stream`. Raises InputError unless 1 <= threshold <= holders and the secret has 32 bytes.
    """
    if len(secret) != KEY_BYTES or not 1 <= threshold <= holders:
        raise InputError(f"cannot split {len(secret)} bytes into {threshold} of {holders} shares")
    raw = stream.words(_DRAW * (threshold - 1)).tobytes()
    size = 8 * _DRAW
    polynomial = [int.from_bytes(secret, "big")]
    for start in range(0, len(raw), size):
        polynomial.append(int.from_bytes(raw[start : start + size], "big") % PRIME)
    shares = []
    for x in range(1, holders + 1):
        value = 0
        for coefficient in reversed(polynomial):
            value = (value * x + coefficient) % PRIME
        shares.append(value.to_bytes(SHARE_BYTES, "big"))
    return shares


class Recombiner:
    """Gives secrets back from the shares of always the same holders, numbered from 0."""

    def __init__(self, holders: Sequence[int]) -> None:
        if len(set(holders)) != len(holders) or not holders or min(holders) < 0:
            raise InputError("a secret is recombined from the shares of different holders")
        points = [holder + 1 for holder in holders]
        self._weights = []
        for x in points:
            above, below = 1, 1
            for other in points:
                if other != x:
                    above, below = above * other % PRIME, below * (other - x) % PRIME
            self._weights.append(above * pow(below, -1, PRIME) % PRIME)

    def __call__(self, shares: Sequence[bytes]) -> bytes | None:
        """Return the secret, or None if these shares are of no secret of 32 bytes."""
        pairs = zip(self._weights, shares, strict=True)
        value = sum(weight * int.from_bytes(share, "big") for weight, share in pairs) % PRIME
        return value.to_bytes(KEY_BYTES, "big") if value < 1 << (8 * KEY_BYTES) else None
