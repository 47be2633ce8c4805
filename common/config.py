"""The only parser: plain mappings (TOML, JSON, Flower run configuration) to frozen dataclasses.

Unknown keys, missing keys and wrong types are errors that name the key; nothing is guessed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, get_args, get_origin

from common.errors import InputError

T = TypeVar("T")
# Editors of Windows put it before a text; neither TOML nor JSON allows it (RFC 8259, 8.1).
_MARK: Final = "\ufeff"
# Of a dataclass field that was not there from the first: `field(default=..., metadata=LATER)`.
LATER: Final[Mapping[str, bool]] = types.MappingProxyType({"later": True})


def parse(kind: type[T], values: Mapping[str, Any], *, where: str = "configuration") -> T:
    """Return the dataclass `kind` from a mapping; any surprise is an InputError naming the key."""
    if not isinstance(values, Mapping):
        raise InputError(f"{where}: expected a table, not {type(values).__name__}")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise InputError(
            f"{where}: unknown key {unknown[0]!r}", hint=f"known keys: {', '.join(fields)}"
        )
    found = {}
    for name, field in fields.items():
        if name in values:
            found[name] = _value(hints[name], values[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InputError(f"{where}: missing key {name!r}")
    return kind(**found)


def _value(kind: Any, value: Any, where: str) -> Any:
    origin = get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in get_args(kind):
            return None
        (inner,) = [k for k in get_args(kind) if k is not type(None)]
        return _value(inner, value, where)
    if origin is Literal:
        if value not in get_args(kind):
            raise InputError(f"{where}: {value!r} is not one of {', '.join(get_args(kind))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise InputError(f"{where}: expected a list, not {value!r}")
        inner = get_args(kind)[0]
        return tuple(_value(inner, entry, f"{where}[{i}]") for i, entry in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise InputError(f"{where}: expected a table, not {value!r}")
        inner = get_args(kind)[1]
        return {str(key): _value(inner, entry, f"{where}.{key}") for key, entry in value.items()}
    if dataclasses.is_dataclass(kind):
        return parse(typing.cast(type[Any], kind), value, where=where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    # bool is an int in Python, but `true` where a number belongs is a mistake.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"{where}: expected {kind.__name__}, not {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where}: must be finite, not {value}")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if not dataclasses.is_dataclass(value):
        return value
    found = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    for field in dataclasses.fields(value):
        if field.metadata == LATER and found[field.name] == field.default:
            del found[field.name]
    return {name: _plain(one) for name, one in found.items()}


def to_json(value: Any) -> str:
    """Return the canonical JSON of a frozen dataclass: sorted keys, no spaces, no NaN.

    A field that came `LATER` is written only where it differs from its default: what had no such
    field keeps its text, its digest and its signature.
    """
    plain = _plain(value)
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False, default=str)


def from_json(kind: type[T], text: str, *, where: str = "configuration") -> T:
    """Return the dataclass `kind` from JSON text; malformed text is an InputError."""
    try:
        values = json.loads(text.removeprefix(_MARK))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}") from error
    return parse(kind, values, where=where)


def read_text(path: Path) -> str:
    """Return what a file in UTF-8 says, without a byte order mark.

    Raises OSError and UnicodeDecodeError.
    """
    return path.read_text(encoding="utf-8-sig")


def read_json(kind: type[T], path: Path) -> T | None:
    """Return the dataclass `kind` from a JSON file, None where there is none; errors name it."""
    try:
        text = read_text(path)
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    return from_json(kind, text, where=str(path))


def from_toml(kind: type[T], path: Path) -> T:
    """Return the dataclass `kind` from a TOML file; a missing or malformed file is named."""
    try:
        values = tomllib.loads(read_text(path))
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read {path}: {error}", hint="save it as UTF-8") from error
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    return parse(kind, values, where=path.name)


def digest(value: Any) -> str:
    """Return the SHA-256 of a dataclass' canonical JSON, 64 hex digits."""
    return hashlib.sha256(to_json(value).encode()).hexdigest()
