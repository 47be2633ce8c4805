"""`veilface template calibrate`: thresholds from pictures of people whom one may take."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from client.calibration import (
    Threshold,
    check_persons,
    for_identification,
    for_verification,
)
from client.choosing import Chosen, choose
from client.population import Population
from client.vault_options import VaultOptions, recogniser, vault_options
from common.chip_cache import ChipCache
from common.dataset import SubjectFolder, images_of, list_subjects, load_chips
from common.errors import InputError
from common.group_labels import read_groups
from common.groups import group_rates
from common.same_person import merged
from common.scoring import PLAIN, Choice, Faces, Floats, Scorer, plain

if TYPE_CHECKING:
    from client.recognition import Recogniser

_LEAST_RATE: Final = 1e-12
_LOOKED_AT: Final = 1e-3  # the FMR at which scoring is chosen where only an FPIR is asked for


@click.command()
@vault_options
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Person folders.")
@click.option("--fmr", type=float, help="For verification: false matches among strangers.")
@click.option("--fpir", type=float, help="For identification: strangers taken for someone.")
@click.option("--gallery", type=click.IntRange(min=1), help="Persons to expect in the vault.")
@click.option(
    "--groups",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Show FMR by group, before and after: a CSV as for 'veilface evaluate'.",
)
@click.option("--cache", type=click.Path(path_type=Path), help="Where aligned chips are kept.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def calibrate(
    options: VaultOptions,
    data: Path,
    fmr: float | None,
    fpir: float | None,
    gallery: int | None,
    groups: Path | None,
    cache: Path | None,
    as_json: bool,
) -> None:
    """Set the thresholds from pictures of your own or a public set; there is no default."""
    if fmr is None and fpir is None:
        raise InputError("choose a rate", hint="--fmr to verify, --fpir to identify, or both")
    for option, target in (("--fmr", fmr), ("--fpir", fpir)):
        if target is not None and not _LEAST_RATE <= target < 1:
            raise InputError(f"{option} must lie between {_LEAST_RATE:g} and 1, not {target:g}")
    if gallery is not None and fpir is None:
        raise InputError("--gallery belongs to --fpir")
    with options.open() as vault:
        subjects = list_subjects(data, at_least=2)
        apart = merged(subjects)
        if len(apart) < len(subjects):
            click.echo(
                f"Note: {len(subjects) - len(apart)} person folders hold the same files as another "
                "and are taken for the same person",
                err=True,
            )
        persons = gallery or max(1, vault.info.subjects)
        if fpir is not None:  # before minutes are spent on looking for faces
            check_persons(len(apart), fpir, persons)
        engine = recogniser(vault)
        embeddings, labels = _embedded(engine, apart, data, cache)
        own = _others(engine, subjects)
        measured = _Measured(engine, embeddings, labels, own, data.name)
        chosen = measured.choose(_LOOKED_AT if fmr is None else fmr)
        found = measured.thresholds(chosen.scoring, fmr, fpir, persons)
        by_group = []
        if groups is not None:
            by_group = _by_group(engine, measured, chosen.scoring, found, groups, cache)
        for threshold in found:
            engine.use(threshold)
    if as_json:
        told = {t.purpose: dataclasses.asdict(t) for t in found}
        more = {"scoring": _told(chosen), **({"groups": by_group} if groups else {})}
        click.echo(json.dumps({**told, **more}))
        return
    for t in found:
        rate = "FMR" if t.purpose == "verify" else f"FPIR among {t.gallery}"
        click.echo(
            f"to {t.purpose}: threshold {t.value:.4f}, {rate} {t.target:g} "
            f"(95% interval {t.low:.2g} to {t.high:.2g}; {t.comparisons:,} comparisons, "
            f"{t.persons:,} persons)"
        )
    click.echo(_words(chosen))
    if groups is not None:
        _print_groups(by_group)


@dataclass(frozen=True, eq=False)
class _Measured:
    """Embeddings [N, D] of `labels` [N], and whom scores rest on."""

    engine: Recogniser
    embeddings: Floats
    labels: NDArray[np.int64]
    own: Population
    source: str

    def choose(self, fmr: float) -> Chosen:
        """Choose what is taken off a cosine; off a likelihood ratio nothing is."""
        if self.engine.probe_order is not None:
            return Chosen(None, None, (), "the model's own statistics are in them already")
        rows = self.engine.vault.protect(self.embeddings)
        return choose(rows, self.labels, self.own, fmr)

    def faces(self, scoring: Choice, embeddings: Floats | None = None) -> Faces:
        rows = self.embeddings if embeddings is None else embeddings
        if scoring.plain:  # the vault's space changes no product
            return plain(rows, self.engine.probe_order)
        return Scorer.of(scoring, self.own.vectors).faces(self.engine.vault.protect(rows))

    def thresholds(
        self, scoring: Choice, fmr: float | None, fpir: float | None, gallery: int
    ) -> list[Threshold]:
        """The thresholds of a scoring, each with that of the plain cosine beside it."""
        found = self._thresholds(scoring, fmr, fpir, gallery)
        if scoring.plain:
            return found
        untouched = self._thresholds(PLAIN, fmr, fpir, gallery)
        return [
            dataclasses.replace(
                t, scoring=scoring, population=len(self.own.vectors), plain=beside.value
            )
            for t, beside in zip(found, untouched, strict=True)
        ]

    def _thresholds(
        self, scoring: Choice, fmr: float | None, fpir: float | None, gallery: int
    ) -> list[Threshold]:
        faces = self.faces(scoring)
        known = {"model_id": self.engine.model_id, "source": self.source}
        found = []
        if fmr is not None:
            found.append(for_verification(faces, self.labels, fmr, **known))
        if fpir is not None:
            found.append(for_identification(faces, self.labels, fpir, gallery, **known))
        return found


def _others(engine: Recogniser, subjects: tuple[SubjectFolder, ...]) -> Population:
    """The vault's persons, without those whose pictures are in the data under the same name."""
    here = frozenset(engine.vault.pseudonym(subject.name) for subject in subjects)
    return engine.population(leave_out=here)


