"""`veilface audit lint`: what in a run, a project or recorded settings makes its epsilon false."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

import click

from common.wording import plural
from server.lint.linting import Finding, Report, lint_project
from server.lint.reading import read


@click.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--allow", multiple=True, metavar="RULE", help="Take a rule's findings on yourself; repeatable."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def lint(ctx: click.Context, path: Path, allow: tuple[str, ...], as_json: bool) -> None:
    """Find what makes an epsilon false.

    PATH is a run folder, the state of a deployed site, the folder of a Flower and Opacus project
    (read, never run), or a file of recorded settings in TOML or JSON. Exit 1 if there are errors;
    warnings alone exit 0. Silence proves nothing: it says that these rules found nothing.
    """
    report = lint_project(read(path), allow)
    if as_json:
        click.echo(json.dumps(report.to_json()))
    else:
        _print(report)
    ctx.exit(1 if report.errors else 0)


def _print(report: Report) -> None:
    for _, group in groupby(report.findings, key=lambda finding: finding.rule):
        found = list(group)
        click.echo(f"{_mark(found[0])} [{found[0].rule}] {found[0].title}")
        for finding in found:
            click.echo(f"  {finding.where}: {finding.what}")
        click.echo(f"  why: {found[0].why}")
        click.echo(f"  mend: {found[0].mend}\n")
    warned = sum(f.severity == "warning" and not f.allowed for f in report.findings)
    allowed = sum(f.allowed for f in report.findings)
    errors, warnings = plural(len(report.errors), "error"), plural(warned, "warning")
    click.echo(f"{errors}, {warnings}, {allowed} allowed")


def _mark(finding: Finding) -> str:
    return "allowed" if finding.allowed else finding.severity
