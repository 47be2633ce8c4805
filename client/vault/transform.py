"""The secret rotation of a vault's space: cosines kept, two vaults unlinkable, renewable.

Q is the orthogonal factor of a Gaussian matrix G = QR with the signs of R's diagonal moved into Q,
so that Q is uniform over the orthogonal group (Mezzadri 2007). Scores between two rotated rows are
those of the plain rows to float32 rounding. It hides embeddings from who has the templates and not
the seed; who has D plain and rotated pairs can solve for Q, so a vault's seed is renewed after a
suspected leak (ISO/IEC 24745).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from client.vault.manifest import Manifest
from common.randomness import KeyStream, derive_key


def orthogonal(seed: bytes, model_id: str, dim: int) -> NDArray[np.float64]:
    """Return the [D, D] orthogonal matrix of a 32-byte seed for one model."""
    stream = KeyStream(derive_key(seed, "orthogonal", model_id, str(dim)), private=True)
    gaussian = stream.standard_normal(dim * dim).reshape(dim, dim)
    q, r = np.linalg.qr(gaussian)
    signed: NDArray[np.float64] = q * np.sign(np.diagonal(r))
    return signed


def rotation(manifest: Manifest, model_id: str, dim: int) -> NDArray[np.float64]:
    """Return the matrix that brings a model's embeddings into the vault's space."""
    return orthogonal(manifest.transform_seed, model_id, dim)


def apply(rows: NDArray[np.float32], matrix: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return float32 [n, D] rows times a [D, D] matrix, multiplied in float64."""
    turned: NDArray[np.float32] = (rows.astype(np.float64) @ matrix).astype(np.float32)
    return turned
