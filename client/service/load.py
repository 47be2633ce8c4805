"""Many clients at once against a running service, and whether it kept what it promised.

    python -m client.service.load https://localhost:8443 --clients 50 --seconds 60 --images DIR

Each client enrols a person of its own making, verifies and identifies, again and again. At the
end the vault must hold every person whose enrolment was answered with 201. The token comes from
VEILFACE_TOKEN and needs the scopes enrol, verify, identify and admin. For a vault of its own: the
persons stay in it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import ssl
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import click
import httpx
import numpy as np

from common.errors import InputError, VeilfaceError

_TRIED = 200
_PICTURES = 100


@dataclass(frozen=True)
class Case:
    """One kind of request: how many were answered as hoped, and milliseconds from send to end."""

    name: str
    requests: int
    per_second: float
    p50: float
    p99: float
    longest: float


@dataclass(frozen=True)
class Report:
    """What a run found; `failures` counts other answers by status, 0 for none at all."""

    clients: int
    seconds: float
    cases: tuple[Case, ...]
    failures: dict[str, int]
    enrolled: int
    lost: int


@dataclass
class _Tally:
    """What the clients have seen so far."""

    milliseconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    failures: Counter[str] = field(default_factory=Counter)
    promised: set[str] = field(default_factory=set)


async def load(
    url: str,
    token: str,
    images: list[bytes],
    *,
    clients: int,
    seconds: float,
    trust: ssl.SSLContext | bool = True,
) -> Report:
    """Run `clients` at once for `seconds`, then compare the vault with what was promised."""
    tally, began = _Tally(), time.monotonic()
    async with httpx.AsyncClient(
        base_url=url,
        verify=trust,
        trust_env=False,  # a proxy of the environment is not what is measured
        headers={"Authorization": f"Bearer {token}"},
        timeout=120,
        limits=httpx.Limits(max_connections=clients),
    ) as client:
        workers = [
            _client(client, number, images, began + seconds, tally) for number in range(clients)
        ]
        await asyncio.gather(*workers)
        took = time.monotonic() - began
        held = await _held(client)
    cases = tuple(_case(name, times, took) for name, times in sorted(tally.milliseconds.items()))
    lost = len(tally.promised - held)
    return Report(clients, took, cases, dict(tally.failures), len(tally.promised), lost)


async def _client(
    client: httpx.AsyncClient, number: int, images: list[bytes], end: float, tally: _Tally
) -> None:
    run = os.urandom(4).hex()
    turn = 0
    while time.monotonic() < end:
        picture = images[(number + turn * 7) % len(images)]
        subject = f"load-{run}-{number}-{turn}"
        made = await _send(
            client, tally, "enrol", "/v1/subjects", {"subject": subject}, "images", picture
        )
        if made is not None:
            tally.promised.add(made["pseudonym"])
            await _send(
                client, tally, "verify", "/v1/verify", {"subject": subject}, "image", picture
            )
        await _send(client, tally, "identify", "/v1/identify", {}, "image", picture)
        turn += 1


async def _send(
    client: httpx.AsyncClient,
    tally: _Tally,
    name: str,
    path: str,
    data: dict[str, str],
    part: str,
    image: bytes,
) -> dict[str, str] | None:
    """The answer, or None if it was not the one hoped for."""
    began = time.monotonic()
    try:
        answer = await client.post(path, data=data, files={part: image})
    except httpx.HTTPError:
        tally.failures[f"{name} 0"] += 1
        return None
    if not answer.is_success:
        tally.failures[f"{name} {answer.status_code}"] += 1
        return None
    tally.milliseconds[name].append(1000 * (time.monotonic() - began))
    content: dict[str, str] = answer.json()
    return content


async def _held(client: httpx.AsyncClient) -> set[str]:
    """The pseudonyms of everyone in the vault."""
    held: set[str] = set()
    while True:
        query = {"offset": len(held), "limit": 10_000}
        answer = await client.get("/v1/subjects", params=query)
        answer.raise_for_status()
        page = answer.json()
        held |= {one["pseudonym"] for one in page["subjects"]}
        if len(held) >= page["total"] or not page["subjects"]:
            return held


def _case(name: str, times: list[float], took: float) -> Case:
    p50, p99 = np.percentile(times, [50, 99])
    return Case(name, len(times), len(times) / took, float(p50), float(p99), max(times))


async def usable(
    url: str, token: str, paths: list[Path], wanted: int, trust: ssl.SSLContext | bool
) -> list[bytes]:
    """Images that the service can enrol, so that no picture is to blame for a failure."""
    found: list[bytes] = []
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(
        base_url=url, verify=trust, trust_env=False, headers=headers, timeout=120
    ) as client:
        for path in paths:
            data = path.read_bytes()
            answer = await client.post(
                "/v1/subjects", data={"subject": "load-trial"}, files={"images": data}
            )
            if answer.status_code == 201:
                found.append(data)
            elif answer.status_code != 422:
                raise InputError(f"the service answers {answer.status_code} to an enrolment")
            if len(found) == wanted:
                break
    if not found:
        raise InputError("none of the images can be enrolled")
    return found


@click.command()
@click.argument("url")
@click.option("--clients", type=click.IntRange(min=1), default=50, show_default=True)
@click.option("--seconds", type=click.FloatRange(min=1), default=60, show_default=True)
@click.option("--images", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--ca", type=click.Path(path_type=Path, exists=True), help="Certificate to trust.")
def main(url: str, clients: int, seconds: float, images: Path, ca: Path | None) -> None:
    """Load the service at URL and print what came of it as JSON; exit 1 if anything went wrong."""
    token = os.environ.get("VEILFACE_TOKEN", "")
    trust = True if ca is None else ssl.create_default_context(cafile=str(ca))
    paths = sorted(path for path in images.rglob("*.jp*g"))[:_TRIED]

    async def run() -> Report:
        pictures = await usable(url, token, paths, min(_PICTURES, len(paths)), trust)
        return await load(url, token, pictures, clients=clients, seconds=seconds, trust=trust)

    try:
        report = asyncio.run(run())
    except (VeilfaceError, httpx.HTTPError, httpx.InvalidURL) as error:
        raise click.ClickException(str(error)) from error
    click.echo(json.dumps(dataclasses.asdict(report), indent=2))
    if report.failures or report.lost:
        raise click.exceptions.Exit(1)


if __name__ == "__main__":
    main()
