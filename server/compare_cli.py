"""`veilface audit compare`: runs side by side, on screen and as a page."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from common.storage import make_private_directory, write_private
from server.report.comparison import Comparison
from server.report.comparison import compare as compare_runs


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Write a page here.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def compare(runs: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Show runs side by side: settings that differ, epsilon against each adversary, accuracy.

    Rates are compared only where the same persons' images test; a run tested on something else
    than the first one keeps its column, without rates, and is warned of.
    """
    comparison = compare_runs(runs)
    written = _write(comparison, out) if out else []
    if as_json:
        click.echo(json.dumps(comparison.to_json(), allow_nan=False))
        return
    console = Console()
    if not console.is_terminal:  # in a file or a pipe no cell needs to be folded
        console = Console(width=60 + 30 * len(runs))
    for warning in comparison.warnings:
        console.print(f"WARNING: {warning}", markup=False, soft_wrap=True, style="bold red")
    console.print(_table(comparison))
    for path in written:
        console.print(str(path), markup=False, soft_wrap=True)


def _table(comparison: Comparison) -> Table:
    from server.report.compare_page import rows_of  # with Matplotlib: not for --help

    table = Table("", *(run.name for run in comparison.runs))
    for label, cells in rows_of(comparison):
        table.add_row(label, *(f"{v} ({ends})" if ends else v for v, ends in cells))
    table.add_section()
    for difference in comparison.differences:
        table.add_row(difference.setting, *difference.values)
    return table


def _write(comparison: Comparison, out: Path) -> list[Path]:
    """Write page, drawing and JSON, each whole or not at all."""
    from server.report.compare_page import draw, render

    if not out.is_dir():
        make_private_directory(out)
    drawn = draw(comparison)
    files = {
        "compare.html": render(comparison, drawn).encode(),
        "compare.json": (json.dumps(comparison.to_json(), indent=2) + "\n").encode(),
        "compare.png": drawn.png,
        "compare.svg": drawn.svg.encode(),
    }
    for name, data in files.items():
        write_private(out / name, data)
    return [out / name for name in files]
