"""Where a vault lies: a SQLite file or a PostgreSQL database, reading and writing as one.

A write takes the vault for itself before it looks (BEGIN IMMEDIATE, or the row lock that the vault
takes first); a read sees one moment. A commit is on the disk when it returns.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Column, Connection, Engine, create_engine, event, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, SQLAlchemyError

from client.vault import schema
from common.errors import InputError, Outdated, SealError, StorageError
from common.storage import make_private_directory, storage_error, sync_directory

_LOG: Final = logging.getLogger("veilface.vault")
_BUSY = 30.0  # seconds to wait for another writer
_SCRUB = 5.0  # seconds in which a scrub waits for readers
_LOCK_MS = 300  # of one try to lock a PostgreSQL table: all its readers wait behind it
_MAP: Final = 1 << 40  # bytes of the file to map: all; SQLite caps it at what it was built for
_PRAGMAS: Final = (
    "auto_vacuum=INCREMENTAL",
    "journal_mode=WAL",
    "synchronous=FULL",
    "secure_delete=ON",
    "temp_store=MEMORY",
    "cell_size_check=ON",
    f"mmap_size={_MAP}",
)
_DAMAGED: Final = (
    "malformed", "not a database", "no such", "decode", "corrupt", "schema", "cannot open",
)  # fmt: skip
_PAGE: Final = 16384


class Database:
    """An open store; `close` gives its connections back."""

    def __init__(self, where: str, *, create: bool) -> None:
        self.path: Path | None = None
        if "://" in where:
            self._engine = _postgres(where)
        else:
            self.path = Path(where).absolute()
            self._engine = _sqlite(Path(where), create=create)
        self._file = self._lies_there()
        try:
            with self.write() as connection:
                if create and schema.version(connection):
                    raise InputError("there is a vault already", hint="name another place")
                if not create and not schema.version(connection):
                    raise InputError("there is no vault", hint="make one first")
                schema.migrate(connection)
        except BaseException:
            self._engine.dispose()
            if create and self.path is not None:
                remove_files(self.path)  # it was not there before
            raise

    def _lies_there(self) -> tuple[int, int] | None:
        """Which file lies in the vault's place: (0, 0) where none does, None for a database."""
        if self.path is None:
            return None
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return 0, 0
        except OSError as error:
            raise storage_error(f"cannot look at {self.path}", error) from error
        return found.st_dev, found.st_ino

    def _check_place(self) -> None:
        """Raise Outdated where the file that is open is no longer the one that would be opened."""
        if self._lies_there() != self._file:
            raise Outdated(
                "the vault's file was taken away or replaced",
                hint="put it back, or open the one that is there now",
            )

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Yield a connection that sees one moment of the vault."""
        self._check_place()
        with _named_errors(), self._engine.connect() as connection:
            if self.path is None:
                connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Yield a connection whose changes are all kept, durably, or none are."""
        self._check_place()  # what is written to a file that is gone is lost
        with _named_errors(), self._engine.connect() as connection:
            connection = connection.execution_options(veilface_write=True)
            with connection.begin():
                yield connection

    def scrub(self) -> None:
        """Leave no copy of deleted rows: free pages, write-ahead log, dead tuples.

        Another program that keeps them alive for too long is a StorageError; what is left goes
        with the next `scrub` or `tidy`.
        """
        self._scrub(_SCRUB)

    def tidy(self) -> None:
        """As `scrub`, without waiting for others who use the vault just now."""
        self._scrub(0.0)

    def _scrub(self, patience: float) -> None:
        if self.path is None:
            with _named_errors():
                self._vacuum_tables(patience)
        else:
            self._scrub_file(patience)

    def _scrub_file(self, patience: float) -> None:
        """Free pages and empty the write-ahead log, waiting for others up to `patience` seconds."""
        with _named_errors():
            raw = self._engine.raw_connection()
            cursor = raw.cursor()
            try:
                cursor.execute(f"PRAGMA busy_timeout={int(1000 * patience)}")
                cursor.execute("PRAGMA incremental_vacuum").fetchall()
                if cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                    raise StorageError(
                        "another program keeps old pages of the vault alive",
                        hint="close it; they go when the vault is next opened",
                    )
            finally:
                cursor.execute(f"PRAGMA busy_timeout={int(1000 * _BUSY)}")
                raw.close()

    def close(self) -> None:
        self._engine.dispose()

    def _vacuum_tables(self, patience: float) -> None:
        """Write every table anew; for a lock that others hold it waits in short tries only.

        A dump holds its locks, and its snapshot keeps deleted rows, until it ends.
        """
        end = time.monotonic() + patience
        with self._engine.connect() as connection:
            connection = connection.execution_options(isolation_level="AUTOCOMMIT")
            connection.exec_driver_sql(f"SET lock_timeout = {_LOCK_MS}")
            try:
                for table in (*schema.COUNTED, schema.BODY, schema.KEY, schema.VAULT):
                    while not _vacuumed(connection, table.name):
                        if time.monotonic() >= end:
                            raise StorageError(
                                f"another program holds the vault's table {table.name}",
                                hint="it goes when the vault is next opened or erased from",
                            )
                        time.sleep(_LOCK_MS / 1000)  # those who waited behind it have their turn
            finally:
                connection.exec_driver_sql("SET lock_timeout = DEFAULT")


