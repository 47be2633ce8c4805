"""Real sites and a real server as processes: late, silent, unwilling, full, added, revoked."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from client.consent import SitePolicy
from common.app_bundle import app_hash
from common.ledger import verify
from common.liveness import DROP_AFTER
from common.spending import spent
from server.deployment.folder import RunFolder
from tests.deployment_rig import Rig, command, training
from tests.deployment_runs import accepted, committed, longest, moments, records, takes_part
from tests.process_rig import BIN, QUICK, code_copy, listens, until

EPSILON, DELTA = 4.0, 1e-4
WIDE = SitePolicy(
    backbones=("lenet",), epsilon=100.0, delta=DELTA, epsilon_per_run=EPSILON, rounds_per_run=1000,
    trust=("local",), survivors=0, colluders=0, code=(app_hash(),),
)  # fmt: skip


@pytest.fixture(scope="module")
def shared(people_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A server without terms of its own, and the sites `a` and `b`, which allow much."""
    rig = Rig(
        tmp_path_factory.mktemp("shared"), people_folder,
        ("a", "b", "late", "full", "backbone", "delta", "per-run", "rounds", "trust", "budget",
         "code", "blind"),
    )  # fmt: skip
    policy = rig.file("wide.toml", WIDE.to_toml())
    rig.server().start()
    for site, data in (("a", "one"), ("b", "two")):
        rig.site(site, "--policy", policy, data=data).start()
    try:
        until(lambda: listens("127.0.0.1", rig.page), "the server is up")
        until(lambda: {"a", "b"} <= rig.online(), "a and b are there")
        yield rig
    finally:
        rig.stop()


@contextmanager
def endless(rig: Rig, run_id: str, *options: object) -> Iterator[RunFolder]:
    """A run that goes on until it is cancelled."""
    config = rig.file(
        "endless.toml", training(rounds=1000, local_steps=5, epsilon=EPSILON, minimum_sites=2)
    )
    run = rig.ask(run_id, "--config", config, *options)
    try:
        until(lambda: records(run), lambda: f"the first round: {rig.status()}\n{rig.logs()}")
        yield run
    finally:
        assert command("server", "cancel", "--state", rig.folder.path, run_id).code == 0
        until(lambda: rig.status()[run_id]["state"] == "cancelled", "it is cancelled")


def test_a_late_site_joins_and_one_that_leaves_or_dies_is_soon_not_waited_for(shared: Rig) -> None:
    with endless(shared, "comings", "--drop-after", 5) as run:
        takes_part(shared, run, "a", "b")
        late = shared.node("late", WIDE).start()
        takes_part(shared, run, "a", "b", "late")
        before = len(records(run))
        assert late.stop() == 0
        takes_part(shared, run, "a", "b")
        assert longest(run, before) < DROP_AFTER, "who says goodbye is not waited for"
        late.start()
        takes_part(shared, run, "a", "b", "late")
        assert late.process is not None
        before = len(records(run))
        late.process.kill()
        until(lambda: accepted(shared, records(run)[-1]) == {"a", "b"}, "late is dropped")
        assert longest(run, before) < 2 * DROP_AFTER, "half of what Flower takes"
        assert late.process.wait() == -signal.SIGKILL


def test_with_too_few_sites_a_run_waits_says_why_and_goes_on(shared: Rig) -> None:
    b = shared.parties["b"]
    with endless(shared, "few") as run:
        assert b.stop() == 0
        said = "1 of at least 2 sites are here (a)"
        until(
            lambda: (
                (shared.status()["few"]["state"], shared.status()["few"]["why"])
                == ("waiting", said)
            ),
            lambda: f"it says why it waits: {shared.status()}",
        )
        done = len(records(run))
        words = ("server", "status", "--state", shared.folder.path)
        until(lambda: "1 of at least 2 sites" in command(*words).out, "it says so to a reader")
        b.start()
        takes_part(shared, run, "a", "b")
        assert len(records(run)) > done
        told = shared.status()["few"]
        assert (told["state"], told["why"]) == ("running", "")


