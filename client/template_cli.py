"""`veilface template`: a vault from the command line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click
from rich.table import Column, Table

from client.calibrate_cli import calibrate
from client.migrate_cli import migrate
from client.picture import Picture
from client.token_cli import token
from client.vault import Receipt, Vault
from client.vault_options import (
    NetworkChoice,
    VaultOptions,
    network_options,
    new_vault,
    recogniser,
    vault_options,
)
from common.cutter import read_image
from common.decoding import DecodeLimits
from common.errors import InputError
from common.storage import write_private
from common.tables import print_table
from common.wording import plural

_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_IMAGES = click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))


@click.group()
def template() -> None:
    """Enrol, verify and identify people; templates lie encrypted in a vault."""


template.add_command(token)
template.add_command(calibrate)
template.add_command(migrate)


@template.command()
@vault_options
@network_options
@click.option("--eight-bit", is_flag=True, help="Store templates in a quarter of the space.")
@click.option("--keep-chips", is_flag=True, help="Keep sealed pictures, to change models later.")
@_JSON
def init(
    options: VaultOptions, choice: NetworkChoice, eight_bit: bool, keep_chips: bool, as_json: bool
) -> None:
    """Make a vault; --key-file is created if it is not there."""
    with new_vault(options, choice, eight_bit=eight_bit, keep_chips=keep_chips) as vault:
        _print(dataclasses.asdict(vault.info), as_json, f"vault {vault.info.vault_id} is ready")


@template.command()
@vault_options
@click.argument("subject")
@_IMAGES
@click.option("--force", is_flag=True, help="Poor pictures and other faces, too.")
@_JSON
def enrol(
    options: VaultOptions, subject: str, images: tuple[Path, ...], force: bool, as_json: bool
) -> None:
    """Enrol SUBJECT with one or more IMAGES, or add images to a person who is there."""
    with options.open() as vault:
        done = recogniser(vault).enrol(subject, [_picture(path) for path in images], force=force)
    for warning in done.warnings:
        click.echo(f"Note: {warning}", err=True)
    _print(
        dataclasses.asdict(done),
        as_json,
        f"{done.pseudonym}: {plural(done.templates, 'template')} added",
    )


@template.command()
@vault_options
@click.argument("subject")
@click.argument("image", type=click.Path(path_type=Path))
@_JSON
def verify(options: VaultOptions, subject: str, image: Path, as_json: bool) -> None:
    """Is IMAGE of SUBJECT? Exit 0 if accepted, 1 if not."""
    with options.open() as vault:
        decision = recogniser(vault).verify(subject, _picture(image))
    for warning in decision.warnings:
        click.echo(f"Note: {warning}", err=True)
    words = "accepted" if decision.accepted else "rejected"
    _print(
        dataclasses.asdict(decision),
        as_json,
        f"{words}: score {decision.score:.3f}, threshold {decision.threshold:.3f} "
        f"(FMR {decision.fmr:g})",
    )
    if not decision.accepted:
        raise click.exceptions.Exit(1)


@template.command()
@vault_options
@click.argument("image", type=click.Path(path_type=Path))
@click.option("--top", type=click.IntRange(1, 100), default=5, show_default=True)
@_JSON
def identify(options: VaultOptions, image: Path, top: int, as_json: bool) -> None:
    """Who is on IMAGE? Exit 0 if someone of the vault, 1 if a stranger."""
    with options.open() as vault:
        found = recogniser(vault).identify(_picture(image), top)
    for warning in found.warnings:
        click.echo(f"Note: {warning}", err=True)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found)))
    else:
        table = Table("pseudonym", Column("score", justify="right"))
        for candidate in found.candidates:
            table.add_row(candidate.pseudonym, f"{candidate.score:.3f}")
        if found.candidates:
            print_table(table)
        who = found.accepted.pseudonym if found.accepted else "nobody of this vault"
        click.echo(f"{who} (threshold {found.threshold:.3f}, FPIR {found.fpir:g})")
    if found.accepted is None:
        raise click.exceptions.Exit(1)


@template.command(name="list")
@vault_options
@_JSON
def list_(options: VaultOptions, as_json: bool) -> None:
    """List who is enrolled, by pseudonym."""
    with options.open() as vault:
        subjects, info = vault.subjects(), vault.info
    if as_json:
        rows = [dataclasses.asdict(subject) for subject in subjects]
        click.echo(json.dumps({"info": dataclasses.asdict(info), "subjects": rows}, default=str))
        return
    table = Table(title=f"{plural(info.subjects, 'person')}, {plural(info.templates, 'template')}")
    for column in ("pseudonym", "templates", "model", "enrolled", ""):
        table.add_column(column)
    for subject in subjects:
        stale = "enrol again" if subject.stale else ""
        table.add_row(
            subject.pseudonym,
            str(subject.templates),
            subject.model_id[:12],
            str(subject.created),
            stale,
        )
    print_table(table)


@template.command()
@vault_options
@click.argument("subject")
@click.option("--receipt", type=click.Path(path_type=Path), help="Write the signed receipt here.")
def erase(options: VaultOptions, subject: str, receipt: Path | None) -> None:
    """Destroy SUBJECT's key and templates for good, and print a signed receipt."""
    if receipt is not None and (receipt.is_dir() or not receipt.parent.is_dir()):
        raise InputError(f"--receipt {receipt} cannot be a file", hint="nobody was erased")
    with options.open() as vault:
        vault.erase(subject, lambda signed: _give(signed, receipt))


