"""Sites that lie: what is false is rejected, its sender named, and no sum is wrong in silence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import Refused
from common.masking import (
    Confirmation,
    MaskedRound,
    MaskedUpdate,
    SiteFault,
    SurvivorsRequest,
    Terms,
    UnmaskShares,
)
from common.masking.messages import SEALED_BYTES
from common.masking.shamir import SHARE_BYTES
from tests.masking_rig import (
    Federation,
    key,
    names_of,
    participants,
    plain_sum,
    request_of,
    share_of,
    signing_key,
    vector_of,
)

NAMES, TERMS, LIAR = names_of(6), Terms(4, 0), "s002"
Change = Callable[[bytes], bytes]


def flipped(data: bytes, at: int = 0) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def update_with(**change: Callable[[bytes], bytes]) -> Change:
    """Return what changes fields of the liar's update and signs it anew: the liar has its key."""

    def apply(data: bytes) -> bytes:
        update = MaskedUpdate.from_bytes(data)
        fields: Any = {name: edit(getattr(update, name)) for name, edit in change.items()}
        return replace(update, **fields).signed(signing_key(LIAR)).to_bytes()

    return apply


def shares_with(**change: Callable[[bytes], bytes]) -> Change:
    def apply(data: bytes) -> bytes:
        answer = UnmaskShares.from_bytes(data)
        fields: Any = {name: edit(getattr(answer, name)) for name, edit in change.items()}
        return replace(answer, **fields).signed(signing_key(LIAR)).to_bytes()

    return apply


def confirmation_with(**change: Callable[[bytes], bytes]) -> Change:
    def apply(data: bytes) -> bytes:
        answer = Confirmation.from_bytes(data)
        fields: Any = {name: edit(getattr(answer, name)) for name, edit in change.items()}
        return replace(answer, **fields).to_bytes()

    return apply


