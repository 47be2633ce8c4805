"""Apply the rules to a project."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass

from common.errors import InputError
from server.lint.project import Kind, Project, Severity
from server.lint.rules import RULES


@dataclass(frozen=True)
class Finding:
    """A rule that is broken at one place; `allowed` where the user takes it on themselves."""

    rule: str
    severity: Severity
    where: str
    what: str
    title: str
    why: str
    mend: str
    allowed: bool


@dataclass(frozen=True)
class Report:
    """All findings in the order of the rules; `errors` are those that are not allowed."""

    kind: Kind
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.severity == "error" and not f.allowed)

    def to_json(self) -> dict[str, object]:
        """The object that `veilface audit lint --json` prints."""
        return {
            "ok": not self.errors,
            "kind": self.kind,
            "errors": len(self.errors),
            "warnings": sum(f.severity == "warning" and not f.allowed for f in self.findings),
            "allowed": sum(f.allowed for f in self.findings),
            "findings": [asdict(finding) for finding in self.findings],
            "rules": [rule.id for rule in RULES],
        }


def lint_project(project: Project, allowed: Collection[str] = ()) -> Report:
    """Return what the rules find; InputError where `allowed` names a rule that there is not."""
    known = {rule.id for rule in RULES}
    for name in allowed:
        if name not in known:
            raise InputError(
                f"there is no rule {name!r}", hint=f"one of {', '.join(sorted(known))}"
            )
    findings = (
        Finding(
            rule.id,
            hit.severity,
            hit.where,
            hit.what,
            rule.title,
            rule.why,
            rule.mend,
            rule.id in allowed,
        )
        for rule in RULES
        for hit in rule.check(project)
    )
    return Report(project.kind, tuple(findings))
