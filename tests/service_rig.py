"""A service with its vault and synthetic people, for the tests of the service and its page."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from fastapi import FastAPI
from PIL import Image

from client.calibration import Purpose, Threshold
from client.recognition import Recogniser
from client.service.app import create_app
from client.service.settings import Settings
from client.service.tokens import SCOPES, Tokens
from client.vault import Vault
from client.vault_options import NetworkChoice, VaultOptions, new_vault, recogniser
from common.face import ChipSpec
from common.web.journal import Journal
from simulations.people import generate

CANARY = "Canary-Zoë"
ENDPOINTS = {
    ("POST", "/v1/subjects"): {"enrol", "extend"},
    ("GET", "/v1/subjects"): {"admin"},
    ("POST", "/v1/subjects/erase"): {"erase"},
    ("POST", "/v1/verify"): {"verify"},
    ("POST", "/v1/identify"): {"identify"},
    ("GET", "/v1/thresholds"): {"verify", "identify", "admin"},
    ("GET", "/v1/token"): set(SCOPES),
    ("GET", "/v1/log"): {"admin"},
    ("GET", "/metrics"): {"admin"},
}


@lru_cache(maxsize=1)
def faces() -> tuple[bytes, ...]:
    """JPEGs [300 x 300] of four synthetic persons whose picture passes the quality checks."""
    people = generate(6, 1, 5, ChipSpec(200, "arcface"))
    chips = [np.pad(np.asarray(people.chips[row]), ((50, 50), (50, 50), (0, 0)), mode="edge")
             for row in (2, 3, 4, 5)]  # fmt: skip
    return tuple(jpeg(chip) for chip in chips)


def jpeg(pixels: Any) -> bytes:
    """Pixels [H, W, 3] as a JPEG."""
    out = io.BytesIO()
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(out, "JPEG", quality=95)
    return out.getvalue()


@dataclass
class Site:
    """A vault, its service in this process, and what the service logged."""

    vault: Vault
    recogniser: Recogniser
    options: VaultOptions
    written: io.StringIO = field(default_factory=io.StringIO)
    app: FastAPI = field(init=False)

    def __post_init__(self) -> None:
        self.serve(Settings())

    def serve(self, settings: Settings) -> None:
        """Start the service anew with these settings."""
        self.app = create_app(self.recogniser, settings, Journal(self.written))

    def token(self, *scopes: str, days: float | None = None) -> str:
        """Make a token that the running service knows at once."""
        return self.tokens.create(scopes, days)[0]

    @property
    def tokens(self) -> Tokens:
        """The tokens as the running service sees them."""
        tokens: Tokens = self.app.state.service.tokens
        return tokens

    def calibrate(self, value: float) -> None:
        """Pretend that a calibration gave this threshold for both purposes."""
        model = self.recogniser.model_id
        purposes: tuple[tuple[Purpose, int], ...] = (("verify", 0), ("identify", 90))
        for purpose, gallery in purposes:
            self.recogniser.use(
                Threshold(
                    purpose, 0.001, value, 0.0005, 0.002, 5000, 100, gallery, model, "synthetic"
                )
            )

    def ask(
        self, method: str, path: str, token: str | None = None, **request: Any
    ) -> httpx.Response:
        """Send one request through the application."""
        return self.ask_all([(method, path)], token, **request)[0]

    def ask_all(
        self, calls: list[tuple[str, str]], token: str | None = None, **request: Any
    ) -> list[httpx.Response]:
        """Send requests at the same time."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        headers.update(request.pop("headers", {}))

        async def send() -> list[httpx.Response]:
            transport = httpx.ASGITransport(self.app, client=("127.0.0.1", 4711))
            async with httpx.AsyncClient(
                transport=transport, base_url="http://localhost"
            ) as client:
                sent = [client.request(*call, headers=headers, **request) for call in calls]
                return list(await asyncio.gather(*sent))

        return asyncio.run(send())

    def events(self) -> list[dict[str, Any]]:
        """What was logged, line by line."""
        return [json.loads(line) for line in self.written.getvalue().splitlines()]


@contextmanager
def new_site(folder: Path) -> Iterator[Site]:
    """A new vault for dlib's network, under a key file, in a folder."""
    options = VaultOptions(str(folder / "vault"), None, folder / "key", None)
    choice = NetworkChoice("dlib-resnet", None, None, None)
    with new_vault(options, choice, eight_bit=False, keep_chips=False) as vault:
        yield Site(vault, recogniser(vault), options)
