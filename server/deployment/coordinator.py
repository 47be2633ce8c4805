"""The process that carries training runs through, one after the other, whatever dies meanwhile.

It stands where Flower starts a SuperExec and a new Python process a run, and takes only tasks of
its own: it runs the installed code, and a bundle that someone else submits is turned away unread. A
run that was interrupted goes on from its checkpoint under a new number of Flower's; a site cannot
tell, because the questions are the same.
"""

from __future__ import annotations

import argparse
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NoReturn

import httpx
from flwr.common.constant import SubStatus
from flwr.common.serde import run_from_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity

from common.app_bundle import app_bundle, app_hash
from common.errors import InputError, Refused, VeilfaceError
from common.proxy import host_of, without_proxy
from common.supervision import run_part, stop_on_signals
from server.deployment.folder import RunFolder, ServerFolder
from server.deployment.grid import RosterGrid, RunLost
from server.deployment.journal import Journal
from server.deployment.node_keys import names_by_key
from server.deployment.registry import Registry
from server.deployment.superlink import Inside
from server.masked_rounds import Parties
from server.rounds import RoundFailed
from server.training import Ready, RunConfig, make_ready, train

log = logging.getLogger("veilface.server")

_LOOK_EVERY: Final = 1.0
_REGISTRY_EVERY: Final = 2.0
_BEAT_EVERY: Final = 10.0
_AGAIN_AFTER: Final = 5.0
_EXECUTOR: Final = frozenset({"/flwr.proto.Runtime/AcquireTask"})


