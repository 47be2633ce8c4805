"""Pseudonyms: keyed, so that a name can be looked for only by who can open the vault."""

from __future__ import annotations

import hashlib
import hmac
import unicodedata
from typing import Final

from client.vault.manifest import Manifest
from common.errors import InputError

_LONGEST: Final = 1024


def pseudonym_of(manifest: Manifest, subject: str) -> str:
    """Return 32 hex digits: the first 128 bits of HMAC-SHA-256 of the NFC of a name.

    An empty or endless name, or one that is no text: InputError.
    """
    if not 1 <= len(subject) <= _LONGEST:
        raise InputError(f"a subject's name has 1 to {_LONGEST} characters")
    try:
        name = unicodedata.normalize("NFC", subject).encode()
    except UnicodeEncodeError as error:
        raise InputError("a subject's name is not valid text") from error
    return hmac.new(manifest.key("pseudonym"), name, hashlib.sha256).hexdigest()[:32]
