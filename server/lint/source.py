"""A Python file as the rules see it: parsed by `ast`, never imported, never executed."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, eq=False)
class Source:
    """A parsed file and what its names mean.

    Attributes:
        path: relative to the project.
        tree: its syntax tree.
        config: the project's run configuration, for `run_config["key"]`.
    """

    path: str
    tree: ast.Module
    config: Mapping[str, object]
    _parents: Mapping[ast.AST, ast.AST] = field(init=False)
    _origins: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        parents = {c: node for node in ast.walk(self.tree) for c in ast.iter_child_nodes(node)}
        object.__setattr__(self, "_parents", parents)
        object.__setattr__(self, "_origins", dict(_imported(self.tree)))

    def at(self, node: ast.AST) -> str:
        """Return the place of a node, as editors take it."""
        return f"{self.path}:{getattr(node, 'lineno', 1)}"

    def imports(self, package: str) -> bool:
        """Whether something is imported from a package."""
        return any(_inside(origin, package) for origin in self._origins.values())

    def imports_file(self, module: str) -> bool:
        """Whether a module of the project, by its dotted path, is imported whole or in part."""
        last = module.rpartition(".")[2]
        names = set(self._origins.values()) | {o.rpartition(".")[0] for o in self._origins.values()}
        return any(name.rpartition(".")[2] == last for name in names)

    @property
    def server_only(self) -> bool:
        """Whether the file belongs to a Flower server and to no client."""
        names = {origin.rpartition(".")[2] for origin in self._origins.values()}
        return "ServerApp" in names and not names & {"ClientApp", "NumPyClient", "Client"}

    def name(self, node: ast.AST) -> str:
        """Return the dotted name of an expression, from where it was imported; "" if it has none.

        The name of a call's result is that of the call, with "()".
        """
        match node:
            case ast.Name(id=local):
                return self._origins.get(local, local)
            case ast.Attribute(value=value, attr=attribute):
                return f"{self.name(value)}.{attribute}"
            case ast.Call(func=function):
                return f"{self.name(function)}()"
        return ""

    def calls(self, names: Collection[str], package: str = "") -> Iterator[ast.Call]:
        """Yield the calls of these last names, if they come from `package`, in order of lines."""
        found = [
            node
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Call)
            and self.name(node.func).rpartition(".")[2] in names
            and (not package or _inside(self.name(node.func), package))
        ]
        yield from sorted(found, key=lambda call: (call.lineno, call.col_offset))

    def called(self, names: Collection[str]) -> bool:
        return next(self.calls(names), None) is not None

    def uses(self, names: Collection[str], package: str) -> Iterator[ast.AST]:
        """Yield where something of these names from `package` is used, called or not."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
                name = self.name(node)
                if name.rpartition(".")[2] in names and _inside(name, package):
                    yield node

    def function(self, node: ast.AST) -> Function | None:
        """Return the innermost function around a node."""
        return next((up for up in self._above(node) if isinstance(up, _FUNCTIONS)), None)

    def in_loop(self, node: ast.AST) -> bool:
        """Whether a node is repeated within its own function."""
        for up in self._above(node):
            if isinstance(up, _FUNCTIONS):
                return False
            if isinstance(up, ast.For | ast.While):
                return True
        return False

    def conditions(self, node: ast.AST) -> Iterator[ast.expr]:
        """Yield the tests of the `if`s that a node stands under within its own function."""
        for up in self._above(node):
            if isinstance(up, _FUNCTIONS):
                return
            if isinstance(up, ast.If):
                yield up.test

    def assigned(self, call: ast.Call) -> ast.expr | None:
        """Return the target of the assignment whose whole value is this call."""
        parent = self._parents.get(call)
        return parent.targets[0] if isinstance(parent, ast.Assign) else None

    def functions(self, of: Callable[[Source, Function], bool]) -> Iterator[Function]:
        """Yield the functions that `of` holds for."""
        for node in ast.walk(self.tree):
            if isinstance(node, _FUNCTIONS) and of(self, node):
                yield node

    def owner(self, function: Function) -> ast.ClassDef | None:
        """Return the class that a method stands in."""
        parent = self._parents.get(function)
        return parent if isinstance(parent, ast.ClassDef) else None

    def under(self, node: ast.AST, names: Collection[str]) -> bool:
        """Whether a node is under one of these, such as `no_grad`, by decorator or by `with`."""
        marks: list[ast.expr] = []
        for up in self._above(node):
            if isinstance(up, _FUNCTIONS):
                marks += up.decorator_list
            if isinstance(up, ast.With):
                marks += [item.context_expr for item in up.items]
        found = (self.name(mark).removesuffix("()").rpartition(".")[2] for mark in marks)
        return not set(names).isdisjoint(found)

    def meaning(self, node: ast.expr) -> ast.expr:
        """Return the expression that a name stands for, where it is assigned just once."""
        if not isinstance(node, ast.Name):
            return node
        scope: ast.AST | None = self.function(node)
        while True:
            found = _assignments(scope or self.tree, node.id)
            if found or scope is None:
                return found[0] if len(found) == 1 and found[0] is not node else node
            scope = self.function(scope)

    def value(self, node: ast.expr | None) -> object:
        """Return what an expression is if the files tell: a literal or a configured value.

        None where they do not tell, and for None itself.
        """
        match self.meaning(node) if node is not None else None:
            case ast.Constant(value=value):
                return value
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                number = self.number(operand)
                return None if number is None else -number
            case ast.Call(func=ast.Name(id="int" | "float" | "bool"), args=[only]):
                return self.value(only)
            case ast.Subscript(value=table, slice=ast.Constant(value=str(key))):
                return self.config.get(key) if self._is_run_config(table) else None
            case ast.Call(
                func=ast.Attribute(value=table, attr="get"), args=[ast.Constant() as key]
            ):
                return self.config.get(str(key.value)) if self._is_run_config(table) else None
        return None

    def number(self, node: ast.expr | None) -> float | None:
        """Return `value` if it is a number."""
        value = self.value(node)
        return float(value) if isinstance(value, int | float) else None

    def counts_data(self, node: ast.expr) -> bool:
        """Whether an expression is computed from how much data there is."""
        parts = [*ast.walk(node), *ast.walk(self.meaning(node))]
        names = {self.name(p.func) for p in parts if isinstance(p, ast.Call)}
        rows = any(isinstance(p, ast.Attribute) and p.attr in ("num_rows", "shape") for p in parts)
        return "len" in names or rows

    def _is_run_config(self, node: ast.expr) -> bool:
        return self.name(self.meaning(node)).endswith("run_config")

    def _above(self, node: ast.AST) -> Iterator[ast.AST]:
        while (parent := self._parents.get(node)) is not None:
            yield parent
            node = parent


