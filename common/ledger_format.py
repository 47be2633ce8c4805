"""The bytes of a ledger line and of its head: canonical JSON, so that each record has one form."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, get_args

from common.errors import LedgerError

GENESIS_HASH: Final = "0" * 64
Mechanism = Literal["gaussian", "discrete-shared"]
# No mechanism lies beyond, and whoever adds up a ledger of somebody else must not come to grief.
_LEAST_NOISE, _MOST_NOISE, _MOST_STEPS = 1e-6, 1e12, 10**9


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise LedgerError(f"a ledger cannot hold {what}")


@dataclass(frozen=True)
class Genesis:
    """What a ledger counts: a site's whole budget, for one person added or removed at this site."""

    delta: float
    epsilon: float
    ledger_id: str = ""
    created: str = ""
    privacy_unit: str = "person"
    adjacency: str = "add-remove-one"
    version: int = 1

    def __post_init__(self) -> None:
        _require(0.0 < self.delta < 1.0, f"delta {self.delta}")
        _require(math.isfinite(self.epsilon) and self.epsilon >= 0.0, f"epsilon {self.epsilon}")
        known = (self.privacy_unit, self.adjacency, self.version)
        _require(known == ("person", "add-remove-one", 1), f"unit, adjacency or version {known}")

    def named(self, ledger_id: str, created: str) -> Genesis:
        """Return the genesis with its identity filled in."""
        return dataclasses.replace(self, ledger_id=ledger_id, created=created)


@dataclass(frozen=True)
class Reservation:
    """One round's releases, spent from the moment that this is on the disk.

    `mechanism` discrete-shared is secure aggregation: `noise_multiplier` is that of the sum of
    `shares` sites' noise, the fewest that are in any sum which the server can learn. If masks fail,
    this site's share alone has noise_multiplier / sqrt(shares) or more. `private` is False if the
    noise was absent or could be recomputed from a seed.
    """

    seq: int
    run_id: str
    round: int
    noise_multiplier: float
    sample_rate: float
    steps: int
    max_grad_norm: float
    request_digest: str
    private: bool
    mechanism: Mechanism = "gaussian"
    shares: int = 1

    def __post_init__(self) -> None:
        sigma, clip = self.noise_multiplier, self.max_grad_norm
        held = sigma == 0.0 or _LEAST_NOISE <= sigma <= _MOST_NOISE
        _require(held, f"noise_multiplier {sigma}")
        _require(0.0 < self.sample_rate <= 1.0, f"sample_rate {self.sample_rate}")
        _require(math.isfinite(clip) and clip > 0.0, f"max_grad_norm {clip}")
        held = self.round >= 1 and 1 <= self.steps <= _MOST_STEPS
        _require(held, f"round {self.round}, steps {self.steps}")
        _require(sigma > 0.0 or not self.private, "a private reservation without noise")
        _require(self.mechanism in get_args(Mechanism), f"the mechanism {self.mechanism!r}")
        alone = self.mechanism == "gaussian"
        _require((self.shares == 1) if alone else (self.shares >= 2), f"{self.shares} shares")
        full = self.sample_rate == 1.0 and self.steps == 1
        _require(alone or full, "a sampled or repeated release of shared noise")


@dataclass(frozen=True)
class Commit:
    """The digest of what was released under the reservation with that sequence number."""

    reservation: int
    release_digest: str


@dataclass(frozen=True)
class End:
    """No more rounds of a run are reserved, whoever asks: an auditor has seen all of it."""

    run_id: str


Record = Genesis | Reservation | Commit | End
_KINDS: Final[dict[str, type[Any]]] = {
    "genesis": Genesis,
    "reserve": Reservation,
    "commit": Commit,
    "end": End,
}
_NAMES: Final = {kind: name for name, kind in _KINDS.items()}
_LATER: Final = frozenset({"mechanism", "shares"})


@dataclass(frozen=True)
class Line:
    """A record in its place in the chain; `hash` covers all the rest."""

    seq: int
    previous: str
    record: Record
    hash: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "hash", hashlib.sha256(self._body()).hexdigest())

    def _body(self) -> bytes:
        return _canonical(self.fields())

    def fields(self) -> dict[str, Any]:
        """Return what the hash covers; numbers declared as float are written as float.

        What has a default is written only where it differs, so that older ledgers keep their hash.
        """
        record = {
            entry.name: float(value) if entry.type == "float" else value
            for entry in fields(self.record)
            for value in [getattr(self.record, entry.name)]
            if entry.name not in _LATER or value != entry.default
        }
        kind = _NAMES[type(self.record)]
        return {"seq": self.seq, "previous": self.previous, "kind": kind, "record": record}


@dataclass(frozen=True)
class Head:
    """The last line that was acknowledged."""

    seq: int
    hash: str


def _canonical(value: Any) -> bytes:
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except ValueError as error:
        raise LedgerError("a number is not finite") from error
    return text.encode("ascii")


def encode_line(line: Line) -> bytes:
    """Return a line's bytes, newline included."""
    return _canonical({**line.fields(), "hash": line.hash}) + b"\n"


def decode_line(raw: bytes, seq: int, previous: str) -> Line:
    """Return the line that `raw` holds in place `seq` after `previous`; else raise LedgerError."""
    values = _object(raw)
    if set(values) != {"seq", "previous", "kind", "record", "hash"}:
        raise LedgerError("has missing or unknown fields")
    kind = _KINDS.get(values["kind"]) if isinstance(values["kind"], str) else None
    if kind is None:
        raise LedgerError("is of an unknown kind")
    line = Line(seq, previous, _record(kind, values["record"]))
    if encode_line(line) != raw:
        raise LedgerError("does not follow from the line before: changed, moved or missing lines")
    return line


_TYPES: Final = {"int": int, "str": str, "float": float, "bool": bool, "Mechanism": str}


def _record(kind: type[Any], values: Any) -> Record:
    names = {entry.name: entry.type for entry in fields(kind)}
    if not isinstance(values, dict) or set(values) | _LATER != set(names) | _LATER:
        raise LedgerError("has missing or unknown fields")
    for name in values:
        annotation = names.get(name)
        wanted = _TYPES.get(str(annotation))
        if type(values[name]) is not wanted or (
            wanted is float and not math.isfinite(values[name])
        ):
            raise LedgerError(f"{name} is not a {annotation}")
    record: Record = kind(**values)
    return record


def encode_head(head: Head) -> bytes:
    """Return the head file's bytes."""
    return _canonical(dataclasses.asdict(head)) + b"\n"


def decode_head(raw: bytes) -> Head:
    """Return the head that `raw` holds; else raise LedgerError."""
    values = _object(raw)
    if set(values) != {"seq", "hash"} or type(values["seq"]) is not int or values["seq"] < 0:
        raise LedgerError("has missing or unknown fields")
    head = Head(values["seq"], str(values["hash"]))
    if encode_head(head) != raw:
        raise LedgerError("is not in canonical form")
    return head


def _object(raw: bytes) -> dict[str, Any]:
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise LedgerError("is not JSON") from error
    if not isinstance(values, dict):
        raise LedgerError("is not a JSON object")
    return values
