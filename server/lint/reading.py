"""What a path holds: a run folder of ours, a Flower and Opacus project, or recorded settings."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.config import read_text
from common.errors import InputError
from common.ledger import Ledger, LedgerReport, verify
from server.lint.project import Project, Recorded, Unread
from server.lint.settings import Releases, Sampler, Settings, read_settings
from server.lint.source import parse_source
from server.report.run_record import RunRecord, read_run

# Code of others, and tests, which break rules on purpose.
_SKIPPED = frozenset({"build", "dist", "node_modules", "site-packages", "tests", "__pycache__"})
_LARGEST = 2_000_000


def read(path: Path) -> Project:
    """Return what `path` holds; InputError if it is nothing that can be linted."""
    if path.is_file() and path.suffix in (".toml", ".json") and path.name != "pyproject.toml":
        return Project("settings", (Recorded(path.name, read_settings(path)),))
    folder = path.parent if path.name == "pyproject.toml" else path
    if not folder.is_dir():
        raise InputError(f"{path} is no folder and no .toml or .json file")
    if (folder / "run.json").is_file():
        return _run(folder)
    if (folder / Ledger.FILE_NAME).is_file():
        return _site(folder)
    if (folder / "checkpoint.safetensors").is_file():
        raise InputError(
            f"{folder} holds no ledger: in a deployment they are at the sites",
            hint="lint the state folder of each site there, or make an audit report",
        )
    return _project(folder)


def _run(folder: Path) -> Project:
    """A finished run: the numbers of its ledgers, the claims of its record.

    What the code of Veilface fixes for every run (public constants, person-separable losses, a
    ledger that outlives the round) is taken from the code; the tests of those rooms prove it.
    """
    record = read_run(folder)
    sites = sorted(entry.parent for entry in folder.glob(f"sites/*/{Ledger.FILE_NAME}"))
    if not sites:
        raise InputError(f"{folder} holds no ledger", hint="name a run folder of this version")
    recorded, unread = [], []
    for site in sites:
        report = verify(site)
        where = str((site / Ledger.FILE_NAME).relative_to(folder))
        unread += [Unread(where, finding) for finding in report.findings]
        if report.ok and report.reservations:
            recorded.append(Recorded(where, _of_site(record, site.name, report)))
    return Project("run", tuple(recorded), unread=tuple(unread))


def _site(state: Path) -> Project:
    """A deployed site's state: the numbers of its ledger, all runs together, and its budget."""
    report = verify(state)
    unread = tuple(Unread(Ledger.FILE_NAME, finding) for finding in report.findings)
    recorded: tuple[Recorded, ...] = ()
    if report.ok and report.reservations and report.genesis is not None:
        settings = _settings(report, report.genesis.epsilon, images=1, codebook=False)
        recorded = (Recorded(Ledger.FILE_NAME, settings),)
    return Project("run", recorded, unread=unread)


def _of_site(record: RunRecord, site: str, report: LedgerReport) -> Settings:
    used = {setting.name: setting.value for setting in record.settings}
    claimed = {spending.site: spending.epsilon for spending in record.privacy.per_site}
    images, codebook = int(used.get("images_per_person", "1")), used.get("loss") == "codebook"
    return _settings(report, claimed.get(site), images=images, codebook=codebook)


def _settings(
    report: LedgerReport, claimed: float | None, *, images: int, codebook: bool
) -> Settings:
    first, rounds = report.reservations[0], report.reservations
    sampler: Sampler = "full-batch" if all(r.sample_rate == 1.0 for r in rounds) else "poisson"
    assert report.genesis is not None
    seeded = any(r.noise_multiplier > 0 and not r.private for r in rounds)
    return Settings(
        privacy_unit="person",
        adjacency="add-remove-one",
        clip_unit="person",
        images_per_person=images,
        max_grad_norm=first.max_grad_norm,
        sensitivity=first.max_grad_norm,
        noise_source="seeded" if seeded else "cryptographic",
        non_finite="zeroed",
        sampler=sampler,
        accounted_as=sampler,
        normaliser="public-constant",
        weighting="public",
        accountant="exact, pld",
        accountant_state="persistent",
        rounds=len(rounds),
        loss_sees="own" if codebook else "public",
        head="public" if codebook else "none",
        norm_layers="frozen-batch",
        delta=report.genesis.delta,
        releases=tuple(Releases(r.noise_multiplier, r.sample_rate, r.steps) for r in rounds),
        metrics=(),
        epsilon=claimed,
    )


def _project(folder: Path) -> Project:
    config = _run_config(folder / "pyproject.toml")
    sources, unread = [], []
    for path in _python_files(folder):
        name = str(path.relative_to(folder))
        try:
            if path.stat().st_size > _LARGEST:
                raise ValueError(f"larger than {_LARGEST:,} bytes")
            sources.append(parse_source(name, read_text(path), config))
        except (OSError, ValueError, RecursionError) as error:
            unread.append(Unread(name, str(error)))
    if not sources and not unread:
        raise InputError(
            f"{folder} holds neither a run nor Python sources",
            hint="name a run folder, a project's folder or a file of recorded settings",
        )
    rounds = config.get("num-server-rounds")
    return Project(
        "project",
        sources=tuple(sources),
        unread=tuple(unread),
        rounds=rounds if isinstance(rounds, int) else None,
    )


def _run_config(path: Path) -> dict[str, object]:
    """What [tool.flwr.app.config] says, nested tables joined with dots as Flower does."""
    if not path.is_file():
        return {}
    try:
        table: Any = tomllib.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    for key in ("tool", "flwr", "app", "config"):
        table = table.get(key, {}) if isinstance(table, dict) else {}
    return dict(_flat(table, ""))


def _flat(table: dict[str, Any], before: str) -> Iterator[tuple[str, object]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _python_files(folder: Path) -> Iterator[Path]:
    """The files of the project itself, by name; links are not followed."""
    for root, folders, files in os.walk(folder):
        here = Path(root)
        folders[:] = sorted(
            name
            for name in folders
            if name not in _SKIPPED
            and not name.startswith(".")
            and not (here / name / "pyvenv.cfg").exists()
        )
        for name in sorted(files):
            if name.endswith(".py") and not (here / name).is_symlink():
                yield here / name
