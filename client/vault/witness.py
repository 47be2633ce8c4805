"""A small file beside a SQLite vault that remembers how far it had come.

A vault's file that was replaced by an older copy is sound in itself: only something outside it can
tell, and an old backup put back in this way would bring erased people back. So a vault without its
witness is not opened until someone says that it is to be trusted as it lies. Whoever replaces both
files is not stopped; receipts and the log's head, kept elsewhere, are the witness then.
"""

from __future__ import annotations

import contextlib
import hmac
import json
from pathlib import Path
from threading import Lock
from typing import Final

from client.vault.manifest import Manifest
from common.errors import SealError
from common.storage import write_private

_ONE_AT_A_TIME: Final = Lock()
_ON_PURPOSE: Final = "if this file is the one you mean, say so with 'veilface template trust'"


def witness_path(vault: Path) -> Path:
    """Return where a vault's witness lies: beside the file, by whatever link that was named."""
    file = vault.resolve()
    return file.with_name(file.name + ".head")


def note(vault: Path, vault_id: str, manifest: Manifest, *, anew: bool = False) -> None:
    """Write down the vault's generation, durably; never a lower one, but for `anew`."""
    path, generation = witness_path(vault), manifest.generation
    text = json.dumps([vault_id, generation, _tag(vault_id, manifest, generation)])
    with _ONE_AT_A_TIME:
        with contextlib.suppress(SealError):
            if not anew and _read(path, vault_id, manifest) >= generation:
                return
        write_private(path, text.encode())


def check(vault: Path, vault_id: str, manifest: Manifest) -> None:
    """Raise SealError for a vault older than its witness, and for one without any."""
    path = witness_path(vault)
    known = _read(path, vault_id, manifest)
    if known > manifest.generation:
        raise SealError(
            f"{vault} is older than it was: an old copy was put in its place",
            hint=f"put the newest one back; {_ON_PURPOSE}",
        )
    if known < 0:
        raise SealError(
            f"{path} is missing: nothing says that {vault.name} is not an old copy",
            hint=f"put it back, a vault is moved with it; {_ON_PURPOSE}",
        )
    note(vault, vault_id, manifest)


def _read(path: Path, vault_id: str, manifest: Manifest) -> int:
    """Return the generation that a vault's witness names; -1 without one."""
    if not path.exists():
        return -1
    try:
        named, generation, tag = json.loads(path.read_bytes())
        expected = _tag(vault_id, manifest, int(generation))
        if named != vault_id or not hmac.compare_digest(str(tag).encode(), expected.encode()):
            raise ValueError("another vault's, or changed")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise SealError(
            f"{path} does not belong to this vault",
            hint=f"put its own there; {_ON_PURPOSE}",
        ) from error
    return int(generation)


def _tag(vault_id: str, manifest: Manifest, generation: int) -> str:
    message = json.dumps([vault_id, generation]).encode()
    return hmac.new(manifest.key("witness"), message, "sha256").hexdigest()
