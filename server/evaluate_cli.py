"""`veilface evaluate`: how well a model verifies, on a folder, on LFW, and by group."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from common.detector_options import detector_options, yunet_file
from common.errors import InputError
from common.groups import Gap, GroupReport, Rate
from common.lfw import LfwResult
from common.metrics import Verification
from common.vocabulary import SHIFTS
from common.wording import plural

if TYPE_CHECKING:
    from common.face import ChipSpec
    from server.evaluation import Evaluation, Shift
    from server.remedies import Remedy

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.option("--data", type=FOLDER, required=True, help="One folder a person, or an LFW root.")
@click.option(
    "--protocol", type=click.Choice(["folder", "lfw"]), default="folder", show_default=True
)
@click.option("--shift", type=click.Choice(SHIFTS), default="none", show_default=True)
@click.option(
    "--groups",
    type=click.Path(exists=True, path_type=Path),
    help="Errors by group: CSV of file,race,gender,age[,subject], or an LFW root.",
)
@click.option("--backbone", help="Which public model.  [default: dlib-resnet]")
@click.option("--weights", type=FILE, help="Weights for --backbone, or that --model started from.")
@click.option("--model", type=FILE, help="The model of a run, instead of --backbone.")
@detector_options
@click.option("--aligned", is_flag=True, help="The images are aligned chips already.")
@click.option("--cache", type=click.Path(file_okay=False, path_type=Path), help="Chip cache.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(
    data: Path,
    protocol: str,
    shift: str,
    groups: Path | None,
    backbone: str | None,
    weights: Path | None,
    model: Path | None,
    detector: str,
    yunet: Path | None,
    aligned: bool,
    cache: Path | None,
    as_json: bool,
) -> None:
    """Measure how well a model verifies faces.

    With --groups, the threshold of FMR 1e-3 on --data is applied to the images that are listed,
    which lie beside the list; where they are those of --data itself, the threshold is that of FMR
    1e-3 among them. An LFW root lists persons by gender in male.txt and female.txt.
    """
    from common.chip_cache import ChipCache  # here, so that --help needs no torch
    from common.detection import detector_of
    from common.network import open_network
    from server.evaluation import Pipeline, run

    network = open_network(backbone, weights, model)
    finder, apply = detector_of(yunet_file(detector, yunet)), _shift(shift, network.backbone.chip)
    errors = Console(stderr=True)
    with _Bars(errors) as bars, ChipCache.open(cache) as chips:
        pipeline = Pipeline(network, finder, chips, aligned, apply, bars.show)
        found = run(pipeline, data, lfw=protocol == "lfw", groups=groups)
    for warning in found.warnings:
        errors.print(f"warning: {warning}", markup=False, soft_wrap=True)
    if as_json:
        click.echo(json.dumps({"model": network.name, **found.to_json()}, allow_nan=False))
    else:
        _print(Console(), network.name, found)


def _shift(name: str, spec: ChipSpec) -> Shift:
    """The shift of that name; the room that simulates cameras offers it as an entry point."""
    if name == "none":
        return lambda chips, _: chips
    for point in entry_points(group="veilface.shifts", name="apply"):
        return partial(point.load(), shift=name, spec=spec)
    raise InputError(f"--shift {name} is not installed", hint="pip install 'veilface[sim]'")


class _Bars:
    """A progress bar a stage on stderr, where that is a terminal."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._progress = Progress(
            *columns,
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._stages: dict[str, TaskID] = {}

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, stage: str, done: int, total: int) -> None:
        if stage not in self._stages:
            self._stages[stage] = self._progress.add_task(stage, total=total)
        self._progress.update(self._stages[stage], completed=done, total=total)


def _print(console: Console, name: str, found: Evaluation) -> None:
    title = f"{name}: {plural(found.images, 'image')} of {plural(found.persons, 'person')}"
    table = Table("", "value", "spread", title=title)
    for row in _rows(found):
        table.add_row(*row)
    console.print(table)
    if found.centred:
        cut = plural(found.centred, "image")
        console.print(f"{cut} without a detected face: cut at the centre.")
    for reason, count in sorted(Counter(s.reason for s in found.skipped).items()):
        console.print(f"Skipped {count}: {reason}", markup=False, soft_wrap=True)
    if found.groups:
        console.print(_group_table(found.groups))
    if found.remedies:
        console.print(_remedy_table(found.remedies))


