"""One rule says who a subject can be called, whichever door they come by."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from client.picture import Picture
from client.vault import Vault
from common.errors import InputError
from common.sealing import KeyFileLock
from tests.service_rig import Site, faces, new_site
from tests.vault_cases import DIM, MODEL, unit_rows

# Full-width and non-breaking blanks, joiners of Persian and old Malayalam, a soft hyphen, emoji.
TAKEN = [
    "\u5c71\u7530\u3000\u592a\u90ce", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "a\u00a0b", "\u0d05\u0d28\u0d4d\u200d", "co\u00adop", "4711",
    "O'Neill-\U0001f469\u200d\U0001f469", "x" * 256,
]  # fmt: skip
REFUSED = {
    "a\x00b": "U+0000", "a\nb": "U+000A", "a\u0085": "U+0085", "\x1b[2J": "U+001B",
    "a\u2028b": "U+2028 LINE SEPARATOR", "a\u0378b": "U+0378", "  ": "U+0020 SPACE alone",
    "\u200d": "U+200D ZERO WIDTH JOINER alone", "\u3000": "U+3000 IDEOGRAPHIC SPACE",
    "wade ": "ends with U+0020 SPACE", " wade": "begins with U+0020 SPACE",
    "wade\u3000": "ends with U+3000 IDEOGRAPHIC SPACE", "\ufeffwade": "begins with U+FEFF",
    "wade\u200f": "ends with U+200F RIGHT-TO-LEFT MARK", "x" * 257: "at most 256",
}  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with new_site(tmp_path_factory.mktemp("site")) as made:
        yield made


def enrol_over_rest(site: Site, token: str, subject: str) -> tuple[int, str]:
    files = [("images", ("a.jpg", faces()[0]))]
    answer = site.ask("POST", "/v1/subjects", token, data={"subject": subject}, files=files)
    return answer.status_code, answer.text


@pytest.mark.parametrize("subject", TAKEN)
def test_whoever_the_command_takes_can_be_enrolled_and_erased_over_rest(
    site: Site, subject: str
) -> None:
    token = site.token("enrol", "erase")
    site.recogniser.enrol(subject, [Picture("a", faces()[0])])
    erased = site.ask("POST", "/v1/subjects/erase", token, json={"subject": subject})
    assert erased.status_code == 200, erased.text
    status, text = enrol_over_rest(site, token, subject)
    assert status == 201, text
    assert site.vault.erase(subject).templates == 1


@pytest.mark.parametrize(("subject", "words"), REFUSED.items())
def test_what_names_nobody_is_refused_at_both_doors_by_the_characters_name(
    site: Site, subject: str, words: str
) -> None:
    with pytest.raises(InputError, match="name") as found:
        site.recogniser.enrol(subject, [Picture("a", faces()[0])])
    assert words in str(found.value)
    status, text = enrol_over_rest(site, site.token("enrol"), subject)
    assert status == 400 and words in text, text
    with pytest.raises(InputError, match="name"):
        site.vault.enrol_many(
            [subject], unit_rows(1, dim=site.vault.info.dim), model_id=site.recogniser.model_id
        )
    assert site.vault.info.subjects == 0


def test_bytes_that_are_no_text_are_told_at_both_doors(site: Site) -> None:
    with pytest.raises(InputError, match="U\\+DCFF"):
        site.recogniser.enrol("a\udcff", [Picture("a", faces()[0])])
    body = b'{"subject": "a\\udcff"}'
    answer = site.ask("POST", "/v1/subjects/erase", site.token("erase"), content=body)
    assert answer.status_code == 400 and "U+DCFF" in answer.text


@pytest.mark.parametrize("subject", ["wade ", "  ", "a\tb", "y" * 1024, "\u00e9" * 1024])
def test_who_was_enrolled_before_the_rule_is_still_found_and_erased(
    tmp_path: Path, subject: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_site(tmp_path) as site:
        rows = unit_rows(1, dim=site.vault.info.dim)
        with monkeypatch.context() as patch:
            patch.setattr("client.vault.vault.check_new", lambda _: None)
            site.vault.enrol(subject, rows, model_id=site.recogniser.model_id)
        assert np.shape(site.vault.templates(subject)) == np.shape(rows)
        answer = site.ask(
            "POST", "/v1/subjects/erase", site.token("erase"), json={"subject": subject}
        )
        assert answer.status_code == 200, answer.text
        assert site.vault.info.subjects == 0


def test_a_name_that_is_not_there_because_of_a_blank_says_so(tmp_path: Path) -> None:
    lock = KeyFileLock.create(tmp_path / "key")
    with Vault.create(str(tmp_path / "v.db"), lock, model_id=MODEL, dim=DIM) as vault:
        vault.enrol("wade", unit_rows(1), model_id=MODEL)
        with pytest.raises(InputError, match="ends with U\\+0020 SPACE"):
            vault.erase("wade ")
