"""`veilface site`: join a federation with one command, and see what it has cost so far."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import click

from client.consent import SitePolicy
from client.folder_config import FolderConfig
from client.ledger_cli import epsilon_in_words
from client.node_state import NodeState
from client.odometer import VARIABLE, default_odometers, elsewhere_of
from client.start import SiteOptions, default_state, policy_path, settle_policy, terms_of, up
from common.bundle import Bundle
from common.bundle_options import OpenedBundle, bundle_options, must_be_of
from common.detector_options import detector_options, yunet_file
from common.errors import InputError
from common.ledger import verify
from common.spending import spent
from common.supervision import is_running
from common.web.server import host_and_port
from common.wording import STAGES, percent, plural

_FOLDER = click.Path(path_type=Path, file_okay=False, resolve_path=True)
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.group()
def site() -> None:
    """Take part in a federation: outgoing connections only, within this site's own policy."""


@site.command("policy")
@click.option("--bundle", required=True, type=click.Path(exists=True, path_type=Path))
def policy_command(bundle: Path) -> None:
    """Print the policy that allows what the bundle proposes: read it, keep it, change it."""
    click.echo(SitePolicy.accepting(terms_of(Bundle.read(bundle))).to_toml(), nl=False)


@site.command("up")
@bundle_options
@click.option("--data", required=True, type=_FOLDER, help="Own faces, one folder a person.")
@click.option("--state", type=_FOLDER, help="Ledger and state [default: the user's data folder].")
@click.option("--policy", type=click.Path(exists=True, path_type=Path), help="What is agreed to.")
@click.option("--accept-terms", is_flag=True, help="Agree to what the bundle proposes.")
@click.option("--epsilon-total", type=float, help="With --accept-terms: of all runs, for good.")
@click.option("--server", metavar="HOST:PORT", help="Instead of the address in the bundle.")
@click.option("--weights", type=click.Path(exists=True, path_type=Path, resolve_path=True))
@click.option("--aligned", is_flag=True, help="The images are aligned chips already.")
@click.option("--cache", type=_FOLDER, help="Of sealed chips [default: the user's cache folder].")
@click.option("--odometer", type=_FOLDER, envvar=VARIABLE, help="Of all federations with these "
    "faces: what they have spent together [default: the user's data folder].")  # fmt: skip
@click.option(
    "--allow-duplicates", is_flag=True, help="Persons who hold the same files are different people."
)
@click.pass_context
def up_command(
    context: click.Context,
    opened: OpenedBundle,
    data: Path,
    state: Path | None,
    policy: Path | None,
    accept_terms: bool,
    epsilon_total: float | None,
    server: str | None,
    weights: Path | None,
    aligned: bool,
    cache: Path | None,
    odometer: Path | None,
    allow_duplicates: bool,
) -> None:
    """Run this site until it is stopped."""
    if policy is not None and accept_terms:
        raise InputError("give one of --policy and --accept-terms")
    if epsilon_total is not None and not accept_terms:
        raise InputError(
            "--epsilon-total belongs to --accept-terms", hint="a policy states its own"
        )
    if not data.is_dir():
        raise InputError(f"{data} is no folder")
    data = _settled(data, allow_duplicates=allow_duplicates)
    if server is not None:
        host_and_port(server)
    must_be_of(opened.bundle, server=False)
    folder = FolderConfig(
        data,
        state or default_state(opened.bundle),
        aligned,
        weights,
        cache,
        odometer,
        allow_duplicates=allow_duplicates,
    )
    settle_policy(opened.bundle, folder.state, policy, accept=accept_terms, total=epsilon_total)
    verbose = bool(context.find_root().params.get("verbose"))
    up(opened, SiteOptions(folder, server, verbose))


def _settled(data: Path, *, allow_duplicates: bool) -> Path:
    """Where the persons' folders are, for as long as the site is up; copies are an InputError.

    An empty folder is said here and nowhere else: the server must not be able to tell.
    """
    from common.dataset import list_subjects, person_root  # here, so that --help needs no dlib
    from common.same_person import refuse_copies

    root = person_root(data)
    if root != data:
        click.echo(f"Note: {data} is laid out as LFW: the persons are those in {root}", err=True)
    try:
        persons = list_subjects(root, strict=False)
    except InputError as error:
        click.echo(f"Note: {error.message}: this site adds noise alone", err=True)
        return root
    if not allow_duplicates:
        refuse_copies(persons)
    return root


