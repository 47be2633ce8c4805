"""A server that follows no protocol: it tells sites different stories, and learns one sum at most.

`Attacker.learned` is what can be computed from all that sites let out: a site's own seed from the
threshold of shares, a common seed from either of its two sites; then sums whose masks are known.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from cryptography.exceptions import InvalidTag

from common.errors import Refused
from common.masking import MaskedUpdate, SurvivorsRequest, Terms, UnmaskRequest
from common.masking.keys import PairKeys, open_share
from common.masking.masks import add_mask
from common.masking.messages import SEALED_BYTES, SEED_BYTES, Confirmation, UnmaskShares, cut
from common.masking.shamir import SHARE_BYTES, Recombiner
from tests.masking_rig import Federation, key, names_of, participants, plain_sum, signing_key

Names = tuple[str, ...]


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # no power is cut here


class Attacker:
    """The server and the first `colluders` sites, whose keys it has, against all the others."""

    def __init__(self, folder: Path, count: int, terms: Terms) -> None:
        self.federation = Federation(folder, names_of(count), terms)
        self.names, self.terms = self.federation.names, terms
        self.colluders, self.honest = self.names[: terms.colluders], self.names[terms.colluders :]
        seen = participants(self.names)
        self.digest = seen.digest(self.federation.request)
        self.updates = {
            name: MaskedUpdate.from_bytes(self.federation.update(name)) for name in self.honest
        }
        self.signatures: dict[Names, dict[str, bytes]] = {}
        self.pair_seeds: dict[frozenset[str], bytes] = {}
        self.shares: dict[str, dict[str, bytes]] = {name: {} for name in self.honest}
        for name in self.colluders:
            pairs = PairKeys(seen, name, key(name))
            for dealer in self.honest:
                self.pair_seeds[frozenset((name, dealer))] = pairs.mask_seed(dealer, self.digest)
                sealed = pairs.share_key(dealer, name, self.digest)
                self.shares[dealer][name] = open_share(
                    sealed, self.sealed(dealer, name), self.digest
                )

    def sealed(self, dealer: str, holder: str) -> bytes:
        if dealer not in self.updates:
            return bytes(SEALED_BYTES)
        boxes = cut(self.updates[dealer].sealed, SEALED_BYTES, len(self.names), "shares")
        return boxes[self.names.index(holder)]

    def confirm(self, site: str, survivors: Names) -> None:
        """Have an honest site sign some survivors; keep its signature and the seeds it gives."""
        request = SurvivorsRequest(self.digest, survivors)
        answer = Confirmation.from_bytes(self.federation.confirmation(site, request))
        self.signed(survivors)[site] = answer.signature
        graph = self.terms.neighbours(len(self.names), self.names.index(site))
        missing = [self.names[n] for n in graph if self.names[n] not in survivors]
        seeds = cut(answer.seeds, SEED_BYTES, len(missing), "seeds")
        for other, seed in zip(missing, seeds, strict=True):
            self.pair_seeds[frozenset((site, other))] = seed

    def signed(self, survivors: Names) -> dict[str, bytes]:
        """Return the signatures on some survivors, the colluding survivors' own among them."""
        if survivors not in self.signatures:
            statement = SurvivorsRequest(self.digest, survivors).to_bytes()
            self.signatures[survivors] = {
                name: signing_key(name).sign(statement)
                for name in self.colluders
                if name in survivors
            }
        return self.signatures[survivors]

    def unmask(self, site: str, survivors: Names) -> None:
        """Have an honest site give its shares for some survivors, and keep them."""
        signed = {} if survivors == self.names else self.signed(survivors)
        request = UnmaskRequest(
            self.digest,
            survivors,
            tuple(signed),
            b"".join(signed.values()),
            b"".join(self.sealed(dealer, site) for dealer in survivors),
        )
        answer = UnmaskShares.from_bytes(self.federation.shares(site, request))
        dealers = [dealer for dealer in survivors if dealer not in answer.unopened]
        shares = cut(answer.shares, SHARE_BYTES, len(dealers), "shares")
        for dealer, share in zip(dealers, shares, strict=True):
            self.shares[dealer][site] = share

    def learned(self) -> list[Names]:
        """Return over which honest sites the sums are known, each checked against the truth."""
        own = {name: self.own_seed(name) for name in self.honest}
        found, left = [], set(self.honest)
        while left:
            part, edge = set(), {min(left)}
            while edge:
                part |= edge
                edge = {o for s in edge for o in self.hidden_neighbours(s)} - part
            left -= part
            if all(own[name] is not None for name in part):
                found.append(tuple(sorted(part)))
                assert np.array_equal(self.sum_over(part), plain_sum(sorted(part)))
        return found

    def hidden_neighbours(self, site: str) -> set[str]:
        numbers = self.terms.neighbours(len(self.names), self.names.index(site))
        others = {self.names[number] for number in numbers}
        return {other for other in others if frozenset((site, other)) not in self.pair_seeds}

    def own_seed(self, site: str) -> bytes | None:
        shares = self.shares[site]
        if len(shares) < self.terms.minimum:
            return None
        return Recombiner([self.names.index(holder) for holder in shares])(list(shares.values()))

    def sum_over(self, part: set[str]) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
        total = np.zeros(self.federation.request.dimension, dtype=np.uint32)
        for site in part:
            total += np.frombuffer(self.updates[site].vector, dtype="<u4")
            seed = self.own_seed(site)
            assert seed is not None
            add_mask(total, seed, negative=True)
            for number in self.terms.neighbours(len(self.names), self.names.index(site)):
                other = self.names[number]
                if other not in part:
                    pair = self.pair_seeds[frozenset((site, other))]
                    add_mask(total, pair, negative=site < other)
        return total