UPDATES: dict[str, tuple[Change, str]] = {
    "cut-off": (lambda data: data[:-1], "cut off"),
    "longer": (lambda data: data + b"\0", "followed by other bytes"),
    "empty": (lambda data: b"", "cut off"),
    "other-kind": (
        lambda data: data.replace(b"masked update", b"masked updatf", 1),
        "not a masked",
    ),
    "not-signed": (lambda data: flipped(data, len(data) // 2), "not signed by s002"),
    "short-vector": (update_with(vector=lambda raw: raw[:-4]), "the vector: 80 bytes"),
    "long-vector": (update_with(vector=lambda raw: raw + bytes(4)), "the vector: 88 bytes"),
    "fewer-shares": (update_with(sealed=lambda raw: raw[SEALED_BYTES:]), "sealed shares"),
    "fewer-commitments": (update_with(share_commitments=lambda raw: raw[32:]), "commitments"),
    "another-round": (update_with(round_digest=flipped), "another round"),
    "another-seed-for-a-mask": (update_with(pair_commitments=flipped), "s002: it or s000 used"),
}


@pytest.mark.parametrize("case", UPDATES)
def test_a_false_update_is_named_and_the_sum_is_over_the_others(tmp_path: Path, case: str) -> None:
    change, what = UPDATES[case]

    def tamper(site: str, stage: str, data: bytes) -> bytes:
        return change(data) if (site, stage) == (LIAR, "update") else data

    found, rejected = Federation(tmp_path, NAMES, TERMS).run(tamper=tamper)
    assert len(rejected) == 1 and rejected[0].startswith("s002:") and what in rejected[0]
    assert found.survivors == tuple(name for name in NAMES if name != LIAR)
    assert np.array_equal(found.total, plain_sum(found.survivors))


CONFIRMATIONS: dict[str, tuple[Change, str]] = {
    "false-seed": (confirmation_with(seeds=flipped), "another seed for s000"),
    "no-seed": (confirmation_with(seeds=lambda raw: b""), "seeds: 0 bytes"),
    "not-signed": (confirmation_with(signature=flipped), "did not sign"),
    "cut-off": (lambda data: data[:-3], "cut off"),
}


@pytest.mark.parametrize("case", CONFIRMATIONS)
def test_a_false_confirmation_is_named_and_its_site_left_out(tmp_path: Path, case: str) -> None:
    change, what = CONFIRMATIONS[case]

    def tamper(site: str, stage: str, data: bytes) -> bytes:
        return change(data) if (site, stage) == (LIAR, "confirm") else data

    found, rejected = Federation(tmp_path, NAMES, TERMS).run(
        lambda site, stage: site != "s000", tamper
    )
    assert len(rejected) == 1 and rejected[0].startswith("s002:") and what in rejected[0]
    assert found.survivors == ("s001", "s003", "s004", "s005")
    assert np.array_equal(found.total, plain_sum(found.survivors))


SHARES: dict[str, tuple[Change, str]] = {
    "false-share": (shares_with(shares=flipped), "share of s000 is not the one"),
    "swapped-shares": (
        shares_with(shares=lambda raw: raw[SHARE_BYTES:] + raw[:SHARE_BYTES]),
        "share of s000 is not the one",
    ),
    "fewer-shares": (shares_with(shares=lambda raw: raw[:-SHARE_BYTES]), "shares: 165 bytes"),
    "another-round": (shares_with(round_digest=flipped), "another round"),
    "not-signed": (lambda data: flipped(data, len(data) - 1), "s002"),
}


@pytest.mark.parametrize("case", SHARES)
def test_a_false_share_is_named_and_the_sum_found_without_it(tmp_path: Path, case: str) -> None:
    change, what = SHARES[case]

    def tamper(site: str, stage: str, data: bytes) -> bytes:
        return change(data) if (site, stage) == (LIAR, "unmask") else data

    found, rejected = Federation(tmp_path, NAMES, TERMS).run(tamper=tamper)
    assert len(rejected) == 1 and what in rejected[0] and "s002" in rejected[0]
    assert np.array_equal(found.total, plain_sum(NAMES))


def test_too_many_false_shares_end_the_round_and_give_no_sum(tmp_path: Path) -> None:
    def tamper(site: str, stage: str, data: bytes) -> bytes:
        return data[:-1] if stage == "unmask" and site < "s003" else data

    with pytest.raises(Refused, match="3 of 4 shares of s000 came back"):
        Federation(tmp_path, NAMES, TERMS).run(tamper=tamper)


def test_a_dealer_whose_shares_are_of_another_seed_is_named_and_no_sum_given(
    tmp_path: Path,
) -> None:
    def tamper(site: str, stage: str, data: bytes) -> bytes:
        edit = update_with(seed_commitment=flipped)
        return edit(data) if (site, stage) == (LIAR, "update") else data

    with pytest.raises(Refused, match="s002: it dealt shares of another seed"):
        Federation(tmp_path, NAMES, TERMS).run(tamper=tamper)


def test_a_share_that_does_not_open_is_reported_with_both_names_and_not_needed(
    tmp_path: Path,
) -> None:
    def tamper(site: str, stage: str, data: bytes) -> bytes:
        edit = update_with(sealed=lambda raw: flipped(raw, 3 * SEALED_BYTES + 5))
        return edit(data) if (site, stage) == (LIAR, "update") else data

    found, rejected = Federation(tmp_path, NAMES, TERMS).run(tamper=tamper)
    assert (found.complaints, rejected) == ((("s003", "s002"),), [])
    assert np.array_equal(found.total, plain_sum(NAMES))


def test_a_site_answers_for_itself_once_and_in_time(tmp_path: Path) -> None:
    federation = Federation(tmp_path, NAMES, TERMS)
    server = MaskedRound(participants(NAMES), federation.request)
    update = federation.update("s000")
    with pytest.raises(SiteFault, match="s001: answers in the name of another site"):
        server.add_update("s001", update)
    with pytest.raises(SiteFault, match="not asked"):
        server.add_update("s999", update)
    server.add_update("s000", update)
    with pytest.raises(SiteFault, match="s000: answers twice") as caught:
        server.add_update("s000", update)
    assert caught.value.site == "s000"
    with pytest.raises(Refused, match="1 sites survive round 1, 4 are the fewest"):
        server.survivors_request()
    for name in NAMES[1:4]:
        server.add_update(name, federation.update(name))
    with pytest.raises(Refused, match="not confirmed"):
        server.unmask_request("s000")
    asked = server.survivors_request()
    server.add_confirmation("s000", federation.confirmation("s000", asked))
    with pytest.raises(SiteFault, match="s000: answers twice"):
        server.add_confirmation("s000", federation.confirmation("s000", asked))
    with pytest.raises(Refused, match="too late"):
        server.add_update("s004", federation.update("s004"))


def test_answers_of_another_round_are_not_taken(tmp_path: Path) -> None:
    federation = Federation(tmp_path, NAMES, TERMS)
    server = MaskedRound(participants(NAMES), request_of(NAMES, TERMS, 2))
    with pytest.raises(SiteFault, match="s000: answers for another round"):
        server.add_update("s000", federation.update("s000"))
    site = federation.site("s000")
    site.mask(request_of(NAMES, TERMS, 2), share_of(vector_of("s000")), key("two"))
    other = SurvivorsRequest(participants(NAMES).digest(federation.request), NAMES[:5])
    with pytest.raises(Refused, match="survivors of another round"):
        site.confirm(request_of(NAMES, TERMS, 2), other)


def test_a_site_can_still_poison_its_own_part_and_nothing_else(tmp_path: Path) -> None:
    """What no secure aggregation detects: the sum is off by exactly what the liar added."""

    def tamper(site: str, stage: str, data: bytes) -> bytes:
        edit = update_with(vector=flipped)
        return edit(data) if (site, stage) == (LIAR, "update") else data

    found, rejected = Federation(tmp_path, NAMES, TERMS).run(tamper=tamper)
    off = found.total - plain_sum(NAMES)
    assert rejected == [] and int(off[0]) in (1, 2**32 - 1) and not off[1:].any()
