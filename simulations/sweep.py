"""Many simulated federations, each a `veilface simulate` of its own: parallel, and resumable.

A run is one process with one thread. A finished run is kept, an unfinished one goes on where it
was, so a sweep that was killed is started again with the same command.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Final, Literal, get_args

from common.config import from_json, to_json
from common.errors import InputError, Refused, VeilfaceError
from common.storage import make_private_directory, write_private
from common.supervision import python

Trust = Literal["local", "central", "secagg", "none"]
TRUSTS: Final[tuple[Trust, ...]] = get_args(Trust)
_POLL_SECONDS = 0.1
# What a sweep sets itself, run by run.
_OWN = (
    *("--data", "--shift", "--sites", "--persons", "--epsilon", "--delta", "--no-privacy"),
    *("--trust", "--seed", "--out", "--resume", "--json"),
)


@dataclass(frozen=True)
class Base:
    """What all runs of a sweep share; `options` go to every `veilface simulate` as they are."""

    data: str
    shift: str
    sites: int
    persons: int | None
    delta: float
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for option in self.options:
            if option.partition("=")[0] in _OWN:
                raise InputError(f"{option} is set by the sweep itself", hint="leave it out")

    def arguments(self) -> list[str]:
        persons = [] if self.persons is None else ["--persons", str(self.persons)]
        shared = ["--data", self.data, "--shift", self.shift, "--delta", repr(self.delta)]
        return [*shared, *persons, *self.options]


@dataclass(frozen=True)
class Cell:
    """One run: whom the persons trust, the epsilon (None without privacy) and the seed.

    `central`: one site holds everybody's images and adds the noise once, so its epsilon holds
    against all but that site.
    """

    trust: Trust
    epsilon: float | None
    seed: int

    @property
    def name(self) -> str:
        spent = "" if self.epsilon is None else f"-epsilon-{self.epsilon:g}"
        return f"{self.trust}{spent}-seed-{self.seed}"

    def arguments(self, sites: int) -> list[str]:
        trust = "secagg" if self.trust == "secagg" else "local"
        where = ["--sites", "1" if self.trust == "central" else str(sites), "--trust", trust]
        budget = ["--no-privacy"] if self.epsilon is None else ["--epsilon", repr(self.epsilon)]
        return [*where, *budget, "--seed", str(self.seed)]


def cells(
    trusts: Sequence[Trust], epsilons: Sequence[float], seeds: Sequence[int]
) -> tuple[Cell, ...]:
    """Return all runs of a sweep, whole seeds one after the other.

    Secure aggregation comes first within a seed: where `simulate` refuses it, that shows at once.
    Raises InputError where something is named twice, or nothing is to be done.
    """
    for what, values in (("trusts", trusts), ("epsilons", epsilons), ("seeds", seeds)):
        if len(set(values)) < len(values):
            raise InputError(f"--{what} names something twice")
    if not trusts or not seeds or (not epsilons and set(trusts) != {"none"}):
        raise InputError("a sweep needs --trusts, --seeds and, but for 'none', --epsilons")
    order = sorted(trusts, key=lambda trust: trust != "secagg")
    found: list[Cell] = []
    for seed in seeds:
        private = product(epsilons, [trust for trust in order if trust != "none"])
        found += [Cell(trust, epsilon, seed) for epsilon, trust in private]
        found += [Cell("none", None, seed)] * ("none" in trusts)
    return tuple(found)


@dataclass(frozen=True)
class SweepFolder:
    """Where a sweep is kept: `base.json` says what all its runs share, `runs` holds them."""

    path: Path
    base: Base

    def run(self, cell: Cell) -> Path:
        return self.path / "runs" / cell.name

    def finished(self, cell: Cell) -> bool:
        return (self.run(cell) / "run.json").is_file()

    @staticmethod
    @contextlib.contextmanager
    def open(path: Path, base: Base) -> Iterator[tuple[SweepFolder, int]]:
        """Open or create a sweep's folder, and yield it with a lock that its runs inherit.

        So even the runs of a sweep that was killed keep another one out until they have ended.
        Raises InputError for a folder that holds something else or other options.
        """
        settings = path / "base.json"
        if path.exists() and not settings.is_file() and any(path.iterdir()):
            raise InputError(f"{path} exists and holds no sweep", hint="choose another --out")
        if not path.exists():
            make_private_directory(path)
        make_private_directory(path / "runs")
        descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(
                    f"a sweep, or a run that one left behind, is at work in {path}",
                    hint="wait until it has ended",
                ) from error
            if settings.is_file():
                _same(from_json(Base, settings.read_text(encoding="utf-8")), base)
            else:
                write_private(settings, to_json(base).encode())
            yield SweepFolder(path, base), descriptor
        finally:
            os.close(descriptor)


def _same(started: Base, asked: Base) -> None:
    before, after = (json.loads(to_json(base)) for base in (started, asked))
    for name, value in before.items():
        if value != after[name]:
            raise InputError(
                f"the sweep was started with {name} = {value!r}, not {after[name]!r}",
                hint="only --trusts, --epsilons and --seeds may grow; or choose another --out",
            )


def run_all(
    folder: SweepFolder,
    lock: int,
    wanted: Sequence[Cell],
    *,
    jobs: int,
    finished: Callable[[Cell], None],
) -> None:
    """Run what is not finished, `jobs` at a time; the first failure stops the sweep and is raised.

    Runs that were stopped with it go on when the sweep is started again.
    """
    waiting = [cell for cell in wanted if not folder.finished(cell)]
    running: dict[Cell, subprocess.Popen[bytes]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop(0)
                running[cell] = _start(folder, lock, cell)
            for cell, process in list(running.items()):
                if process.poll() is not None:
                    del running[cell]
                    _check(folder, cell, process.returncode)
                    finished(cell)
            time.sleep(_POLL_SECONDS)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()


def _start(folder: SweepFolder, lock: int, cell: Cell) -> subprocess.Popen[bytes]:
    out = folder.run(cell)
    for part in out.glob(".*.part"):  # of a write that a kill cut short
        part.unlink()
    resume = ["--resume"] if (out / "settings.json").is_file() else []
    own = [*cell.arguments(folder.base.sites), "--out", str(out), "--json", *resume]
    with _log(folder, cell).open("wb") as log:
        return subprocess.Popen(
            [*python("common.cli"), "simulate", *folder.base.arguments(), *own],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            pass_fds=(lock,),
        )


def _log(folder: SweepFolder, cell: Cell) -> Path:
    return folder.path / "runs" / f"{cell.name}.log"


def _check(folder: SweepFolder, cell: Cell, code: int) -> None:
    """Raise what a run ended with, as the command line would have."""
    if code == 0:
        return
    kinds: dict[int, type[VeilfaceError]] = {2: InputError, 3: Refused}
    lines = _log(folder, cell).read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line.removeprefix("veilface: ") for line in lines if line.strip()]
    raise kinds.get(code, VeilfaceError)(
        f"{cell.name}: {said[-1] if said else f'ended with {code}'}",
        hint=f"all that it said is in {_log(folder, cell)}",
    )
