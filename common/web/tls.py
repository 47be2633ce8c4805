"""TLS 1.3 from a certificate and key that are in memory: the key never touches a disk."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import InputError


def tls_context(certificate: bytes, key: bytes) -> ssl.SSLContext:
    """Return a server's context for a PEM certificate chain and its unencrypted PEM key.

    Raises InputError unless TLS can be spoken with them.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        with _pipe(certificate) as chain, _pipe(key) as private:
            context.load_cert_chain(chain, private, password="")
    except (OSError, ValueError) as error:  # SSLError is an OSError
        raise InputError(
            f"TLS cannot be spoken with this certificate and key: {error}",
            hint="PEM files of one pair, key not encrypted",
        ) from error
    return context


def tls_files(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """Return the context of two PEM files, or None without any; one alone is an InputError."""
    if certificate is None or key is None:
        if certificate is not key:
            raise InputError("TLS needs both --tls-cert and --tls-key")
        return None
    try:
        return tls_context(certificate.read_bytes(), key.read_bytes())
    except (OSError, InputError) as error:
        raise InputError(
            f"cannot use {certificate} with {key}", hint="PEM files of one pair, key not encrypted"
        ) from error


def trusting(ca: bytes) -> ssl.SSLContext:
    """Return a client's context that trusts the PEM certificates of one authority, over TLS 1.3."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(cadata=ca.decode("ascii"))
    except (OSError, ValueError) as error:
        raise InputError(f"this is no authority's certificate: {error}") from error
    return context


@contextmanager
def _pipe(data: bytes) -> Iterator[str]:
    """The name of a pipe that holds `data`: OpenSSL's loader takes names only."""
    reading, writing = os.pipe()
    try:
        os.set_blocking(writing, False)
        with os.fdopen(writing, "wb", buffering=0) as pipe:
            if pipe.write(data) != len(data):
                raise ValueError("larger than a certificate or key ever is")
        yield f"/dev/fd/{reading}"
    finally:
        os.close(reading)
