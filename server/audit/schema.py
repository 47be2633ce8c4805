"""The published JSON schema of `report.json`, made from the dataclasses that it describes."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from typing import Any, Literal, get_args, get_origin

from common.config import LATER
from server.audit.facts import LATER_UTILITY, Facts, Findings, Report, RoundSpending
from server.report.utility import Utility

# Written only where they differ from their defaults, so that format 1 fits as well.
_LATER = (
    (Facts, "scores"),
    (Findings, "alone"),
    (RoundSpending, "mechanism"),
    (RoundSpending, "shares"),
    *((Utility, name) for name in LATER_UTILITY),
)
_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean"}


def schema_text() -> str:
    """Return the schema (JSON Schema 2020-12) as it lies in `schema.json`."""
    definitions: dict[str, Any] = {}
    root = _schema(Report, definitions)
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Veilface audit report, formats 1 and 2",
        **root,
        "$defs": dict(sorted(definitions.items())),
    }
    return json.dumps(schema, indent=1) + "\n"


def _schema(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return {"anyOf": [_schema(one, definitions) for one in inner]}
    if kind is types.NoneType:
        return {"type": "null"}
    if origin is Literal:
        return {"enum": list(inner)}
    if origin is tuple:
        return {"type": "array", "items": _schema(inner[0], definitions)}
    if kind in _PLAIN:
        return {"type": _PLAIN[kind]}
    name = kind.__name__
    if name not in definitions:
        definitions[name] = {}  # reserved, should a class name itself
        hints = typing.get_type_hints(kind)
        fields = [field.name for field in dataclasses.fields(kind)]
        later = {field.name for field in dataclasses.fields(kind) if field.metadata == LATER}
        definitions[name] = {
            "type": "object",
            "description": (kind.__doc__ or "").split("\n", maxsplit=1)[0],
            "properties": {one: _schema(hints[one], definitions) for one in fields},
            "required": [one for one in fields if one not in later and (kind, one) not in _LATER],
            "additionalProperties": False,
        }
    return {"$ref": f"#/$defs/{name}"}
