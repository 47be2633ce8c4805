"""`veilface bench secagg`: one round of secure aggregation, beside Flower's legacy SecAgg+.

Both sides do in one process what all sites and the server compute in a round without a missing
site: quantise, key agreement (anew in each round), shares, masks, and the sum; no network, no
training and no noise. Ours signs, commits and writes its promises, too. Both share masks with as
many others. Flower's functions are called as its workflow does, but added up as they come.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.client.mod.secure_aggregation.secaggplus_mod import (
    SecAggPlusState,
    _collect_masked_vectors,
    _setup,
    _share_keys,
    _unmask,
)
from flwr.common import bytes_to_ndarray, ndarrays_to_parameters
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    factor_extract,
    parameters_addition,
    parameters_mod,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import dequantize
from flwr.common.secure_aggregation.secaggplus_constants import Key
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from numpy.typing import NDArray

from common.masking import (
    FixedPoint,
    MaskedRound,
    MaskingSite,
    Participants,
    RoundRequest,
    Terms,
    advertise,
)
from common.randomness import KeyStream, fresh_key
from common.roster import Roster, SiteKeys
from simulations.bench.timing import Case, case

SIZES = ((10, 40_000), (10, 1_000_000), (100, 40_000), (100, 1_000_000))
_CLIP = 8.0
_RANGE, _MODULUS = 1 << 22, 1 << 32  # Flower's defaults
_MEMORY = Path("/dev/shm")  # a site's own disk is not what is measured here


@dataclass(frozen=True)
class Cost:
    """What a round took: seconds of all sites and of the server, bytes that a site sends."""

    sites: float
    server: float
    sent: int


def secagg(runs: int, sizes: tuple[tuple[int, int], ...] = SIZES) -> list[Case]:
    """Return, for each number of sites and parameters, seconds and bytes of a round of both."""
    logging.getLogger("flwr").setLevel(logging.WARNING)  # else Flower's time is that of its log
    cases = []
    for sites, dimension in sizes:
        terms = Terms(sites - max(1, sites // 10), sites // 20)
        rounds: tuple[Callable[[], Cost], ...] = (
            _Ours(sites, dimension, terms),
            _Flower(sites, dimension, terms),
        )
        repeated = max(1, min(runs, 200_000_000 // (sites * dimension * terms.degree(sites))))
        costs: tuple[list[Cost], list[Cost]] = ([], [])
        for _ in range(repeated):
            for one, found in zip(rounds, costs, strict=True):
                found.append(one())
        name = f"{sites}x{_short(dimension)}"

        def add(
            what: str,
            read: Callable[[Cost], float],
            unit: str,
            *,
            name: str = name,
            costs: tuple[list[Cost], list[Cost]] = costs,
        ) -> None:
            ours, peer = (statistics.median(read(cost) for cost in side) for side in costs)
            cases.append(case(f"{name}/{what}", ours, peer, len(costs[0]), unit))

        add("secaggplus", lambda cost: cost.sites + cost.server, "s")
        add("secaggplus-site", lambda cost, n=sites: cost.sites / n, "s")  # type: ignore[misc]
        add("secaggplus-server", lambda cost: cost.server, "s")
        add("secaggplus-bytes", lambda cost: cost.sent, "B")
        cases.append(case(f"{name}/float32-bytes", costs[0][-1].sent, 4 * dimension, 1, "B"))
    return cases


class _Ours:
    def __init__(self, sites: int, dimension: int, terms: Terms) -> None:
        self._terms = terms
        self._names = tuple(f"s{number:03}" for number in range(sites))
        self._signing = [Ed25519PrivateKey.generate() for _ in self._names]
        self._run_keys = [fresh_key() for _ in self._names]
        roster = Roster("bench", 1, "2026-01-01T00:00:00Z", tuple(self._entries()))
        adverts = [
            advertise(roster, "run", *keys)
            for keys in zip(self._names, self._run_keys, self._signing, strict=True)
        ]
        self._participants = Participants.verified(roster, "run", adverts)
        self._point = FixedPoint(dimension, _CLIP, sites, 0.0)
        self._round = 0

    def _entries(self) -> list[SiteKeys]:
        entries = []
        for number, (name, signing) in enumerate(zip(self._names, self._signing, strict=True)):
            node = ec.derive_private_key(number + 2, ec.SECP384R1()).public_key()
            lines = [
                key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
                for key in (node, signing.public_key())
            ]
            entries.append(SiteKeys(name, *lines))
        return entries

    def __call__(self) -> Cost:
        self._round += 1
        request = RoundRequest(
            federation="bench",
            run_id="run",
            round=self._round,
            contract_id="",
            model_id="",
            dimension=self._point.dimension,
            minimum=self._terms.minimum,
            colluders=self._terms.colluders,
            sites=self._names,
        )
        clock, sent = _Clock(), 0
        vector = _update(self._point.dimension)
        stream = KeyStream(fresh_key(), private=True)
        where = _MEMORY if _MEMORY.is_dir() else None
        with tempfile.TemporaryDirectory(dir=where) as folder:
            server = MaskedRound(self._participants, request)
            sites = []
            for name, run_key, signing in zip(
                self._names, self._run_keys, self._signing, strict=True
            ):
                clock.start()
                site = MaskingSite(
                    self._participants, name, run_key, signing, self._terms, Path(folder) / name
                )
                noised = self._point.add_noise(self._point.encode(vector), stream)  # none: sigma 0
                update = site.mask(request, noised, fresh_key()).to_bytes()
                clock.site()
                server.add_update(name, update)
                clock.server()
                sites.append((name, site))
                sent = len(update)
            for name, site in sites:
                clock.start()
                asked = server.unmask_request(name)
                clock.server()
                shares = site.unmask(request, asked).to_bytes()
                clock.site()
                server.add_shares(name, shares)
                clock.server()
            clock.start()
            total = self._point.decode(server.total().total)
            clock.server()
        _check(total / len(self._names), vector)
        return Cost(clock.sites, clock.servers, sent + len(shares))


class _Flower:
    def __init__(self, sites: int, dimension: int, terms: Terms) -> None:
        self._dimension = dimension
        self._nodes = list(range(1, sites + 1))
        degree = terms.degree(sites)
        numbers = {node: terms.neighbours(sites, node - 1) for node in self._nodes}
        self._circle = {
            node: [node, *(self._nodes[number] for number in numbers[node])] for node in self._nodes
        }
        self._setup = {
            Key.SAMPLE_NUMBER: sites,
            Key.SHARE_NUMBER: degree + 1,
            Key.THRESHOLD: max(2, degree - max(1, sites // 10)),
            Key.CLIPPING_RANGE: _CLIP,
            Key.TARGET_RANGE: _RANGE,
            Key.MOD_RANGE: _MODULUS,
            Key.MAX_WEIGHT: 1.0,
        }

    def __call__(self) -> Cost:
        clock, sent = _Clock(), 0
        vector = _update(self._dimension)
        states = {node: SecAggPlusState() for node in self._nodes}
        keys, boxes = {}, {}
        for node, state in states.items():
            clock.start()
            state.nid = node
            keys[node] = _setup(state, cast(Any, self._setup))
            clock.site()
        pairs = {n: (k[Key.PUBLIC_KEY_1], k[Key.PUBLIC_KEY_2]) for n, k in keys.items()}
        for node, state in states.items():
            clock.start()
            known = {str(other): pairs[other] for other in self._circle[node]}
            boxes[node] = _share_keys(state, cast(Any, known))
            clock.site()
        clock.start()
        for_node: dict[int, tuple[list[int], list[bytes]]] = {n: ([], []) for n in self._nodes}
        for source, box in boxes.items():
            lists = (cast(Any, box[Key.DESTINATION_LIST]), cast(Any, box[Key.CIPHERTEXT_LIST]))
            for target, sealed in zip(*lists, strict=True):
                for_node[target][0].append(source)
                for_node[target][1].append(sealed)
        clock.server()
        total: list[NDArray[Any]] | None = None
        for node, state in states.items():
            clock.start()
            config = {Key.SOURCE_LIST: for_node[node][0], Key.CIPHERTEXT_LIST: for_node[node][1]}
            parameters = ndarrays_to_parameters([vector])
            answer = _collect_masked_vectors(state, cast(Any, config), 1, parameters)
            masked = cast(list[bytes], answer[Key.MASKED_PARAMETERS])
            clock.site()
            arrays = [bytes_to_ndarray(raw) for raw in masked]
            total = arrays if total is None else parameters_addition(total, arrays)
            clock.server()
            sent = sum(map(len, masked))
        assert total is not None
        collected: dict[int, list[bytes]] = {node: [] for node in self._nodes}
        for node, state in states.items():
            clock.start()
            config = {Key.ACTIVE_NODE_ID_LIST: self._circle[node], Key.DEAD_NODE_ID_LIST: []}
            given = _unmask(state, cast(Any, config))
            clock.site()
            lists = (cast(Any, given[Key.NODE_ID_LIST]), cast(Any, given[Key.SHARE_LIST]))
            for dealer, share in zip(*lists, strict=True):
                collected[dealer].append(share)
            clock.server()
        sent += sum(map(len, cast(list[bytes], boxes[node][Key.CIPHERTEXT_LIST])))
        sent += sum(map(len, lists[1]))
        clock.start()
        total = parameters_mod(total, _MODULUS)
        shapes = [array.shape for array in total]
        for shares in collected.values():
            seed = combine_shares(shares)
            total = parameters_subtraction(total, pseudo_rand_gen(seed, _MODULUS, shapes))
        total = parameters_mod(total, _MODULUS)
        ratio, total = factor_extract(total)
        inverse = 1.0 / (ratio / _RANGE)
        scaled = cast(Any, [array.astype(np.float64) for array in total])
        offset = -(len(self._nodes) - 1) * _CLIP
        mean = [(array + offset) * inverse for array in dequantize(scaled, _CLIP, _RANGE)]
        clock.server()
        _check(mean[0], vector)
        return Cost(clock.sites, clock.servers, sent)


class _Clock:
    """Adds up what the sites and the server took, from one reading to the next."""

    def __init__(self) -> None:
        self.sites = self.servers = 0.0
        self._last = time.perf_counter()

    def start(self) -> None:
        self._last = time.perf_counter()

    def site(self) -> None:
        self.sites += self._lap()

    def server(self) -> None:
        self.servers += self._lap()

    def _lap(self) -> float:
        before, self._last = self._last, time.perf_counter()
        return self._last - before


def _update(dimension: int) -> NDArray[np.float64]:
    return np.random.default_rng(0).uniform(-1.0, 1.0, dimension)


def _check(mean: NDArray[Any], vector: NDArray[np.float64]) -> None:
    """Neither side's time counts unless its sum is right."""
    worst = float(np.abs(mean - vector).max())
    if worst > 1e-2:
        raise RuntimeError(f"a round's mean is off by {worst}")


def _short(count: int) -> str:
    return f"{count // 1_000_000}M" if count % 1_000_000 == 0 else f"{count // 1000}k"
