"""How much at once: token buckets for requests, and a bounded pool for the work itself."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from ipaddress import IPv6Address, ip_address
from threading import Lock
from typing import Final, TypeVar

from common.web.answers import Declined

T = TypeVar("T")
_KEYS: Final = 10_000


class Buckets:
    """A token bucket a key: `burst` at once, `rate` a second from then on.

    The keys that were used longest ago are forgotten, so that memory is bounded.
    """

    def __init__(
        self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate, self._burst, self._clock = rate, float(burst), clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str) -> float:
        """Take one; return 0, or the seconds until there is one to take."""
        now = self._clock()
        level, then = self._levels.pop(key, (self._burst, now))
        level = min(self._burst, level + (now - then) * self._rate)
        wait = 0.0 if level >= 1 else (1 - level) / self._rate
        self._levels[key] = (level if wait else level - 1, now)
        if len(self._levels) > _KEYS:
            self._levels.popitem(last=False)
        return wait


def network_of(address: str) -> str:
    """An IPv4 address as it is, an IPv6 address as its /64: one customer has all of that."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return "unknown"
    if isinstance(parsed, IPv6Address):
        return str(IPv6Address(int(parsed) >> 64 << 64))
    return str(parsed)


class Workers:
    """Threads for blocking work; what finds neither a thread nor room to wait is declined (503).

    A caller that gives up frees its place if its work had not begun, else when the work ends.
    """

    def __init__(self, threads: int, waiting: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="veilface")
        self._room, self._busy, self._lock = threads + waiting, 0, Lock()

    @property
    def busy(self) -> int:
        """How many pieces of work run or wait."""
        return self._busy

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work` in a thread and return its result."""
        with self._lock:
            if self._busy >= self._room:
                raise Declined(503, "too much to do at the moment", retry_after=1)
            self._busy += 1
        future = self._pool.submit(work)
        future.add_done_callback(self._leave)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Wait for what runs and drop what waits."""
        self._pool.shutdown(cancel_futures=True)

    def _leave(self, _: Future[T]) -> None:
        with self._lock:
            self._busy -= 1
