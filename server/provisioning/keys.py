"""Private keys, certificates, and the bytes that Flower reads them from.

SuperNode keys are ECDSA P-384 in OpenSSH format, as `flower-supernode` and `flwr supernode
register` take them; what a site signs with and the roster key are Ed25519 (RFC 8032); TLS is ECDSA
P-384 with SHA-384 (RFC 5480, RFC 5280).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.bundle import NODE_KEY, SERVER_CERTIFICATE, SERVER_KEY, SIGNING_KEY, BundleFile
from common.errors import InputError
from common.roster import SiteKeys
from server.provisioning.request import Settings

CA_DAYS: Final = 3650
_SKEW: Final = timedelta(hours=1)  # clocks of sites that are a little slow


@dataclass(frozen=True)
class Authority:
    """The two keys that stay offline: the CA's, and the one that signs roster and manifests."""

    certificate: x509.Certificate
    ca_key: ec.EllipticCurvePrivateKey = field(repr=False)
    roster_key: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def create(cls, name: str, now: datetime) -> Authority:
        """Make both keys, and a self-signed CA certificate that may sign no other CA."""
        key = ec.generate_private_key(ec.SECP384R1())
        subject = _subject(f"Veilface CA of {name}")
        builder = (
            _certificate(subject, subject, key.public_key(), key.public_key())
            .not_valid_before(now - _SKEW)
            .not_valid_after(now + timedelta(days=CA_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(certificates=True), critical=True)
        )
        return cls(builder.sign(key, SHA384()), key, Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, certificate: bytes, ca_key: bytes, roster_key: bytes) -> Authority:
        """Return the authority of its three files; what does not fit is an InputError."""
        try:
            found = x509.load_pem_x509_certificate(certificate)
            key = load_pem_private_key(ca_key, None)
            signer = load_ssh_private_key(roster_key, None)
        except (ValueError, TypeError) as error:
            raise InputError(f"the CA's files cannot be read: {error}") from error
        if (
            not isinstance(key, ec.EllipticCurvePrivateKey)
            or not isinstance(signer, Ed25519PrivateKey)
            or found.public_key() != key.public_key()
        ):
            raise InputError("the CA's files do not belong together", hint="restore its backup")
        return cls(found, key, signer)

    def server_files(self, settings: Settings, now: datetime) -> tuple[BundleFile, BundleFile]:
        """Return a fresh server key and a certificate for the server's names, PEM."""
        end = min(now + timedelta(days=settings.days), self.certificate.not_valid_after_utc)
        if end <= now:
            raise InputError("the CA's certificate has expired", hint="make a new federation")
        key = ec.generate_private_key(ec.SECP384R1())
        subject = _subject(f"Veilface server of {settings.name}")
        issuer = self.certificate.subject
        signed = (
            _certificate(subject, issuer, key.public_key(), self.ca_key.public_key())
            .not_valid_before(max(now - _SKEW, self.certificate.not_valid_before_utc))
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName(_names(settings)), critical=False)
            .sign(self.ca_key, SHA384())
        )
        return BundleFile(SERVER_KEY, pkcs8(key)), BundleFile(SERVER_CERTIFICATE, pem(signed))


def site_files(name: str) -> tuple[SiteKeys, tuple[BundleFile, BundleFile]]:
    """Return a new site's public keys and its two private key files."""
    node, signing = ec.generate_private_key(ec.SECP384R1()), Ed25519PrivateKey.generate()
    public = SiteKeys(name, ssh_line(node.public_key()), ssh_line(signing.public_key()))
    return public, (BundleFile(NODE_KEY, openssh(node)), BundleFile(SIGNING_KEY, openssh(signing)))


def openssh(key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey) -> bytes:
    """Return a private key in OpenSSH format, without encryption."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def pkcs8(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as PKCS #8 PEM, without encryption."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def ssh_line(key: ec.EllipticCurvePublicKey | Ed25519PublicKey) -> str:
    """Return a public key as an OpenSSH line without comment."""
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def pem(certificate: x509.Certificate) -> bytes:
    """Return a certificate as PEM."""
    return certificate.public_bytes(Encoding.PEM)


def _subject(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _names(settings: Settings) -> list[x509.GeneralName]:
    address = settings.server.address
    names: list[x509.GeneralName] = [
        x509.IPAddress(address) if address else x509.DNSName(settings.server.host)
    ]
    if settings.localhost:
        loopback = [x509.IPAddress(ipaddress.ip_address(text)) for text in ("127.0.0.1", "::1")]
        names += [n for n in (x509.DNSName("localhost"), *loopback) if n not in names]
    return names


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePublicKey,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False
        )
    )  # fmt: skip


def _usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        key_cert_sign=certificates,
        crl_sign=certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
