"""`veilface template calibrate`: thresholds from pictures of people whom one may take."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import numpy as np

from client.calibration import (
    Threshold,
    check_persons,
    for_identification,
    for_verification,
)
from client.vault_options import VaultOptions, recogniser, vault_options
from common.chip_cache import ChipCache
from common.dataset import SubjectFolder, images_of, list_subjects, load_chips
from common.errors import InputError
from common.scoring import plain

if TYPE_CHECKING:
    from client.recognition import Recogniser

_LEAST_RATE: Final = 1e-12


@click.command()
@vault_options
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Person folders.")
@click.option("--fmr", type=float, help="For verification: false matches among strangers.")
@click.option("--fpir", type=float, help="For identification: strangers taken for someone.")
@click.option("--gallery", type=click.IntRange(min=1), help="Persons to expect in the vault.")
@click.option("--cache", type=click.Path(path_type=Path), help="Where aligned chips are kept.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def calibrate(
    options: VaultOptions,
    data: Path,
    fmr: float | None,
    fpir: float | None,
    gallery: int | None,
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
        persons = gallery or max(1, vault.info.subjects)
        if fpir is not None:  # before minutes are spent on looking for faces
            check_persons(len(subjects), fpir, persons)
        engine = recogniser(vault)
        embeddings, labels = _embedded(engine, subjects, data, cache)
        known = {"model_id": engine.model_id, "source": data.name}
        found: list[Threshold] = []
        if fmr is not None:
            found.append(for_verification(plain(embeddings), labels, fmr, **known))
        if fpir is not None:
            found.append(for_identification(plain(embeddings), labels, fpir, persons, **known))
        for threshold in found:
            engine.use(threshold)
    if as_json:
        click.echo(json.dumps({t.purpose: dataclasses.asdict(t) for t in found}))
        return
    for t in found:
        rate = "FMR" if t.purpose == "verify" else f"FPIR among {t.gallery}"
        click.echo(
            f"to {t.purpose}: threshold {t.value:.4f}, {rate} {t.target:g} "
            f"(95% interval {t.low:.2g} to {t.high:.2g}; {t.comparisons:,} comparisons, "
            f"{t.persons:,} persons)"
        )


def _embedded(
    engine: Recogniser, subjects: tuple[SubjectFolder, ...], data: Path, cache: Path | None
) -> tuple[Any, Any]:
    """Embeddings [N, D] and subject numbers [N] of a folder of persons."""
    with ChipCache.open(cache) as opened:
        loaded = load_chips(
            images_of(subjects), spec=engine.chip, detector=engine.detector, cache=opened
        )
    if len(loaded.chips) == 0:
        raise InputError(f"no usable face in {data}")
    return engine.embed(loaded.chips), np.asarray(loaded.labels(subjects), dtype=np.int64)