def parse_source(path: str, text: str, config: Mapping[str, object]) -> Source:
    """Return a file's source; ValueError (a SyntaxError is one) or RecursionError if it is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of invalid escapes: not our file
        try:
            return Source(path, ast.parse(text), config)
        except (SyntaxError, MemoryError) as error:  # MemoryError: nested beyond the parser
            raise ValueError(str(error)) from error


def argument(call: ast.Call, keyword: str, position: int | None = None) -> ast.expr | None:
    """Return an argument of a call by keyword or position."""
    for given in call.keywords:
        if given.arg == keyword:
            return given.value
    if position is not None and position < len(call.args):
        return call.args[position]
    return None


def _inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def _imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                local = alias.asname or alias.name.partition(".")[0]
                yield local, alias.name if alias.asname else local
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module or ''}.{alias.name}"


def _assignments(scope: ast.AST, name: str) -> list[ast.expr]:
    """The values assigned to a name in a function or module, not in functions within."""
    found: list[ast.expr] = []
    waiting = list(ast.iter_child_nodes(scope))
    while waiting:
        node = waiting.pop()
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef, ast.Lambda)):
            continue
        waiting += ast.iter_child_nodes(node)
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            targets = [node.target]
        found += [
            node.value  # type: ignore[attr-defined]
            for target in targets
            if isinstance(target, ast.Name) and target.id == name
        ]
    return found
