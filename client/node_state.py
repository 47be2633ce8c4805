"""What a site's node leaves on the disk, for itself and for who asks how it is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from common.errors import InputError
from common.storage import write_private


@dataclass(frozen=True)
class NodeState:
    """A node's id at the server, and when the server last answered."""

    FILE: ClassVar = "node.json"

    node_id: int
    contact: str

    @classmethod
    def read(cls, state: Path) -> NodeState | None:
        """Return what was left, or None where no server ever answered."""
        path = state / cls.FILE
        if not path.exists():
            return None
        try:
            values = json.loads(path.read_bytes())
            return cls(int(values["node_id"]), str(values["contact"]))
        except (ValueError, LookupError, TypeError) as error:
            raise InputError(f"{path} is damaged", hint="delete it: the site joins anew") from error

    def keep(self, state: Path) -> None:
        """Write it."""
        body = json.dumps({"node_id": self.node_id, "contact": self.contact})
        write_private(state / self.FILE, body.encode())
