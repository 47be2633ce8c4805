"""Nobody gets more of the service than their share, and the rest go on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from client.service.settings import Settings
from client.service.tokens import SCOPES
from common.web.answers import Declined
from common.web.limits import Buckets, Workers, network_of
from tests.service_rig import Site, faces, new_site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with new_site(tmp_path) as made:
        yield made


def test_a_bucket_gives_a_burst_and_then_its_rate() -> None:
    now = [0.0]
    buckets = Buckets(2.0, 3, lambda: now[0])
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 0.5]
    assert buckets.take("b") == 0
    now[0] = 0.5
    assert buckets.take("a") == 0
    assert buckets.take("a") == pytest.approx(0.5)
    now[0] = 100.0
    assert [buckets.take("a") > 0 for _ in range(4)] == [False, False, False, True]


def test_an_attacker_with_many_addresses_fills_no_memory() -> None:
    buckets = Buckets(1.0, 1, lambda: 0.0)
    for number in range(20_000):
        buckets.take(str(number))
    assert len(buckets._levels) == 10_000


def test_an_ipv6_customer_counts_once() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:1") == "2001:db8::"
    assert network_of("2001:db8:0:1::1") != network_of("2001:db8::1")
    assert network_of("192.0.2.1") == "192.0.2.1"
    assert network_of("/run/socket") == "unknown"


def test_a_token_over_its_rate_is_told_when_to_return(site: Site) -> None:
    site.serve(Settings(rate=0.5, burst=3))
    mine, other = site.token("verify"), site.token("verify")
    answers = [site.ask("GET", "/v1/token", mine) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert answers[-1].headers["retry-after"] == "2"
    assert site.ask("GET", "/v1/token", other).status_code == 200


def test_guessing_is_slowed_down_and_a_good_token_goes_on(site: Site) -> None:
    site.serve(Settings(failure_rate=0.01, failure_burst=3))
    wrong = [site.ask("GET", "/v1/token", "vf_guess") for _ in range(4)]
    assert [answer.status_code for answer in wrong] == [401, 401, 401, 429]
    assert int(wrong[-1].headers["retry-after"]) > 60
    assert site.ask("GET", "/v1/token", site.token("verify")).status_code == 200


def test_who_has_no_token_gets_a_share_too(site: Site) -> None:
    site.serve(Settings(visitor_rate=0.01, visitor_burst=3))
    answers = [site.ask("GET", path) for path in ("/", "/v1/health", "/docs", "/v1/health")]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert site.ask("GET", "/v1/token", site.token("verify")).status_code == 200


def test_a_full_service_says_so_and_loses_nothing_that_it_took(site: Site) -> None:
    site.serve(Settings(at_once=1, waiting=2))
    token = site.token(*SCOPES)
    files = [("images", faces()[0])]

    async def crowd() -> list[httpx.Response]:
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(site.app), base_url="http://localhost", headers=headers
        ) as client:
            data = ({"subject": str(number)} for number in range(12))
            asked = [client.post("/v1/subjects", data=one, files=files) for one in data]
            return list(await asyncio.gather(*asked))

    answers = asyncio.run(crowd())
    taken = [answer for answer in answers if answer.status_code == 201]
    full = [answer for answer in answers if answer.status_code == 503]
    assert len(taken) >= 3 and len(taken) + len(full) == 12 and full
    assert all(answer.headers["retry-after"] == "1" for answer in full)
    assert site.vault.info.templates == len(taken)
    assert site.ask("POST", "/v1/subjects", token, data={"subject": "one"}, files=files).is_success


def test_a_crowd_gets_the_answers_that_each_would_get_alone(site: Site) -> None:
    site.calibrate(0.99)
    token = site.token(*SCOPES)
    for number, face in enumerate(faces()):
        data, files = {"subject": str(number)}, {"images": face}
        assert site.ask("POST", "/v1/subjects", token, data=data, files=files).is_success

    async def crowd() -> list[tuple[bool, float]]:
        transport = httpx.ASGITransport(site.app)
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(
            transport=transport, base_url="http://localhost", headers=headers
        ) as client:
            asked = [
                client.post(
                    "/v1/verify", data={"subject": str(n % 4)}, files={"image": faces()[n % 4]}
                )
                for n in range(24)
            ]
            answers = [answer.json() for answer in await asyncio.gather(*asked)]
        return [(answer["accepted"], answer["score"]) for answer in answers]

    assert all(accepted and score > 0.9999 for accepted, score in asyncio.run(crowd()))


def test_a_place_is_free_again_when_its_work_ends_not_when_its_caller_gives_up() -> None:
    workers, go = Workers(1, 1), threading.Event()

    async def crowd() -> None:
        running = asyncio.create_task(workers.run(go.wait))
        waiting = asyncio.create_task(workers.run(go.wait))
        await asyncio.sleep(0.05)
        with pytest.raises(Declined):
            await workers.run(go.wait)
        waiting.cancel()
        running.cancel()
        await asyncio.gather(running, waiting, return_exceptions=True)
        assert workers.busy == 1
        go.set()
        while workers.busy:
            await asyncio.sleep(0.01)
        assert await workers.run(lambda: 5) == 5

    asyncio.run(asyncio.wait_for(crowd(), 10))
    workers.close()


def test_a_request_that_takes_too_long_is_given_up(site: Site) -> None:
    site.serve(Settings(timeout=0.02))
    files = [("images", faces()[0])] * 10
    answer = site.ask(
        "POST", "/v1/subjects", site.token("enrol"), data={"subject": "one"}, files=files
    )
    assert answer.status_code == 503 and "long" in answer.json()["error"]


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 200), ("LOCALHOST:8443", 200), ("127.0.0.1:1", 200), ("[::1]:8443", 200),
     ("faces.example", 200), ("evil.example", 400), ("localhost.evil.example", 400),
     ("localhost:x", 400), ("localhost@evil", 400), ("", 400)],
)  # fmt: skip
def test_only_known_names_of_the_host_are_answered(host: str, status: int, site: Site) -> None:
    site.serve(Settings(hosts=(*Settings().hosts, "faces.example")))
    answer = site.ask("GET", "/v1/health", headers={"Host": host})
    assert answer.status_code == status and "evil" not in answer.text
