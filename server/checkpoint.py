"""One file a run that holds everything needed to go on: replaced whole after each round."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import safetensors
import safetensors.numpy

from common.errors import InputError
from common.storage import write_private
from server.optimizer import OptimizerState

_VECTORS = ("parameters", "first", "second", "average")


@dataclass(frozen=True)
class RoundRecord:
    """What the server knows of a finished round; all of it may be shown to anyone.

    `accepted` updates are in the model, those of the nodes `used`; 0 is a masked round that gave no
    sum: it is spent, and the model stayed as it was. `rejected` pairs a site's node id with why an
    answer was not used, which may be a later one than its update. `scores` are public-set metrics
    by name, empty when the round was not evaluated. `asked` are the node ids of all sites that may
    have spent budget on the round. `model` is the id that the round's model would have as a file
    (`common.backbones.weights.model_id`). Both `model` and `used` are empty in checkpoints of
    earlier versions.
    """

    round: int
    accepted: int
    rejected: tuple[tuple[int, str], ...]
    seconds: float
    scores: dict[str, float]
    asked: tuple[int, ...] = ()
    model: str = ""
    used: tuple[int, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """Contract digest, optimiser state and history after `state.round` rounds."""

    contract_digest: str
    state: OptimizerState
    history: tuple[RoundRecord, ...]


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint atomically."""
    state = checkpoint.state
    tensors = {name: np.ascontiguousarray(getattr(state, name)) for name in _VECTORS}
    metadata = {
        "contract_digest": checkpoint.contract_digest,
        "round": str(state.round),
        "averaged": str(state.averaged),
        "history": json.dumps([dataclasses.asdict(record) for record in checkpoint.history]),
    }
    write_private(path, safetensors.numpy.save(tensors, metadata=metadata))


def load(path: Path, contract_digest: str) -> Checkpoint:
    """Return the checkpoint; one of another contract or a damaged one is an InputError."""
    try:
        with safetensors.safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata()
            vectors = {name: file.get_tensor(name) for name in _VECTORS}
        records = _records(metadata["history"])
        state = OptimizerState(
            round=int(metadata["round"]), averaged=int(metadata["averaged"]), **vectors
        )
        found = metadata["contract_digest"]
    except _UNREADABLE as error:
        raise InputError(f"{path} is not a readable checkpoint: {error}") from error
    if found != contract_digest:
        raise InputError(
            f"{path} belongs to a run with other settings",
            hint="resume with the options the run was started with, or choose another --out",
        )
    return Checkpoint(found, state, records)


def history(path: Path) -> tuple[RoundRecord, ...]:
    """Return the finished rounds of any run's checkpoint, whose vectors are not read."""
    try:
        with safetensors.safe_open(str(path), framework="numpy") as file:
            return _records(file.metadata()["history"])
    except _UNREADABLE as error:
        raise InputError(f"{path} is not a readable checkpoint: {error}") from error


_UNREADABLE: Final = (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError)


def _records(text: str) -> tuple[RoundRecord, ...]:
    return tuple(
        RoundRecord(
            **{
                **record,
                "rejected": tuple(map(tuple, record["rejected"])),
                "asked": tuple(record["asked"]),
                "used": tuple(record.get("used", ())),
            }
        )
        for record in json.loads(text)
    )
