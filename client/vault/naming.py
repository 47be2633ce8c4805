"""Names of subjects, and pseudonyms: keyed, so that only who can open the vault can look for one.

One rule says which names a new subject may have, whichever door they come by. Who was enrolled
before there was one is still found, and erased, by the name that they have.
"""

from __future__ import annotations

import hashlib
import hmac
import unicodedata
from typing import Final

from client.vault.manifest import Manifest
from common.errors import InputError

_LONGEST: Final = 256
_LONGEST_BEFORE: Final = 1024  # of a name that was enrolled before there was a rule
# Control characters, halves of characters, no characters yet, line and paragraph separators.
_NOWHERE: Final = ("Cc", "Cs", "Cn", "Zl", "Zp")
_JOINERS: Final = "\u200c\u200d"  # letters of Persian, Malayalam and Sinhala, also at the end
_KINDS: Final = {
    "Cc": "a control character", "Cs": "half a character", "Cn": "no character that Unicode has",
    "Zl": "a line separator", "Zp": "a paragraph separator",
}  # fmt: skip


def fault_of(subject: str) -> str:
    """Return why this cannot be the name of a new subject, naming the character; "" if it can.

    A name has 1 to 256 characters of any script, none of them a control or half a character, and
    neither begins nor ends with something that nobody sees: a blank or a mark of direction.
    """
    if not subject:
        return "a subject's name is empty"
    if len(subject) > _LONGEST:
        return f"a subject's name has at most {_LONGEST} characters, not {len(subject)}"
    for one in subject:
        kind = unicodedata.category(one)
        if kind in _NOWHERE:
            return f"a subject's name cannot hold {_called(one)}: it is {_KINDS[kind]}"
    if all(_unseen(one) or one in _JOINERS for one in subject):
        return f"nothing of this name can be seen: it is {_called(subject[0])} alone"
    for one, does in ((subject[0], "begins"), (subject[-1], "ends")):
        if _unseen(one):
            return f"the name {does} with {_called(one)}, which nobody sees"
    return ""


def check_new(subject: str) -> None:
    """Raise InputError, naming the character, unless a new subject may be called this."""
    if fault := fault_of(subject):
        raise InputError(fault, hint="leave it out")


def pseudonym_of(manifest: Manifest, subject: str) -> str:
    """Return 32 hex digits: the first 128 bits of HMAC-SHA-256 of the NFC of a name.

    An empty or endless name, or one that is no text: InputError.
    """
    if not 1 <= len(subject) <= _LONGEST_BEFORE:
        raise InputError(f"a subject's name has 1 to {_LONGEST} characters")
    try:
        name = unicodedata.normalize("NFC", subject).encode()
    except UnicodeEncodeError as error:
        raise InputError(fault_of(subject) or "a subject's name is not valid text") from error
    return hmac.new(manifest.key("pseudonym"), name, hashlib.sha256).hexdigest()[:32]


def _unseen(one: str) -> bool:
    kind = unicodedata.category(one)
    return kind.startswith("Z") or (kind == "Cf" and one not in _JOINERS)


def _called(one: str) -> str:
    return f"U+{ord(one):04X} {unicodedata.name(one, '')}".rstrip()