def tell_random_stories(attacker: Attacker, seed: int) -> None:
    """Ask honest sites at random to sign and unmask some of a few sets of survivors."""
    chance = random.Random(seed)
    names, least = attacker.names, attacker.terms.minimum
    pool = [names]
    for _ in range(chance.randint(2, 5)):
        base = chance.choice(pool)
        size = chance.randint(least, max(least, len(base) - 1))
        pool.append(tuple(sorted(chance.sample(base, min(size, len(base))))))
    for _ in range(14 * len(names)):
        site, survivors = chance.choice(attacker.honest), chance.choice(pool)
        ask = attacker.confirm if chance.random() < 0.5 else attacker.unmask
        try:
            ask(site, survivors)
        except Refused:
            continue


@pytest.mark.parametrize(
    ("count", "terms"), [(5, Terms(3, 0)), (6, Terms(5, 2)), (7, Terms(4, 0)), (7, Terms(5, 2))]
)
def test_whatever_a_server_tells_whom_it_learns_one_sum_of_enough_honest_sites_at_most(
    tmp_path: Path, count: int, terms: Terms
) -> None:
    terms.check(count)
    learned = 0
    for trial in range(25):
        attacker = Attacker(tmp_path / str(trial), count, terms)
        tell_random_stories(attacker, trial)
        sums = attacker.learned()
        assert len(sums) <= 1 and all(len(names) >= terms.honest for names in sums)
        learned += len(sums)
    assert learned > 0, "the attack must at times get as far as an honest server"


def test_with_half_of_the_honest_sites_missing_the_same_attack_learns_two_sums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Terms, "check", lambda self, sites: None)
    terms = Terms(3, 1)  # of 5: two may be missing, and 2 d < n - c does not hold
    attacker = Attacker(tmp_path, 5, terms)
    for story in (("s000", "s001", "s002"), ("s000", "s003", "s004")):
        for site in story[1:]:
            attacker.confirm(site, story)
        for site in story[1:]:
            attacker.unmask(site, story)
    assert attacker.learned() == [("s001", "s002"), ("s003", "s004")]


STORY = [
    ("confirm", "s1", "1 2 3 4"), ("confirm", "s2", "1 2 3 4"), ("confirm", "s4", "1 2 3 4"),
    ("unmask", "s4", "1 2 3 4"),  # a share of site 1's seed
    ("confirm", "s1", "1 2 3"), ("confirm", "s2", "1 2 3"),
    ("unmask", "s2", "1 2 3"),  # another
    ("confirm", "s1", "1 3"),  # site 1 gives its seed with 2
    ("confirm", "s3", "2 3"),  # site 3 gives its seed with 1
]  # fmt: skip


