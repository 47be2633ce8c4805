"""The stored form of templates: versioned bytes for [n, D] unit rows, as floats or 8 bits a value.

Layout, little-endian: version (1 byte), encoding (1 byte), n (uint32), D (uint32), then the values.
Encoding 0: float32 [n, D]. Encoding 1: float32 scales [n], then int8 [n, D]; a value is scale times
code and its error at most scale / 2 before rows are brought back to length one.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError, SealError

VERSION: Final = 1
FLOAT32, INT8 = 0, 1
MAX_DIM: Final = 65_536
_HEADER: Final = struct.Struct("<BBII")
_CODES: Final = 127.0
_UNIT_TOLERANCE: Final = 1e-3


@dataclass(frozen=True)
class Layout:
    """How many rows of which width in which encoding: all that sizes depend on."""

    count: int
    dim: int
    eight_bit: bool

    @property
    def size(self) -> int:
        """Bytes of the values, without the header."""
        return self.count * (self.dim + 4 if self.eight_bit else 4 * self.dim)


def check_rows(rows: NDArray[np.float32], dim: int) -> NDArray[np.float32]:
    """Return rows as float32 [n, dim]; n < 1, NaN or a length away from one: InputError."""
    array = np.ascontiguousarray(rows, dtype=np.float32)
    if array.ndim != 2 or array.shape[0] < 1 or array.shape[1] != dim:
        raise InputError(f"embeddings have the shape [n, {dim}], not {list(array.shape)}")
    lengths = np.linalg.norm(array.astype(np.float64), axis=1)
    if not np.all(np.abs(lengths - 1.0) <= _UNIT_TOLERANCE):  # NaN fails, too
        raise InputError("an embedding is not a finite vector of length one")
    return array


def encode_values(rows: NDArray[np.float32], *, eight_bit: bool) -> bytes:
    """Return the values of [n, D] finite rows, without the header."""
    if not eight_bit:
        return np.ascontiguousarray(rows, dtype="<f4").tobytes()
    scales = (np.abs(rows).max(axis=1, initial=0.0) / _CODES).astype("<f4")
    scales[scales == 0.0] = 1.0
    codes = np.clip(np.rint(rows / scales[:, None]), -_CODES, _CODES).astype(np.int8)
    return b"".join((scales.tobytes(), codes.tobytes()))


def decode_values(
    values: NDArray[np.uint8], layout: Layout, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Return float32 [n, D] of the uint8 values of a layout, written to `out` where given."""
    if values.size != layout.size:
        raise SealError(f"{values.size} bytes of templates where {layout.size} belong")
    shape = (layout.count, layout.dim)
    rows = np.empty(shape, dtype=np.float32) if out is None else out
    if not layout.eight_bit:
        rows[:] = values.view("<f4").reshape(shape)
        return rows
    scales = values[: 4 * layout.count].view("<f4")
    np.multiply(values[4 * layout.count :].view(np.int8).reshape(shape), scales[:, None], out=rows)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return rows


def encode(rows: NDArray[np.float32], *, eight_bit: bool) -> bytes:
    """Return header and values of [n, D] finite rows."""
    count, dim = rows.shape
    header = _HEADER.pack(VERSION, INT8 if eight_bit else FLOAT32, count, dim)
    return bytes(header) + encode_values(rows, eight_bit=eight_bit)


def decode(data: bytes) -> NDArray[np.float32]:
    """Return float32 [n, D]; bytes of another version, encoding or length: SealError."""
    if len(data) < _HEADER.size:
        raise SealError("a template is cut off")
    version, encoding, count, dim = _HEADER.unpack_from(data)
    if version != VERSION or encoding not in (FLOAT32, INT8) or not 1 <= dim <= MAX_DIM:
        raise SealError(f"a template of unknown version {version} or encoding {encoding}")
    values = np.frombuffer(data, dtype=np.uint8, offset=_HEADER.size)
    rows = decode_values(values, Layout(count, dim, encoding == INT8))
    if not np.all(np.isfinite(rows)):
        raise SealError("a template holds a value that is not finite")
    return rows
