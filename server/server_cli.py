"""`veilface server`: run a federation's server with one command, start runs, see how they go."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import click

from common.bundle_options import OpenedBundle, bundle_options, must_be_of
from common.errors import InputError, Refused, VeilfaceError
from common.liveness import DROP_AFTER
from common.supervision import is_running
from common.terms import Terms, read_terms
from common.web.server import host_and_port
from common.wording import STAGES, percent
from server.deployment.folder import (
    ENDED,
    Contacts,
    Progress,
    RunFolder,
    RunRequest,
    ServerFolder,
    to_dict,
)
from server.deployment.status import versions
from server.deployment.up import accept_roster, up
from server.report.utility import read_utility
from server.report.verdict import HINT, recommended, told
from server.report.wording import epsilon as epsilon_in_words
from server.token_cli import token

_LOOKED_WITHIN: Final = timedelta(seconds=30)
_FOLDER = click.Path(path_type=Path, file_okay=False, resolve_path=True)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path, resolve_path=True)


@click.group()
def server() -> None:
    """Coordinate the sites of a federation; see none of their images."""


server.add_command(token)


@server.command("up")
@bundle_options
@click.option("--state", type=_FOLDER, required=True, help="Made if it is not there.")
@click.option("--listen", metavar="HOST:PORT", help="For sites [default: 0.0.0.0, bundle's port].")
@click.option("--page", default="127.0.0.1:8480", show_default=True, metavar="HOST:PORT")
@click.pass_context
def up_command(
    context: click.Context, opened: OpenedBundle, state: Path, listen: str | None, page: str
) -> None:
    """Run SuperLink, coordinator, front and status page until stopped."""
    must_be_of(opened.bundle, server=True)
    _, port = host_and_port(opened.bundle.manifest.server)
    where = host_and_port(listen) if listen else ("0.0.0.0", port)
    verbose = bool(context.find_root().params.get("verbose"))
    up(opened, state, where, host_and_port(page), verbose=verbose)


@server.command("run")
@click.option("--state", type=_FOLDER, required=True, help="The folder of a running server.")
@click.option("--public", type=_FOLDER, required=True, help="Public faces that sites train with.")
@click.option("--test", type=_FOLDER, help="Other public faces, to measure each round's model on.")
@click.option("--config", type=_FILE, help="training.toml, if the bundle has no terms.")
@click.option("--run-id", help="Names the run [default: the time].")
@click.option("--weights", type=_FILE, help="Of a backbone that is not pretrained.")
@click.option("--aligned", is_flag=True, help="The public faces are aligned chips already.")
@click.option("--cache", type=_FOLDER, help="Of sealed chips [default: the user's cache folder].")
@click.option("--drop-after", default=DROP_AFTER, show_default=True, metavar="SECONDS",
              help="How long a round waits for a site that has fallen silent.")  # fmt: skip
@click.option("--detach", is_flag=True, help="Do not wait for the end.")
@click.option("--json", "as_json", is_flag=True)
def run_command(
    state: Path,
    public: Path,
    test: Path | None,
    config: Path | None,
    run_id: str | None,
    weights: Path | None,
    aligned: bool,
    cache: Path | None,
    drop_after: float,
    detach: bool,
    as_json: bool,
) -> None:
    """Start a training run, or go on watching one; its end is this command's exit code."""
    folder = ServerFolder(state)
    folder.roster()
    if not 5.0 <= drop_after <= 3600.0:
        raise InputError("--drop-after lies between 5 and 3600 seconds")
    now = datetime.now(UTC)
    request = RunRequest(
        run_id=run_id or now.strftime("%Y%m%d-%H%M%S"),
        terms=_terms(folder, config),
        public=public,
        test=test,
        aligned=aligned,
        weights=weights,
        cache=cache,
        drop_after=drop_after,
        asked=now.strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    for path in (public, test):
        if path is not None and not path.is_dir():
            raise InputError(f"{path} is no folder")
    run = folder.ask(request)
    if not is_running(state):
        click.echo(f"run {run.name} is on the list; no server is up in {state}", err=True)
    if not detach:
        _watch(folder, run)
    _say(run, as_json)


@server.command("cancel")
@click.option("--state", type=_FOLDER, required=True)
@click.argument("run_id")
def cancel_command(state: Path, run_id: str) -> None:
    """Leave a run within a second or two; what sites have spent stays spent."""
    folder = ServerFolder(state)
    folder.roster()
    run = folder.run(run_id)
    ended = run.state(run.progress())
    if ended in ("finished", "failed"):
        raise InputError(f"run {run.name} has {ended}: there is nothing to cancel")
    run.cancel()
    click.echo(f"run {run.name} is cancelled")


@server.command("roster")
@click.option("--state", type=_FOLDER, required=True)
@click.argument("document", type=_FILE)
def roster_command(state: Path, document: Path) -> None:
    """Take a newer roster from the federation's operator: sites join and leave within seconds."""
    roster = accept_roster(ServerFolder(state), document.read_bytes())
    names = ", ".join(site.name for site in roster.sites)
    click.echo(f"roster {roster.serial} of {roster.issued}: {names}")


def _versions(run: RunFolder) -> list[dict[str, object]] | None:
    """The models of a run; None where its checkpoint is damaged, which hides no other run."""
    try:
        return [to_dict(version) for version in versions(run)]
    except InputError as error:
        click.echo(f"Note: {error}", err=True)
        return None


@server.command("status")
@click.option("--state", type=_FOLDER, required=True)
@click.option("--json", "as_json", is_flag=True)
def status_command(state: Path, as_json: bool) -> None:
    """Show the sites, the runs, and what the runs have cost each site at most."""
    folder = ServerFolder(state)
    roster, contacts = folder.roster(), folder.contacts()
    runs = [(run, run.progress()) for run in folder.runs()]
    if as_json:
        status = {
            "federation": roster.federation,
            "running": is_running(state),
            "roster": roster.serial,
            "sites": to_dict(contacts)["sites"] if contacts else [],
            "runs": {
                run.name: {
                    **(to_dict(progress) if progress else {}),
                    "state": run.state(progress),
                    "versions": _versions(run),
                }
                for run, progress in runs
            },
        }
        click.echo(json.dumps(status))
        return
    click.echo(f"{roster.federation}: {_health(state, contacts)}")
    for site in contacts.sites if contacts else ():
        click.echo(f"  {site.site}: {site.state}{f', heard {site.heard}' if site.heard else ''}")
    for run, progress in runs:
        click.echo(_line(folder, run, progress))
        for part in progress.sites if progress else ():
            counts = ", ".join(f"{count} {why}" for why, count in part.rejections.items())
            click.echo(
                f"  {part.site}: {part.accepted} of {part.asked} rounds used, epsilon at most "
                f"{epsilon_in_words(part.epsilon)}{f'; not used: {counts}' if counts else ''}"
                f"{f'; last: {part.refused}' if part.refused else ''}"
            )


def _health(state: Path, contacts: Contacts | None) -> str:
    """Whether the server works: it looks at its sites every few seconds, if it can."""
    if not is_running(state):
        return "not running"
    looked = contacts.looked if contacts else ""
    if not looked:
        return "starting"
    then = datetime.strptime(f"{looked}+0000", "%Y-%m-%dT%H:%M:%SZ%z")
    if datetime.now(UTC) - then < _LOOKED_WITHIN:
        return "up"
    return f"up, but it has not reached its SuperLink since {looked}; its log says why"


def _terms(folder: ServerFolder, config: Path | None) -> Terms:
    """The terms of the bundle, which the sites have too; others only where the bundle has none."""
    bundled = folder.terms()
    if bundled is None:
        if config is None:
            raise InputError("the server's bundle has no terms", hint="give --config training.toml")
        return read_terms(config)
    if config is not None and read_terms(config) != bundled:
        raise Refused(
            "--config differs from the terms in the bundles of server and sites",
            hint="leave it out, or provision the federation with the new terms",
        )
    return bundled


def _watch(folder: ServerFolder, run: RunFolder) -> None:
    told = ""
    while True:
        progress = run.progress()
        state = run.state(progress)
        line = _line(folder, run, progress)
        if line != told:
            click.echo(line, err=True)
            told = line
        if state in ENDED:
            return
        time.sleep(0.3)


def _line(folder: ServerFolder, run: RunFolder, progress: Progress | None) -> str:
    state = run.state(progress)
    if progress is None:
        why = f" {folder.waits_for(run)}" if state == "waiting" else ""
        return f"run {run.name}: {state}{why}"
    why = f" ({progress.why})" if progress.why else ""
    scores = "".join(f", {name} {value:.3f}" for name, value in progress.scores.items())
    return (
        f"run {run.name}: {state}, round {progress.round} of {progress.rounds}, epsilon "
        f"at most {epsilon_in_words(progress.epsilon)} at delta {progress.delta:g}{scores}{why}"
    )


class RunEnded(VeilfaceError):  # noqa: N818 - names what happened
    """A run that was watched did not finish."""


def _say_gain(run: RunFolder) -> None:
    """Tell who trained with private faces what they gave, on the server's own test faces."""
    if (utility := read_utility(run.path)) is None:
        click.echo("No verdict: give --test, public faces to measure each stage on", err=True)
        return
    for stage, rates in utility.stages:
        click.echo(
            f"{STAGES[stage]}: TMR {percent(rates.tmr_at_fmr_1e2)} at FMR 1e-2 and "
            f"{percent(rates.tmr_at_fmr_1e3)} at FMR 1e-3",
            err=True,
        )
    said = told(utility)
    click.echo(f"{'Warning: ' if said.tone == 'amber' else ''}{said.line}", err=True)
    if utility.verdict in ("no-difference", "worse"):
        click.echo(HINT, err=True)
    if use := recommended(utility):
        click.echo(use, err=True)


def _say(run: RunFolder, as_json: bool) -> None:
    progress = run.progress()
    state = run.state(progress)
    if as_json:
        known = {**(to_dict(progress) if progress else {}), "state": state}
        click.echo(json.dumps({"run_id": run.name, "model": str(run.model), **known}))
    elif state == "finished":
        click.echo(run.model)
        _say_gain(run)
    if state in ("failed", "cancelled"):
        why = f": {progress.why}" if progress and progress.why else ""
        raise RunEnded(f"run {run.name} {state}{why}")