def _rows(found: Evaluation) -> list[tuple[str, str, str]]:
    rows: list[tuple[str, str, str]] = []
    match found.result:
        case LfwResult() as lfw:
            spread = f"standard deviation over folds {lfw.accuracy_std:.4f}"
            rows = [
                ("accuracy", f"{lfw.accuracy:.4f}", spread),
                ("EER", f"{lfw.eer:.4f}", ""),
                ("TMR at FMR 1e-3", f"{lfw.tmr_at_fmr_1e3:.4f}", ""),
                ("threshold of accuracy", f"{lfw.threshold:.4f}", ""),
            ]
        case Verification() as rates:
            for label, field in (
                ("TMR at FMR 1e-2", "tmr_at_fmr_1e2"),
                ("TMR at FMR 1e-3", "tmr_at_fmr_1e3"),
                ("EER", "eer"),
            ):
                ci = getattr(rates.ci, field) if rates.ci else None
                between = f"95% over persons: {ci.low:.4f} to {ci.high:.4f}" if ci else ""
                rows.append((label, f"{getattr(rates, field):.4f}", between))
            rows.append(("mated pairs", f"{rates.mated:,}", ""))
            rows.append(("non-mated pairs", f"{rates.non_mated:,}", ""))
    return [*rows, ("threshold at FMR 1e-3", f"{found.threshold:.4f}", "")]


def _group_table(report: GroupReport) -> Table:
    missed = report.false_non_match
    measured = "FMR and FNMR" if missed else "FMR"
    lines = [f"{measured} by group at {report.threshold:.4f}", _gap("FMR", report.false_match)]
    columns = ["group", "persons", "images", "FMR", "95% interval"]
    if missed:
        lines.append(_gap("FNMR", missed))
        columns += ["FNMR", "95% interval"]
    table = Table(*columns, title="\n".join(lines))
    for rate in report.groups:
        cells = [f"{rate.persons:,}", f"{rate.images:,}", *_cells(rate.false_match)]
        table.add_row(rate.group, *cells, *(_cells(rate.false_non_match) if missed else ()))
    return table


def _remedy_table(remedies: Sequence[Remedy]) -> Table:
    """Before and after, a scoring a row: the plain one first."""
    missed = any(group.fnmr is not None for group in remedies[0].groups)
    columns = ["scoring", "TMR", "worst group", "its FMR", "mean FMR"]
    columns += ["highest FNMR", "lowest FNMR"] if missed else []
    title = (
        f"FMR by group, each scoring at its own threshold of FMR 1e-3 on the data\n"
        f"(sites of {remedies[0].persons} persons, means over random halves)"
    )
    table = Table(*columns, title=title)
    for remedy in remedies:
        rates = [group.fnmr for group in remedy.groups if group.fnmr is not None]
        extra = (f"{max(rates):.2%}", f"{min(rates):.2%}") if missed else ()
        worst = remedy.worst
        table.add_row(
            remedy.name, f"{remedy.tmr:.2%}", worst.group, f"{worst.fmr:.2%}", f"{remedy.mean:.2%}",
            *extra,
        )  # fmt: skip
    return table


def _gap(name: str, gap: Gap) -> str:
    text = f"{name} of all {gap.overall:.2%}, worst {gap.worst}"
    if gap.ratio is None or gap.ci is None:
        return text
    return f"{text}: {gap.ratio:.2f} times that (95%: {gap.ci.low:.2f} to {gap.ci.high:.2f})"


def _cells(rate: Rate | None) -> tuple[str, str]:
    if rate is None:
        return ("", "")
    return f"{rate.value:.2%}", f"{rate.ci.low:.2%} to {rate.ci.high:.2%}"