def _told(chosen: Chosen) -> dict[str, object]:
    return {
        "words": chosen.scoring.words,
        "note": chosen.note,
        "chosen": dataclasses.asdict(chosen.trial) if chosen.trial else None,
        "plain": dataclasses.asdict(chosen.plain) if chosen.plain else None,
        "trials": [dataclasses.asdict(trial) for trial in chosen.trials],
    }


def _words(chosen: Chosen) -> str:
    if chosen.trial is None or chosen.plain is None:
        return f"scores: nothing is taken off them, since {chosen.note}"
    after, before = chosen.trial, chosen.plain
    return (
        f"scores: {after.scoring.words}, chosen on held-out persons (plain cosine beside it): "
        f"TMR {after.tmr:.1%} ({before.tmr:.1%}); FMR among the vault's own persons "
        f"{after.own_fmr:.2%} ({before.own_fmr:.2%}), the tenth served worst "
        f"{after.worst_tenth:.2%} ({before.worst_tenth:.2%})"
    )


def _by_group(
    engine: Recogniser,
    measured: _Measured,
    scoring: Choice,
    found: list[Threshold],
    listed: Path,
    cache: Path | None,
) -> list[dict[str, object]]:
    """FMR by group before and after, at the threshold to verify with, worst first."""
    verify = next((t for t in found if t.purpose == "verify"), None)
    if verify is None:
        raise InputError("--groups shows FMR", hint="give --fmr too")
    rows = read_groups(listed)
    images = listed.parent / "images" if (listed.parent / "images").is_dir() else listed.parent
    by_path = {images / row.file: row for row in rows}
    with ChipCache.open(cache) as opened:
        loaded = load_chips(
            tuple(by_path), spec=engine.chip, detector=engine.detector, cache=opened
        )
    if len(loaded.chips) == 0:
        raise InputError(f"no usable face in {images}")
    embeddings = engine.embed(loaded.chips)
    kept = [by_path[path] for path in loaded.paths]
    _, people = np.unique([row.subject or row.file for row in kept], return_inverse=True)
    names = [row.group for row in kept]
    beside = verify.value if verify.plain is None else verify.plain
    before = group_rates(measured.faces(PLAIN, embeddings), names, beside, people)
    after = group_rates(measured.faces(scoring, embeddings), names, verify.value, people)
    fmr = {rate.group: rate.fmr for rate in before.groups}
    return [
        {"group": rate.group, "persons": rate.persons, "before": fmr[rate.group], "after": rate.fmr}
        for rate in sorted(after.groups, key=lambda rate: -fmr[rate.group])
    ]


def _print_groups(by_group: list[dict[str, Any]]) -> None:
    table = Table("group", "persons", "FMR before", "FMR after", title="plain cosine, then chosen")
    for row in by_group:
        before, after = f"{row['before']:.2%}", f"{row['after']:.2%}"
        table.add_row(row["group"], str(row["persons"]), before, after)
    Console().print(table)


def _embedded(
    engine: Recogniser, subjects: tuple[SubjectFolder, ...], data: Path, cache: Path | None
) -> tuple[Floats, NDArray[np.int64]]:
    """Embeddings [N, D] and subject numbers [N] of a folder of persons."""
    with ChipCache.open(cache) as opened:
        loaded = load_chips(
            images_of(subjects), spec=engine.chip, detector=engine.detector, cache=opened
        )
    if len(loaded.chips) == 0:
        raise InputError(f"no usable face in {data}")
    return engine.embed(loaded.chips), np.asarray(loaded.labels(subjects), dtype=np.int64)
