"""Multipart bodies (RFC 7578) read into memory within limits; nothing touches the disk.

Names of files are never read: the images of a request are called "image 1", "image 2" and so on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from client.picture import Picture
from common.errors import InputError

_FIELDS: Final = ("subject", "top")
_MAX_FIELD: Final = 4096
_MAX_HEADER: Final = 4096


@dataclass(frozen=True)
class Form:
    """What a request brought: at most one subject and one `top`, and its images in order."""

    subject: str | None
    top: str | None
    images: tuple[Picture, ...]

    def person(self) -> str:
        """The subject; InputError if there is none."""
        return subject_id(self.subject)

    def picture(self) -> Picture:
        """The one image; InputError if there are none or several."""
        if len(self.images) != 1:
            raise InputError(f"one image belongs here, not {len(self.images)}")
        return self.images[0]


def subject_id(text: object) -> str:
    """`text` if it is there; whom it may name is the vault's to say, as for the command."""
    if not isinstance(text, str) or not text:
        raise InputError("no subject", hint="send the person's identifier as 'subject'")
    return text


async def read_form(content_type: str, body: AsyncIterator[bytes], max_images: int) -> Form:
    """Parse a body as it arrives; anything unexpected is an InputError."""
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 1 <= len(boundary) <= 70:
        raise InputError("the body is not multipart/form-data", hint="see /docs")
    reader = _Reader(max_images)
    try:
        parser = MultipartParser(boundary, reader.callbacks())  # type: ignore[arg-type]
        async for chunk in body:
            parser.write(chunk)
        parser.finalize()
    except FormParserError as error:
        raise InputError("the multipart body is malformed") from error
    if not reader.ended:
        raise InputError("the multipart body is cut off")
    return reader.form()


class _Reader:
    """Collects the parts that the parser calls out."""

    def __init__(self, max_images: int) -> None:
        self.ended = False
        self._max_images = max_images
        self._field, self._value, self._part = bytearray(), bytearray(), bytearray()
        self._header_bytes, self._name = 0, ""
        self._texts: dict[str, str] = {}
        self._images: list[bytes] = []

    def callbacks(self) -> dict[str, object]:
        """The parser's events and what takes them."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._head(self._field, data[start:end]),
            "on_header_value": lambda data, start, end: self._head(self._value, data[start:end]),
            "on_header_end": self._header,
            "on_headers_finished": self._expect,
            "on_part_data": self._data,
            "on_part_end": self._finish,
            "on_end": self._end,
        }

    def form(self) -> Form:
        pictures = tuple(
            Picture(f"image {number}", data) for number, data in enumerate(self._images, start=1)
        )
        return Form(self._texts.get("subject"), self._texts.get("top"), pictures)

    def _begin(self) -> None:
        self._part, self._name, self._header_bytes = bytearray(), "", 0

    def _head(self, onto: bytearray, data: bytes) -> None:
        self._header_bytes += len(data)
        if self._header_bytes > _MAX_HEADER:
            raise InputError("a part's headers are too long")
        onto += data

    def _header(self) -> None:
        if self._field.lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self._value))
            self._name = options.get(b"name", b"").decode("latin-1")
        self._field, self._value = bytearray(), bytearray()

    def _expect(self) -> None:
        """Refuse a part that does not belong before its data arrive."""
        if self._name in ("image", "images"):
            if len(self._images) >= self._max_images:
                raise InputError(f"more than {self._max_images} images")
        elif self._name not in _FIELDS or self._name in self._texts:
            raise InputError("an unknown or repeated field", hint="see /docs")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._name in _FIELDS and len(self._part) + end - start > _MAX_FIELD:
            raise InputError(f"a field has at most {_MAX_FIELD} bytes")
        self._part += data[start:end]

    def _finish(self) -> None:
        if self._name not in _FIELDS:
            self._images.append(bytes(self._part))
        else:
            try:
                self._texts[self._name] = self._part.decode()
            except UnicodeDecodeError as error:
                raise InputError("a field is not UTF-8") from error
        self._part = bytearray()

    def _end(self) -> None:
        self.ended = True
