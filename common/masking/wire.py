"""Messages as bytes: strict, versioned, limited, and one encoding for each message.

A header names kind and version; then each field of the dataclass in order, preceded by its length.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from common.errors import Refused

LONGEST_NAME = 128
_COUNT = 4
_MOST = 1 << 30


@dataclass(frozen=True)
class Message:
    """The base of all messages: fields are str, int, bytes or tuples of str."""

    KIND: ClassVar[str]

    @classmethod
    def _header(cls) -> bytes:
        return f"veilface masking {cls.KIND} 1\0".encode()

    def to_bytes(self, *, without: str = "") -> bytes:
        """Return the message as bytes; without one field, it is what its signature is over."""
        parts = [self._header()]
        for field in dataclasses.fields(self):
            if field.name != without:
                raw = _encode(getattr(self, field.name))
                parts += [len(raw).to_bytes(_COUNT, "big"), raw]
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Return the message; bytes that `to_bytes` would not have given are Refused."""
        reader = _Reader(cls.KIND, data)
        if reader.take(len(cls._header())) != cls._header():
            raise Refused(f"not a {cls.KIND} of version 1")
        hints = typing.get_type_hints(cls)
        values = {}
        for field in dataclasses.fields(cls):
            values[field.name] = reader.value(hints[field.name])
        reader.end()
        return cls(**values)


def _encode(value: object) -> bytes:
    match value:
        case bytes():
            return value
        case str():
            return value.encode()
        case int():
            return value.to_bytes(8, "big")
        case tuple():
            names = [name.encode() for name in value]
            return b"".join(len(name).to_bytes(_COUNT, "big") + name for name in names)
    raise TypeError(f"a message has no field of {type(value).__name__}")


class _Reader:
    def __init__(self, kind: str, data: bytes) -> None:
        self._kind = kind
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        if len(taken) != count or count > _MOST:
            raise Refused(f"a {self._kind} is cut off")
        self._at += count
        return taken

    def end(self) -> None:
        if self._at != len(self._data):
            raise Refused(f"a {self._kind} is followed by other bytes")

    def value(self, kind: object) -> Any:
        raw = self._prefixed()
        if kind is bytes:
            return raw
        if kind is str:
            return self._text(raw)
        if kind is int:
            if len(raw) != 8:
                raise Refused(f"a {self._kind} holds a malformed number")
            return int.from_bytes(raw, "big")
        inner = _Reader(self._kind, raw)
        names = []
        while inner._at < len(raw):
            names.append(self._text(inner._prefixed()))
        return tuple(names)

    def _prefixed(self) -> bytes:
        return self.take(int.from_bytes(self.take(_COUNT), "big"))

    def _text(self, raw: bytes) -> str:
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise Refused(f"a {self._kind} holds a malformed name") from error
        if len(text) > LONGEST_NAME or not text.isprintable():
            raise Refused(f"a {self._kind} holds a malformed name")
        return text
