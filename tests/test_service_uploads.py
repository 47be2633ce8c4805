"""Whatever is sent, the service answers with an error that it means, or does what was asked."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.service.settings import Settings
from client.service.tokens import SCOPES
from tests.service_rig import CANARY, Site, faces, jpeg, new_site

pytestmark = pytest.mark.filterwarnings("ignore")
_BOUNDARY = b"boundary"
_TYPE = {"Content-Type": "multipart/form-data; boundary=boundary"}
_SMALL = jpeg(np.random.default_rng(0).integers(0, 255, (24, 24, 3)))
_QUICK = settings(
    max_examples=700, deadline=None, suppress_health_check=list(HealthCheck), database=None
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with new_site(tmp_path_factory.mktemp("site")) as made:
        made.calibrate(0.99)
        made.serve(Settings(rate=1e6, burst=10**6))
        yield made


@pytest.fixture(scope="module")
def token(site: Site) -> str:
    return site.token(*SCOPES)


def _part(name: bytes, data: bytes, file: bytes | None = None) -> bytes:
    named = b"" if file is None else b'; filename="' + file + b'"'
    head = b'--boundary\r\nContent-Disposition: form-data; name="' + name + b'"' + named
    return head + b"\r\n\r\n" + data + b"\r\n"


_WHOLE = (
    _part(b"subject", CANARY.encode())
    + _part(b"image", _SMALL, f"{CANARY}.jpg".encode())
    + b"--boundary--\r\n"
)


def _mutated(whole: bytes) -> st.SearchStrategy[bytes]:
    """`whole` with up to four cuts: bytes replaced, dropped, doubled or put in."""
    cut = st.tuples(
        st.integers(0, len(whole)), st.integers(0, 40), st.binary(max_size=40), st.booleans()
    )

    def apply(cuts: list[tuple[int, int, bytes, bool]]) -> bytes:
        data = whole
        for start, length, new, doubled in cuts:
            old = data[start : start + length]
            data = data[:start] + (old + old if doubled else new) + data[start + length :]
        return data

    return st.lists(cut, min_size=1, max_size=4).map(apply)


def _is_an_answer(site: Site, answer: httpx.Response, *also: int) -> None:
    assert answer.status_code in (400, 413, 422, *also)
    if answer.status_code >= 400:
        assert set(answer.json()) == {"error", "hint"}
        assert "Canary" not in answer.text


@_QUICK
@given(body=_mutated(_WHOLE), path=st.sampled_from(["/v1/verify", "/v1/subjects", "/v1/identify"]))
def test_a_malformed_body_is_an_error_that_is_meant(
    site: Site, token: str, body: bytes, path: str
) -> None:
    _is_an_answer(site, site.ask("POST", path, token, content=body, headers=_TYPE))


@_QUICK
@given(image=_mutated(_SMALL) | st.binary(max_size=200))
def test_a_malformed_image_is_an_error_that_is_meant(site: Site, token: str, image: bytes) -> None:
    answer = site.ask("POST", "/v1/identify", token, files={"image": (CANARY, image)})
    assert answer.status_code == 422
    _is_an_answer(site, answer)


@_QUICK
@given(
    body=st.binary(max_size=60)
    | st.text(max_size=60).map(str.encode)
    | st.sampled_from([b"[" * 8000, b'{"subject": ' * 600, b"1" * 5000, b"{}", b"null", b"NaN"])
    | st.dictionaries(st.sampled_from(["subject", "x"]), st.text(max_size=300) | st.none())
      .map(lambda values: str(values).replace("'", '"').encode(errors="replace")),
    kind=st.sampled_from(["application/json", "text/plain", "multipart/form-data", "", "é"]),
)  # fmt: skip
def test_a_malformed_erasure_erases_nobody(site: Site, token: str, body: bytes, kind: str) -> None:
    headers = {"Content-Type": kind.encode("latin-1")}
    answer = site.ask("POST", "/v1/subjects/erase", token, content=body, headers=headers)
    _is_an_answer(site, answer)


@pytest.mark.parametrize(
    ("data", "files", "status"),
    [
        ({}, [("images", _SMALL)], 400),
        ({"subject": ""}, [("images", _SMALL)], 400),
        ({"subject": " "}, [("images", _SMALL)], 400),
        ({"subject": "a\nb"}, [("images", _SMALL)], 400),
        ({"subject": "a" * 257}, [("images", _SMALL)], 400),
        ({"subject": "a" * 2000}, [("images", _SMALL)], 400),
        ({"subject": ["a", "b"]}, [("images", _SMALL)], 400),
        ({"subject": "a", "other": "b"}, [("images", _SMALL)], 400),
        ({"subject": "a"}, [("other", _SMALL)], 400),
        ({"subject": "a"}, [("images", _SMALL)] * 11, 400),
        ({"subject": "a"}, [("images", b"")], 422),
        ({"subject": "a"}, [("images", _SMALL)], 422),
        ({"subject": "a"}, [], 400),
    ],
)
def test_an_enrolment_takes_one_subject_and_one_to_ten_images(
    data: dict[str, str], files: list[tuple[str, bytes]], status: int, site: Site, token: str
) -> None:
    named = [(name, ("x.jpg", content)) for name, content in files]
    answer = site.ask("POST", "/v1/subjects", token, data=data, files=named or None)
    assert answer.status_code == status
    assert site.vault.info.subjects == 0


@pytest.mark.parametrize("top", ["0", "101", "-1", "1e1", "x", "", "9" * 400, "１"])
def test_the_number_of_candidates_is_checked(top: str, site: Site, token: str) -> None:
    image = {"image": faces()[0]}
    answer = site.ask("POST", "/v1/identify", token, data={"top": top}, files=image)
    assert answer.status_code == 400


def test_an_image_of_a_hundred_million_pixels_is_refused_unread(site: Site, token: str) -> None:
    header = b"P6 10000 10000 255\n"
    answer = site.ask("POST", "/v1/identify", token, files={"image": header + b"\0" * 1000})
    assert answer.status_code == 422 and "pixels" in answer.json()["error"]


def test_a_body_over_the_limit_is_refused_while_it_arrives(site: Site, token: str) -> None:
    site.serve(Settings(max_body=100_000, max_held=150_000))
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        yield b'--boundary\r\nContent-Disposition: form-data; name="image"\r\n\r\n'
        for _ in range(1000):
            taken += 10_000
            yield b"x" * 10_000

    for content in (b"x" * 100_001, endless()):
        answer = site.ask("POST", "/v1/identify", token, content=content, headers=_TYPE)
        assert answer.status_code == 413
        assert set(answer.json()) == {"error", "hint"}
    assert taken < 200_000
    for length in ("-1", "x", "1" * 30, "１"):
        headers = {**_TYPE, "Content-Length": length.encode()}
        answer = site.ask("POST", "/v1/identify", token, content=b"x", headers=headers)
        assert answer.status_code == 413
    site.serve(Settings(rate=1e6, burst=10**6))


def test_an_upload_of_megabytes_needs_no_temporary_file(
    site: Site, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(Path("/nonexistent")))
    with pytest.raises(FileNotFoundError), tempfile.TemporaryFile():
        pass
    # What follows the end of a JPEG is ignored by every decoder.
    padded = faces()[0] + b"\0" * (5 * 2**20)
    data, files = {"subject": CANARY}, [("images", padded)] * 2
    assert site.ask("POST", "/v1/subjects", token, data=data, files=files).status_code == 201
    site.vault.erase(CANARY)


def test_after_all_that_nobody_is_enrolled_and_no_name_was_logged(site: Site) -> None:
    assert site.vault.info.subjects == 0
    text = site.written.getvalue()
    assert "Canary" not in text
    assert all(event["status"] < 500 for event in site.events())
