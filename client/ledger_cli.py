"""`veilface ledger`: what a site has spent, recomputed, and whether its ledger holds."""

from __future__ import annotations

import json
import math
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from common.errors import InputError, LedgerError
from common.ledger import Ledger, LedgerReport, verify
from common.plan import spent


@click.group()
def ledger() -> None:
    """Show and check privacy ledgers.

    PATH is a site's state folder, a ledger.jsonl, or a run folder with the ledgers of its sites.
    """


def _ledgers(path: Path) -> list[Path]:
    """The folders of all ledgers that PATH means."""
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if path.name == Ledger.FILE_NAME:
        return [path.parent]
    if (path / Ledger.FILE_NAME).exists() or (path / "ledger.head").exists():
        return [path]
    found = sorted(head.parent for head in path.glob("sites/*/ledger.head"))
    found += [p.parent for p in path.glob("sites/*/ledger.jsonl") if p.parent not in found]
    if not found:
        raise InputError(f"there is no ledger in {path}", hint="name a site or a run folder")
    return sorted(found)


def _checked(folder: Path) -> LedgerReport:
    if not (folder / Ledger.FILE_NAME).exists():
        return LedgerReport((f"{Ledger.FILE_NAME} is gone but its head is there",), None, (), ())
    return verify(folder)


@ledger.command(name="verify")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify_command(path: Path, as_json: bool) -> None:
    """Check every line, hash and sequence; exit 3 if anything was changed, moved or cut off."""
    reports = {folder: _checked(folder) for folder in _ledgers(path)}
    if as_json:
        result = {str(folder): list(report.findings) for folder, report in reports.items()}
        click.echo(json.dumps({"ok": not any(result.values()), "findings": result}))
    else:
        for folder, report in reports.items():
            rounds = len(report.reservations)
            click.echo(f"{folder}: {'ok' if report.ok else 'DAMAGED'}, {rounds} rounds reserved")
    bad = {folder: report for folder, report in reports.items() if not report.ok}
    if bad:
        lines = [f"{folder}: {text}" for folder, report in bad.items() for text in report.findings]
        raise LedgerError("; ".join(lines), hint="what it states must not be relied on")


@ledger.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(path: Path, as_json: bool) -> None:
    """Show what each site reserved and what all of it costs, recomputed by two accountants."""
    reports = {folder: _checked(folder) for folder in _ledgers(path)}
    for folder, report in reports.items():
        if not report.ok:
            raise LedgerError(
                f"{folder}: {report.findings[0]}", hint="see 'veilface ledger verify'"
            )
    if as_json:
        click.echo(json.dumps({"ledgers": [_as_json(f, r) for f, r in reports.items()]}))
        return
    console = Console()
    for folder, report in reports.items():
        console.print(_table(folder, report))


def _epsilon(report: LedgerReport, rounds: int) -> float:
    assert report.genesis is not None
    return spent(report.reservations[:rounds], report.genesis.delta)


def _as_json(folder: Path, report: LedgerReport) -> dict[str, object]:
    assert report.genesis is not None
    total = _epsilon(report, len(report.reservations))
    return {
        "path": str(folder),
        "ledger_id": report.genesis.ledger_id,
        "privacy_unit": report.genesis.privacy_unit,
        "adjacency": report.genesis.adjacency,
        "delta": report.genesis.delta,
        "budget_epsilon": report.genesis.epsilon,
        "spent_epsilon": total if math.isfinite(total) else None,
        "not_private": not all(r.private for r in report.reservations),
        "rounds": len(report.reservations),
        "committed": len(report.commits),
    }


def _words(epsilon: float) -> str:
    return f"{epsilon:.4f}" if math.isfinite(epsilon) else "infinite (not private)"


def _table(folder: Path, report: LedgerReport) -> Table:
    genesis = report.genesis
    assert genesis is not None
    title = (
        f"{folder}\nbudget epsilon {genesis.epsilon:g} at delta {genesis.delta:g}, "
        "one person added or removed"
    )
    table = Table(title=title)
    for column in ("run", "round", "noise_multiplier", "sample_rate", "steps", "released"):
        table.add_column(column, justify="right")
    table.add_column(f"epsilon so far (delta {genesis.delta:g})", justify="right")
    done = {commit.reservation for commit in report.commits}
    for count, entry in enumerate(report.reservations, start=1):
        table.add_row(
            entry.run_id,
            str(entry.round),
            f"{entry.noise_multiplier:.4f}",
            f"{entry.sample_rate:g}",
            str(entry.steps),
            "yes" if entry.seq in done else "no (counts as spent)",
            _words(_epsilon(report, count)),
        )
    return table
