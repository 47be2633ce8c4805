"""Exit 0 if this container does its work; a container asks it every half minute.

healthy.py server BUNDLE HOST:PORT   the front answers, with the certificate that sites expect
healthy.py site STATE                the node runs, and its server answered within five minutes
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from common.bundle import CA, Bundle
from common.errors import VeilfaceError
from common.supervision import is_running

_SILENT = timedelta(minutes=5)


def server(bundle: Path, listen: str) -> bool:
    """Ask the front as a site would: under the bundle's name, trusting its CA alone."""
    own = Bundle.read(bundle)
    trust = ssl.create_default_context(cadata=own.file(CA).decode())
    name = own.manifest.server.rpartition(":")[0].strip("[]")
    host, _, port = listen.rpartition(":")
    request = f"GET /health HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n"
    plain = socket.create_connection((host, int(port)), timeout=5)
    with plain, trust.wrap_socket(plain, server_hostname=name) as line:
        line.sendall(request.encode())
        answer = http.client.HTTPResponse(line)
        answer.begin()
        return answer.status == 200


def site(state: Path) -> bool:
    """Look whether the node holds its lock, and when its server last answered."""
    contact = json.loads((state / "node.json").read_bytes())["contact"]
    age = datetime.now(UTC) - datetime.strptime(f"{contact}+0000", "%Y-%m-%dT%H:%M:%SZ%z")
    return is_running(state) and age < _SILENT


def main(arguments: list[str]) -> int:
    """Return the exit code; whatever is wrong is said in one line."""
    try:
        match arguments:
            case ["server", bundle, listen]:
                good = server(Path(bundle), listen)
            case ["site", state]:
                good = site(Path(state))
            case _:
                raise SystemExit(__doc__)
    except (OSError, ValueError, KeyError, http.client.HTTPException, VeilfaceError) as error:
        sys.stderr.write(f"not healthy: {error}\n")
        return 1
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
