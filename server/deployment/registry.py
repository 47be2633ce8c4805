"""The roster's sites as SuperNodes of the SuperLink, through its Control API on the inside."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime

import httpx
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, UnregisterNodeRequest
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.control.control_http_client import ControlHttpClient

from common.liveness import DROP_AFTER
from server.deployment.folder import Contacts, ServerFolder, SiteContact
from server.deployment.grid import last_beat
from server.deployment.node_keys import names_by_key

log = logging.getLogger("veilface.server")
_UNREGISTERED = "unregistered"


class Registry:
    """Keeps the SuperLink's list of nodes equal to the roster, and notes who was heard of."""

    def __init__(self, folder: ServerFolder, control: ControlHttpClient) -> None:
        self._folder, self._control = folder, control

    def look(self) -> None:
        """Register who is new, unregister who is not on the roster, write `sites.json`."""
        sites = names_by_key(self._folder.roster())
        nodes = {
            node.public_key: node
            for node in self._control.ListNodes(ListNodesRequest()).nodes_info
            if node.status != _UNREGISTERED
        }
        for key, node in nodes.items():
            if key not in sites:
                self._control.UnregisterNode(UnregisterNodeRequest(node_id=node.node_id))
                log.warning("node %d is not on the roster: unregistered", node.node_id)
        for key, name in sites.items():
            if key not in nodes:
                self._register(key, name)
        contacts = tuple(_contact(name, nodes.get(key)) for key, name in sites.items())
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._folder.keep_contacts(Contacts(now, contacts))

    def _register(self, key: bytes, name: str) -> None:
        """Register a site; one that cannot be must not keep the others out."""
        try:
            self._control.RegisterNode(RegisterNodeRequest(public_key=key, name=name))
        except httpx.HTTPStatusError as error:
            # The SuperLink never takes a key again that was unregistered, and nobody but the
            # registry should: someone else has reached its port.
            log.error("%s cannot be registered: %s", name, error)
        else:
            log.info("registered %s", name)


def _contact(name: str, node: NodeInfo | None) -> SiteContact:
    if node is None or not node.HasField("last_activated_at"):
        return SiteContact(name, "never", "", node.node_id if node else 0)
    beat = last_beat(node)
    if node.HasField("last_deactivated_at"):
        beat = max(beat, datetime.fromisoformat(node.last_deactivated_at).timestamp())
    lives = node.status == "online" and time.time() - beat < DROP_AFTER
    heard = datetime.fromtimestamp(beat, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return SiteContact(name, "online" if lives else "offline", heard, node.node_id)
