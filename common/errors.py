"""One tree of errors: each says what was wrong and what to do."""

from __future__ import annotations

from typing import ClassVar


class VeilfaceError(Exception):
    """An error meant for a person: one line of what was wrong, one hint of what to do.

    `exit_code` is what the command line exits with when the error reaches it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class InputError(VeilfaceError):
    """A path, option or value that the user gave cannot be used (exit 2)."""

    exit_code = 2


class ImageError(InputError):
    """One image cannot be used; the rest of its folder goes on and this one is listed."""


class NoFaceError(ImageError):
    """No face was found in an image that could be decoded."""


class WeightsError(InputError):
    """A weights file has wrong names, shapes, values or an unsafe format."""


class Refused(VeilfaceError):  # noqa: N818 - a refusal is the system working, not failing
    """Stopped for privacy or security before anything was released (exit 3)."""

    exit_code = 3


class Outdated(Refused):
    """What is open here is no longer what is there: it takes opening it again."""


class BudgetExceeded(Refused):
    """The next release would spend more than the site's budget."""


class LedgerError(Refused):
    """A ledger is damaged, locked by another writer, or was tampered with."""


class SealError(Refused):
    """A key is the wrong one, or what it sealed was changed, moved or put back."""


class UpdateRejected(VeilfaceError):  # noqa: N818 - named for what the server did
    """An update from a site is not on the whitelist or not well formed."""


class StorageError(VeilfaceError):
    """The disk refused a write (full, read-only, no permission); nothing was half-written."""


class PathError(StorageError):
    """Nothing can be written there: a folder is missing, or a file is in the way (exit 2)."""

    exit_code = 2
