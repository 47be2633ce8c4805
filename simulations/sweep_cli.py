"""`veilface sweep`: epsilon against accuracy, over trusts and seeds."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from common.storage import write_private
from common.vocabulary import Shift
from server.report.run_record import read_run
from simulations.scenario_options import as_arguments, scenario_options
from simulations.sweep import TRUSTS, Base, Cell, SweepFolder, Trust, cells, run_all
from simulations.sweep_results import Results, as_csv, draw, results, table

T = TypeVar("T")
_WIDE = 160


def _listed(read: Callable[[str], T]) -> Callable[[click.Context, click.Parameter, str], list[T]]:
    """Parse a list with commas; every entry that cannot be read is a usage error."""

    def parse(ctx: click.Context, parameter: click.Parameter, text: str) -> list[T]:
        try:
            return [read(entry.strip()) for entry in text.split(",") if entry.strip()]
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, parameter) from error

    return parse


def _trust(text: str) -> Trust:
    for known in TRUSTS:
        if text == known:
            return known
    raise ValueError(f"{text!r} is not one of {', '.join(TRUSTS)}")


@click.command()
@click.option("--data", required=True, metavar="synthetic|DIR", help="A folder of person folders.")
@scenario_options
@click.option("--epsilons", default="", callback=_listed(float), help="Such as 1,2,4,8.")
@click.option("--trusts", default="local,central,none", show_default=True, callback=_listed(_trust))
@click.option("--seeds", default="0,1,2", show_default=True, callback=_listed(int))
@click.option("--sites", type=click.IntRange(min=1), default=10, show_default=True)
@click.option("--persons", type=click.IntRange(min=1), help="Private persons over all sites.")
@click.option("--delta", type=float, default=1e-4, show_default=True)
@click.option("--jobs", type=click.IntRange(min=1), help="Runs at a time.  [default: cores]")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def sweep(
    data: str,
    shift: tuple[Shift, ...],
    epsilons: list[float],
    trusts: list[Trust],
    seeds: list[int],
    sites: int,
    persons: int | None,
    delta: float,
    jobs: int | None,
    out: Path,
    as_json: bool,
    options: tuple[str, ...],
    **scenario: Any,
) -> None:
    """Run a federation for every trust, epsilon and seed, and show accuracy over epsilon.

    Every run is a 'veilface simulate'; what stands after '--' goes to each of them, as in
    'veilface sweep ... -- --train tail --rounds 10'. Finished runs are kept: after a kill, start
    the same command again. More epsilons, trusts and seeds may be added later.
    """
    wanted = cells(trusts, epsilons, seeds)
    base = Base(data, ",".join(shift), sites, persons, delta, (*as_arguments(scenario), *options))
    _check(base, wanted)
    errors = Console(stderr=True)
    with SweepFolder.open(out, base) as (folder, lock):
        _run(folder, lock, wanted, jobs or len(os.sched_getaffinity(0)), errors)
        found = results({cell: read_run(folder.run(cell)) for cell in wanted})
        written = _write(found, out)
    if as_json:
        click.echo(json.dumps(found.to_json()))
        return
    console = Console()
    if not console.is_terminal:  # in a file or a pipe no cell needs to be folded
        console = Console(width=_WIDE)
    console.print(_shown(found))
    for path in written:
        console.print(str(path), markup=False, soft_wrap=True)


def _check(base: Base, wanted: tuple[Cell, ...]) -> None:
    """Raise what `simulate` would say to a run's options, before there is a folder."""
    from simulations.cli import experiment_of, simulate  # with torch: not for --help

    for cell in wanted:
        arguments = [*base.arguments(), *cell.arguments(base.sites)]
        options = simulate.make_context("veilface simulate", arguments).params
        own = ("out", "resume", "as_json")
        experiment_of(**{name: value for name, value in options.items() if name not in own})


def _run(
    folder: SweepFolder, lock: int, wanted: tuple[Cell, ...], jobs: int, errors: Console
) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=errors, disable=not errors.is_terminal, transient=True) as bar:
        kept = sum(folder.finished(cell) for cell in wanted)
        task = bar.add_task("runs", total=len(wanted), completed=kept)

        def finished(cell: Cell) -> None:
            bar.advance(task)
            errors.print(f"finished {cell.name}", markup=False, highlight=False)

        run_all(folder, lock, wanted, jobs=jobs, finished=finished)


def _shown(found: Results) -> Table:
    head, rows = table(found)
    shown = Table(*head, title="Means over seeds, with 95% bands over seeds and test persons")
    for row in rows:
        shown.add_row(*row)
    return shown


def _write(found: Results, out: Path) -> list[Path]:
    """Write table and plot, each whole or not at all."""
    drawn = draw(found)
    text = io.StringIO()
    Console(width=_WIDE, file=text).print(_shown(found))
    files = {
        "sweep.txt": text.getvalue().encode(),
        "sweep.csv": as_csv(found).encode(),
        "sweep.json": (json.dumps(found.to_json(), indent=2) + "\n").encode(),
        "sweep.png": drawn.png,
        "sweep.svg": drawn.svg.encode(),
    }
    for name, data in files.items():
        write_private(out / name, data)
    return [out / name for name in files]
