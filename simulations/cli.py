"""The commands `veilface simulate` and `veilface bench`."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import click
from rich.console import Console
from rich.table import Table

from common.contract import Trust
from common.detector_options import yunet_file
from common.errors import InputError
from common.metrics import Verification
from common.paired import Change
from common.vocabulary import (
    AGGREGATOR_NAMES,
    LOSS_NAMES,
    TRAIN_SETS,
    BankShift,
    Shift,
    TrainSet,
)
from common.wording import STAGES, percent, points
from server.report.run_record import RunRecord, by_size, write_run
from server.report.utility import MODELS
from server.report.verdict import MEANING, amber, recommended, told, told_alone
from server.report.wording import RATES, interval
from server.report.wording import epsilon as epsilon_in_words
from simulations.bench.cli import bench
from simulations.scenario_options import scenario_options

if TYPE_CHECKING:
    from simulations.experiment import Experiment

__all__ = ["bench", "simulate"]
ROUNDS: Final = {"statistics": 1, "adapter": 40, "tail": 40, "full": 40}
_COLOURS = {"good": "green", "neutral": "default", "amber": "dark_orange"}


def _data(value: str) -> Path | None:
    if not value:
        raise InputError("--data is empty", hint="synthetic, or a folder of one folder a person")
    return None if value == "synthetic" else Path(value)


def experiment_of(
    *,
    data: str,
    shift: tuple[Shift, ...],
    public: Path | None,
    test: Path | None,
    bank_shift: BankShift | None,
    detector: str,
    yunet: Path | None,
    sites: int,
    persons: int | None,
    rounds: int | None,
    local_steps: int,
    epsilon: float | None,
    delta: float,
    no_privacy: bool,
    sample_rate: float,
    trust: Trust,
    minimum_sites: int | None,
    colluders: int | None,
    train: TrainSet | None,
    loss: str | None,
    backbone: str,
    weights: Path | None,
    aggregator: str,
    engine: Literal["inprocess", "ray"],
    seed: int,
    insecure_seeded_noise: bool,
    aligned: bool,
    cache: Path | None,
    allow_duplicates: bool,
    recipe: Path | None,
) -> Experiment:
    """Return the experiment that the options of `simulate` describe; InputError if it cannot be."""
    from common.config import from_toml
    from common.recipe_options import RecipeOptions
    from simulations.experiment import Experiment  # here, so that --help needs no torch

    if (epsilon is None) != no_privacy:
        raise InputError(
            "say --epsilon E, or --no-privacy to train without any guarantee; exactly one of them"
        )
    if train is None:
        gradients = rounds not in (None, 1) or local_steps != 1 or loss or aggregator != "mean"
        train = "adapter" if gradients else "statistics"
    experiment = Experiment(
        data=_data(data),
        shift=shift,
        public=public,
        test=test,
        bank_shift=bank_shift or ("same" if public is None else "none"),
        yunet=yunet_file(detector, yunet),
        sites=sites,
        persons=persons,
        rounds=rounds or ROUNDS[train],
        local_steps=local_steps,
        epsilon=epsilon,
        delta=delta,
        sample_rate=sample_rate,
        trust=trust,
        minimum_sites=minimum_sites,
        colluders=colluders,
        train_set=train,
        loss=loss or "public-negatives",
        backbone=backbone,
        weights=weights,
        aggregator=aggregator,
        engine=engine,
        seed=seed,
        seeded_noise=insecure_seeded_noise,
        aligned=aligned,
        cache=cache,
        allow_duplicates=allow_duplicates,
        recipe=None if recipe is None else from_toml(RecipeOptions, recipe),
    )
    experiment.check()
    return experiment


@click.command()
@click.option("--data", required=True, metavar="synthetic|DIR", help="A folder of person folders.")
@scenario_options
@click.option("--sites", type=click.IntRange(min=1), default=10, show_default=True)
@click.option("--persons", type=click.IntRange(min=1), help="Private persons over all sites.")
@click.option(
    "--rounds", type=click.IntRange(min=1), help="[default: 1 for statistics, 40 for gradients]"
)
@click.option("--local-steps", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--epsilon", type=float, help="Budget of each site for the whole run; no default.")
@click.option("--delta", type=float, default=1e-4, show_default=True)
@click.option("--no-privacy", is_flag=True, help="Train without noise: no guarantee at all.")
@click.option("--sample-rate", type=float, default=1.0, show_default=True, help="1 = all persons.")
@click.option("--trust", type=click.Choice(["local", "secagg"]), default="local", show_default=True)
@click.option(
    "--minimum-sites",
    type=click.IntRange(min=1),
    help="A round with fewer answers is refused [default: all with secagg, else 1].",
)
@click.option(
    "--colluders",
    type=click.IntRange(min=0),
    help="secagg: sites that may help a hostile server; the noise covers it [default: 0].",
)
@click.option(
    "--train",
    type=click.Choice(TRAIN_SETS),
    help="What is trained [default: statistics, in one round; adapter where options ask for "
    "rounds, steps, a loss or a robust rule].",
)
@click.option("--loss", type=click.Choice(sorted(LOSS_NAMES)), help="[default: public-negatives]")
@click.option("--backbone", default="dlib-resnet", show_default=True)
@click.option("--weights", type=click.Path(path_type=Path), help="State dict or safetensors.")
@click.option(
    "--recipe",
    type=click.Path(path_type=Path),
    help="TOML: clip, learning rate, temperature, images a person, momentum, split of the budget.",
)
@click.option("--aggregator", type=click.Choice(sorted(AGGREGATOR_NAMES)), default="mean")
@click.option("--engine", type=click.Choice(["inprocess", "ray"]), default="inprocess")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--insecure-seeded-noise",
    is_flag=True,
    help="Noise from --seed, to repeat a run bit by bit. The run is marked as not private.",
)
@click.option("--aligned", is_flag=True, help="Images are aligned chips already.")
@click.option("--cache", type=click.Path(path_type=Path), help="Where aligned chips are kept.")
@click.option(
    "--allow-duplicates", is_flag=True, help="Persons who hold the same files are different people."
)
@click.option("--out", type=click.Path(path_type=Path), help="Run folder [default: runs/RUN_ID].")
@click.option("--resume", is_flag=True, help="Go on with the run in --out.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def simulate(out: Path | None, resume: bool, as_json: bool, **options: Any) -> None:
    """Run a private federation of many sites on this machine and report what it cost and gave."""
    from server.report.page import write_page  # here, so that --help needs no torch
    from server.report.plots import write_plots
    from simulations.material import gather
    from simulations.progress import LiveProgress
    from simulations.run_folder import RunFolder, check_free
    from simulations.simulate import simulate as run_simulation

    experiment = experiment_of(**options)
    if out is not None and not resume:
        check_free(out, resumable=True)
    errors = Console(stderr=True)
    with LiveProgress(errors, quiet=not errors.is_terminal) as progress:
        # Faces first: what cannot be trained on leaves no run folder behind.
        material = gather(experiment, partial(progress.stage, "faces"))
        folder = (RunFolder.resume if resume else RunFolder.start)(out, experiment)
        try:
            record = run_simulation(experiment, folder, material, progress)
        except InputError:
            folder.abandon()
            raise
    written = (
        write_run(record, folder.path),
        *write_plots(record, folder.path),
        write_page(record, folder.path),
    )
    for line in amber(record):
        click.echo(f"Warning: {line}", err=True)
    if as_json:
        click.echo(json.dumps(record.summary()))
        return
    console = Console()
    console.print(_table(record))
    _print_outcome(console, record)
    _print_privacy(console, record)
    for warning in record.warnings:
        console.print(f"Note: {warning}", markup=False)
    models = [folder.path / name for name in record.files if name in MODELS]
    for path in (*models, *written):
        console.print(str(path), markup=False, soft_wrap=True)
    console.print(f"Check it: veilface ledger verify {folder.path}", markup=False, soft_wrap=True)


def _table(record: RunRecord) -> Table:
    table = Table(
        title=f"{record.before.mated:,} mated, {record.before.non_mated:,} non-mated pairs; "
        "below: 95% interval over persons"
    )
    table.add_column("")
    for label in RATES.values():
        table.add_column(label, justify="right")
    for stage, rates in record.stages:
        cells = [f"{percent(getattr(rates, name))}{_ends(rates, name)}" for name in RATES]
        table.add_row(STAGES[stage], *cells)
    for label, found in (
        ("change from better public", record.difference),
        ("change from alone", record.unreleased.difference if record.unreleased else None),
    ):
        if found is not None:
            table.add_row(label, *(_changed(getattr(found, name)) for name in RATES))
    return table


def _ends(rates: Verification, name: str) -> str:
    return f"\n{interval(getattr(rates.ci, name))}" if rates.ci else ""


def _changed(found: Change) -> str:
    return f"{points(found.value)}\n{points(found.low)} to {points(found.high)}"


def _print_outcome(console: Console, record: RunRecord) -> None:
    for stage, _ in record.stages:
        console.print(f"{STAGES[stage]}: {MEANING[stage]}", style="dim", markup=False)
    for said in (told(record.utility), told_alone(record)):
        if said is not None:
            console.print(f"[bold {_COLOURS[said.tone]}]{said.head}.[/] {said.text}")
    console.print(recommended(record.utility), markup=False)
    if record.unreleased is not None and len(record.unreleased.by_site) > 1:
        sizes = Table(title="Each site alone, by how many persons it has")
        for column in ("persons", "sites", *RATES.values()):
            sizes.add_column(column, justify="right")
        for size in by_size(record.unreleased.by_site):
            rates = [percent(rate) for rate in size.rates]
            sizes.add_row(f"{size.persons:,}", str(size.sites), *rates)
        console.print(sizes)


def _print_privacy(console: Console, record: RunRecord) -> None:
    privacy = record.privacy
    if privacy.not_private:
        console.print(f"[bold red]NOT PRIVATE:[/] {privacy.not_private}")
        return
    table = Table(title=f"Privacy of one person ({privacy.adjacency}; delta {privacy.delta:g})")
    table.add_column("against")
    table.add_column("epsilon", justify="right")
    for adversary in privacy.adversaries:
        table.add_row(adversary.name, epsilon_in_words(adversary.epsilon))
    console.print(table)
