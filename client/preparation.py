"""The public part of a run, as the server sent it: contract, model state and public bank.

It is public, so it is stored plainly; it is named by its contract's digest, so that a run cannot
be answered with another run's constants. The parts of the two runs that were used last are kept: a
server can make as many runs as it likes, and it sends a part again when that is asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Final

import safetensors
import safetensors.torch
from torch import Tensor

from common.backbones.base import Backbone
from common.backbones.split import known_of, split
from common.backbones.weights import model_id
from common.config import digest, from_json, to_json
from common.contract import Contract
from common.embedding import Rows
from common.errors import InputError, Refused
from common.storage import make_private_directory, write_private

_DIGEST = re.compile("[0-9a-f]{64}")
_KEPT: Final = 2  # a gibibyte each
_ABANDONED: Final = 3600.0  # seconds after which a half-written file is nobody's any more


class Unprepared(InputError):  # noqa: N818 - names a state
    """The site does not hold the public part of this run yet: the server sends it again."""


@dataclass(frozen=True)
class PublicPart:
    """Contract, state of the trainable part (parameters and public buffers), and public bank."""

    contract: Contract
    state: Mapping[str, Tensor]
    inputs: Tensor

    @cached_property
    def id(self) -> str:
        """The SHA-256 of state and bank, 64 hex digits: the contract's digest covers neither."""
        value = hashlib.sha256()
        for name, tensor in (*sorted(self.state.items()), ("", self.inputs)):
            array = tensor.detach().contiguous().numpy()
            value.update(f"{name}\0{array.dtype.str}{array.shape}\0".encode())
            value.update(array.reshape(-1).data)
        return value.hexdigest()


def store_public(directory: Path, part: PublicPart) -> str:
    """Write the public part, and return the digest under which `load_public` finds it.

    Those of other runs make room for it, but for the one that was used last.
    """
    name = digest(part.contract)
    path = make_private_directory(directory) / f"{name}.safetensors"
    _make_room(directory, path)
    if not path.exists():
        tensors = {f"state.{key}": value.contiguous() for key, value in part.state.items()}
        tensors["inputs"] = part.inputs.contiguous()
        metadata = {"contract": to_json(part.contract)}
        write_private(path, safetensors.torch.save(tensors, metadata=metadata))
    return name


def load_public(directory: Path, name: str) -> PublicPart:
    """Return a stored public part; absent: Unprepared."""
    part = _load(directory, name)
    with contextlib.suppress(OSError):
        os.utime(directory / f"{name}.safetensors")  # used just now
    return part


def _make_room(directory: Path, for_: Path) -> None:
    """Delete what lies there but for `for_` and the newest others, and files half-written."""
    others = [path for path in directory.glob("*.safetensors") if path != for_]
    others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    parts = directory.glob(".*.part")
    long_ago = time.time() - _ABANDONED
    abandoned = [path for path in parts if path.stat().st_mtime < long_ago]
    for path in (*others[_KEPT - 1 :], *abandoned):
        path.unlink(missing_ok=True)


@lru_cache(maxsize=_KEPT)
def _load(directory: Path, name: str) -> PublicPart:
    path = directory / f"{name}.safetensors"
    if not _DIGEST.fullmatch(name) or not path.exists():
        raise Unprepared(f"the public part {name[:12]!r} of the run has not arrived")
    with safetensors.safe_open(str(path), framework="pt") as file:
        contract = from_json(Contract, file.metadata()["contract"], where="stored contract")
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if digest(contract) != name:
        raise Unprepared(f"the public part {name[:12]!r} was stored for another contract")
    inputs = tensors.pop("inputs")
    return PublicPart(contract, {k.removeprefix("state."): v for k, v in tensors.items()}, inputs)


def rows_of(part: PublicPart, backbone: Backbone) -> Rows:
    """Cut this site's own backbone for a run and load the public state that the server sent.

    Refused where the frozen part is another than the agreed one, or the state does not fit.
    """
    contract = part.contract
    known = known_of(contract.train_set, part.state, contract.moments)
    parts = split(backbone, contract.train_set, known, mirror=contract.mirror)
    if model_id(dict(parts.frozen.state_dict())) != contract.frozen_id:
        raise Refused("the frozen part of the model differs from the agreed one")
    try:
        parts.trainable.load_state_dict(dict(part.state))
    except RuntimeError as error:
        raise Refused(f"the server's model does not fit {contract.backbone}") from error
    return Rows(backbone, parts, contract.train_set)
