"""The tables of a vault, and the steps that bring an older file up to date.

What can be read without a key: opaque ids and pseudonyms, small numbers, sizes. Rows are written
once and deleted, never changed, but for wrapped keys (rotation) and the one row of `vault`. Tables
are read whole or by id, since a damaged index could hide a row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    insert,
    inspect,
    select,
    update,
)

from common.errors import Refused, SealError

METADATA: Final = MetaData()
_NUMBER: Final = BigInteger().with_variant(Integer, "sqlite")


def _id() -> Column[int]:
    return Column("id", _NUMBER, primary_key=True, autoincrement=False)


VAULT: Final = Table(
    "vault",
    METADATA,
    _id(),
    Column("vault_id", String, nullable=False),
    Column("key", _NUMBER, nullable=False),
    Column("manifest", LargeBinary, nullable=False),
)
KEY: Final = Table(
    "vault_key",
    METADATA,
    _id(),
    Column("kind", String, nullable=False),
    Column("wrapped", LargeBinary, nullable=False),
    Column("forward", LargeBinary),  # the next key under this one, while a rotation lasts
    Column("back", LargeBinary),  # the key before under this one, while a rotation lasts
)
SUBJECT: Final = Table(
    "subject",
    METADATA,
    _id(),
    Column("pseudonym", String, nullable=False, unique=True),
    Column("key", _NUMBER, nullable=False),
    Column("wrapped", LargeBinary, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
)
TEMPLATE: Final = Table(
    "template",
    METADATA,
    _id(),
    Column("subject", _NUMBER, nullable=False),
    Column("model", _NUMBER, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
)
CHIP: Final = Table(
    "chip",
    METADATA,
    _id(),
    Column("subject", _NUMBER, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
)
SHARD: Final = Table(
    "shard",
    METADATA,
    _id(),
    Column("model", _NUMBER, nullable=False),
    Column("key", _NUMBER, nullable=False),
    Column("wrapped", LargeBinary, nullable=False),
)
BODY: Final = Table(  # apart, so that wrapping a shard's key anew does not write its rows again
    "shard_body",
    METADATA,
    _id(),
    Column("directory", LargeBinary, nullable=False),
    Column("body", LargeBinary, nullable=False),
)
SETTING: Final = Table(
    "setting",
    METADATA,
    _id(),
    Column("name", String, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
)
LOG: Final = Table(
    "log",
    METADATA,
    _id(),
    Column("sealed", LargeBinary, nullable=False),
    Column("hash", String, nullable=False),
)
VERSION: Final = Table("schema_version", METADATA, Column("version", Integer, nullable=False))

COUNTED: Final = (SUBJECT, TEMPLATE, CHIP, SHARD, SETTING)  # a row's place is part of its count
MIGRATIONS: Final[tuple[Callable[[Connection], None], ...]] = (METADATA.create_all,)


def version(connection: Connection) -> int:
    """Return the version of a file's tables; 0 if it has none."""
    if not inspect(connection).has_table(VERSION.name):
        return 0
    found = connection.execute(select(VERSION.c.version)).scalars().all()
    if len(found) != 1 or type(found[0]) is not int or found[0] < 1:
        raise SealError("the vault's schema version is damaged")
    return found[0]


def migrate(connection: Connection) -> None:
    """Bring the tables to the newest version, in the caller's transaction."""
    found = version(connection)
    if found > len(MIGRATIONS):
        raise Refused(
            f"the vault has schema version {found} and this program knows {len(MIGRATIONS)}",
            hint="open it with the newer program that wrote it",
        )
    for step in MIGRATIONS[found:]:
        step(connection)
    if found == 0:
        connection.execute(insert(VERSION).values(version=len(MIGRATIONS)))
    elif found < len(MIGRATIONS):
        connection.execute(update(VERSION).values(version=len(MIGRATIONS)))
