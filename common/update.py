"""What may leave a site: one typed, versioned update, and a refusal with one word from a list.

The header holds four fields and the arrays are the noised deltas of trainable parameters. There
is no field for a loss, a count, a buffer or a message, so none can leave. With secure aggregation
the header holds format and stage, beside one signed message of `common.masking`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from common.errors import UpdateRejected
from common.layout import Layout

FORMAT: Final = 1
Refusal = Literal["budget", "contract", "ledger", "data", "storage", "internal", "unprepared"]
_HEADER: Final = ("format", "run_id", "model_id", "round")


def model_id_of(run_id: str, vector: NDArray[np.float32]) -> str:
    """Return the SHA-256 that names global parameters [d] of a run, 64 hex digits."""
    value = hashlib.sha256(run_id.encode() + b"\0")
    value.update(np.ascontiguousarray(vector, dtype="<f4").tobytes())
    return value.hexdigest()


@dataclass(frozen=True)
class Update:
    """A site's noised delta of the trainable parameters, flat float32 [d], for one round.

    `model_id` names the parameters that the delta starts from, so an update cannot be applied to
    another model or replayed in another round.
    """

    run_id: str
    model_id: str
    round: int
    delta: NDArray[np.float32]

    def header(self) -> dict[str, str | int]:
        """Return the whitelisted header fields."""
        return {
            "format": FORMAT,
            "run_id": self.run_id,
            "model_id": self.model_id,
            "round": self.round,
        }

    def arrays(self, layout: Layout) -> dict[str, NDArray[np.float32]]:
        """Return the delta as named arrays in the shapes of the layout."""
        parts = np.split(self.delta, np.cumsum(layout.sizes)[:-1])
        return {
            name: np.ascontiguousarray(part.reshape(shape))
            for name, part, shape in zip(layout.names, parts, layout.shapes, strict=True)
        }


@dataclass(frozen=True)
class Expected:
    """What the server asked for: only an answer to this is accepted."""

    run_id: str
    model_id: str
    round: int
    layout: Layout


def check_header(header: Mapping[str, object], expected: Expected) -> None:
    """Raise UpdateRejected unless the header has exactly the whitelisted fields and values."""
    if set(header) != set(_HEADER):
        odd = _some(set(header) ^ set(_HEADER))
        raise UpdateRejected(f"header fields {odd} are missing or not on the whitelist")
    wanted = Update(expected.run_id, expected.model_id, expected.round, np.empty(0, np.float32))
    for name, value in wanted.header().items():
        if header[name] != value or type(header[name]) is not type(value):
            raise UpdateRejected(f"{name} is {str(header[name])[:80]!r}, expected {value!r}")


def check_arrays(arrays: Mapping[str, NDArray[np.generic]], layout: Layout) -> NDArray[np.float32]:
    """Return the flat delta [d] of well-formed arrays; anything else is UpdateRejected."""
    if tuple(sorted(arrays)) != tuple(sorted(layout.names)):
        odd = _some(set(arrays) ^ set(layout.names))
        raise UpdateRejected(f"arrays {odd} are missing or not trainable parameters")
    parts = []
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        array = arrays[name]
        if array.dtype != np.float32 or array.shape != shape:
            raise UpdateRejected(
                f"{name} is {array.dtype}{list(array.shape)}, expected float32{list(shape)}"
            )
        if not np.isfinite(array).all():
            raise UpdateRejected(f"{name} holds a NaN or an infinity")
        parts.append(array.reshape(-1))
    return np.concatenate(parts)


def _some(names: set[str]) -> list[str]:
    """A few names for an error text, which a hostile site must not make long."""
    return [name[:80] for name in sorted(names)[:3]]


def check_refusal(header: Mapping[str, object]) -> Refusal:
    """Return the one-word reason of a refusal; a malformed one is UpdateRejected."""
    word = header.get("refusal")
    if set(header) != {"format", "refusal"} or header["format"] != FORMAT:
        raise UpdateRejected("a refusal has the fields format and refusal, and no other")
    if word not in get_args(Refusal):
        raise UpdateRejected(f"unknown refusal {str(word)[:80]!r}")
    return word  # type: ignore[return-value]  # checked against the literal's values above


def check_masked(header: Mapping[str, object], stage: str) -> None:
    """Raise UpdateRejected unless the header has format and stage, and no other field."""
    if dict(header) != {"format": FORMAT, "stage": stage}:
        raise UpdateRejected(f"the header is not that of an answer to {stage}")


def check_ready(header: Mapping[str, object], contract_digest: str) -> None:
    """Raise UpdateRejected unless a site says that it holds the public part of this contract."""
    if "refusal" in header:
        raise UpdateRejected(f"refused: {check_refusal(header)}")
    if dict(header) != {"format": FORMAT, "ready": contract_digest}:
        raise UpdateRejected("the answer to the preparation is malformed")
