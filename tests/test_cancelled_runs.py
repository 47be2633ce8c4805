"""A run that was cancelled has ended, whoever was at work on it, or nobody."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from server.deployment.coordinator import Coordinator
from server.deployment.folder import Progress, RunFolder, ServerFolder, State
from server.deployment.status import run_status
from server.deployment.superlink import Inside
from tests.deployment_rig import Said, command
from tests.front_rig import federation
from tests.process_rig import until
from tests.server_run_rig import ask, meet, terms


@pytest.fixture
def folder(tmp_path: Path) -> ServerFolder:
    folder = ServerFolder(federation(tmp_path).folder)
    meet(folder)
    return folder


def left(folder: ServerFolder, name: str, state: State | None) -> RunFolder:
    """A run as a server left it that is no more."""
    run = ask(folder, name, 9, "2026-11-24T10:00:00Z")
    if state is not None:
        run.report(Progress(state, 3, 9, 1.0, 1e-5, 9.0, (), {}, "", ""))
    assert command("server", "cancel", "--state", folder.path, name).code == 0
    return run


@pytest.mark.parametrize("state", [None, "waiting"])
def test_a_run_that_waits_ends_with_the_request(folder: ServerFolder, state: State | None) -> None:
    """Nobody works on it, so nobody would ever write that it has ended."""
    run = left(folder, "queued", state)
    assert run.ended and run_status(run).state == "cancelled"
    told = command("server", "status", "--state", folder.path, "--json")
    assert json.loads(told.out)["runs"]["queued"]["state"] == "cancelled"
    assert "run queued: cancelled" in command("server", "status", "--state", folder.path).out


@pytest.mark.parametrize("state", ["finished", "failed"])
def test_a_run_that_has_ended_cannot_be_cancelled_and_stays_what_it_is(
    folder: ServerFolder, state: State
) -> None:
    run = ask(folder, "over", 9, "2026-11-24T10:00:00Z")
    run.report(Progress(state, 3, 9, 1.0, 1e-5, 9.0, (), {}, "why", ""))
    done = command("server", "cancel", "--state", folder.path, "over")
    assert (done.code, f"run over has {state}" in done.err, done.out) == (2, True, "")
    assert not run.cancelled and run_status(run).state == state


class Nowhere(Inside):
    """No SuperLink is asked anything here."""

    @contextmanager
    def control(self) -> Iterator[None]:  # type: ignore[override]
        yield None


def test_a_server_that_comes_back_ends_a_run_that_it_was_to_leave(
    folder: ServerFolder, tmp_path: Path
) -> None:
    run, stop = left(folder, "running", "running"), threading.Event()
    assert not run.ended
    coordinator = Coordinator(folder, Nowhere(tmp_path, 1), stop)
    thread = threading.Thread(target=coordinator.run)
    thread.start()
    try:
        until(lambda: run.ended, "it has ended", within=20.0)
    finally:
        stop.set()
        thread.join(20)
    found = run.progress()
    assert found is not None
    assert (found.state, found.why, found.round) == ("cancelled", "by the operator", 3)


def test_who_watches_a_run_that_is_cancelled_before_its_turn_is_told_so(
    folder: ServerFolder, tmp_path: Path
) -> None:
    (folder.path / "terms.json").write_bytes(terms(9).to_bytes())
    words = ("server", "run", "--state", folder.path, "--public", tmp_path, "--run-id", "queued")
    said: list[Said] = []
    watcher = threading.Thread(target=lambda: said.append(command(*words)), daemon=True)
    watcher.start()
    until(lambda: folder.run("queued").exists, "it is on the list")
    folder.run("queued").cancel()
    watcher.join(20)
    assert [done.code for done in said] == [1]
    assert "run queued cancelled" in said[0].err
