"""Whether a line of a project runs once in a client's life, or once a round.

A Flower ClientApp is a new process each round, so what its modules make, they make anew; a client
that `start_client` keeps alive makes once what stands in its module, its `main` or its `__init__`.
Calls are followed by their names through all files; where they lead nowhere, it is once a round.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from server.lint.source import Function, Source

_KEPT_ALIVE = ("start_client", "start_numpy_client")
_CACHED = ("cache", "lru_cache", "cached_property")


def answers(source: Source, function: Function) -> bool:
    """Whether what a function returns goes to a Flower server."""
    marks = (source.name(mark).removesuffix("()") for mark in function.decorator_list)
    if any(mark.endswith((".train", ".evaluate", ".query")) for mark in marks):
        return True
    owner = source.owner(function)
    bases = [source.name(base) for base in owner.bases] if owner else []
    return function.name in ("fit", "evaluate") and any(b.endswith("Client") for b in bases)


class Lifetimes:
    """How often the lines of these sources run; they belong to one project with Flower."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._alive = any(source.called(_KEPT_ALIVE) for source in sources)

    def each_round(self, source: Source, node: ast.AST) -> bool:
        """Whether a node runs again in every round."""
        return self._again(source, node, frozenset())

    def _again(self, source: Source, node: ast.AST, seen: frozenset[Function]) -> bool:
        if source.in_loop(node):
            return True
        function = source.function(node)
        if function is None:
            return not self._alive and self._loaded_by_an_app(source)
        if source.under(node, _CACHED) or _only_if_missing(source, node):
            return not self._alive
        if answers(source, function) or self._makes_clients(function):
            return True
        if function in seen:
            return False
        sites = list(self._calls_of(source, function))
        if not sites:
            return function.name != "main"
        return any(self._again(*site, seen | {function}) for site in sites)

    def _calls_of(self, source: Source, function: Function) -> Iterator[tuple[Source, ast.AST]]:
        """Where a function is called, in any file; an `__init__` where its class is."""
        owner = source.owner(function)
        name = owner.name if owner and function.name == "__init__" else function.name
        for each in self._sources:
            for call in each.calls((name,)):
                yield each, call

    def _makes_clients(self, function: Function) -> bool:
        """Whether Flower calls it for each message: what ClientApp or a simulation is given."""
        given = {
            source.name(value).rpartition(".")[2]
            for source in self._sources
            for call in source.calls(("ClientApp", "start_simulation"))
            for value in (*call.args, *(keyword.value for keyword in call.keywords))
        }
        return function.name in given | {"client_fn"}

    def _loaded_by_an_app(self, source: Source) -> bool:
        """Whether a module is a ClientApp's, or one that such a module imports."""
        stem = source.path.removesuffix(".py").replace("/", ".")
        apps = [each for each in self._sources if each.called(("ClientApp",))]
        return any(each is source or each.imports_file(stem) for each in apps)


def _only_if_missing(source: Source, node: ast.AST) -> bool:
    """Whether a node stands under `if x is None`, `if not x` or `if not hasattr(...)`."""
    for test in source.conditions(node):
        match test:
            case ast.UnaryOp(op=ast.Not()):
                return True
            case ast.Compare(ops=[ast.Is()], comparators=[ast.Constant(value=None)]):
                return True
    return False
