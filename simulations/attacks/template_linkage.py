"""Attacks on the vault's format: link two stolen vaults, and turn templates into faces again.

Two vaults hold the same persons, photographed twice. The thief of the files alone sees sealed
bytes; the thief who also reads a running site's memory sees templates in the vault's secret space.
Whether either can tell that two rows are of one person is the AUC of its best score; one half is
chance. The same attacks on plain embeddings show that they find what there is to find. Whoever has
D pairs of plain and stored templates solves for the secret space: that is measured, too, and is
why a vault is renewed after a leak.
"""

from __future__ import annotations

import math
import sqlite3
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from client.vault import Vault
from client.vault.transform import orthogonal
from common.metrics import unit_norm
from common.randomness import derive_key, experiment_key
from common.sealing import KeyFileLock
from common.storage import make_private_directory
from simulations.attacks.bounds import ALARM, READING
from simulations.attacks.pipeline import Draws
from simulations.attacks.record import Figure, Finding

NAME = "templates"
_MODEL = "audited"
_ROTATIONS = 100
_TESTS = 3
_RIDGE = 0.1
_ROWS = "SELECT s.pseudonym, s.wrapped, s.sealed, t.sealed FROM subject s, template t"

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class TemplateMaterial:
    """Embeddings are unit-norm float32, pictures grey float32 in [0, 1].

    Attributes:
        first, second: two photographs of each attacked person, embedded, [P, D].
        portraits: the first photographs, [P, S, S].
        public, pictures: other people's embeddings [N, D] and photographs [N, S, S], from which
            the thief learns to draw.
    """

    first: Rows
    second: Rows
    portraits: Rows
    public: Rows
    pictures: Rows

    @cached_property
    def spread(self) -> float:
        """The linkage AUC's standard deviation if each vault turns by a random rotation."""
        key, dim = experiment_key(0), self.first.shape[1]

        def turned(rows: Rows, place: str, number: int) -> NDArray[np.float64]:
            seed = derive_key(key, place, str(number))
            result: NDArray[np.float64] = rows @ orthogonal(seed, _MODEL, dim)
            return result

        found = [
            linkage(turned(self.first, "a", i) @ turned(self.second, "b", i).T)
            for i in range(_ROTATIONS)
        ]
        return float(np.std(found))


@dataclass(frozen=True)
class Drawn:
    """What a thief draws of each person from a plain and from a stored template, [P, S, S]."""

    truth: Rows
    from_plain: Rows
    from_template: Rows


@dataclass(frozen=True)
class _Stolen:
    """What lies in one vault, person by person: templates [P, D] and sealed bytes [P, B]."""

    templates: Rows
    sealed: NDArray[np.uint8]


def template_audit(
    material: TemplateMaterial, draws: Draws, vaults: int, directory: Path
) -> tuple[Finding, Drawn]:
    """Return linkage and inversion against `vaults` pairs of real vaults, made in `directory`."""
    rng = draws.coins(NAME)
    lock = KeyFileLock.create(make_private_directory(directory) / "site.key")
    stolen = [
        tuple(
            _steal(rows, lock, directory / f"{pair}-{place}.db", rng)
            for place, rows in enumerate((material.first, material.second))
        )
        for pair in range(vaults)
    ]
    people, dim = material.first.shape
    files = float(np.mean([linkage(_agreement(a.sealed, b.sealed)) for a, b in stolen]))
    opened = float(np.mean([linkage(a.templates @ b.templates.T) for a, b in stolen]))
    pointing = float(np.mean([_cosine(a.templates, material.first) for a, _ in stolen]))
    spreads = (
        math.sqrt(1 / (6 * people) / vaults),
        material.spread / math.sqrt(vaults),
        1.0 / math.sqrt(dim * vaults),
    )
    drawn = _draw(material, stolen[0][0].templates)
    kinds = (
        ("linkage AUC, files without key", files, 0.5),
        ("linkage AUC, open templates", opened, 0.5),
        ("cosine of a template with its embedding", pointing, 0.0),
    )
    limit, width = (float(-ndtri(alpha / 2)) for alpha in (ALARM / _TESTS, READING))
    finding = Finding(
        attack=NAME,
        adversary="a thief of vaults: of the files, or of the open templates too",
        claimed=None,
        bounds=(),
        figures=(
            *(
                Figure(name, value, value - width * s, value + width * s, "95%, normal")
                for (name, value, _), s in zip(kinds, spreads, strict=True)
            ),
            Figure("linkage AUC, plain embeddings", linkage(material.first @ material.second.T)),
            *_solving(material, lock, directory / "known.db", rng),
            Figure("likeness drawn from an embedding", _likeness(drawn.truth, drawn.from_plain)),
            Figure("likeness drawn from a template", _likeness(drawn.truth, drawn.from_template)),
        ),
        broken=tuple(
            f"{name} is {value:.3f}"
            for (name, value, chance), spread in zip(kinds, spreads, strict=True)
            if abs(value - chance) > limit * spread
        ),
    )
    return finding, drawn


