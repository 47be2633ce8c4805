"""Passphrases as people give them: in a file, in the environment or at the keyboard, alike.

The same words typed on two systems can be other bytes: a byte order mark in front (Windows),
accents as characters of their own (macOS), a non-breaking blank. `prepared` makes them one, by
OpaqueString of RFC 8265: blanks of every script become a space, then Unicode's form NFC.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Final

from common.errors import InputError

_MARK: Final = "\ufeff"


def passphrase_in(file: Path) -> str:
    """Return the passphrase that a file holds, without the end of its line.

    A file that cannot be read, or is no UTF-8 text, is an InputError that quotes nothing of it.
    """
    try:
        return file.read_text(encoding="utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(
            f"the passphrase in {file} is not UTF-8", hint="save the file as UTF-8 text"
        ) from error
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error


def prepared(passphrase: str) -> str:
    """Return the one form of a passphrase; an empty one, or one that is no text: InputError."""
    text = passphrase.removeprefix(_MARK).rstrip("\r\n")
    text = "".join(" " if unicodedata.category(one) == "Zs" else one for one in text)
    if not text:
        raise InputError("an empty passphrase protects nothing")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError("the passphrase is not UTF-8", hint="give it as UTF-8 text") from error
    return unicodedata.normalize("NFC", text)


def spellings(passphrase: str) -> tuple[str, ...]:
    """Return the one form, then what locked before there was one: as given, NFD, with a mark."""
    one = prepared(passphrase)
    bare = passphrase.removeprefix(_MARK)
    plain = (one, bare, unicodedata.normalize("NFC", bare), unicodedata.normalize("NFD", bare))
    return tuple(dict.fromkeys((*plain, *(_MARK + text for text in plain))))
