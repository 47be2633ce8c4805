"""The command `veilface bench`: each runs its peer beside it, interleaved, in one run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import click
from rich.console import Console
from rich.table import Column, Table

from simulations.bench.timing import Case, machine


def _dp_step(runs: int) -> list[Case]:
    from simulations.bench.dp_step import dp_step  # torch and Opacus only when they are needed

    return dp_step(runs)


def _simulation(runs: int) -> list[Case]:
    from simulations.bench.engines import simulation

    return simulation(max(1, runs // 5))


def _round(runs: int) -> list[Case]:
    from simulations.bench.rounds import rounds

    return rounds(runs)


def _search(runs: int) -> list[Case]:
    from simulations.bench.search import search

    return search(runs)


def _secagg(runs: int) -> list[Case]:
    from simulations.bench.secagg import secagg

    return secagg(runs)


def _vault(runs: int) -> list[Case]:
    from simulations.bench.vault import vault

    return vault(runs)


BENCHES: dict[str, Callable[[int], list[Case]]] = {
    "dp-step": _dp_step,
    "round": _round,
    "search": _search,
    "secagg": _secagg,
    "simulation": _simulation,
    "vault": _vault,
}


@click.command()
@click.argument("what", type=click.Choice(sorted(BENCHES)))
@click.option("--runs", type=click.IntRange(min=1), default=10, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def bench(what: str, runs: int, as_json: bool) -> None:
    """Time Veilface beside a peer; ratio = ours / peer, medians of interleaved runs."""
    cases = BENCHES[what](runs)
    if as_json:
        result = {"cases": [dataclasses.asdict(case) for case in cases], "machine": machine()}
        click.echo(json.dumps(result))
        return
    table = Table(Column("case", overflow="fold", ratio=1), title=f"bench {what}")
    for column in ("ours", "peer", "ours / peer", "runs"):
        table.add_column(column, justify="right", no_wrap=True)
    for case in cases:
        table.add_row(
            case.name,
            f"{case.ours:.4g} {case.unit}",
            f"{case.peer:.4g} {case.unit}",
            f"{case.ratio:.3f}",
            str(case.runs),
        )
    Console().print(table)
