"""Which rows a table has, in one secret number.

    sum = sum over rows of E_k(E_k(id, v0) xor (v1, v2)),   in two lanes modulo 2^64

E_k is AES-256, so that each term is a CBC-MAC of the row's id and of the columns by which rows are
looked for. A row is written once, under an id that is never used again, and its sealed columns are
bound to that id: so a row that was taken away, put back, copied in or hidden under another owner
changes the sum. Key and sum are secret; another set with the same sum can only be guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from common.errors import SealError

_MASK: Final = (1 << 64) - 1
_HEX: Final = 32  # digits of a looked-up text: two 64-bit words
Sum = tuple[int, int]
NO_ROWS: Final[Sum] = (0, 0)

# What rows are looked for by, after their id: whole numbers, or one text of 32 hex digits.
LOOKED_UP: Final[Mapping[str, tuple[str, ...]]] = {
    "subject": ("pseudonym",),
    "template": ("subject", "model"),
    "chip": ("subject",),
    "shard": ("model",),
    "setting": ("name",),
}


def sum_rows(key: bytes, columns: Sequence[Sequence[Any]]) -> Sum:
    """Return the sum of rows given by their columns: ids, then what `LOOKED_UP` names.

    A column with values of another type, which a changed file can bring: SealError.
    """
    count = len(columns[0])
    if not count:
        return NO_ROWS
    blocks = np.zeros((count, 4), dtype="<u8")
    place = 0
    for column in columns:
        words = _words(column)
        blocks[:, place : place + words.shape[1]] = words
        place += words.shape[1]
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    first = np.frombuffer(encryptor.update(blocks[:, :2].tobytes()), dtype="<u8").reshape(-1, 2)
    lanes = np.frombuffer(encryptor.update((first ^ blocks[:, 2:]).tobytes()), dtype="<u8")
    total = lanes.reshape(-1, 2).sum(axis=0, dtype=np.uint64)
    return int(total[0]), int(total[1])


def add(left: Sum, right: Sum, sign: int = 1) -> Sum:
    """Return left + right, or left - right with `sign` -1."""
    return (left[0] + sign * right[0]) & _MASK, (left[1] + sign * right[1]) & _MASK


def _words(column: Sequence[Any]) -> NDArray[np.uint64]:
    kinds = set(map(type, column))
    if kinds == {int}:
        try:
            return np.array(column, dtype=np.int64).view(np.uint64)[:, None]
        except OverflowError as error:
            raise SealError("a row of the vault has an impossible number") from error
    if kinds != {str} or set(map(len, column)) != {_HEX}:
        raise SealError("a row of the vault has a column of another type")
    text = "".join(column)
    try:
        raw = bytes.fromhex(text)
    except ValueError as error:
        raise SealError("a row of the vault has a name that is none") from error
    if raw.hex() != text:  # blanks and capitals would be other names
        raise SealError("a row of the vault has a name that is none")
    return np.frombuffer(raw, dtype="<u8").reshape(-1, 2)
