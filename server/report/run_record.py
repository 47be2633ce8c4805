"""What a run leaves in `run.json`: everything its report shows, and nothing else is shown."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, make_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from common.config import parse, read_text
from common.errors import InputError
from common.metrics import Verification
from common.paired import Difference, Verdict
from common.storage import write_private
from server.report.utility import DetPoints, Released, Utility


@dataclass(frozen=True)
class Adversary:
    """Who could look, in a few words, and the epsilon against them; None: no bound."""

    name: str
    epsilon: float | None


@dataclass(frozen=True)
class SiteSpending:
    """What one site spent of its budget (None: no bound), with what noise, in how many steps."""

    site: str
    epsilon: float | None
    budget: float | None
    noise_multiplier: float
    steps: int


@dataclass(frozen=True)
class PrivacyRecord:
    """The guarantee: for which unit, which neighbours, which delta, against whom.

    `not_private` says why nothing is guaranteed whatever the numbers say (no noise, noise from a
    seed); it is empty for a private run. The first `promised` adversaries are those whom the run
    was made to withstand; against the others, as many colluding sites as there could be or masks
    that fail, it states what is left.
    """

    unit: str
    adjacency: str
    delta: float
    not_private: str = ""
    adversaries: tuple[Adversary, ...] = ()
    per_site: tuple[SiteSpending, ...] = ()
    promised: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.delta < 1:
            raise InputError(f"delta must lie strictly between 0 and 1, not {self.delta}")
        for epsilon in self.stated:
            if epsilon is not None and not (math.isfinite(epsilon) and epsilon >= 0):
                raise InputError(f"epsilon {epsilon} is no bound", hint="None says there is none")

    @property
    def stated(self) -> tuple[float | None, ...]:
        """Every epsilon that the record states."""
        return (*(a.epsilon for a in self.adversaries), *(s.epsilon for s in self.per_site))

    @property
    def worst(self) -> float | None:
        """The largest epsilon against whom the run was made to withstand, and of any site."""
        found = [a.epsilon for a in self.adversaries[: self.promised]]
        found += [site.epsilon for site in self.per_site]
        bounds = [epsilon for epsilon in found if epsilon is not None]
        return max(bounds) if bounds and len(bounds) == len(found) else None

    @property
    def private(self) -> bool:
        """Whether every stated epsilon is a bound, and holds."""
        return bool(self.adversaries) and None not in self.stated and not self.not_private


@dataclass(frozen=True)
class RoundPoint:
    """A finished round: its TMRs, and what each site of `per_site` had spent after it."""

    round: int
    tmr_at_fmr_1e2: float
    tmr_at_fmr_1e3: float
    epsilon: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class SiteAlone:
    """What a site of so many persons reaches with its own faces, no federation and no noise."""

    site: str
    persons: int
    rates: Verification


@dataclass(frozen=True)
class Size:
    """Sites of about one size: the median of their persons, how many, and their mean rates."""

    persons: int
    sites: int
    rates: tuple[float, float, float]


def by_size(sites: Sequence[SiteAlone], groups: int = 4) -> tuple[Size, ...]:
    """Return what sites reach alone by how many persons they have, at most `groups` sizes.

    `rates` are TMR@1e-2, TMR@1e-3 and EER.
    """
    ordered = sorted(sites, key=lambda each: each.persons)
    counts = sorted({each.persons for each in ordered})
    parts = [set(map(int, part)) for part in np.array_split(counts, min(groups, len(counts)))]
    found = []
    for part in parts:
        alike = [each for each in ordered if each.persons in part]
        rates = [(r.tmr_at_fmr_1e2, r.tmr_at_fmr_1e3, r.eer) for r in (s.rates for s in alike)]
        wide, strict, equal = np.mean(rates, axis=0).tolist()
        middle = int(np.median([each.persons for each in alike]))
        found.append(Size(middle, len(alike), (wide, strict, equal)))
    return tuple(found)


@dataclass(frozen=True)
class Unreleased:
    """Stages that are not noised, and that leave no site: nobody but a simulation can show them.

    Attributes:
        alone: the mean over the sites of `by_site`, each with its own persons only.
        after_own: the trained model with each site's own adaptation, the mean over them.
        difference: what `after` is more than `alone`, on the same persons.
    """

    alone: Verification
    det_alone: DetPoints
    difference: Difference
    by_site: tuple[SiteAlone, ...]
    after_own: Verification | None = None
    det_after_own: DetPoints | None = None


@dataclass(frozen=True)
class PerRound:
    """What a round took: median seconds, and the mean bytes of content that one site sent."""

    seconds: float
    bytes_per_site: float


@dataclass(frozen=True)
class Skipped:
    """How many images were not used, and why."""

    reason: str
    count: int


@dataclass(frozen=True)
class Setting:
    """One setting of the run as it was used."""

    name: str
    value: str


_STAGES = ("before", "public", "alone", "after", "after_own")


@dataclass(frozen=True)
class RunRecord:
    """A finished run: all that its report may show.

    `created` is when it ended (ISO 8601, UTC), `seconds` its wall-clock time, `peak_mb` the
    highest resident memory of its process in MB. `public_only` is the model after its training on
    public images and before the private one: what nobody's privacy paid for; None without such.
    The rest of what training changed is as in `Utility`.
    """

    run_id: str
    created: str
    model: str
    before: Verification
    after: Verification
    privacy: PrivacyRecord
    seconds: float
    peak_mb: float
    det_before: DetPoints
    det_after: DetPoints
    rounds: tuple[RoundPoint, ...]
    settings: tuple[Setting, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    warnings: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    public_only: Verification | None = None
    per_round: PerRound | None = None
    det_public: DetPoints | None = None
    difference: Difference | None = None
    recommended: Released | None = None
    judges: int = 0
    unreleased: Unreleased | None = None

    def __post_init__(self) -> None:
        sites = len(self.privacy.per_site)
        for point in self.rounds:
            if len(point.epsilon) != sites:
                raise InputError(
                    f"round {point.round} states {len(point.epsilon)} of {sites} sites"
                )
        _ = self.utility  # which checks its part

    @property
    def utility(self) -> Utility:
        """The part that a deployed run has as well."""
        return Utility(
            self.before,
            self.public_only,
            self.after,
            self.det_before,
            self.det_after,
            self.det_public,
            self.difference,
            self.recommended,
            self.judges,
        )

    @property
    def verdict(self) -> Verdict | None:
        return self.utility.verdict

    @property
    def stages(self) -> tuple[tuple[str, Verification], ...]:
        """Every stage that was measured, by its name in `--json`, in order."""
        found: list[tuple[str, Verification]] = list(self.utility.stages)
        if (more := self.unreleased) is not None:
            found.insert(-1, ("alone", more.alone))
            if more.after_own is not None:
                found.append(("after_own", more.after_own))
        return tuple(found)

    @property
    def curves(self) -> dict[str, DetPoints]:
        """The DET curves of the stages that have one."""
        more = self.unreleased
        found = {
            "before": self.det_before,
            "public": self.det_public,
            "alone": more.det_alone if more else None,
            "after": self.det_after,
            "after_own": more.det_after_own if more else None,
        }
        return {name: curve for name, curve in found.items() if curve is not None}

    def summary(self) -> dict[str, object]:
        """The object that `veilface simulate --json` prints."""
        privacy: dict[str, object] = asdict(self.privacy)
        privacy["adversaries"] = {a.name: a.epsilon for a in self.privacy.adversaries}
        return {
            "run_id": self.run_id,
            "model": self.model,
            "before": self.before.to_json(),
            "public_only": self.public_only.to_json() if self.public_only else None,
            "after": self.after.to_json(),
            **self._outcome(),
            "privacy": privacy,
            "seconds": self.seconds,
            "peak_mb": self.peak_mb,
            "per_round": asdict(self.per_round) if self.per_round else None,
        }

    def _outcome(self) -> dict[str, object]:
        more, stages = self.unreleased, dict(self.stages)
        shown = {name: stages[name].to_json() if name in stages else None for name in _STAGES}
        sites = more.by_site if more else ()
        return {
            "stages": shown,
            "verdict": self.verdict,
            "recommended": self.recommended,
            "judges": self.judges,
            "difference": self.difference.to_json() if self.difference else None,
            "difference_alone": more.difference.to_json() if more else None,
            "verdict_alone": more.difference.verdict if more else None,
            "alone_by_site": [
                {"site": each.site, "persons": each.persons, **each.rates.to_json()}
                for each in sites
            ],
        }

    def to_json(self) -> dict[str, object]:
        """The content of `run.json`: the summary, and what plots and page need besides."""
        return {
            **self.summary(),
            "created": self.created,
            **{f"det_{name}": asdict(curve) for name, curve in self.curves.items()},
            "rounds": [asdict(point) for point in self.rounds],
            "settings": {setting.name: setting.value for setting in self.settings},
            "skipped": {skip.reason: skip.count for skip in self.skipped},
            "warnings": list(self.warnings),
            "files": list(self.files),
        }


def write_run(record: RunRecord, folder: Path) -> Path:
    """Write `run.json`, whole or not at all, and return its path."""
    path = folder / "run.json"
    text = json.dumps(record.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
    write_private(path, (text + "\n").encode())
    return path


def read_run(folder: Path) -> RunRecord:
    """The record of a run folder; any surprise in its `run.json` is an InputError."""
    path = folder / "run.json"
    try:
        text = read_text(path)
        return run_from_json(json.loads(text))
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}", hint="name a run folder"
        ) from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error


def run_from_json(values: object) -> RunRecord:
    """The record that `to_json` gave; an unknown, missing or mistyped value is named."""
    run = dict(_table(values, "run"))
    privacy = dict(_table(run.get("privacy"), "run.privacy"))
    privacy["adversaries"] = _listed(privacy.get("adversaries"), Adversary, "adversaries")
    run["privacy"] = privacy
    run["settings"] = _listed(run.get("settings"), Setting, "settings")
    run["skipped"] = _listed(run.get("skipped"), Skipped, "skipped")
    for name in ("before", "public_only", "after"):
        if name != "public_only" or run.get(name) is not None:
            run[name] = _verification(run.get(name), f"run.{name}")
    said = {name: run.pop(name) for name in _FOLLOWING if name in run}
    if said:
        run["difference"] = _difference(run.get("difference"), "run.difference")
        run["unreleased"] = _unreleased(run, said)
        run.setdefault("det_public", None)
    else:  # of an earlier version, which compared nothing
        run |= {"det_public": None, "difference": None, "recommended": None}
        run |= {"judges": 0, "unreleased": None}
    record: RunRecord = _read(RunRecord, run, "run")
    found = record.summary()
    for name, value in said.items():
        if found[name] != value:
            raise InputError(f"run.{name} does not follow from the rates and differences beside it")
    return record


# What a record states besides, and what can be computed from it: it is, and compared.
_FOLLOWING = ("stages", "verdict", "difference_alone", "verdict_alone", "alone_by_site")


def _unreleased(run: dict[str, Any], said: dict[str, Any]) -> dict[str, Any] | None:
    """Take the stages of a simulation alone out of a record."""
    curves = {name: run.pop(name, None) for name in ("det_alone", "det_after_own")}
    stages = _table(said.get("stages"), "run.stages")
    if stages.get("alone") is None:
        return None
    own, sites = stages.get("after_own"), said.get("alone_by_site")
    if not isinstance(sites, list):
        raise InputError("run.alone_by_site: expected a list")
    return {
        **curves,
        "alone": _verification(stages["alone"], "run.stages.alone"),
        "after_own": None if own is None else _verification(own, "run.stages.after_own"),
        "difference": _difference(said.get("difference_alone"), "run.difference_alone"),
        "by_site": [_site_alone(each, f"run.alone_by_site[{i}]") for i, each in enumerate(sites)],
    }


def _site_alone(value: object, where: str) -> dict[str, Any]:
    table = dict(_table(value, where))
    named = {name: table.pop(name, None) for name in ("site", "persons")}
    return {**named, "rates": _verification(table, where)}


def _difference(value: object, where: str) -> dict[str, Any] | None:
    """The keys of `Difference.to_json` -> those of its fields."""
    if value is None:
        return None
    table = dict(_table(value, where))
    ends = _table(table.pop("ci", None), f"{where}.ci")
    found = {}
    for name, change in table.items():
        pair = ends.get(name)
        if not isinstance(pair, list) or len(pair) != 2:
            raise InputError(f"{where}.ci.{name}: expected [low, high], not {pair!r}")
        found[name.replace("_1e-", "_1e")] = {"value": change, "low": pair[0], "high": pair[1]}
    return found


def _table(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected a table, not {type(value).__name__}")
    return value


def _listed(value: object, kind: type, where: str) -> list[dict[str, Any]]:
    """A mapping of two-field records by their first field -> a list of them."""
    key, other = (field.name for field in fields(kind))
    return [{key: name, other: entry} for name, entry in _table(value, where).items()]


def _verification(value: object, where: str) -> dict[str, Any]:
    """The keys of `Verification.to_json` -> those of its fields."""
    table = {name.replace("_1e-", "_1e"): entry for name, entry in _table(value, where).items()}
    intervals = {}
    for name, ends in _table(table.get("ci"), f"{where}.ci").items():
        if not isinstance(ends, list) or len(ends) != 2:
            raise InputError(f"{where}.ci.{name}: expected [low, high], not {ends!r}")
        intervals[name.replace("_1e-", "_1e")] = {"low": ends[0], "high": ends[1]}
    return {**table, "ci": intervals or None}


_WITH_TUPLES = (RunRecord, PrivacyRecord, DetPoints, RoundPoint)


def _read(kind: Any, value: Any, where: str) -> Any:
    """What `common.config.parse` does, and tuples."""
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise InputError(f"{where}: expected a list, not {type(value).__name__}")
        return tuple(_read(get_args(kind)[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if kind in _WITH_TUPLES:
        table, hints = _table(value, where), get_type_hints(kind)
        for name in sorted(set(table) ^ set(hints)):
            raise InputError(f"{where}: {'unknown' if name in table else 'missing'} key {name!r}")
        return kind(**{name: _read(hints[name], table[name], f"{where}.{name}") for name in hints})
    cell: Any = make_dataclass("Cell", [("value", kind)])
    return parse(cell, {"value": value}, where=where).value
