"""The parts of a running service, made once."""

from __future__ import annotations

from dataclasses import dataclass

from client.recognition import Recogniser
from client.service.settings import Settings
from client.service.tokens import Tokens
from common.web.journal import Journal
from common.web.limits import Buckets, Workers
from common.web.metrics import Metrics

_STORAGE_THREADS = 4


@dataclass(frozen=True)
class Service:
    """What the endpoints and the guard work with.

    Attributes:
        recognitions: threads for work that looks at images.
        storage: threads for work that only reads or writes the vault.
        requests, failures, visitors: rate limits by token id, and by address for failed
            authentications and for what needs no token.
    """

    recogniser: Recogniser
    settings: Settings
    tokens: Tokens
    journal: Journal
    metrics: Metrics
    recognitions: Workers
    storage: Workers
    requests: Buckets
    failures: Buckets
    visitors: Buckets

    @classmethod
    def of(cls, recogniser: Recogniser, settings: Settings, journal: Journal) -> Service:
        """Make the parts."""
        recognitions = Workers(settings.at_once, settings.waiting)
        metrics = Metrics()
        metrics.gauge(
            "veilface_recognitions", "Recognitions that run or wait.", lambda: recognitions.busy
        )
        return cls(
            recogniser,
            settings,
            Tokens(recogniser.vault),
            journal,
            metrics,
            recognitions,
            Workers(_STORAGE_THREADS, settings.waiting),
            Buckets(settings.rate, settings.burst),
            Buckets(settings.failure_rate, settings.failure_burst),
            Buckets(settings.visitor_rate, settings.visitor_burst),
        )

    def close(self) -> None:
        """Let running work end; the vault is the caller's to close."""
        self.recognitions.close()
        self.storage.close()
