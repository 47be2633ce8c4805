"""The command `veilface audit attack`."""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.table import Table

from common.errors import InputError
from common.storage import make_private_directory, write_private
from common.vocabulary import BACKBONES
from common.wording import plural
from server.report.wording import epsilon as epsilon_in_words
from server.report.wording import power
from simulations.attacks.audit import (
    ATTACKS,
    DEEP,
    QUICK,
    STANDARD,
    Attack,
    AuditOptions,
    Sizes,
    run_audit,
)
from simulations.attacks.bounds import ALARM
from simulations.attacks.controls import CONTROLS
from simulations.attacks.pictures import write_pictures
from simulations.attacks.record import AttackReport, Figure, Finding
from simulations.progress import LiveProgress
from simulations.run_folder import check_free

# How to read the figures of each attack: what stands beside what, and what would be wrong.
READ: Final[Mapping[str, str]] = {
    "gradient": "The last two figures are the noise that was found in the updates and the noise "
    "that the contract states: in a right build they differ by chance only.",
    "one-run": "Of guesses on coins 0.500 are right by chance; more tell something of who was in.",
    "membership": "Each figure is followed by the most that the claim allows; blind guesses have "
    "an AUC of 0.500 and a TPR as low as the FPR.",
    "masks": "Blind guesses are 0.500 right, and a p-value alarms only very close to 0; the two "
    "epsilons are claims: of a sum, and of one site's share, which nobody sees.",
    "inversion": "Face cosine is how like the rebuilt face is to the true one (1: the same). About "
    "the same number as another person's photographs have means that nothing of the face was "
    "rebuilt; the lines without privacy show what clipping and noise hide.",
    "templates": "A linkage AUC of 0.500 is blind chance, and a cosine or likeness of 0 is unlike; "
    "plain embeddings are what a thief would have without a vault, and a cosine of 1 with known "
    "pairs says that so many undo it.",
}


