"""Rules about what the linter cannot vouch for."""

from __future__ import annotations

from collections.abc import Iterator

from server.lint.project import Hit, Project, rule


def _unreadable(project: Project) -> Iterator[Hit]:
    for unread in project.unread:
        yield Hit(unread.where, unread.why)


UNREADABLE = rule(
    "unreadable",
    "a file cannot be read, or a ledger does not hold",
    why="Nothing can be said of a file that is not read, and a ledger whose chain is broken does "
    "not say what was spent.",
    mend="Mend or remove the file; see 'veilface ledger verify' for a ledger.",
)(_unreadable)


def _no_mechanism(project: Project) -> Iterator[Hit]:
    if project.sources and not project.private:
        yield Hit(
            f"{len(project.sources)} Python files",
            "no mechanism that this linter knows (Opacus, Flower's helpers) is called",
            "warning",
        )


NO_MECHANISM = rule(
    "no-mechanism",
    "nothing known adds noise",
    why="Without noise epsilon is infinite; and of a mechanism written by hand this linter knows "
    "nothing, so its silence means nothing.",
    mend="Record the settings in a file (docs/lint.md) and lint that.",
)(_no_mechanism)