def tell(attacker: Attacker) -> int:
    """Tell the story against site s001; return how many of its steps were refused."""
    refused = 0
    for verb, site, survivors in STORY:
        names = tuple(f"s00{number}" for number in survivors.split())
        ask = attacker.confirm if verb == "confirm" else attacker.unmask
        try:
            ask(f"s00{site[1]}", names)
        except Refused:
            refused += 1
    return refused


def test_a_threshold_too_small_gives_one_sites_vector_and_the_right_one_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Attacker(tmp_path / "right", 6, Terms(4, 0))
    assert tell(right) > 0
    assert right.learned() == []
    monkeypatch.setattr(Terms, "check", lambda self, sites: None)
    wrong = Attacker(tmp_path / "wrong", 6, Terms(2, 0))
    assert tell(wrong) == 0
    assert ("s001",) in wrong.learned()


def test_a_sparse_graph_of_forty_sites_gives_no_small_sum_either(tmp_path: Path) -> None:
    terms, count = Terms(38, 3), 40
    assert terms.degree(count) == 10
    attacker = Attacker(tmp_path, count, terms)
    target, others = "s020", [f"s0{number}" for number in (19, 21, 18, 22, 17, 23, 16, 24, 15, 25)]
    attacker.confirm(target, tuple(n for n in attacker.names if n not in others[:2]))
    for site in others[2:]:  # all other neighbours are told that the target is missing
        attacker.confirm(site, tuple(n for n in attacker.names if n not in (target, "s003")))
    for site in attacker.honest:
        if site not in (target, *others[2:]):
            attacker.unmask(site, attacker.names)
    assert attacker.hidden_neighbours(target) == set(), "its common seeds are all known"
    assert len(attacker.shares[target]) < terms.minimum
    assert attacker.learned() == []


def test_sites_refuse_each_way_of_telling_two_stories(tmp_path: Path) -> None:
    attacker = Attacker(tmp_path, 6, Terms(4, 0))
    names = attacker.names
    first, second, fewer = names[:5], names[1:], names[:4]
    with pytest.raises(Refused, match="0 sites confirmed the survivors, not 4"):
        attacker.unmask("s001", first)
    for site in first[:4]:
        attacker.confirm(site, first)
    with pytest.raises(Refused, match="never confirmed here"):
        attacker.unmask("s004", first)
    with pytest.raises(Refused, match="never confirmed here"):
        attacker.unmask("s001", names)
    with pytest.raises(Refused, match="a site that was missing is said to survive"):
        attacker.confirm("s001", second)
    attacker.unmask("s001", first)
    attacker.unmask("s001", first)  # the same again gives nothing new
    with pytest.raises(Refused, match="unmasked for other survivors"):
        attacker.confirm("s001", fewer)
    with pytest.raises(Refused, match="3 survivors where 4 are the fewest"):
        attacker.confirm("s000", names[:3])
    with pytest.raises(Refused, match="this site is missing"):
        attacker.confirm("s005", first)
    with pytest.raises(Refused, match="not sites of the round, in order"):
        attacker.confirm("s000", names[4::-1])
    attacker.signatures[fewer] = {**attacker.signed(first)}
    with pytest.raises(Refused, match="did not sign these survivors"):
        attacker.unmask("s000", fewer)
    attacker.signatures[first] = dict.fromkeys(("s000", "s001", "s002", "s005"), bytes(64))
    with pytest.raises(Refused, match="confirmed by themselves"):
        attacker.unmask("s000", first)


def test_a_share_given_to_another_site_or_round_does_not_open(tmp_path: Path) -> None:
    attacker = Attacker(tmp_path, 4, Terms(3, 0))
    pairs = PairKeys(participants(attacker.names), "s000", key("s000"))
    sealed = attacker.sealed("s001", "s000")
    right = pairs.share_key("s001", "s000", attacker.digest)
    assert len(open_share(right, sealed, attacker.digest)) == SHARE_BYTES
    for wrong, digest in (
        (pairs.share_key("s000", "s001", attacker.digest), attacker.digest),
        (pairs.share_key("s002", "s000", attacker.digest), attacker.digest),
        (right, bytes(32)),
        (pairs.share_key("s001", "s000", bytes(32)), bytes(32)),
    ):
        with pytest.raises(InvalidTag):
            open_share(wrong, sealed, digest)
