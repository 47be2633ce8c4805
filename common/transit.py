"""A lock kept by another machine: a transit key service over HTTP, as HashiCorp Vault offers it.

The vault key travels to the service to be wrapped and comes back when the vault is opened; the
service's key never leaves it. Revoking the token closes the vault. `context` is sent as associated
data (AEAD), so that a wrapped key opens one vault only.
"""

from __future__ import annotations

import base64
import binascii
import json
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from typing import ClassVar, Final

from common.errors import InputError, SealError, StorageError
from common.randomness import KEY_BYTES

_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
_LARGEST: Final = 1 << 20


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A token and a key go to the named address and no other."""

    def redirect_request(self, *args: object, **kwargs: object) -> None:
        return None


@dataclass(frozen=True)
class TransitLock:
    """Wraps a key by POST URL/v1/transit/encrypt/KEY_NAME; https, or http to this machine only."""

    url: str
    token: str = field(repr=False)
    key_name: str
    timeout: float = 10.0  # seconds
    kind: ClassVar[str] = "transit"

    def __post_init__(self) -> None:
        try:
            parts = urllib.parse.urlsplit(self.url)
            _ = parts.port  # looked at only when it is asked for
        except ValueError as error:
            raise InputError(f"{self.url} is no address: {error}") from error
        plain = parts.scheme == "http" and parts.hostname in _LOOPBACK
        if not parts.hostname or not (parts.scheme == "https" or plain):
            raise InputError(f"{self.url} is no https address", hint="a key never travels in clear")

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """Return the service's ciphertext as bytes; a service that cannot answer: StorageError."""
        return self._call("encrypt", {"plaintext": _text(key)}, context, "ciphertext").encode()

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Return the key; a ciphertext that the service rejects: SealError."""
        try:
            ciphertext = wrapped.decode("ascii")
        except UnicodeDecodeError as error:
            raise SealError("this vault is not locked by a transit service") from error
        answer = self._call("decrypt", {"ciphertext": ciphertext}, context, "plaintext")
        try:
            key = base64.b64decode(answer, validate=True)
        except (binascii.Error, ValueError) as error:
            raise SealError("the transit service answered something else than a key") from error
        if len(key) != KEY_BYTES:
            raise SealError(f"the transit service answered {len(key)} bytes, not a key")
        return key

    def _call(self, verb: str, body: dict[str, str], context: bytes, wanted: str) -> str:
        name = urllib.parse.quote(self.key_name, safe="")
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/v1/transit/{verb}/{name}",
            data=json.dumps({**body, "associated_data": _text(context)}).encode(),
            headers={"X-Vault-Token": self.token, "Content-Type": "application/json"},
            method="POST",
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)
        try:
            with opener.open(request, timeout=self.timeout) as response:
                value = json.loads(response.read(_LARGEST))["data"][wanted]
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 400 and verb == "decrypt":
                    raise SealError(
                        "the transit service cannot open this key",
                        hint="another key name, or the wrapped key was changed",
                    ) from error
                raise InputError(
                    f"the transit service refused: HTTP {error.code}",
                    hint="check the address, the token and the key name",
                ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StorageError(
                f"no usable answer from the transit service at {self.url}",
                hint="the vault stays closed until the service answers",
            ) from error
        if not isinstance(value, str):
            raise StorageError("no usable answer from the transit service")
        return value


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")
