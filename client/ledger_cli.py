"""`veilface ledger`: what a site has spent, recomputed, and whether its ledger holds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from common.errors import InputError, LedgerError
from common.ledger import Genesis, Ledger, LedgerReport, Reservation, verify
from common.spending import spent
from common.tables import print_table
from common.wording import plural

_HEAD = "ledger.head"
_SQLITE = b"SQLite format 3\x00"


@click.group()
def ledger() -> None:
    """Show and check privacy ledgers.

    PATH is a site's state folder, a ledger.jsonl, a run folder with the ledgers of its sites, or,
    to verify only, a template vault: then its operation log is checked, as far as that goes without
    its key ('veilface template log' does the rest).
    """


@ledger.command(name="verify")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify_command(path: Path, as_json: bool) -> None:
    """Check every line, hash and sequence; exit 3 if anything was changed, moved or cut off."""
    if _is_database(path):
        _verify_vault(path, as_json)
        return
    reports = _reports(path)
    findings = {str(folder): list(report.findings) for folder, report in reports.items()}
    damaged = [folder for folder, texts in findings.items() if texts]
    if as_json:
        click.echo(json.dumps({"ok": not damaged, "findings": findings}))
    for folder, report in reports.items():
        if report.ok and not as_json:
            click.echo(f"{folder}: ok, {plural(len(report.reservations), 'round')} reserved")
        for text in report.findings:
            click.echo(f"{folder}: {text}", err=True)
    if damaged:
        raise LedgerError(
            f"{len(damaged)} of {plural(len(findings), 'ledger')} do not hold",
            hint="what they state must not be relied on",
        )


def _is_database(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_SQLITE)) == _SQLITE


def _verify_vault(path: Path, as_json: bool) -> None:
    from client.vault import verify_log  # a database only where there is one

    report = verify_log(str(path))
    if as_json:
        click.echo(json.dumps({"ok": report.ok, "findings": {str(path): list(report.findings)}}))
    elif report.ok:
        click.echo(f"{path}: ok, {plural(report.entries, 'operation')} logged")
    if not report.ok:
        raise LedgerError(f"the operation log of {path}: {'; '.join(report.findings)}")


@ledger.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(path: Path, as_json: bool) -> None:
    """Show what each site reserved and what all of it costs, recomputed by two accountants."""
    reports = _reports(path)
    for folder, report in reports.items():
        for text in report.findings:
            raise LedgerError(f"{folder}: {text}", hint="see 'veilface ledger verify'")
    if as_json:
        click.echo(json.dumps({"ledgers": [_as_json(f, r) for f, r in reports.items()]}))
        return
    for folder, report in reports.items():
        Console(soft_wrap=True).print(*_heading(folder, report), sep="\n", highlight=False)
        for table in _tables(report):
            print_table(table)


def _reports(path: Path) -> dict[Path, LedgerReport]:
    """Read every ledger that PATH means; one whose file is gone has that as its finding."""
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if path.name == Ledger.FILE_NAME:
        path = path.parent
    names = (Ledger.FILE_NAME, _HEAD)
    folders = [path, *sorted(path.glob("sites/*"))]
    found = [folder for folder in folders if any((folder / name).exists() for name in names)]
    if not found:
        raise InputError(f"there is no ledger in {path}", hint="name a site or a run folder")
    gone = LedgerReport((f"{Ledger.FILE_NAME} is gone, but {_HEAD} is there",), None, (), ())
    return {
        folder: verify(folder) if (folder / Ledger.FILE_NAME).exists() else gone for folder in found
    }


def _genesis(report: LedgerReport) -> Genesis:
    assert report.genesis is not None  # a report without findings has one
    return report.genesis


def _spending(report: LedgerReport) -> Iterator[tuple[Reservation, bool, float]]:
    """Yield each reservation, whether its release is on record, and epsilon up to it."""
    released = {commit.reservation for commit in report.commits}
    for count, entry in enumerate(report.reservations, start=1):
        so_far = spent(report.reservations[:count], _genesis(report).delta)
        yield entry, entry.seq in released, so_far


def _total(report: LedgerReport) -> tuple[float, float]:
    """Return epsilon spent and epsilon remaining."""
    genesis = _genesis(report)
    total = spent(report.reservations, genesis.delta)
    return total, max(0.0, genesis.epsilon - total)


def _finite(epsilon: float) -> float | None:
    return epsilon if math.isfinite(epsilon) else None


def _as_json(folder: Path, report: LedgerReport) -> dict[str, object]:
    genesis = _genesis(report)
    total, remaining = _total(report)
    return {
        "path": str(folder),
        "ledger_id": genesis.ledger_id,
        "privacy_unit": genesis.privacy_unit,
        "adjacency": genesis.adjacency,
        "delta": genesis.delta,
        "budget_epsilon": genesis.epsilon,
        "spent_epsilon": _finite(total),
        "remaining_epsilon": remaining,
        "not_private": not all(entry.private for entry in report.reservations),
        "rounds": [
            {
                "run_id": entry.run_id,
                "round": entry.round,
                "noise_multiplier": entry.noise_multiplier,
                "sample_rate": entry.sample_rate,
                "steps": entry.steps,
                "mechanism": entry.mechanism,
                "shares": entry.shares,
                "private": entry.private,
                "committed": committed,
                "epsilon": _finite(so_far),
            }
            for entry, committed, so_far in _spending(report)
        ],
    }


def epsilon_in_words(epsilon: float) -> str:
    """Return an epsilon to four places, rounded up so that it is never less than was spent."""
    if not math.isfinite(epsilon):
        return "infinite (not private)"
    return f"{math.ceil(1e4 * epsilon - 1e-6) / 1e4:.4f}"


def _title(run_id: str, entries: Iterable[Reservation]) -> str:
    """Return a run's name, and whose noise hides its releases if it is not the site's own alone."""
    shared = sorted({entry.shares for entry in entries if entry.mechanism != "gaussian"})
    return f"run {run_id}" + "".join(f", noise of {count} sites together" for count in shared)


def _heading(folder: Path, report: LedgerReport) -> tuple[str, str]:
    genesis = _genesis(report)
    total, remaining = _total(report)
    return (
        f"{folder}: epsilon {epsilon_in_words(total)} spent of {genesis.epsilon:g}, "
        f"{math.floor(1e4 * remaining + 1e-6) / 1e4:.4f} remaining",
        f"at delta {genesis.delta:g}, for a person added or removed at this site",
    )


def _tables(report: LedgerReport) -> Iterator[Table]:
    """Yield one table a run, in the order of the ledger."""
    for run_id, rows in groupby(_spending(report), key=lambda row: row[0].run_id):
        found = list(rows)
        table = Table(title=_title(run_id, (entry for entry, _, _ in found)))
        for name in ("round", "noise\nmultiplier", "sample\nrate", "steps", "private"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("committed", justify="right", no_wrap=True)
        table.add_column("epsilon\nso far", justify="right", overflow="fold")
        for entry, committed, so_far in found:
            table.add_row(
                str(entry.round),
                f"{entry.noise_multiplier:.4f}",
                f"{entry.sample_rate:g}",
                str(entry.steps),
                "yes" if entry.private else "no",
                "yes" if committed else "no (spent)",
                epsilon_in_words(so_far),
            )
        yield table