def _vacuumed(connection: Connection, table: str) -> bool:
    """Write one table anew; False where someone else holds it."""
    from psycopg.errors import LockNotAvailable

    try:
        connection.exec_driver_sql(f'VACUUM (FULL) "{table}"')
    except OperationalError as error:
        if isinstance(error.orig, LockNotAvailable):
            return False
        raise
    return True


def read_large(connection: Connection, column: Column[bytes], id_: int) -> bytes:
    """Return one large value by its row's id: with SQLite, by one copy instead of two."""
    raw = connection.connection.driver_connection
    if isinstance(raw, sqlite3.Connection):
        with raw.blobopen(column.table.name, column.name, id_, readonly=True) as value:
            return value.read()
    found = connection.execute(select(column).where(column.table.c.id == id_)).scalar_one_or_none()
    if not isinstance(found, bytes):
        raise SealError("a large value of the vault is missing")
    return found


def _postgres(where: str) -> Engine:
    import psycopg  # here: most vaults are files
    from psycopg.conninfo import make_conninfo

    named = "a vault is a file, or postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
    try:
        url = make_url(where)
    except (ArgumentError, ValueError) as error:  # neither says it without the password
        raise InputError("--vault is not a database address", hint=named) from error
    if url.get_backend_name() != "postgresql":
        raise InputError(named)
    try:
        make_conninfo(**dict.fromkeys(url.query, ""))  # knows which options there are
    except psycopg.ProgrammingError as error:
        raise InputError(f"--vault is not a database address: {error}", hint=named) from error
    if url.port is not None and not 1 <= url.port <= 65535:
        raise InputError(f"--vault: {url.port} is no port", hint=named)
    return create_engine(url.set(drivername="postgresql+psycopg"), pool_pre_ping=True)


def _sqlite(path: Path, *, create: bool) -> Engine:
    if create:
        _create_file(path)
    elif not path.is_file() or not path.stat().st_size:  # SQLite would make a database of it
        raise InputError(f"there is no vault at {path}", hint="make one with 'template init'")
    engine = create_engine(
        URL.create("sqlite", database=str(path.absolute())),  # no character of it is syntax
        connect_args={"timeout": _BUSY, "check_same_thread": False},
        pool_size=16,
        max_overflow=-1,
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: sqlite3.Connection, _record: Any) -> None:
        connection.isolation_level = None  # transactions begin where the next listener says
        for pragma in (f"page_size={_PAGE}", *_PRAGMAS):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("veilface_write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def remove_files(path: Path) -> None:
    """Remove a vault file that was never finished, and what lies beside it."""
    for suffix in ("", "-wal", "-shm", ".head"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _create_file(path: Path) -> None:
    if not path.parent.is_dir():
        make_private_directory(path.parent)
    elif stat.S_IMODE(path.parent.stat().st_mode) & 0o077:
        _LOG.warning(
            "%s is open to others: chmod 700 hides the vault's size and times", path.parent
        )
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        sync_directory(path.parent)
    except FileExistsError as error:
        raise InputError(f"{path} exists already", hint="name a new file") from error
    except OSError as error:
        raise storage_error(f"cannot create {path}", error) from error


@contextmanager
def _named_errors() -> Iterator[None]:
    """Turn the drivers' errors into ours: a damaged file, or a disk or server that says no."""
    try:
        yield
    except (DBAPIError, sqlite3.Error) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        text, name = str(cause).strip(), type(cause).__name__
        if name != "OperationalError" or any(word in text for word in _DAMAGED):
            raise SealError(f"the vault's tables are damaged: {text}") from error
        raise StorageError(
            f"the vault's storage failed: {text}", hint="nothing was half-written"
        ) from error
    except (SQLAlchemyError, UnicodeDecodeError, OverflowError) as error:
        raise SealError("the vault's tables are damaged") from error
