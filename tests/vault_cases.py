"""What the tests of the vault share: unit rows, and a vault on each kind of storage."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from client.vault import Vault
from common.sealing import KeyFileLock

MODEL, DIM = "model-one", 16


def unit_rows(count: int, seed: int = 0, dim: int = DIM) -> NDArray[np.float32]:
    """Return seeded unit rows, float32 [count, dim]."""
    rows = np.random.default_rng(seed).standard_normal((count, dim))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32)


@dataclass
class Place:
    """Somewhere to put vaults: a folder with a key, and addresses for new vaults."""

    folder: Path
    server: str | None = None
    lock: KeyFileLock = field(init=False)
    _made: int = 0

    def __post_init__(self) -> None:
        self.folder.chmod(0o700)
        self.lock = KeyFileLock.create(self.folder / "site.key")

    def address(self) -> str:
        """Return where a new vault may go."""
        self._made += 1
        if self.server is None:
            return str(self.folder / f"vault{self._made}.db")
        name = f"vault_{os.getpid()}_{id(self)}_{self._made}"
        _psql(self.server, f"CREATE DATABASE {name}")
        return self.server.replace("/postgres?", f"/{name}?")

    def vault(self, *, dim: int = DIM, eight_bit: bool = False, keep_chips: bool = False) -> Vault:
        """Return a new vault."""
        return Vault.create(
            self.address(),
            self.lock,
            model_id=MODEL,
            dim=dim,
            eight_bit=eight_bit,
            keep_chips=keep_chips,
        )


def _psql(server: str, statement: str) -> None:
    import psycopg

    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(statement.encode())


def _binary(name: str) -> str | None:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name)


@contextlib.contextmanager
def postgres_server() -> Iterator[str]:
    """Run a PostgreSQL server of its own on a Unix socket; skip where there is no server."""
    initdb, control = _binary("initdb"), _binary("pg_ctl")
    if initdb is None or control is None:
        pytest.skip("no PostgreSQL server is installed")
    with tempfile.TemporaryDirectory(prefix="vf-pg-", dir="/tmp") as name:
        folder = Path(name)
        prefix: list[str] = []
        if os.getuid() == 0:  # the server refuses to run as root
            if shutil.which("runuser") is None:
                pytest.skip("PostgreSQL does not run as root, and there is no runuser")
            prefix = ["runuser", "-u", "postgres", "--"]
            shutil.chown(folder, "postgres")
        folder.chmod(0o755)
        data, options = folder / "data", f"-F -k {folder} -c listen_addresses="
        user = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run([*prefix, initdb, "-D", data, *user], check=True, capture_output=True)
        control_it = [*prefix, control, "-D", str(data), "-w"]
        log = str(folder / "log")
        subprocess.run(
            [*control_it, "-l", log, "-o", options, "start"], check=True, stdout=subprocess.DEVNULL
        )
        try:
            yield f"postgresql://postgres@/postgres?host={folder}"
        finally:
            stop = [*control_it, "-m", "immediate", "stop"]
            subprocess.run(stop, check=True, stdout=subprocess.DEVNULL)
