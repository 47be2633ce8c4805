"""`veilface bench search`: our exact search beside faiss IndexFlatIP and usearch's exact search.

All score every row of the same gallery with every core of this process, 10 results a probe. Random
directions are a hard gallery: nothing stands out, and the tenth score is close to the
eleventh. That all find the same rows is checked before anything is timed; memory and the recall of
the 8-bit search are printed on stderr.
"""

from __future__ import annotations

from functools import partial

import click
import faiss
import numpy as np
from numpy.typing import NDArray
from usearch.index import search as usearch_search

from client.search import Index
from common.errors import VeilfaceError
from common.randomness import experiment_generator
from simulations.bench.timing import Case, compare

DIM, BEST, BATCH, RECALL_PROBES = 128, 10, 32, 200
# float32 rounding may swap the tenth and the eleventh of a few probes; more is another answer.
EQUAL_RECALL = 0.99
SIZES = (("100k", 100_000), ("1M", 1_000_000))

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]


def search(runs: int) -> list[Case]:
    """Return the cases of both sizes, one probe and a batch, then 8-bit beside our float32."""
    cases = []
    for name, count in SIZES:
        gallery, probes = _directions("gallery", count), _directions("probes", RECALL_PROBES)
        index, eight_bit = Index(gallery), Index(gallery, eight_bit=True)
        flat = faiss.IndexFlatIP(DIM)
        flat.add(gallery)
        ours, bytes_first = partial(_ours, index), partial(_ours, eight_bit)
        peers = {"faiss-flat": partial(_faiss, flat), "usearch-exact": partial(_usearch, gallery)}

        expected = ours(probes)
        for suffix, peer in peers.items():
            if recall(peer(probes[:BATCH]), expected[:BATCH]) < EQUAL_RECALL:
                raise VeilfaceError(f"{suffix} and we find different rows")
        for queries in (1, BATCH):
            some = probes[:queries]
            for suffix, peer in peers.items():
                label = f"{name}-{queries}/{suffix}"
                cases.append(compare(label, partial(ours, some), partial(peer, some), runs))
        if name == "1M":
            one = probes[:1]
            cases.append(
                compare("1M-1-int8/float32", partial(bytes_first, one), partial(ours, one), runs)
            )
        click.echo(
            f"{name}: float32 holds {index.nbytes / 1e6:.0f} MB (the gallery itself), 8-bit "
            f"{eight_bit.nbytes / 1e6:.0f} MB; recall@{BEST} of 8-bit "
            f"{recall(bytes_first(probes), expected):.4f} over {RECALL_PROBES} probes",
            err=True,
        )
    return cases


def _ours(index: Index, probes: Floats) -> Rows:
    return index.search(probes, BEST)[1]


def _faiss(flat: faiss.IndexFlatIP, probes: Floats) -> Rows:
    rows: Rows = flat.search(probes, BEST)[1]
    return rows


def _usearch(gallery: Floats, probes: Floats) -> Rows:
    found = usearch_search(gallery, probes, BEST, "ip", exact=True)
    return found.keys.reshape(len(probes), -1).astype(np.int64)


def recall(found: Rows, expected: Rows) -> float:
    """Return which share of the expected rows [Q, k] was found, in any order."""
    shared = [np.intersect1d(one, other).size for one, other in zip(found, expected, strict=True)]
    return sum(shared) / expected.size


def _directions(label: str, count: int) -> Floats:
    rows = experiment_generator(0, "bench search", label).standard_normal((count, DIM), np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows
