"""All words of the report, one table a language; both have the same keys and placeholders."""

from __future__ import annotations

import math
import tomllib
from functools import cache
from html import escape
from importlib.resources import files
from typing import Final, Literal, get_args

from server.report.wording import epsilon

Language = Literal["en", "zh"]
LANGUAGES: Final[tuple[Language, ...]] = get_args(Language)


class Wording:
    """Sentences of one language by section and name, as HTML; values are escaped."""

    def __init__(self, language: Language) -> None:
        self.language = language
        self._texts = texts(language)

    def __call__(self, name: str, **values: object) -> str:
        section, _, key = name.partition(".")
        plain = {key: escape(str(value)) for key, value in values.items()}
        return self._texts[section][key].format(**plain)

    def items(self, name: str, **values: object) -> list[str]:
        """Return the entries of a list."""
        entries = self(name, **values).strip().split(";\n")
        return [entry.strip().rstrip(".。") for entry in entries]

    def epsilon(self, value: float | None) -> str:
        """Return an epsilon to two places, rounded up, or that there is no bound."""
        return self("number.no_bound") if value is None else epsilon(value)


@cache
def texts(language: Language) -> dict[str, dict[str, str]]:
    """Return a language's table."""
    path = files("server.audit") / f"wording_{language}.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


def share(value: float) -> str:
    """A probability as a percentage, rounded up; with two places where one would say 100%."""
    places = 1 if value <= 0.999 or value == 1.0 else 2
    scale = 10.0 ** (2 + places)
    return f"{math.ceil(value * scale - 1e-6) / 10**places:.{places}f}%"


def nearly(value: float) -> str:
    """The same, with two places above 99, so that almost certain is not called certain."""
    places = 0 if value <= 0.99 else 2
    return f"{math.ceil(value * 10 ** (2 + places) - 1e-6) / 10**places:.{places}f}"


def in_hundred(value: float) -> str:
    """A probability as so many times in 100, rounded up."""
    return str(math.ceil(100 * value - 1e-6))
