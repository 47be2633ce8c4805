"""Messages as bytes, shares of secrets, and the vectors that any implementation must reproduce."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError, Refused
from common.masking import (
    Advertisement,
    Confirmation,
    MaskedRound,
    MaskedUpdate,
    MaskingSite,
    Participants,
    RoundRequest,
    SurvivorsRequest,
    Terms,
    UnmaskRequest,
    UnmaskShares,
)
from common.masking.masks import add_mask
from common.masking.shamir import PRIME, Recombiner, split
from common.masking.wire import Message
from common.randomness import KeyStream, experiment_key
from tests.masking_rig import key, names_of, participants, roster, share_of, signing_key

VECTORS = Path(__file__).resolve().parent / "vectors" / "masking"
KINDS: dict[str, type[Message]] = {
    kind.KIND: kind
    for kind in (
        Advertisement, RoundRequest, MaskedUpdate, SurvivorsRequest, Confirmation, UnmaskRequest,
        UnmaskShares,
    )
}  # fmt: skip
NAMES = st.lists(st.from_regex(r"[a-z0-9]{1,12}", fullmatch=True), unique=True, max_size=6).map(
    lambda names: tuple(sorted(names))
)


@st.composite
def messages(draw: st.DrawFn) -> Message:
    kind = draw(st.sampled_from(sorted(KINDS)))
    values: dict[str, Any] = {}
    for field in fields(KINDS[kind]):
        strategy: st.SearchStrategy[Any] = {
            "bytes": st.binary(max_size=80),
            "str": st.text("abc-019 ", max_size=20),
            "int": st.integers(1, 1000),
        }.get(str(field.type), NAMES)
        values[field.name] = draw(strategy)
    return KINDS[kind](**values)


@given(messages())
@settings(max_examples=200, deadline=None)
def test_every_message_comes_back_as_it_was_and_has_one_encoding(message: Message) -> None:
    data = message.to_bytes()
    assert type(message).from_bytes(data) == message
    for other in KINDS.values():
        if other is not type(message):
            with pytest.raises(Refused):
                other.from_bytes(data)


@given(messages(), st.data())
@settings(max_examples=300, deadline=None)
def test_changed_bytes_are_another_message_or_refused_and_nothing_else(
    message: Message, data: st.DataObject
) -> None:
    raw = bytearray(message.to_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(raw) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "insert"])):
            case "flip":
                raw[place] ^= data.draw(st.integers(1, 255))
            case "cut":
                del raw[place : place + data.draw(st.integers(1, 9))]
            case _:
                raw[place:place] = data.draw(st.binary(min_size=1, max_size=9))
        if not raw:
            return
    try:
        parsed = type(message).from_bytes(bytes(raw))
    except Refused:
        return
    assert parsed.to_bytes() == bytes(raw)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    for kind in KINDS.values():
        with pytest.raises(Refused):
            kind.from_bytes(data)


@given(st.binary(min_size=32, max_size=32), st.data())
@settings(max_examples=80, deadline=None)
def test_any_threshold_of_shares_gives_the_secret_back_and_one_less_does_not(
    secret: bytes, data: st.DataObject
) -> None:
    holders = data.draw(st.integers(2, 12))
    threshold = data.draw(st.integers(2, holders))
    stream = KeyStream(experiment_key(data.draw(st.integers(0, 1000))), private=False)
    shares = split(secret, threshold, holders, stream)
    chosen = data.draw(st.permutations(range(holders)))[:threshold]
    assert Recombiner(chosen)([shares[holder] for holder in chosen]) == secret
    fewer = chosen[1:]
    assert Recombiner(fewer)([shares[holder] for holder in fewer]) != secret


def test_fewer_shares_are_consistent_with_every_secret() -> None:
    """For any other secret there is a polynomial that gives the same threshold - 1 shares."""
    secret, other = key("one"), int.from_bytes(key("other"), "big")
    shares = split(secret, 3, 5, KeyStream(key("polynomial"), private=False))
    (x1, y1), (x2, y2) = ((n, int.from_bytes(shares[n - 1], "big")) for n in (2, 5))
    # The parabola through (0, other), (2, y1), (5, y2) exists: solve for its coefficients.
    determinant = pow(x1 * x2 * x2 - x2 * x1 * x1, -1, PRIME)
    a1 = ((y1 - other) * x2 * x2 - (y2 - other) * x1 * x1) * determinant % PRIME
    a2 = (x1 * (y2 - other) - x2 * (y1 - other)) * determinant % PRIME
    for x, y in ((x1, y1), (x2, y2)):
        assert (other + a1 * x + a2 * x * x) % PRIME == y


def test_the_modulus_is_prime_and_what_cannot_be_shared_is_refused() -> None:
    odd, twos = PRIME - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37):  # Miller and Rabin
        power = pow(base, odd, PRIME)
        powers = [pow(power, 1 << step, PRIME) for step in range(twos)]
        assert power == 1 or PRIME - 1 in powers
    stream = KeyStream(experiment_key(0), private=False)
    for secret, threshold, holders in ((bytes(31), 2, 3), (bytes(32), 4, 3), (bytes(32), 0, 3)):
        with pytest.raises(InputError, match="cannot split"):
            split(secret, threshold, holders, stream)
    for holders_of in ([1, 1], [], [-1, 2]):
        with pytest.raises(InputError, match="different holders"):
            Recombiner(holders_of)
    top = (PRIME - 1).to_bytes(33, "big")
    assert Recombiner([0])([top]) is None, "no 32 bytes are this number"


def vectors(folder: str) -> list[Path]:
    return sorted((VECTORS / folder).glob("*.json"))


@pytest.mark.parametrize("path", vectors("malformed"), ids=lambda path: path.stem)
def test_a_malformed_message_is_refused_for_the_reason_that_its_vector_states(path: Path) -> None:
    vector = json.loads(path.read_text())
    kind, data = KINDS[vector["kind"]], bytes.fromhex(vector["hex"])
    with pytest.raises(Refused) as caught:
        kind.from_bytes(data)
    assert vector["expect"] in caught.value.message


@pytest.mark.parametrize("path", vectors("untrusted"), ids=lambda path: path.stem)
def test_an_advertisement_that_nobody_should_trust_is_refused_for_the_stated_reason(
    path: Path,
) -> None:
    vector = json.loads(path.read_text())
    adverts = [Advertisement.from_bytes(bytes.fromhex(one)) for one in vector["advertisements"]]
    with pytest.raises(Refused) as caught:
        Participants.verified(roster(names_of(3)), "run-1", adverts)
    assert vector["expect"] in caught.value.message


def test_a_whole_round_gives_the_bytes_that_its_vector_states(tmp_path: Path) -> None:
    vector = json.loads((VECTORS / "round.json").read_text())
    names, seen = names_of(3), participants(names_of(3))
    adverts = [one.to_bytes().hex() for one in seen.advertisements]
    assert adverts == vector["advertisements"]
    request = RoundRequest.from_bytes(bytes.fromhex(vector["request"]))
    assert seen.digest(request).hex() == vector["round_digest"]
    server = MaskedRound(seen, request)
    sites = {}
    for name, plain, expected in zip(names, vector["vectors"], vector["updates"], strict=True):
        site = MaskingSite(seen, name, key(name), signing_key(name), Terms(2, 0), tmp_path / name)
        share = share_of(np.array(plain, dtype=np.uint32))
        update = site.mask(request, share, key(f"round {name}")).to_bytes()
        assert update.hex() == expected
        if name != "s002":  # it dies
            server.add_update(name, update)
            sites[name] = site
    asked = server.survivors_request()
    assert asked.to_bytes().hex() == vector["survivors_request"]
    for (name, site), expected in zip(sites.items(), vector["confirmations"], strict=True):
        answer = site.confirm(request, asked).to_bytes()
        assert answer.hex() == expected
        server.add_confirmation(name, answer)
    server.settle()
    for (name, site), expected in zip(sites.items(), vector["unmask_shares"], strict=True):
        answer = site.unmask(request, server.unmask_request(name)).to_bytes()
        assert answer.hex() == expected
        server.add_shares(name, answer)
    assert server.total().total.tolist() == vector["total"]


def test_a_mask_gives_the_numbers_that_its_vector_states() -> None:
    vector = json.loads((VECTORS / "mask.json").read_text())
    total = np.zeros(len(vector["mask"]), dtype=np.uint32)
    add_mask(total, bytes.fromhex(vector["seed"]), negative=False)
    assert total.tolist() == vector["mask"]
    stream = KeyStream(bytes.fromhex(vector["polynomial_key"]), private=False)
    shares = split(bytes.fromhex(vector["seed"]), vector["threshold"], vector["holders"], stream)
    assert [share.hex() for share in shares] == vector["shares"]