def test_every_clause_of_a_policy_is_kept_and_who_refuses_is_named(shared: Rig) -> None:
    """The others go on; a site whose images cannot be read answers as any other."""
    rounds, budget = 3, 0.6 * EPSILON
    (shared.root / "junk" / "somebody").mkdir(parents=True)
    (shared.root / "junk" / "somebody" / "face.png").write_bytes(b"no picture")
    other = code_copy(shared.root)
    with (other / "client" / "node.py").open("a") as file:
        file.write("# one line more\n")
    told = subprocess.run(
        [BIN / "python", "-P", "-c", "from common.app_bundle import app_hash; print(app_hash())"],
        env={**shared.environment, "PYTHONPATH": str(other)},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    policies = {
        "backbone": dataclasses.replace(WIDE, backbones=("alexnet",)),
        "delta": dataclasses.replace(WIDE, delta=1e-5),
        "per-run": dataclasses.replace(WIDE, epsilon_per_run=0.9 * EPSILON),
        "rounds": dataclasses.replace(WIDE, rounds_per_run=rounds - 1),
        "trust": dataclasses.replace(WIDE, trust=("secagg",), survivors=3, colluders=1),
        "code": dataclasses.replace(WIDE, code=(told.stdout.strip(),)),
        "budget": dataclasses.replace(WIDE, epsilon=budget),
        "blind": WIDE,
    }
    parties = {}
    for name, policy in policies.items():
        data, code = "junk" if name == "blind" else "one", other if name == "code" else None
        parties[name] = shared.node(name, policy, data, code).start()
    try:
        until(lambda: {*policies} <= shared.online(), "all are there")
        terms = training(rounds=rounds, local_steps=5, epsilon=EPSILON, minimum_sites=2)
        run = shared.ask(
            "policies", "--config", shared.file("policies.toml", terms), "--drop-after", 60
        )  # fmt: skip
        until(lambda: run.ended, lambda: f"it ends: {shared.status()}\n{shared.logs()}")
        progress = run.progress()
    finally:
        assert {party.stop() for party in parties.values()} == {0}
    assert progress is not None and progress.state == "finished"
    sites = {site.site: site for site in progress.sites}
    for name in ("a", "b", "blind"):
        assert (sites[name].accepted, sites[name].refused) == (rounds, "")
    for name, clause in (
        ("backbone", "allows no backbone 'lenet'"), ("delta", "the policy at 1e-05"),
        ("per-run", "allows 3.6 a run"), ("rounds", f"the policy allows {rounds - 1}"),
        ("trust", "no run of trust 'local'"),
    ):  # fmt: skip
        assert (sites[name].asked, sites[name].refused) == (0, "refused: contract")
        assert clause in parties[name].said
    assert "does not list the code" in sites["code"].refused and sites["code"].asked == 0
    assert 0 < sites["budget"].accepted < rounds
    assert sites["budget"].refused == "refused: budget"
    shown = command("server", "status", "--state", shared.folder.path).out
    for name in policies:
        assert f"\n  {name}: {sites[name].accepted} of {sites[name].asked} rounds used" in shown
        report = verify(shared.state(name))
        assert (
            len(committed(report, "policies")) == sites[name].accepted == len(report.reservations)
        )
    assert spent(verify(shared.state("budget")).reservations, DELTA) <= budget


def fill(path: Path) -> None:
    """Write to a file until its disk is full."""
    with path.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))


def _said(run: RunFolder, site: str) -> str:
    """Why a site's last answer was not used; progress is told just after a round is recorded."""
    progress = run.progress()
    sites = progress.sites if progress else ()
    return next((said.refused for said in sites if said.site == site), "")


def test_a_site_whose_disk_is_full_releases_nothing_says_so_and_comes_back(shared: Rig) -> None:
    state = shared.state("full")
    state.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs", state], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    party = shared.site("full", "--policy", shared.file("wide.toml", WIDE.to_toml()))
    try:
        party.start()
        with endless(shared, "full") as run:
            takes_part(shared, run, "a", "b", "full")
            fill(state / "ballast")
            until(lambda: _said(run, "full") == "refused: storage", "it says why")
            party.kill("node")
            takes_part(shared, run, "a", "b")
            (state / "ballast").unlink()
            takes_part(shared, run, "a", "b", "full")
        used = {r.round for r in records(run) if "full" in accepted(shared, r)}
        assert used <= {*committed(verify(state), "full")}
    finally:
        party.stop()
        subprocess.run(["umount", state], check=True)


def test_the_roster_is_followed_while_the_server_runs_and_an_old_one_is_refused(
    shared: Rig,
) -> None:
    fed, state = shared.root / "fed", shared.folder.path
    old = shared.file("old.roster", (fed / "current" / "roster").read_text())
    assert command("provision", "--out", fed, "--add-site", "new").code == 0
    new = shared.node("new", WIDE).start()
    with endless(shared, "roster", "--drop-after", 3600) as run:
        until(lambda: "trying again" in new.said, "it is not let in before the server knows it")
        done = command("server", "roster", "--state", state, fed / "current" / "roster")
        assert (done.code, "new" in done.out) == (0, True)
        takes_part(shared, run, "a", "b", "new")
        stopped = new.pid
        until(moments(shared, run, "new")["computes"], "new computes", every=QUICK)
        os.kill(stopped, signal.SIGSTOP)
        assert command("provision", "--out", fed, "--revoke-site", "new").code == 0
        assert command("server", "roster", "--state", state, fed / "current" / "roster").code == 0
        try:
            before = len(records(run))
            until(lambda: len(records(run)) > before + 1, "the round goes on without it")
            assert longest(run, before) < DROP_AFTER, "it is not waited for, though it could be"
        finally:
            os.kill(stopped, signal.SIGCONT)
        assert accepted(shared, records(run)[-1]) == {"a", "b"}
        until(lambda: "this site was revoked" in new.said.rpartition("joined")[2],
              "it is turned away")  # fmt: skip
        progress = run.progress()
        assert progress is not None and "new" in {site.site for site in progress.sites}
    new.stop()
    refused = command("server", "roster", "--state", state, old)
    assert (refused.code, "older" in refused.err) == (3, True)
