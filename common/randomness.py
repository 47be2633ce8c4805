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
_HALF_WORD: Final = 2.0**-63
_BLOCK: Final = 16


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
    Two streams of the same key give the same numbers, so a key is used for one purpose only, and
    noise comes from `bound_to` what it is added to. `private` is False when the key came from a
    seed.
    """

    def __init__(self, key: bytes, *, private: bool) -> None:
        if len(key) != KEY_BYTES:
            raise InputError(f"a stream's key has {KEY_BYTES} bytes, not {len(key)}")
        self.private = private
        self._key, self._bound = key, 0
        self._encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def bound_to(self, digest: bytes) -> KeyStream:
        """Return a new stream, from this key, `digest`, and how often one was made before.

        A key that comes back with a backup of the disk then gives independent numbers for whatever
        is not the same to the last bit, and a retry after a crash gives the same ones.
        """
        self._bound += 1
        key = derive_key(self._key, "bound", str(self._bound), digest.hex())
        return KeyStream(key, private=self.private)

    def words(self, count: int) -> NDArray[np.uint64]:
        """Return `count` uniform 64-bit words, shape [count]."""
        buffer = np.empty(8 * count + _BLOCK - 1, dtype=np.uint8)  # as the cipher asks
        self._encryptor.update_into(bytes(8 * count), buffer.data)
        return buffer[: 8 * count].view("<u8")

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Return `count` numbers uniform on (0, 1], shape [count]: 63 bits each, never 0."""
        words = self.words(count)
        words >>= np.uint64(1)  # signed integers become floats several times faster
        draws = words.view(np.int64).astype(np.float64)
        draws += 0.5
        draws *= _HALF_WORD
        return draws

    def standard_normal(self, count: int) -> NDArray[np.float64]:
        """Return `count` independent N(0, 1) draws, float64 [count], by Box and Muller (1958).

        The radius uses 63 bits, so the tail reaches 9.3 standard deviations; what lies beyond
        has probability under 2^-63 a draw. Cosine and sine of the angle come from the tangent t of
        its half, (1 - t^2) / (1 + t^2) and 2 t / (1 + t^2), in place: twice as fast.
        """
        half = (count + 1) // 2
        draws = self.uniform(2 * half)
        radius, tangent = draws[:half], draws[half:]
        np.sqrt(-2.0 * np.log(radius), out=radius)
        np.tan(np.multiply(tangent, np.pi, out=tangent), out=tangent)
        squared = tangent * tangent
        radius /= 1.0 + squared
        np.multiply(2.0 * tangent, radius, out=tangent)
        np.multiply(1.0 - squared, radius, out=radius)
        return draws[:count]

    def bernoulli(self, count: int, probability: float) -> NDArray[np.bool_]:
        """Return `count` independent coins that are True with `probability`, to within 2^-64."""
        if not 0.0 <= probability <= 1.0:
            raise InputError(f"a probability lies between 0 and 1, not {probability}")
        if probability == 1.0:
            return np.ones(count, dtype=np.bool_)
        return self.words(count) < np.uint64(int(probability * 2.0**64))
