"""What a site agrees to at the moment: `policy.toml` as it lies there, read again when it changes.

Whoever runs a site can tighten, widen (within the ledger's budget) or withdraw it while the node
runs; from the next message on the new one holds. While it cannot be read, nothing is answered.
"""

from __future__ import annotations

import threading
from pathlib import Path

from client.app import OpenSite
from client.consent import SitePolicy
from client.folder import open_folder
from client.folder_config import FolderConfig
from client.masked_site import Identity
from client.start import policy_path
from common.errors import InputError, Refused
from common.supervision import tell


class Agreement:
    """A site under the policy that is in its state now."""

    def __init__(self, folder: FolderConfig, identity: Identity | None) -> None:
        """Open the site; a policy that is missing, malformed or beyond the ledger is an error."""
        self._folder, self._identity = folder, identity
        self._path: Path = policy_path(folder.state)
        self._turn = threading.Lock()
        self._text = self._read()
        self._policy = SitePolicy.read(self._path)
        self._site = open_folder(folder, self._policy, identity)

    def policy(self) -> SitePolicy:
        """Return the policy that holds; one that cannot hold is Refused until it is mended."""
        with self._turn:
            self._renew()
            return self._policy

    def site(self) -> OpenSite:
        """Return the site under that policy."""
        with self._turn:
            self._renew()
            return self._site

    def _renew(self) -> None:
        text = self._read()
        if text == self._text:
            return
        try:
            policy = SitePolicy.read(self._path)
            policy.check_installed()
            site = open_folder(self._folder, policy, self._identity)
        except InputError as error:
            raise Refused(
                f"the policy was changed and cannot hold: {error}", hint="mend it"
            ) from error
        self._text, self._policy, self._site = text, policy, site
        tell(f"{self._path} was changed: it holds from now on")

    def _read(self) -> bytes:
        try:
            return self._path.read_bytes()
        except OSError as error:
            raise Refused(
                f"{self._path} cannot be read: {error.strerror}",
                hint="without it nothing is agreed",
            ) from error