def linkage(scores: NDArray[np.floating]) -> float:
    """Return the AUC of the diagonal of [P, P] scores against the rest: 0.5 is chance."""
    rest = np.sort(scores[~np.eye(len(scores), dtype=np.bool_)])
    mated = scores.diagonal()
    below = np.searchsorted(rest, mated, side="left")
    equal = np.searchsorted(rest, mated, side="right") - below
    return float((below + equal / 2).mean() / len(rest))


def _steal(rows: Rows, lock: KeyFileLock, path: Path, rng: np.random.Generator) -> _Stolen:
    """Enrol everybody in a random order, so that a row's place says nothing, and steal it all."""
    names = [f"person {i}" for i in range(len(rows))]
    with Vault.create(str(path), lock, model_id=_MODEL, dim=rows.shape[1]) as vault:
        for i in rng.permutation(len(rows)).tolist():
            vault.enrol(names[i], rows[i : i + 1], model_id=_MODEL)
        templates = np.concatenate([vault.templates(name) for name in names])
        pseudonyms = [vault.pseudonym(name) for name in names]
    with sqlite3.connect(path) as connection:
        found = {
            name: bytes.fromhex(name) + b"".join(sealed)
            for name, *sealed in connection.execute(f"{_ROWS} WHERE t.subject = s.id")
        }
    connection.close()
    sealed = [np.frombuffer(found[name], dtype=np.uint8) for name in pseudonyms]
    return _Stolen(templates, np.stack(sealed))


def _agreement(one: NDArray[np.uint8], two: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Share of equal bits of every two persons' bytes [P, B], [P, P]."""
    bits = [np.unpackbits(rows, axis=1).astype(np.float64) * 2 - 1 for rows in (one, two)]
    agreement: NDArray[np.float64] = bits[0] @ bits[1].T / bits[0].shape[1]
    return agreement


def _cosine(one: NDArray[np.floating], two: NDArray[np.floating]) -> float:
    return float((unit_norm(one) * unit_norm(two)).sum(axis=1).mean())


def _solving(
    material: TemplateMaterial, lock: KeyFileLock, path: Path, rng: np.random.Generator
) -> tuple[Figure, ...]:
    """How well templates turn back with some known pairs: least squares for the rotation."""
    dim = material.first.shape[1]
    planted = unit_norm(rng.standard_normal((2 * dim, dim)))
    with Vault.create(str(path), lock, model_id=_MODEL, dim=dim) as vault:
        vault.enrol("planted", planted, model_id=_MODEL)
        pairs = vault.templates("planted")
        stored = vault.protect(material.first)
    figures = []
    for known in (dim // 4, dim, 2 * dim):
        back = np.linalg.pinv(pairs[:known].astype(np.float64)) @ planted[:known]
        name = f"cosine with {known} known pairs"
        figures.append(Figure(name, _cosine(stored @ back, material.first)))
    return tuple(figures)


def _draw(material: TemplateMaterial, templates: Rows) -> Drawn:
    """Ridge regression from embeddings to pixels, learnt on public people."""
    mean = material.public.mean(axis=0)
    centred = (material.public - mean).astype(np.float64)
    pixels = material.pictures.reshape(len(material.pictures), -1)
    face = pixels.mean(axis=0)
    gram = centred @ centred.T
    gram += _RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
    decoder = centred.T @ np.linalg.solve(gram, pixels - face)  # [D, S * S]

    def picture(rows: Rows) -> Rows:
        drawn = np.clip(face + (rows - mean) @ decoder, 0.0, 1.0).astype(np.float32)
        shaped: Rows = drawn.reshape(len(rows), *material.pictures.shape[1:])
        return shaped

    return Drawn(material.portraits, picture(material.first), picture(templates))


def _likeness(truth: Rows, drawn: Rows) -> float:
    """Correlation of drawn with true pixels over persons, each less its mean over persons."""
    one, two = ((rows - rows.mean(axis=0)).ravel() for rows in (truth, drawn))
    return float(one @ two / max(float(np.linalg.norm(one) * np.linalg.norm(two)), 1e-12))
