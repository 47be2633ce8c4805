"""The only door to randomness: a cryptographic generator, and a seeded one for experiments.

Whatever guards a person (noise, Poisson sampling, keys) comes from a `KeyStream`, AES-256 in
counter mode under a 256-bit key. The key is drawn from the operating system, except when a
simulation asks for a seed: such a stream says `private = False`, and whoever uses it must carry
that mark into the ledger and the output.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from common.errors import InputError

KEY_BYTES: Final = 32
_WORD = 2.0**-64


def fresh_key() -> bytes:
    """Return 32 bytes from the operating system's generator."""
    return secrets.token_bytes(KEY_BYTES)


def derive_key(key: bytes, *labels: str) -> bytes:
    """Return the 32-byte key HMAC-SHA-256(key, labels): independent for each list of labels.

    Labels are length-prefixed, so that ("ab", "c") and ("a", "bc") differ.
    """
    if len(key) != KEY_BYTES:
        raise InputError(f"a key has {KEY_BYTES} bytes, not {len(key)}")
    encoded = b"".join(
        len(raw).to_bytes(8, "big") + raw for raw in (label.encode() for label in labels)
    )
    return hmac.new(key, encoded, hashlib.sha256).digest()


def experiment_key(seed: int) -> bytes:
    """Return a key that anyone can recompute from `seed`: for experiments, never for privacy."""
    return hashlib.sha256(b"veilface experiment seed" + str(int(seed)).encode()).digest()


def experiment_generator(seed: int, *labels: str) -> np.random.Generator:
    """Return numpy's Philox generator for splits, initial weights and synthetic data."""
    material = derive_key(experiment_key(seed), *labels)
    return np.random.Generator(np.random.Philox(key=int.from_bytes(material[:16], "big")))


class KeyStream:
    """An endless stream of random numbers under one 256-bit key.

    Guarantee: with a secret uniform key, its output is as hard to tell from random as AES-256.
    Two streams of the same key give the same numbers, so a key is used for one purpose only.
    `private` is False when the key came from a seed.
    """

    def __init__(self, key: bytes, *, private: bool) -> None:
        if len(key) != KEY_BYTES:
            raise InputError(f"a stream's key has {KEY_BYTES} bytes, not {len(key)}")
        self.private = private
        self._encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def words(self, count: int) -> NDArray[np.uint64]:
        """Return `count` uniform 64-bit words, shape [count]."""
        return np.frombuffer(self._encryptor.update(bytes(8 * count)), dtype="<u8")

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Return `count` numbers uniform on (0, 1], shape [count]; never 0."""
        return (self.words(count).astype(np.float64) + 0.5) * _WORD

    def standard_normal(self, count: int) -> NDArray[np.float64]:
        """Return `count` independent N(0, 1) draws, float64 [count], by Box and Muller (1958).

        The radius uses 64 bits, so the tail reaches 9.4 standard deviations; what lies beyond
        has probability under 2^-64 a draw.
        """
        half = (count + 1) // 2
        draws = self.uniform(2 * half)
        radius = np.sqrt(-2.0 * np.log(draws[:half]))
        angle = (2.0 * np.pi) * draws[half:]
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]

    def bernoulli(self, count: int, probability: float) -> NDArray[np.bool_]:
        """Return `count` independent coins that are True with `probability`, to within 2^-64."""
        if not 0.0 <= probability <= 1.0:
            raise InputError(f"a probability lies between 0 and 1, not {probability}")
        if probability == 1.0:
            return np.ones(count, dtype=np.bool_)
        return self.words(count) < np.uint64(int(probability * 2.0**64))