@template.command(name="receipt")
@vault_options
@click.argument("subject")
@click.option("--receipt", type=click.Path(path_type=Path), help="Write it here, too.")
def receipt_command(options: VaultOptions, subject: str, receipt: Path | None) -> None:
    """Print the receipt of SUBJECT's last erasure again."""
    with options.open() as vault:
        _give(vault.receipt(subject), receipt)


@template.command(name="rotate-key")
@vault_options
@click.option("--new-passphrase-file", type=click.Path(path_type=Path))
@click.option("--new-key-file", type=click.Path(path_type=Path), help="Created if not there.")
@click.option("--new-transit", metavar="URL/KEY")
def rotate_key(
    options: VaultOptions,
    new_passphrase_file: Path | None,
    new_key_file: Path | None,
    new_transit: str | None,
) -> None:
    """Put everything under a new vault key; templates stay where they are."""
    new = VaultOptions(options.where, new_passphrase_file, new_key_file, new_transit)
    if new_passphrase_file is None and new_key_file is None and new_transit is None:
        raise InputError(
            "say what opens the vault from now on",
            hint="--new-passphrase-file, --new-key-file or --new-transit",
        )
    with options.open() as vault:
        vault.rotate_key(new.lock(create=True))
    click.echo("the vault opens with the new key only")


@template.command()
@vault_options
def renew(options: VaultOptions) -> None:
    """Draw a new secret transform: a copy stolen before no longer matches this vault."""
    with options.open() as vault:
        vault.renew()
    click.echo("all templates lie in a new secret space")


@template.command()
@vault_options
@click.argument("file", type=click.Path(path_type=Path))
def export(options: VaultOptions, file: Path) -> None:
    """Write a sealed backup to FILE, under the same lock."""
    with options.open() as vault:
        vault.export(file, options.lock())
    click.echo(str(file))


@template.command(name="import")
@vault_options
@click.argument("file", type=click.Path(path_type=Path))
def import_(options: VaultOptions, file: Path) -> None:
    """Make a vault from the sealed backup FILE, under the lock it was written with."""
    lock = options.lock()
    with Vault.import_(file, lock, options.where, lock) as vault:
        click.echo(f"vault {vault.info.vault_id}: {plural(vault.info.subjects, 'person')}")


@template.command()
@vault_options
@click.option("--yes", is_flag=True, help="Do not ask.")
def trust(options: VaultOptions, yes: bool) -> None:
    """Take the vault's file as it lies, where FILE.head is gone or speaks of a newer one.

    That small file is all that tells an old copy from the vault: people who were erased since would
    be back.
    """
    if "://" in options.where:
        raise InputError("a database has no such file", hint="nothing needs to be trusted")
    lock = options.lock()
    if not yes:
        click.confirm(f"Is {options.where} the newest copy of this vault?", abort=True, err=True)
    with Vault.open(options.where, lock, trust=True) as vault:
        last = vault.log()[-2:-1]  # before the one of this command
        when = f"last used on {last[0].time}" if last else "never used"
        click.echo(f"taken as it lies: {plural(vault.info.subjects, 'person')}, {when}")


@template.command()
@vault_options
@_JSON
def log(options: VaultOptions, as_json: bool) -> None:
    """Show the operation log: what was done, to whom by pseudonym, and how it ended."""
    with options.open() as vault:
        entries = [dataclasses.asdict(entry) for entry in vault.log()]
    if as_json:
        click.echo(json.dumps({"entries": entries}, default=str))
        return
    table, columns = Table(), ("time", "operation", "pseudonym", "outcome")
    for name in columns:
        table.add_column(name)
    for entry in entries:
        table.add_row(
            *(str(entry[name] or "") for name in ("time", "operation", "pseudonym", "outcome"))
        )
    print_table(table)


def _give(receipt: Receipt, file: Path | None) -> None:
    """Print a receipt and write it to a file: whichever of the two fails, the other is done."""
    text = receipt.to_json()
    try:
        click.echo(text)
    finally:
        if file is not None:
            write_private(file, (text + "\n").encode())


def _picture(path: Path) -> Picture:
    return Picture(str(path), read_image(path, DecodeLimits()))


def _print(values: dict[str, Any], as_json: bool, words: str) -> None:
    click.echo(json.dumps(values, default=str) if as_json else words)