class Coordinator:
    """Works through a server's runs until `stop` is set."""

    def __init__(self, folder: ServerFolder, inside: Inside, stop: threading.Event) -> None:
        self._folder, self._inside, self._stop = folder, inside, stop
        self._ready: tuple[str, Ready] | None = None

    def run(self) -> None:
        """Look for runs that have not ended, oldest first, and carry them through."""
        threading.Thread(target=self._keep_registry, daemon=True, name="registry").start()
        while not self._stop.is_set():
            run = next((run for run in self._folder.runs() if not run.ended), None)
            if run is None:
                self._stop.wait(_LOOK_EVERY)
            else:
                self._carry(run)

    def _keep_registry(self) -> None:
        with self._inside.control() as control:
            registry = Registry(self._folder, control)
            while not self._stop.is_set():
                try:
                    registry.look()
                except (httpx.HTTPError, VeilfaceError) as error:
                    log.warning("the list of sites could not be looked at: %s", error)
                self._stop.wait(_REGISTRY_EVERY)

    def _carry(self, run: RunFolder) -> None:
        """Run what is left of a run; whatever stops it is told in its progress."""
        journal = Journal(self._folder, run)
        if run.cancelled:  # while nobody was at work on it
            journal.end("cancelled", "by the operator")
            return
        try:
            if self._ready is None or self._ready[0] != run.name:
                journal.waits("reading the public faces and training on them")
            ready = self._made_ready(run)
            journal.begin(ready.federation.contract)
            self._train(run, ready, journal)
        except (RunLost, RoundFailed, httpx.HTTPError) as error:
            if run.cancelled:
                journal.end("cancelled", "by the operator")
                return
            journal.end("waiting", f"{error}; trying again")
            self._stop.wait(_AGAIN_AFTER)
        except (InputError, Refused) as error:
            journal.end("failed", str(error))
        else:
            journal.end("finished", "")

    def _made_ready(self, run: RunFolder) -> Ready:
        if self._ready is None or self._ready[0] != run.name:
            self._ready = (run.name, make_ready(_config(run)))
        return self._ready[1]

    def _train(self, run: RunFolder, ready: Ready, journal: Journal) -> None:
        with self._task() as (token, number):
            lost = threading.Event()

            def check() -> None:
                if lost.is_set() or self._stop.is_set() or run.cancelled:
                    raise RunLost(
                        "the run was interrupted", hint="it goes on from its last finished round"
                    )

            grid = RosterGrid(
                self._inside.address,
                self._inside.certificate.read_bytes(),
                token,
                sites=lambda: names_by_key(self._folder.roster()),
                drop_after=run.request().drop_after,
                check=check,
                here=journal.counted,
            )
            own = RuntimeTokenHttpInterceptor(token)
            with self._runtime(own) as runtime, _beats(self._runtime(own), lost):
                task = runtime.PullTaskInput(PullTaskInputRequest())
                grid.set_run(run_from_proto(task.run))
                TaskIdentity.task_id, TaskIdentity.run_id = task.task_id, task.run.run_id
                TaskIdentity.node_id = task.context.node_id
                status, details = SubStatus.FAILED, "interrupted"
                try:
                    train(grid, ready, journal, self._parties(grid))
                    status, details = SubStatus.COMPLETED, ""
                finally:
                    grid.close()
                    with suppress(httpx.HTTPError):
                        runtime.PushTaskOutput(
                            PushTaskOutputRequest(sub_status=status, details=details)
                        )
            log.info("run %s: Flower's run %d ended", run.name, number)

    def _parties(self, grid: RosterGrid) -> Parties:
        store = self._folder.roster_store
        return Parties(grid.name_of, store.path.read_bytes, store.key)

    @contextmanager
    def _task(self) -> Iterator[tuple[str, int]]:
        """Start a run at the SuperLink and take its task; yield the token and Flower's number."""
        fab = Fab(hash_str=app_hash(), content=app_bundle())
        with self._inside.control() as control:
            number = int(control.StartRun(StartRunRequest(fab=fab)).run_id)
        if not number:
            raise RunLost("the SuperLink did not take the run")
        executor = SuperExecAuthHttpInterceptor(
            master_secret=self._inside.secret.read_bytes(), protected_methods=_EXECUTOR
        )
        with self._runtime(executor) as runtime:
            deadline = time.monotonic() + 30.0
            while time.monotonic() < deadline:
                taken = runtime.AcquireTask(
                    AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
                )
                if taken.token and taken.task.run_id == number:
                    yield taken.token, number
                    return
                if taken.token:
                    self._turn_away(taken.token)
        raise RunLost("the SuperLink offers no task for the run")

    def _turn_away(self, token: str) -> None:
        """End a task that is not ours: of an interrupted run, or of whoever got at the port."""
        with self._runtime(RuntimeTokenHttpInterceptor(token)) as runtime:
            runtime.PushTaskOutput(
                PushTaskOutputRequest(sub_status=SubStatus.FAILED, details="not accepted")
            )

    def _runtime(self, interceptor: ProtobufClientInterceptor) -> RuntimeHttpClient:
        return RuntimeHttpClient.from_server_address(
            self._inside.address,
            False,
            self._inside.certificate.read_bytes(),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="veilface"), interceptor],
        )


@contextmanager
def _beats(runtime: RuntimeHttpClient, lost: threading.Event) -> Iterator[None]:
    """Keep a task alive; `lost` is set once the SuperLink does not know it any more."""
    done = threading.Event()

    def beat() -> None:
        with runtime:
            while not done.wait(_BEAT_EVERY):
                try:
                    if not runtime.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success:
                        lost.set()
                except httpx.HTTPStatusError as error:
                    if error.response.status_code < 500:
                        lost.set()
                except httpx.TransportError as error:
                    log.warning("the SuperLink does not answer: %s", error)

    thread = threading.Thread(target=beat, daemon=True, name="task heartbeat")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _config(run: RunFolder) -> RunConfig:
    request = run.request()
    return RunConfig(
        run_id=request.run_id,
        out=run.path,
        public=request.public,
        backbone=request.terms.backbone,
        training=request.terms.training,
        weights=request.weights,
        aligned=request.aligned,
        cache=request.cache,
        test=request.test,
    )


def main() -> NoReturn:
    """Run the coordinator of a folder until it is told to stop."""
    parser = argparse.ArgumentParser(prog="veilface-coordinator")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--inside", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--verbose", action="store_true")
    given = parser.parse_args()
    stop, inside = stop_on_signals(), Inside(given.inside, given.port)
    without_proxy(host_of(inside.address))
    run_part(Coordinator(ServerFolder(given.folder), inside, stop).run, verbose=given.verbose)


if __name__ == "__main__":
    main()
