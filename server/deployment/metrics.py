"""A server's state for Prometheus (text format 0.0.4): counts and times, nothing private."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import get_args

from server.deployment.folder import State
from server.deployment.front_counts import FrontCounts
from server.deployment.status import Presence, Status

Sample = tuple[dict[str, str], float]


def text(status: Status, front: FrontCounts | None) -> str:
    """Return everything, in the text format."""
    return "\n".join((*_sites(status), *_runs(status), *_front(front))) + "\n"


def _sites(status: Status) -> Iterator[str]:
    online = Counter(site.state for site in status.sites)
    yield from _family(
        "veilface_sites", "gauge", "Sites of the roster by presence.",
        (({"state": state}, online[state]) for state in get_args(Presence)),
    )  # fmt: skip
    now = _moment(status.now)
    yield from _family(
        "veilface_site_contact_seconds", "gauge", "Seconds since a site was last heard of.",
        (({"site": s.site}, max(0.0, now - _moment(s.heard))) for s in status.sites if s.heard),
    )  # fmt: skip
    yield from _family(
        "veilface_epsilon_bound", "gauge", "Epsilon that a site may have spent at most, all runs.",
        (({"site": site.site}, site.epsilon) for site in status.sites),
    )  # fmt: skip


def _runs(status: Status) -> Iterator[str]:
    states = Counter(run.state for run in status.runs)
    yield from _family(
        "veilface_runs", "gauge", "Runs by state.",
        (({"state": state}, states[state]) for state in get_args(State)),
    )  # fmt: skip
    runs = status.runs
    yield from _family(
        "veilface_rounds_total", "counter", "Rounds finished.",
        (({"run": run.run_id}, run.round) for run in runs),
    )  # fmt: skip
    yield from _family(
        "veilface_round_seconds_total", "counter", "Seconds that finished rounds took together.",
        (({"run": run.run_id}, run.seconds) for run in runs),
    )  # fmt: skip
    shares = [(run, site) for run in runs for site in run.sites]
    yield from _family(
        "veilface_updates_total", "counter", "Updates asked for, by whether they were used.",
        (
            ({"run": run.run_id, "site": s.site, "outcome": outcome}, count)
            for run, s in shares
            for outcome, count in (("used", s.accepted), ("rejected", s.asked - s.accepted))
        ),
    )  # fmt: skip
    yield from _family(
        "veilface_updates_rejected_total", "counter", "Updates that were not used, by why.",
        (
            ({"run": run.run_id, "site": s.site, "reason": reason}, count)
            for run, s in shares
            for reason, count in sorted(s.rejections.items())
        ),
    )  # fmt: skip
    yield from _family(
        "veilface_run_epsilon_bound", "gauge", "Epsilon that a site may have spent on a run.",
        (({"run": run.run_id, "site": s.site}, s.spent) for run, s in shares),
    )  # fmt: skip


def _front(front: FrontCounts | None) -> Iterator[str]:
    counts = front or FrontCounts("")
    yield from _family(
        "veilface_front_refused_total", "counter", "Requests that the front turned away.",
        (({"reason": reason}, count) for reason, count in sorted(counts.refused.items())),
    )  # fmt: skip
    passed = (({**_call(name)}, count) for name, count in sorted(counts.passed.items()))
    yield from _family("veilface_front_calls_total", "counter", "Calls that SuperLink had.", passed)
    for way, count in (("received", counts.received), ("sent", counts.sent)):
        yield from _family(
            f"veilface_front_{way}_bytes_total", "counter", f"Bytes of bodies {way}.", [({}, count)]
        )


def _call(name: str) -> dict[str, str]:
    call, _, code = name.partition(" ")
    return {"call": call, "status": code}


def _family(name: str, kind: str, meaning: str, samples: Iterable[Sample]) -> Iterator[str]:
    yield f"# HELP {name} {meaning}"
    yield f"# TYPE {name} {kind}"
    for labels, value in samples:
        inner = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        yield f"{name}{{{inner}}} {value:.10g}" if inner else f"{name} {value:.10g}"


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _moment(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()
