"""Runs side by side: what differs in their settings, what they promise, what they gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import InputError
from server.report.run_record import RunRecord, read_run

# The persons who test, and their images, follow from these; other ones are another question.
TEST_SETTINGS = (
    *("data", "public", "test", "shift", "detector", "seed", "aligned"),
    *("private persons", "public persons", "test persons", "test images"),
)
NOT_STATED = "not stated"
_SAME = 1e-4


@dataclass(frozen=True)
class Run:
    """A run under the name by which it is shown; `obstacles` say why its rates are not compared."""

    name: str
    folder: Path
    record: RunRecord
    obstacles: tuple[str, ...] = ()

    @property
    def comparable(self) -> bool:
        return not self.obstacles

    def setting(self, name: str) -> str:
        values = {setting.name: setting.value for setting in self.record.settings}
        return values.get(name, NOT_STATED)


@dataclass(frozen=True)
class Difference:
    """A setting that is not the same in all runs, with its value in each."""

    setting: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Runs in the order in which they were named; the first is what the others are held against.

    Attributes:
        runs: at least two.
        differences: settings that differ, by name.
        warnings: what must be known before numbers are read side by side.
    """

    runs: tuple[Run, ...]
    differences: tuple[Difference, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """The object that `veilface audit compare --json` prints."""
        return {
            "comparable": all(run.comparable for run in self.runs),
            "warnings": list(self.warnings),
            "differences": {each.setting: list(each.values) for each in self.differences},
            "runs": [
                {
                    "name": run.name,
                    "folder": str(run.folder),
                    "comparable": run.comparable,
                    "not_comparable_because": list(run.obstacles),
                    **run.record.summary(),
                }
                for run in self.runs
            ],
        }


def compare(folders: Sequence[Path]) -> Comparison:
    """Read run folders; InputError for fewer than two, one named twice, or one without a run."""
    if len(folders) < 2:
        raise InputError("a comparison takes at least two runs")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError("a run is named twice")
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    first, *others = map(_read, names, folders)
    runs = (first, *(_held_against(first, run) for run in others))
    settings = sorted({each.name for run in runs for each in run.record.settings})
    rows = (Difference(name, tuple(run.setting(name) for run in runs)) for name in settings)
    differences = tuple(row for row in rows if len(set(row.values)) > 1)
    return Comparison(runs, differences, tuple(_warnings(runs)))


def _read(name: str, folder: Path) -> Run:
    try:
        return Run(name, folder, read_run(folder))
    except InputError as error:
        raise InputError(f"{folder}: {error.message}", hint=error.hint) from error


def _held_against(first: Run, run: Run) -> Run:
    obstacles = [
        f"{name} {run.setting(name)}, not {first.setting(name)}"
        for name in TEST_SETTINGS
        if run.setting(name) != first.setting(name) or run.setting(name) == NOT_STATED
    ]
    mine, its = run.record.before, first.record.before
    if not obstacles and (mine.mated, mine.non_mated) != (its.mated, its.non_mated):
        obstacles.append("another number of test pairs")
    same_model = all(run.setting(n) == first.setting(n) for n in ("backbone", "weights"))
    if not obstacles and same_model and run.setting("train_set") == first.setting("train_set"):
        moved = abs(mine.eer - its.eer)
        if moved > _SAME:
            obstacles.append("the same public model scores otherwise before training")
    return Run(run.name, run.folder, run.record, tuple(obstacles))


def _warnings(runs: Sequence[Run]) -> list[str]:
    found = [
        f"{run.name} was tested on something else than {runs[0].name}: {'; '.join(run.obstacles)}"
        for run in runs
        if not run.comparable
    ]
    promises = {
        "delta": {f"{run.record.privacy.delta:g}" for run in runs},
        "unit": {run.record.privacy.unit for run in runs},
        "adjacency": {run.record.privacy.adjacency for run in runs},
    }
    for what, values in promises.items():
        if len(values) > 1:
            stated = ", ".join(sorted(values))
            found.append(f"epsilons are of another {what} and cannot be ranked: {stated}")
    for run in runs:
        if not run.record.privacy.private:
            reason = run.record.privacy.not_private or "an adversary has no bound"
            found.append(f"{run.name} is not private: {reason}")
    return found
