"""`veilface bench vault`: a gallery opened from its vault, beside AES-GCM alone on the same bytes.

Ours is everything between a key file and a gallery in memory: unlocking, checking which rows belong
to the vault, reading, decrypting, numbering the owners. The peer decrypts the same number of bytes
in messages of the same size, from memory into a new array, and does nothing else.
"""

from __future__ import annotations

import secrets
import tempfile
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

from client.vault import Vault, shards
from common.sealing import KeyFileLock
from simulations.bench.timing import Case, compare

TEMPLATES, DIM, EACH = 1_000_000, 128, 4
_MODEL = "bench"
_AT_ONCE = 1 << 16


def vault(runs: int, templates: int = TEMPLATES, folder: Path | None = None) -> list[Case]:
    """Return the time to open `templates` x 128 floats, EACH a subject, over AES-GCM's alone."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        lock = KeyFileLock.create(Path(name) / "key")
        where = str(Path(name) / "vault.db")
        _fill(where, lock, templates)

        def ours() -> None:
            with Vault.open(where, lock) as opened:
                if opened.gallery().vectors.shape != (templates, DIM):
                    raise RuntimeError("the vault lost templates")

        return [compare(f"open-{_short(templates)}/aes-gcm", ours, _Peer(templates), runs)]


def _fill(where: str, lock: KeyFileLock, templates: int) -> None:
    generator = np.random.default_rng(0)
    with Vault.create(where, lock, model_id=_MODEL, dim=DIM) as new:
        for start in range(0, templates, _AT_ONCE):
            count = min(_AT_ONCE, templates - start)
            rows = generator.standard_normal((count, DIM), dtype=np.float32)
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            names = [f"{start}-{row // EACH}" for row in range(count)]
            new.enrol_many(names, rows, model_id=_MODEL)


class _Peer:
    """Messages of a shard's size, and a call that decrypts them all into a new array."""

    def __init__(self, templates: int) -> None:
        self._templates = templates
        self._cipher = AESGCM(secrets.token_bytes(32))
        self._messages = []
        for start in range(0, templates, shards.ROWS):
            count = min(shards.ROWS, templates - start)
            nonce = secrets.token_bytes(12)
            body = np.zeros((count, DIM), dtype=np.float32).tobytes()
            self._messages.append((start, count, nonce, self._cipher.encrypt(nonce, body, None)))

    def __call__(self) -> NDArray[np.float32]:
        rows = np.empty((self._templates, DIM), dtype=np.float32)
        for start, count, nonce, sealed in self._messages:
            out = rows[start : start + count].reshape(-1).view(np.uint8)
            self._cipher.decrypt_into(nonce, sealed, None, out.data)
        return rows


def _short(count: int) -> str:
    if count % 1_000_000 == 0:
        return f"{count // 1_000_000}M"
    return f"{count // 1000}k" if count % 1000 == 0 else str(count)