@click.command()
@click.option("--data", default="synthetic", show_default=True, metavar="synthetic|DIR")
@click.option("--aligned", is_flag=True, help="Images are aligned chips already.")
@click.option("--cache", type=click.Path(path_type=Path), help="Where aligned chips are kept.")
@click.option("--backbone", type=click.Choice(BACKBONES), default="lenet", show_default=True)
@click.option("--weights", type=click.Path(path_type=Path), help="State dict or safetensors.")
@click.option("--persons", type=click.IntRange(min=4), default=12, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=4, show_default=True)
@click.option("--epsilon", type=float, required=True, help="The claim that is audited.")
@click.option("--delta", type=float, default=1e-4, show_default=True)
@click.option("--attack", "attacks", type=click.Choice(ATTACKS), multiple=True, help="[all]")
@click.option("--control", type=click.Choice(sorted(CONTROLS)), help="Audit a broken build.")
@click.option("--quick", is_flag=True, help="About half a minute.")
@click.option("--deep", is_flag=True, help="Many minutes: for a nightly run.")
@click.option("--steps", type=click.IntRange(min=10), help="Steps of the gradient audit.")
@click.option("--canaries", type=click.IntRange(min=8), help="Canaries of the one-run audit.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    help="Repeat an audit bit by bit, noise included  [default: the operating system's chance]",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for attack.json and pictures.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def attack(
    context: click.Context,
    data: str,
    aligned: bool,
    cache: Path | None,
    backbone: str,
    weights: Path | None,
    persons: int,
    rounds: int,
    epsilon: float,
    delta: float,
    attacks: tuple[Attack, ...],
    control: str | None,
    quick: bool,
    deep: bool,
    steps: int | None,
    canaries: int | None,
    seed: int | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Attack the real training loop and the vault, and compare what is found with the claim.

    Exit 1 if a lower bound on epsilon is above the claim, or a vault gives away what it must not.
    With --control a build with a known mistake is audited: exit 1 then means that it was caught.
    """
    if quick and deep:
        raise InputError("--quick and --deep exclude each other")
    sizes = QUICK if quick else DEEP if deep else STANDARD
    options = AuditOptions(
        data=None if data == "synthetic" else Path(data),
        aligned=aligned,
        cache=cache,
        backbone=backbone,
        weights=weights,
        persons=persons,
        rounds=rounds,
        epsilon=epsilon,
        delta=delta,
        attacks=tuple(name for name in ATTACKS if name in attacks or not attacks),
        control=control,
        sizes=Sizes(
            steps or sizes.steps,
            canaries or sizes.canaries,
            sizes.runs,
            sizes.masked,
            sizes.search,
            sizes.vaults,
        ),
        seed=seed,
    )
    if out is not None:
        check_free(out)
    errors = Console(stderr=True)
    with contextlib.ExitStack() as opened:
        workspace = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="audit-")))
        progress = opened.enter_context(LiveProgress(errors, quiet=not errors.is_terminal))
        report, evidence = run_audit(options, workspace, progress.stage)
    written: list[Path] = []
    if out is not None:
        make_private_directory(out)
        written = [out / "attack.json"]
        write_private(written[0], json.dumps(report.to_json(), indent=2).encode())
        written += write_pictures(report, evidence, out)
    if as_json:
        click.echo(json.dumps(report.to_json()))
    else:
        _print(report, written)
    context.exit(1 if report.alarm else 0)


def _print(report: AttackReport, written: list[Path]) -> None:
    console = Console()
    console.print(_table(report))
    console.print(
        "'Shown at least' and '(95%)' are the same lower bound at two confidences: what the attack "
        "proves to be spent, to be read beside the claimed epsilon; below it is right. The third "
        f"column holds with confidence 1 - {power(ALARM)} and alone decides; the fourth exceeds "
        "the truth by chance once in twenty, and is for the reader. "
        f"Noise {report.noise}. {report.seconds:.1f} s.",
        soft_wrap=True,
    )
    for finding in report.findings:
        console.print(f"\n[bold]{finding.attack}[/]: {finding.adversary}", soft_wrap=True)
        console.print(f"  {READ[finding.attack]}", markup=False, soft_wrap=True)
        for figure in finding.figures:
            console.print(f"  {_in_words(figure)}", markup=False, soft_wrap=True)
    for path in written:
        console.print(str(path), markup=False, soft_wrap=True)
    if report.control is not None:
        caught = "caught" if report.alarm else "NOT CAUGHT by these attacks"
        console.print(f"Control {report.control}: {caught}", style="bold")
    elif report.alarm:
        console.print("ALARM: the build does not keep its claim", style="bold red")


def _table(report: AttackReport) -> Table:
    what = "right build" if report.control is None else f"BROKEN BUILD {report.control}"
    table = Table(title=f"{what}, {plural(report.rounds, 'round')}, delta {power(report.delta)}")
    for column in ("attack", "claimed epsilon", "shown at least", "(95%)", "verdict"):
        table.add_column(column, justify="left" if column in ("attack", "verdict") else "right")
    for finding in report.findings:
        table.add_row(*_row(finding))
    return table


def _row(finding: Finding) -> tuple[str, str, str, str, str]:
    style = "[bold red]" if finding.alarm else "[green]" if finding.judged else "[dim]"
    claimed = "-" if finding.claimed is None else epsilon_in_words(finding.claimed)
    shown = reading = "-"
    if finding.bounds:
        shown = _lowest(max(bound.epsilon for bound in finding.bounds))
        reading = _lowest(max(bound.reading for bound in finding.bounds))
    return finding.attack, claimed, shown, reading, f"{style}{finding.verdict}[/]"


def _lowest(value: float) -> str:
    """A lower bound, rounded down so that it never says more than was shown."""
    return "no limit" if math.isinf(value) else f"{math.floor(100 * value) / 100:.2f}"


def _in_words(figure: Figure) -> str:
    value = f"{figure.value:,.0f}" if float(figure.value).is_integer() else f"{figure.value:.3f}"
    if figure.low is None or figure.high is None:
        return f"{figure.name}: {value}"
    return f"{figure.name}: {value} ({figure.interval}: {figure.low:.3f} to {figure.high:.3f})"
