"""What a site has promised in each round of a run, on its disk before it answers.

One masked update; then survivors that only ever become fewer, each set signed; then one unmasking,
for the set signed last, or for all sites if none was signed. A restart forgets nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from common.config import from_json, to_json
from common.errors import InputError, Refused
from common.storage import make_private_directory, write_private


@dataclass(frozen=True)
class Promise:
    """What was released for which round and sites, which survivors were signed last, and the end.

    Digests are in hex, sites as "a b c"; `unmasked` is that of the sealed shares that were opened.
    """

    round_digest: str
    update_digest: str
    sites: str
    signed: str | None = None
    unmasked: str | None = None


@dataclass(frozen=True)
class Promises:
    """The promises of one run, in its own `directory` (0700), one file a round (0600)."""

    directory: Path

    def mask(self, round_: int, round_digest: bytes, sites: tuple[str, ...], update: bytes) -> None:
        """Promise that this is the round's one masked update: two would differ by no mask."""
        released = hashlib.sha256(update).hexdigest()
        new = Promise(round_digest.hex(), released, " ".join(sites))
        with self._locked():
            kept = self._read(round_)
            if kept is None:
                self._write(round_, new)
            elif kept.round_digest != new.round_digest:
                raise Refused(f"round {round_} was masked for another request")
            elif kept.update_digest != released:
                raise Refused(f"round {round_} was masked with another vector or key")

    def sign(self, round_: int, round_digest: bytes, survivors: tuple[str, ...]) -> None:
        """Promise to unmask these survivors or fewer; more than before, or after it: Refused."""
        with self._locked():
            kept = self._kept(round_, round_digest)
            new = replace(kept, signed=" ".join(survivors))
            if kept == new:
                return
            if kept.unmasked:
                raise Refused(f"round {round_} was unmasked for other survivors")
            if not set(survivors) <= set((kept.signed or kept.sites).split()):
                raise Refused(f"round {round_}: a site that was missing is said to survive")
            self._write(round_, new)

    def unmask(
        self, round_: int, round_digest: bytes, survivors: tuple[str, ...], sealed: bytes
    ) -> None:
        """Promise to open these sealed shares of these survivors, and no others, in this round."""
        opened = hashlib.sha256(sealed).hexdigest()
        with self._locked():
            kept = self._kept(round_, round_digest)
            if (kept.signed or kept.sites) != " ".join(survivors):
                raise Refused(f"round {round_} is not unmasked for survivors never confirmed here")
            if kept.unmasked not in (None, opened):
                raise Refused(f"round {round_}: other shares were opened before")
            self._write(round_, replace(kept, unmasked=opened))

    def _kept(self, round_: int, round_digest: bytes) -> Promise:
        kept = self._read(round_)
        if kept is None or kept.round_digest != round_digest.hex():
            raise Refused(f"round {round_}: this site masked nothing for this request")
        return kept

    def _path(self, round_: int) -> Path:
        return self.directory / f"masking-{round_}.json"

    def _read(self, round_: int) -> Promise | None:
        path = self._path(round_)
        if not path.exists():
            return None
        try:
            return from_json(Promise, path.read_text(encoding="utf-8"), where=path.name)
        except (InputError, UnicodeDecodeError) as error:
            raise Refused(f"{path} is damaged", hint="this round cannot be answered") from error

    def _write(self, round_: int, promise: Promise) -> None:
        write_private(self._path(round_), to_json(promise).encode())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(make_private_directory(self.directory), os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
