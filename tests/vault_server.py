"""A transit key service in a process of its own: HashiCorp Vault's transit API, real AES-GCM.

    python -m tests.vault_server TOKEN KEY_NAME     # prints its port, serves until it is ended

Its key lives in the process and nowhere else, as it lives in a real service.
"""

from __future__ import annotations

import base64
import json
import secrets
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import unquote

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_PREFIX = "vault:v1:"


class _Transit(BaseHTTPRequestHandler):
    token = ""
    key_name = ""
    cipher = AESGCM(secrets.token_bytes(32))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        verb, _, name = unquote(self.path).removeprefix("/v1/transit/").partition("/")
        if self.headers.get("X-Vault-Token") != self.token:
            self._answer(403, {"errors": ["permission denied"]})
        elif name != self.key_name or verb not in ("encrypt", "decrypt"):
            self._answer(404, {"errors": []})
        elif verb == "encrypt":
            nonce, plain = secrets.token_bytes(12), base64.b64decode(body["plaintext"])
            sealed = nonce + self.cipher.encrypt(nonce, plain, self._bound(body))
            text = _PREFIX + base64.b64encode(sealed).decode()
            self._answer(200, {"data": {"ciphertext": text}})
        else:
            self._decrypt(body)

    def _decrypt(self, body: dict[str, str]) -> None:
        try:
            sealed = base64.b64decode(body["ciphertext"].removeprefix(_PREFIX), validate=True)
            plain = self.cipher.decrypt(sealed[:12], sealed[12:], self._bound(body))
        except (ValueError, InvalidTag):
            self._answer(400, {"errors": ["cipher: message authentication failed"]})
            return
        self._answer(200, {"data": {"plaintext": base64.b64encode(plain).decode()}})

    @staticmethod
    def _bound(body: dict[str, str]) -> bytes:
        return base64.b64decode(body.get("associated_data", ""))

    def _answer(self, status: int, value: dict[str, object]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


def main() -> None:
    _Transit.token, _Transit.key_name = sys.argv[1:3]
    server = HTTPServer(("127.0.0.1", 0), _Transit)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
