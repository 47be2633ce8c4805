"""Secure aggregation: the sum is exact, single updates look uniform, and a restart forgets none."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from common.errors import InputError, Refused
from common.masking import (
    MaskedRound,
    MaskedUpdate,
    MaskingSite,
    Participants,
    SiteFault,
    Terms,
    advertise,
)
from common.masking.masks import add_mask
from common.randomness import KeyStream, experiment_key, fresh_key
from tests.masking_rig import (
    DIMENSION,
    RUN,
    Federation,
    key,
    names_of,
    participants,
    plain_sum,
    request_of,
    roster,
    share_of,
    signing_key,
    vector_of,
)

ALPHA = 1e-6


@pytest.mark.parametrize(
    ("count", "terms"),
    [(2, Terms(2, 0)), (3, Terms(2, 0)), (8, Terms(6, 2)), (40, Terms(36, 2))],
)
def test_the_sum_over_sites_is_exactly_the_plain_sum(
    tmp_path: Path, count: int, terms: Terms
) -> None:
    found, rejected = Federation(tmp_path, names_of(count), terms).run()
    assert np.array_equal(found.total, plain_sum(names_of(count)))
    assert (found.survivors, found.complaints, rejected) == (names_of(count), (), [])


def test_a_sparse_round_of_forty_sites_masks_with_few_and_bears_missing_ones(
    tmp_path: Path,
) -> None:
    terms, names = Terms(37, 3), names_of(40)
    assert terms.degree(40) == 14
    dead = {"s000", "s001", "s020"}
    found, _ = Federation(tmp_path, names, terms).run(lambda site, stage: site not in dead)
    assert found.survivors == tuple(name for name in names if name not in dead)
    assert np.array_equal(found.total, plain_sum(found.survivors))


def test_a_masked_vector_is_uniform_and_an_unmasked_one_is_not(tmp_path: Path) -> None:
    names, terms, size = names_of(3), Terms(3, 0), 200_000
    request = replace(request_of(names, terms), dimension=size)
    site = MaskingSite(
        participants(names), "s001", key("s001"), signing_key("s001"), terms, tmp_path
    )
    plain = np.full(size, 7, dtype=np.uint32)  # as far from uniform as can be
    update = site.mask(request, share_of(plain), key("uniform"))
    masked = np.frombuffer(update.vector, dtype="<u4")
    for shift in (0, 8, 16, 24):
        assert stats.chisquare(np.bincount((masked >> shift) & 255, minlength=256)).pvalue > ALPHA
        unmasked = np.bincount((plain >> shift) & 255, minlength=256)
        assert stats.chisquare(unmasked).pvalue < ALPHA
    assert stats.chisquare(np.bincount(masked >> 24, minlength=256)).pvalue > ALPHA
    bent = masked - (masked % 100 == 0)
    assert stats.chisquare(np.bincount(bent & 1)).pvalue < ALPHA
    assert abs(stats.pearsonr(masked[:-1], masked[1:]).statistic) < 0.02


def test_two_rounds_of_the_same_vector_have_nothing_in_common(tmp_path: Path) -> None:
    names, terms = names_of(3), Terms(3, 0)
    site = Federation(tmp_path, names, terms).site("s000")
    share = share_of(vector_of("s000"))
    first, second = (
        np.frombuffer(site.mask(request_of(names, terms, n), share, key(f"r{n}")).vector, "<u4")
        for n in (1, 2)
    )
    assert not (first == second).any()


def test_a_mask_is_the_published_cipher_and_is_taken_away_as_it_was_added() -> None:
    # AES-256-CTR of zeros under the all-zero key; AES_0(0) as in FIPS 197's own test of AES-256.
    total = np.zeros(5, dtype=np.uint32)
    add_mask(total, bytes(32), negative=False)
    assert total[:4].astype("<u4").tobytes().hex() == "dc95c078a2408989ad48a21492842087"
    long = np.arange(100_001, dtype=np.uint32)
    add_mask(long, bytes(32), negative=False)
    assert np.array_equal(long[:5], total + np.arange(5, dtype=np.uint32))
    assert len(np.unique(long)) > 99_000  # no part of the mask is used twice
    add_mask(long, bytes(32), negative=True)
    assert np.array_equal(long, np.arange(100_001))


def test_a_restarted_site_gives_the_same_bytes_and_never_others(tmp_path: Path) -> None:
    federation = Federation(tmp_path, names_of(4), Terms(3, 0))
    first = federation.update("s002")
    assert federation.update("s002") == first
    other = share_of(vector_of("s003"))
    with pytest.raises(Refused, match="another vector or key"):
        federation.site("s002").mask(federation.request, other, key("round s002"))
    with pytest.raises(Refused, match="another vector or key"):
        federation.site("s002").mask(federation.request, share_of(vector_of("s002")), key("else"))
    changed = replace(federation.request, model_id="b" * 64)
    with pytest.raises(Refused, match="another request"):
        federation.site("s002").mask(changed, share_of(vector_of("s002")), key("round s002"))
    assert federation.update("s002") == first


def test_what_is_promised_lies_on_the_disk_for_the_owner_alone(tmp_path: Path) -> None:
    federation = Federation(tmp_path, names_of(3), Terms(2, 0))
    federation.update("s000")
    (file,) = (tmp_path / "s000").iterdir()
    assert (file.stat().st_mode & 0o777, (tmp_path / "s000").stat().st_mode & 0o777) == (
        0o600,
        0o700,
    )
    assert (
        key("s000").hex() not in file.read_text()
        and key("round s000").hex() not in file.read_text()
    )
    file.write_text("{}")
    with pytest.raises(Refused, match="damaged"):
        federation.update("s000")


def test_sites_with_other_keys_than_advertised_or_other_terms_refuse(tmp_path: Path) -> None:
    names, terms = names_of(4), Terms(3, 0)
    with pytest.raises(Refused, match="not the one it has"):
        MaskingSite(participants(names), "s000", fresh_key(), signing_key("s000"), terms, tmp_path)
    site = Federation(tmp_path, names, terms).site("s000")
    share = share_of(vector_of("s000"))
    for weaker in (Terms(4, 0), Terms(3, 1)):
        with pytest.raises(Refused, match="other terms"):
            site.mask(request_of(names, weaker), share, key("r"))
    with pytest.raises(Refused, match="without this site"):
        site.mask(request_of(names[1:], terms), share, key("r"))
    with pytest.raises(Refused, match="advertised no key"):
        site.mask(request_of((*names[:3], "s999"), terms), share, key("r"))
    with pytest.raises(Refused, match="coordinates"):
        site.mask(request_of(names, terms), share_of(vector_of("s000", 3)), key("r"))
    with pytest.raises(Refused, match="another federation or run"):
        site.mask(replace(request_of(names, terms), run_id="run-2"), share, key("r"))
    with pytest.raises(Refused, match="protect nobody"):
        MaskedRound(participants(names_of(8)), request_of(names_of(8), Terms(4, 0)))


@pytest.mark.parametrize(
    ("minimum", "colluders", "sites", "fits"),
    [
        (2, 0, 3, True), (3, 0, 5, True), (7, 3, 10, True), (90, 10, 100, True),
        (2, 0, 4, False), (5, 0, 10, False), (7, 4, 10, False), (3, 0, 2, False),
    ],
)  # fmt: skip
def test_terms_bear_less_than_half_of_the_honest_sites_missing_and_no_more(
    minimum: int, colluders: int, sites: int, fits: bool
) -> None:
    terms = Terms(minimum, colluders)
    if fits:
        terms.check(sites)
    else:
        with pytest.raises(InputError):
            terms.check(sites)


def test_a_sum_of_one_honest_site_is_never_agreed_to() -> None:
    for minimum, colluders in ((1, 0), (4, 3), (0, 0), (3, 5)):
        with pytest.raises(InputError, match="too few"):
            Terms(minimum, colluders)


def test_neighbours_are_mutual_and_no_choice_of_missing_and_colluding_sites_cuts_the_graph() -> (
    None
):
    terms, count = Terms(38, 1), 41  # 3 missing, 1 colluding: degree 12 where 11 is needed
    graph = [set(terms.neighbours(count, site)) for site in range(count)]
    assert {len(others) for others in graph} == {12}
    assert all(site in graph[other] for site in range(count) for other in graph[site])

    def connected(gone: set[int]) -> bool:
        left = set(range(count)) - gone
        reached, edge = {min(left)}, {min(left)}
        while edge:
            edge = {other for site in edge for other in graph[site]} - gone - reached
            reached |= edge
        return reached == left

    draws = KeyStream(experiment_key(3), private=False).words(400 * 11).reshape(400, 11) % count
    assert all(connected({int(site) for site in row}) for row in draws)
    sides = {(20 + step) % count for step in (*range(-6, 0), *range(1, 7))}
    assert connected(set(list(sides)[:11]))
    assert not connected(sides)  # twelve around one site: the degree itself


def test_keys_are_checked_against_the_roster_and_the_offender_is_named(tmp_path: Path) -> None:
    names = names_of(3)
    book = roster(names)
    good = [advertise(book, RUN, name, key(name), signing_key(name)) for name in names]
    stranger = advertise(book, RUN, "mallory", key("m"), signing_key("m"))
    swapped = replace(good[1], key=good[2].key)
    by_other = advertise(book, RUN, "s001", key("s001"), signing_key("m"))
    other_run = advertise(book, "run-2", "s001", key("s001"), signing_key("s001"))
    same_key = advertise(book, RUN, "s001", key("s000"), signing_key("s001"))
    for adverts, what in (
        ([*good, stranger], "mallory advertises a key but is not on the roster"),
        ([*good, good[1]], "s001 advertises twice"),
        ([good[0], swapped, good[2]], "s001 is not signed by s001"),
        ([good[0], by_other, good[2]], "s001 is not signed by s001"),
        ([good[0], other_run, good[2]], "s001 advertises a key for another federation or run"),
        ([good[0], same_key, good[2]], "the same key"),
    ):
        with pytest.raises(Refused, match=what):
            Participants.verified(book, RUN, adverts)
    # A key of small order is signed by its own site, and caught where it would be used.
    low = replace(good[1], key=bytes(32)).signed(signing_key("s001"))
    seen = Participants.verified(book, RUN, [good[0], low, good[2]])
    terms = Terms(3, 0)
    site = MaskingSite(seen, "s000", key("s000"), signing_key("s000"), terms, tmp_path)
    with pytest.raises(Refused, match="s001 advertises a key that agrees on nothing"):
        site.mask(request_of(names, terms), share_of(vector_of("s000")), key("r"))


def test_a_missing_key_or_another_view_of_the_keys_gives_no_sum(tmp_path: Path) -> None:
    names = names_of(3)
    book, terms = roster(names), Terms(3, 0)
    adverts = [advertise(book, RUN, name, key(name), signing_key(name)) for name in names]
    second = advertise(book, RUN, "s001", key("second"), signing_key("s001"))
    split_view = Participants.verified(book, RUN, [adverts[0], second, adverts[2]])
    site = MaskingSite(split_view, "s000", key("s000"), signing_key("s000"), terms, tmp_path)
    update = site.mask(request_of(names, terms), share_of(vector_of("s000")), key("r"))
    server = MaskedRound(participants(names), request_of(names, terms))
    with pytest.raises(SiteFault, match="s000: answers for another round"):
        server.add_update("s000", update.to_bytes())
    with pytest.raises(Refused, match="s002 advertised no key"):
        MaskedRound(Participants.verified(book, RUN, adverts[:2]), request_of(names, terms))


def test_bytes_beside_the_vector_are_few(tmp_path: Path) -> None:
    update = Federation(tmp_path, names_of(10), Terms(8, 1)).update("s000")
    beside = len(update) - 4 * DIMENSION
    assert beside < 1_500  # under 1% of 40,000 coordinates
    assert len(MaskedUpdate.from_bytes(update).vector) == 4 * DIMENSION


def test_secure_aggregation_needs_no_torch() -> None:
    code = "import sys, common.masking; sys.exit('torch' in sys.modules or 'flwr' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
