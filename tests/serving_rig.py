"""An ASGI application behind a real socket, served from a thread of the test."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn


@contextmanager
def served(app: Any, **settings: Any) -> Iterator[int]:
    """Serve until the block ends, by default on a port of the kernel's choice; yield the port."""
    settings = {"port": 0, "log_config": None, "ws": "none", **settings}
    server = uvicorn.Server(uvicorn.Config(app, **settings))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "it could not listen"
        time.sleep(0.01)
    try:
        yield int(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()
