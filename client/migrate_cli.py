"""`veilface template migrate`: another network for a vault, measured before it is taken."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from rich.table import Column, Table

from client.vault import Vault
from client.vault_options import (
    NetworkChoice,
    VaultOptions,
    network_before,
    network_now,
    network_options,
    vault_options,
)
from common.errors import InputError, Refused
from common.metrics import Verification
from common.tables import print_table
from common.wording import plural

if TYPE_CHECKING:
    from client.network_trial import Outlook, Trial

_RATES: Final = (
    ("TMR at FMR 1%", "tmr_at_fmr_1e2"),
    ("TMR at FMR 0.1%", "tmr_at_fmr_1e3"),
    ("EER", "eer"),
)
_VERDICTS: Final = {
    "helped": "the new network is better on these faces",
    "no-difference": "no difference that could not be chance",
    "worse": "the new network is WORSE on these faces",
}


@click.command()
@vault_options
@network_options
@click.option("--back", is_flag=True, help="To the network that the vault had before.")
@click.option("--dry-run", is_flag=True, help="Measure and tell; change nothing.")
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Measure on person folders [default: the pictures that the vault keeps].",
)
@click.option("--backup", type=click.Path(path_type=Path), help="New file, sealed as the vault is.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Even to a network that was measured to be worse.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def migrate(
    options: VaultOptions,
    choice: NetworkChoice,
    back: bool,
    dry_run: bool,
    data: Path | None,
    backup: Path | None,
    yes: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Move the vault to another network; who has no kept pictures must enrol again.

    Both networks are measured on the site's own faces first, and a sealed backup is written. The
    way back is --back: by kept pictures, and at once for who has not moved.
    """
    if back and choice.named:
        raise InputError("--back names the network itself", hint="leave the other options out")
    from client.network_trial import Side, embed_with, outlook  # most commands need no torch
    from client.recognition import network_id

    lock = options.lock()
    with Vault.open(options.where, lock) as vault:
        if back:
            choice = network_before(vault)
        new = Side(choice.network(), choice.detector())
        choice.check_detector()
        wanted, told = network_id(new.network), dict[str, object]()
        if wanted == vault.info.model_id:  # it goes on with a move that was stopped
            settings = choice.relocated()
        else:
            if not dry_run and (backup is None or backup.exists()):
                fault = "no backup is named" if backup is None else f"{backup} exists already"
                raise InputError(fault, hint="--backup NEW-FILE; or look first, with --dry-run")
            now = network_now(vault)
            old = Side(now.network(), now.detector())
            if network_id(old.network) != vault.info.model_id:
                raise Refused("the vault's own network is not what it was: nothing to compare with")
            found = outlook(vault, old, new, data)
            told = _told(found)
            if not as_json:
                _show(found, old.network.name, new.network.name)
            if not dry_run and backup is not None:
                _consent(found, yes=yes, force=force)
                vault.export(backup, lock)
            settings = choice.settings(vault)
        if dry_run:
            click.echo(json.dumps(told) if as_json else "a dry run: nothing was changed")
            return
        moved = vault.change_model(wanted, embed_with(new.network), settings)
    went = plural(len(moved.migrated), "person")
    again = f"; must enrol again: {', '.join(moved.must_enrol)}" if moved.must_enrol else ""
    if as_json:
        click.echo(json.dumps({**told, **dataclasses.asdict(moved)}))
    else:
        click.echo(f"the vault's network is {new.network.name}: {went} moved{again}")


def _consent(found: Outlook, *, yes: bool, force: bool) -> None:
    """Ask, unless that was answered; a worse network takes more than a yes."""
    if found.trial is not None and found.trial.difference.verdict == "worse" and not force:
        raise Refused(
            "the new network is worse on this site's own faces: nothing was changed",
            hint="--force moves to it all the same",
        )
    if not yes:
        again = f", {plural(len(found.must_enrol), 'person')} must enrol again"
        what = f"Move {plural(found.moves, 'person')}{again if found.must_enrol else ''}?"
        click.confirm(what, abort=True, err=True)


def _told(found: Outlook) -> dict[str, object]:
    trial = found.trial
    told: dict[str, object] = {
        "moves": found.moves,
        "must_enrol": found.must_enrol,
        "measured": _measured(trial) if trial else None,
    }
    return {**told, "note": found.note} if found.note else told


def _measured(trial: Trial) -> dict[str, object]:
    return {
        "persons": trial.persons,
        "before": trial.before.to_json(),
        "after": trial.after.to_json(),
        "difference": trial.difference.to_json(),
        "verdict": trial.difference.verdict,
    }


def _show(found: Outlook, old: str, new: str) -> None:
    if found.trial is None:
        click.echo(f"Not measured: {found.note}. Person folders can be given with --data.")
        return
    trial = found.trial
    right = [Column(name, justify="right") for name in ("now", "then", "difference (95%)")]
    table = Table("", *right, title=f"{old}, then {new}: {plural(trial.persons, 'person')}")
    for words, name in _RATES:
        change = getattr(trial.difference, name)
        table.add_row(
            words,
            *(f"{_rate(side, name):.1%}" for side in (trial.before, trial.after)),
            f"{change.value:+.1%} ({change.low:+.1%} to {change.high:+.1%})",
        )
    print_table(table)
    click.echo(_VERDICTS[trial.difference.verdict])


def _rate(side: Verification, name: str) -> float:
    return float(getattr(side, name))
