"""What a service allows itself and its clients."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

MIB = 2**20


@dataclass(frozen=True)
class Settings:
    """Limits of a service; docs/service.md says what each is for.

    Attributes:
        hosts: names, without port, that a request's Host header may have.
        tls: whether the service itself speaks TLS (then answers carry HSTS).
        max_body: bytes of one request's body.
        max_held: bytes of all bodies in memory at once.
        max_images: of one enrolment.
        timeout: seconds from a request's first byte to the end of its answer.
        rate, burst: requests a second of one token, and how many may come at once.
        failure_rate, failure_burst: the same for failed authentications of one address.
        visitor_rate, visitor_burst: the same for one address' requests that need no token.
        at_once, waiting: recognitions that run, one a core if not said otherwise, and that wait
            for one that runs.
    """

    hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "[::1]")
    tls: bool = False
    max_body: int = 64 * MIB
    max_held: int = 512 * MIB
    max_images: int = 10
    timeout: float = 60.0
    rate: float = 100.0
    burst: int = 200
    failure_rate: float = 0.2
    failure_burst: int = 20
    visitor_rate: float = 50.0
    visitor_burst: int = 300
    at_once: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    waiting: int = 200
