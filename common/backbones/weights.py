"""Model files: read without running code, checked to the last name, and written atomically."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from common.errors import WeightsError
from common.storage import write_private
from common.vocabulary import TRAIN_SETS, TrainSet

FORMAT: Final = "veilface-model-1"
_MAX_BYTES: Final = 2 * 2**30


def model_id(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, dtypes, shapes and bytes of all tensors, 64 hex digits."""
    value = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        head = json.dumps([name, str(tensor.dtype), list(tensor.shape)])
        value.update(len(head).to_bytes(4, "big") + head.encode())
        value.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return value.hexdigest()


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file or a torch state dict; code in a file never runs.

    A state dict may lie under the key `state_dict`, and its names may all start with `module.`
    (torch's DataParallel); nothing else is guessed. Only dense tensors are taken. A file of more
    than 2 GiB, packed or unpacked, is refused. Anything wrong is a WeightsError.
    """
    _check_size(path)
    try:
        if path.suffix == ".safetensors":
            values: Any = safetensors.torch.load_file(str(path))
        else:
            values = _load_torch(path)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is not a readable weights file: damaged, or with more than tensors in it",
            hint="save model.state_dict() alone, best as safetensors",
        ) from error
    except _UNREADABLE as error:
        raise WeightsError(
            f"{path} is not a readable weights file", hint="safetensors or a torch state dict"
        ) from error
    if isinstance(values, Mapping) and isinstance(values.get("state_dict"), Mapping):
        values = values["state_dict"]
    if not isinstance(values, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in values.items()
    ):
        raise WeightsError(
            f"{path} does not hold named tensors", hint="neither plainly nor under 'state_dict'"
        )
    for name, tensor in values.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise WeightsError(f"{path}: {name} is sparse, quantised or without values")
    if values and all(name.startswith("module.") for name in values):
        values = {name.removeprefix("module."): tensor for name, tensor in values.items()}
    return dict(values)


# What torch's readers raise on damaged files, found by flipping bytes and cutting files short.
_UNREADABLE: Final = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    OverflowError,
    MemoryError,
    struct.error,
    safetensors.SafetensorError,
    zipfile.BadZipFile,
)


def _check_size(path: Path) -> None:
    if not path.is_file():
        raise WeightsError(f"{path} does not exist or is no file")
    if path.stat().st_size > _MAX_BYTES:
        raise WeightsError(f"{path} is larger than {_MAX_BYTES >> 30} GiB")


def _load_torch(path: Path) -> object:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > _MAX_BYTES:
                raise WeightsError(f"{path} unpacks to more than {_MAX_BYTES >> 30} GiB")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of TorchScript before it raises
        return torch.load(path, map_location="cpu", weights_only=True)


def load_into(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy a state into a module; a missing, unknown, misshapen or broken tensor is named.

    Any floating-point type is taken where one is expected, if its values stay finite in the
    module's own. Nothing is copied unless all is well.
    """
    wanted = module.state_dict()
    for kind, names in (
        ("misses", sorted(set(wanted) - set(state))),
        ("has the unknown", sorted(set(state) - set(wanted))),
    ):
        if names:
            raise WeightsError(
                f"{source} {kind} tensor {names[0]!r} ({len(names)} in all)",
                hint="the file belongs to another architecture: check --backbone",
            )
    for name, tensor in state.items():
        if tensor.shape != wanted[name].shape:
            raise WeightsError(
                f"{source}: {name} has shape {list(tensor.shape)}, "
                f"expected {list(wanted[name].shape)}"
            )
        if tensor.is_floating_point() != wanted[name].is_floating_point():
            raise WeightsError(f"{source}: {name} is {tensor.dtype}, expected {wanted[name].dtype}")
        if not torch.isfinite(tensor.to(wanted[name].dtype)).all():
            raise WeightsError(f"{source}: {name} holds a NaN, an infinity or too large a number")
        if name.endswith("running_var") and (tensor < 0).any():
            raise WeightsError(f"{source}: {name} is negative")
    module.load_state_dict(dict(state))


@dataclass(frozen=True)
class SavedModel:
    """A trained model: which backbone, which part was trained, that part's state, and notes."""

    backbone: str
    train_set: TrainSet
    state: dict[str, Tensor]
    model_id: str
    meta: dict[str, str]


def save_model(
    path: Path,
    *,
    backbone: str,
    train_set: TrainSet,
    state: Mapping[str, Tensor],
    meta: Mapping[str, str],
) -> str:
    """Write a trained part as safetensors, whole or not at all, and return its model id."""
    for key, value in state.items():
        if not torch.isfinite(value).all():
            raise WeightsError(f"the trained {key} holds a NaN or an infinity: nothing is saved")
    name = model_id(state)
    metadata = {
        "format": FORMAT,
        "backbone": backbone,
        "train_set": train_set,
        "model_id": name,
        "meta": json.dumps(dict(meta), sort_keys=True),
    }
    # Copies: safetensors refuses tensors that share memory.
    tensors = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in state.items()
    }
    write_private(path, safetensors.torch.save(tensors, metadata=metadata))
    return name


def load_model(path: Path) -> SavedModel:
    """Return a trained part whose id is recomputed; anything unexpected is a WeightsError."""
    _check_size(path)
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{path} is not a readable model: {error}") from error
    train_set = metadata.get("train_set")
    if metadata.get("format") != FORMAT or train_set not in TRAIN_SETS:
        raise WeightsError(
            f"{path} is not a model of this version", hint="use --weights for others"
        )
    if model_id(state) != metadata.get("model_id"):
        raise WeightsError(f"{path} was changed: its content does not match its model id")
    try:
        backbone, meta = metadata["backbone"], json.loads(metadata["meta"])
    except (KeyError, json.JSONDecodeError) as error:
        raise WeightsError(f"{path} does not say what it was trained on") from error
    if not isinstance(meta, dict) or not all(isinstance(v, str) for v in meta.values()):
        raise WeightsError(f"{path} has notes that are not text")
    return SavedModel(backbone, train_set, state, metadata["model_id"], meta)
