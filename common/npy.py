"""An array as the bytes of an .npy file and back, as Flower carries it, with one copy at most.

numpy.save and numpy.load copy through a growing buffer in small pieces, several times the size of
a large message in memory traffic (docs/engines.md); and numpy's header parser, made for files of
one's own, answers hostile bytes with whatever Python's tokenizer raises.
"""

from __future__ import annotations

import math
import re
from io import BytesIO
from typing import Final

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from common.errors import InputError

_STYPE: Final = "numpy.ndarray"
_KINDS: Final = "biuf"  # booleans and numbers: never objects, whose bytes could be code
# What numpy itself writes, version 1.0, and nothing else: two bytes of length, then a literal.
_MAGIC: Final = b"\x93NUMPY\x01\x00"
_HEADER: Final = re.compile(
    rb"\{'descr': '([<|][biuf][1248])', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d{1,18},)?|\d{1,18}(?:, \d{1,18}){1,7})\), \} *\n"
)


def to_npy(array: NDArray[np.generic]) -> tuple[str, tuple[int, ...], str, bytes]:
    """Return what Flower's Array is made of: dtype, shape, kind of serialisation, .npy bytes."""
    if array.dtype.kind not in _KINDS:
        raise InputError(f"arrays of {array.dtype} are not sent")
    dense = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(array.shape)
    header = BytesIO()
    npy_format.write_array_header_1_0(header, npy_format.header_data_from_array_1_0(dense))
    values = dense.reshape(-1).view(np.uint8).data
    return str(dense.dtype), array.shape, _STYPE, b"".join((header.getvalue(), values))


def from_npy(data: bytes) -> NDArray[np.generic]:
    """Return the array that .npy bytes hold, a read-only view of them.

    Bytes that numpy would not have written for an array of numbers, or that are longer or shorter
    than their header says, are an InputError.
    """
    start = len(_MAGIC) + 2
    end = start + int.from_bytes(data[len(_MAGIC) : start], "little")
    header = _HEADER.fullmatch(data[start:end])
    if not data.startswith(_MAGIC) or header is None:
        raise InputError("the bytes are not an array of numbers: unknown header")
    descr, fortran, sides = header.groups()
    try:
        dtype = np.dtype(descr.decode())
    except TypeError as error:
        raise InputError(f"the bytes are not an array of numbers: {error}") from error
    shape = tuple(int(side) for side in sides.split(b",") if side.strip())
    if len(data) - end != math.prod(shape) * dtype.itemsize:
        raise InputError("the bytes are not an array of numbers: not as many as the shape says")
    values: NDArray[np.generic] = np.frombuffer(data, dtype=dtype, offset=end)
    try:
        return values.reshape(shape, order="F" if fortran == b"True" else "C")
    except ValueError as error:  # a side of zero beside ones that no address space holds
        raise InputError(f"the bytes are not an array of numbers: {error}") from error
