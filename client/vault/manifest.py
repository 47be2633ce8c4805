"""What a vault knows about itself, sealed: its secrets, its models, and which rows belong to it.

`sums` has one number for each table, which vouches for its set of rows (see `census`).
"""

from __future__ import annotations

import dataclasses
import json
import secrets
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.vault.census import NO_ROWS, Sum
from common.errors import SealError
from common.randomness import derive_key, fresh_key

FORMAT: Final = 1
NO_LOG: Final = "0" * 64


@dataclass(frozen=True)
class Model:
    """A model whose templates the vault holds; `dim` is 0 until its first embedding is seen."""

    number: int
    model_id: str
    dim: int
    templates: int


@dataclass(frozen=True)
class Manifest:
    """One state of a vault; `counter` is the last id given, `generation` that of the gallery."""

    master: bytes
    transform_seed: bytes
    signing_key: bytes
    eight_bit: bool
    keep_chips: bool
    models: tuple[Model, ...]
    counter: int = 0
    generation: int = 1
    subjects: int = 0
    sums: tuple[tuple[str, Sum], ...] = ()
    log_entries: int = 0
    log_head: str = NO_LOG

    @classmethod
    def fresh(cls, model_id: str, dim: int, *, eight_bit: bool, keep_chips: bool) -> Manifest:
        """Return the manifest of an empty vault with new secrets."""
        signing = Ed25519PrivateKey.generate().private_bytes_raw()
        models = (Model(1, model_id, dim, 0),)
        return cls(fresh_key(), fresh_key(), signing, eight_bit, keep_chips, models)

    @property
    def current(self) -> Model:
        """The model that new templates are of."""
        return self.models[-1]

    def model(self, number: int) -> Model:
        """Return the model of that number; a row that names another one is damaged."""
        for model in self.models:
            if model.number == number:
                return model
        raise SealError("a row names a model that the vault does not know")

    def sum_of(self, table: str) -> Sum:
        return dict(self.sums).get(table, NO_ROWS)

    def key(self, purpose: str) -> bytes:
        """Return the key for one purpose; it outlives a rotation of the vault key."""
        return derive_key(self.master, "vault", purpose)

    def with_model(self, model: Model) -> Manifest:
        """Return the manifest with one model's entry replaced."""
        models = tuple(model if old.number == model.number else old for old in self.models)
        return dataclasses.replace(self, models=models)

    def to_bytes(self) -> bytes:
        values = dataclasses.asdict(self)
        for name in _SECRET:
            values[name] = values[name].hex()
        return json.dumps(values, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Read what `to_bytes` wrote; it was authenticated before."""
        values: dict[str, Any] = json.loads(data)
        for name in _SECRET:
            values[name] = bytes.fromhex(values[name])
        values["models"] = tuple(Model(**model) for model in values["models"])
        values["sums"] = tuple((name, (sum_[0], sum_[1])) for name, sum_ in values["sums"])
        return cls(**values)


_SECRET: Final = ("master", "transform_seed", "signing_key")


def associated(vault_id: str, *parts: str | int) -> bytes:
    """Return what a sealed row is bound to: format, vault and the parts, in one way only."""
    if not all(isinstance(part, str | int) for part in parts):
        raise SealError("a row of the vault has a column of another type")
    return json.dumps([FORMAT, vault_id, *parts], separators=(",", ":")).encode()


def new_vault_id() -> str:
    return secrets.token_hex(16)