@site.command("status")
@click.option("--bundle", type=click.Path(exists=True, path_type=Path), help="Of this site.")
@click.option("--state", type=_FOLDER, help="Where it keeps its state, if that was given to up.")
@click.option("--odometer", type=_FOLDER, envvar=VARIABLE, help="If that was given to up.")
@click.option("--json", "as_json", is_flag=True)
def status_command(
    bundle: Path | None, state: Path | None, odometer: Path | None, as_json: bool
) -> None:
    """Show whether the site runs, what it agreed to, and what its ledger says is spent."""
    if state is None and bundle is None:
        raise InputError("which site?", hint="give --bundle, or --state")
    where = state or default_state(Bundle.read(bundle or Path()))
    if not policy_path(where).exists():
        raise InputError(f"{where} holds no site", hint="veilface site up")
    policy, node, report = SitePolicy.read(policy_path(where)), NodeState.read(where), verify(where)
    # The lines of a damaged ledger that can be read are less than what was spent.
    epsilon = spent(report.reservations, policy.delta) if report.ok else None
    made_for = report.genesis.epsilon if report.genesis else policy.epsilon
    budget = min(policy.epsilon, made_for)  # a ledger's own is for good, whatever a policy says
    others = elsewhere_of(odometer or default_odometers(), where) if report.ok else ()
    total = None if epsilon is None else policy.spent_elsewhere or 0.0
    if total is not None:
        total += spent((*others, *report.reservations), policy.delta)
    left = None if total is None else max(0.0, budget - total)
    runs = {r.run_id: sum(o.run_id == r.run_id for o in report.reservations)
            for r in report.reservations}  # fmt: skip
    status = {
        "state": str(where),
        "running": is_running(where),
        "contact": node.contact if node else None,
        "ledger_ok": report.ok,
        "epsilon_spent": epsilon,
        "epsilon_of_all_federations": total,
        "epsilon_left": left,
        "epsilon": budget,
        "epsilon_policy": policy.epsilon,
        "epsilon_ledger": made_for,
        "delta": policy.delta,
        "rounds_by_run": runs,
    }
    if as_json:
        click.echo(json.dumps(status))
        return
    click.echo(f"{where}: {'running' if status['running'] else 'not running'}")
    click.echo(f"server last answered: {status['contact'] or 'never'}")
    click.echo(f"ledger: {'ok' if report.ok else 'DAMAGED; see veilface ledger verify'}")
    click.echo(
        f"epsilon spent {'unknown' if epsilon is None else epsilon_in_words(epsilon)} "
        f"of {budget:g} at delta {policy.delta:g} "
        "(one person, all their images, added or removed)"
    )
    if total is not None and total != epsilon:
        click.echo(f"with all other federations of these faces: {epsilon_in_words(total)}")
    if policy.epsilon != made_for:
        click.echo(f"  the policy says {policy.epsilon:g}, the ledger was made for {made_for:g}")
    if left is not None and left < policy.epsilon_per_run * (1.0 - 1e-9):
        click.echo(
            f"  a run may spend {policy.epsilon_per_run:g} here and {left:.4f} are left: this "
            "site says no to new runs (docs/budget.md)"
        )
    for run_id, rounds in runs.items():
        click.echo(f"  run {run_id}: {plural(rounds, 'round')}")


@site.command("evaluate")
@click.option("--model", required=True, type=_FILE, help="What the federation trained.")
@click.option("--public-model", type=_FILE, help="The run's recommended.safetensors, if it gave "
    "one [default: the public part of --model].")  # fmt: skip
@click.option("--weights", type=_FILE, help="The backbone's, where the run had some.")
@click.option("--data", required=True, type=_FOLDER, help="Own faces, one folder a person.")
@detector_options
@click.option("--aligned", is_flag=True, help="The images are aligned chips already.")
@click.option("--cache", type=_FOLDER, help="Of sealed chips [default: none are kept].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate_command(
    model: Path,
    public_model: Path | None,
    weights: Path | None,
    data: Path,
    detector: str,
    yunet: Path | None,
    aligned: bool,
    cache: Path | None,
    as_json: bool,
) -> None:
    """Ask what the federation's model is worth on this site's own faces: nothing is sent.

    Beside it stand the public model and this site alone, each on persons whom its statistics have
    not seen. What is printed is about private faces and not noised: it is for this site only.
    """
    from client.own_faces import on_own_faces  # here, so that --help needs no torch
    from common.chip_cache import ChipCache
    from common.dataset import images_of, list_subjects, load_chips, person_root
    from common.detection import detector_of
    from common.network import trained_network
    from common.same_person import merged

    trained = trained_network(model, weights)
    public = None if public_model is None else trained_network(public_model, weights)
    finder = detector_of(yunet_file(detector, yunet))
    # Not strict: an error about a person's folder would name the person.
    subjects = merged(list_subjects(person_root(data), strict=False))
    with nullcontext() if cache is None else ChipCache.open(cache) as chips:
        loaded = load_chips(
            images_of(subjects),
            spec=trained.backbone.chip,
            detector=finder,
            cache=chips,
            aligned=aligned,
        )
    found = on_own_faces(trained, public, loaded.chips, loaded.labels(subjects))
    skipped = len(loaded.skipped) + sum(len(subject.skipped) for subject in subjects)
    if skipped:
        click.echo(f"warning: {plural(skipped, 'image')} could not be used", err=True)
    for sentence in found.warnings():
        click.echo(f"warning: {sentence}", err=True)
    for sentence in found.stages["after"].verification.shortages:
        click.echo(f"warning: {sentence}", err=True)
    if as_json:
        click.echo(json.dumps(found.to_json(), allow_nan=False))
        return
    click.echo(
        f"{plural(found.persons, 'person')} of this site with {plural(found.images, 'image')}; "
        "for this site only: not noised, and nothing was sent"
    )
    for stage, name in STAGES.items():
        if stage in found.stages:
            rates = found.stages[stage].verification
            click.echo(
                f"{name}: TMR {percent(rates.tmr_at_fmr_1e2)} at FMR 1e-2 and "
                f"{percent(rates.tmr_at_fmr_1e3)} at FMR 1e-3, EER {percent(rates.eer)}"
            )
    for sentence in found.verdicts():
        click.echo(sentence)
