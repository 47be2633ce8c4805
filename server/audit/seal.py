"""The server's name under a report: a chain from the roster key to an Ed25519 signature.

roster key -> manifest of the server's bundle -> its certificate -> a key of this report (ECDSA
P-384) -> the report and its PDF (Ed25519). That key signs these two and is forgotten.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509 import load_pem_x509_certificate

from common.bundle import MANIFEST, SERVER, SERVER_CERTIFICATE, SERVER_KEY, Bundle
from common.config import from_json, to_json
from common.errors import InputError, Refused
from common.signing import public_key, sign, verified
from server.audit.facts import Seal

KIND: Final = "audit report"
PDF_KIND: Final = "audit pdf"
# Of the group of P-384 (SEC 2, 2.5.1), the only curve of a federation's certificates.
_ORDER: Final = int(
    "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973",
    16,
)


@dataclass(frozen=True)
class _Signed:
    sha256: str


@dataclass(frozen=True)
class _PrintOut:
    """Which report a PDF shows: SHA-256 of both files."""

    report: str
    pdf: str


@dataclass(frozen=True)
class Signer:
    """A fresh key of one report, issued by the server of a bundle."""

    bundle: Bundle
    key: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def of(cls, bundle: Bundle) -> Signer:
        """Return a signer for a server's own bundle; another party's is an InputError."""
        if bundle.manifest.party != SERVER:
            raise InputError(
                f"the bundle is of {bundle.manifest.party}", hint="name the server's own"
            )
        return cls(bundle, Ed25519PrivateKey.generate())

    def seal(self, sha256: str) -> Seal:
        """Return the seal of a report's digest."""
        long_lived = load_pem_private_key(self.bundle.file(SERVER_KEY), None)
        if not isinstance(long_lived, EllipticCurvePrivateKey):
            raise Refused("the server's key is not an elliptic-curve key")
        public = self.key.public_key()
        line = public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        issued = decode_dss_signature(long_lived.sign(_delegated(line), ECDSA(SHA384())))
        return Seal(
            manifest=self.bundle.file(MANIFEST).decode(),
            certificate=self.bundle.file(SERVER_CERTIFICATE).decode(),
            key=line,
            delegation=_to_text(*issued),
            signature=sign(KIND, to_json(_Signed(sha256)), self.key).decode(),
        )

    def sign_pdf(self, text: str, pdf: bytes) -> bytes:
        """Return the signed document that binds a PDF to the report of this text."""
        return sign(PDF_KIND, to_json(_print_out(text, pdf)), self.key)


def check_pdf(seal: Seal, text: str, pdf: bytes, document: bytes) -> None:
    """Raise Refused unless `document` says that this PDF shows the report of this text."""
    body = verified(PDF_KIND, document, public_key(seal.key.encode()))
    if body != to_json(_print_out(text, pdf)):
        raise Refused("the PDF was changed, or shows another report")


def _print_out(text: str, pdf: bytes) -> _PrintOut:
    digests = (hashlib.sha256(data).hexdigest() for data in (text.encode(), pdf))
    return _PrintOut(*digests)


def check_seal(
    seal: Seal,
    sha256: str,
    federation: str,
    roster_key: Ed25519PublicKey,
    *,
    either_s: bool = False,
) -> None:
    """Raise Refused unless the server of `federation` signed exactly this digest.

    `either_s`: the delegation may be (r, s) or (r, -s), as in reports of format 1.
    """
    try:
        manifest = json.loads(verified(MANIFEST, seal.manifest.encode(), roster_key))
        sums = {entry["name"]: entry["sha256"] for entry in manifest["files"]}
        named = (manifest["federation"], manifest["party"], sums[SERVER_CERTIFICATE])
    except (ValueError, LookupError, TypeError) as error:
        raise Refused("the server's manifest is malformed") from error
    certificate = seal.certificate.encode()
    if named != (federation, SERVER, hashlib.sha256(certificate).hexdigest()):
        raise Refused("the certificate is not that of this federation's server")
    long_lived = load_pem_x509_certificate(certificate).public_key()
    if not isinstance(long_lived, EllipticCurvePublicKey):
        raise Refused("the server's certificate holds no elliptic-curve key")
    try:
        signature = _from_text(seal.delegation, either_s)
        long_lived.verify(signature, _delegated(seal.key), ECDSA(SHA384()))
    except (InvalidSignature, ValueError) as error:
        raise Refused("the report's key was not issued by the server") from error
    key = public_key(seal.key.encode())
    body = verified(KIND, seal.signature.encode(), key)
    if from_json(_Signed, body, where=KIND).sha256 != sha256:
        raise Refused("the report was changed after the server signed it")


def _to_text(r: int, s: int) -> str:
    """Return the one text of an ECDSA signature: (r, s) and (r, -s) are both valid."""
    return encode_dss_signature(r, min(s, _ORDER - s)).hex()


def _from_text(text: str, either_s: bool) -> bytes:
    """Return the signature of its one text; any other spelling is a ValueError."""
    signature = bytes.fromhex(text)
    r, s = decode_dss_signature(signature)
    if text != _to_text(r, s) and not (either_s and text == encode_dss_signature(r, s).hex()):
        raise ValueError("not the canonical text of a signature")
    return signature


def _delegated(line: str) -> bytes:
    return f"veilface audit key 1\0{line}".encode()
