"""The ledger: durable before it returns, one release a round, and no change goes unseen."""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import BudgetExceeded, LedgerError, Refused
from common.ledger import Genesis, Ledger, Reservation, verify
from common.ledger_format import (
    GENESIS_HASH,
    Head,
    Line,
    decode_line,
    encode_head,
    encode_line,
)

GENESIS = Genesis(delta=1e-4, epsilon=4.0)
FILE, HEAD = Ledger.FILE_NAME, "ledger.head"


def reserve(ledger: Ledger, round_: int, request: str = "request") -> Reservation:
    return ledger.reserve(
        run_id="run",
        round=round_,
        noise_multiplier=6.0,
        sample_rate=1.0,
        steps=1,
        max_grad_norm=0.5,
        request_digest=f"{request}-{round_}",
        private=True,
        check=lambda reservations: None,
    )


def filled(directory: Path, rounds: int = 3) -> Path:
    Ledger.create(directory, GENESIS)
    with Ledger.open(directory) as ledger:
        for round_ in range(1, rounds + 1):
            ledger.commit(reserve(ledger, round_), f"release-{round_}")
    return directory


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return filled(tmp_path_factory.mktemp("ledger") / "site")


def copy_with(original: Path, tmp: Path, file: bytes | None, head: bytes | None = None) -> Path:
    """A copy whose ledger file (and head) has other bytes."""
    target = tmp / "copy"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(original, target)
    if file is not None:
        (target / FILE).write_bytes(file)
    if head is not None:
        (target / HEAD).write_bytes(head)
    return target


def refused(directory: Path) -> bool:
    """Both readers refuse it: verify has findings, and no writer can open it."""
    findings = verify(directory).findings
    try:
        with Ledger.open(directory):
            return False
    except LedgerError:
        return bool(findings)


def test_what_is_reserved_is_on_the_disk_before_reserve_returns(tmp_path: Path) -> None:
    Ledger.create(tmp_path / "s", GENESIS)
    with Ledger.open(tmp_path / "s") as ledger:
        reservation = reserve(ledger, 1)
        command = [sys.executable, "-c", "import sys; print(open(sys.argv[1]).read())"]
        seen = subprocess.run(
            [*command, str(tmp_path / "s" / FILE)], capture_output=True, text=True, check=True
        ).stdout
        assert '"request_digest":"request-1"' in seen
        assert verify(tmp_path / "s").reservations == (reservation,)
        assert ledger.committed(reservation) is None
        ledger.commit(reservation, "digest")
        assert ledger.committed(reservation) == "digest"
        with pytest.raises(LedgerError):
            ledger.commit(reservation, "digest")
    with Ledger.open(tmp_path / "s") as ledger:
        assert ledger.reservations == (reservation,)
        assert ledger.genesis.epsilon == 4.0


def test_files_are_for_their_owner_only(original: Path) -> None:
    assert stat.S_IMODE(original.stat().st_mode) == 0o700
    for name in (FILE, HEAD):
        assert stat.S_IMODE((original / name).stat().st_mode) == 0o600


def test_a_retry_spends_nothing_and_another_request_for_the_round_is_refused(
    tmp_path: Path,
) -> None:
    directory = filled(tmp_path / "s", 1)
    before = (directory / FILE).read_bytes()
    with Ledger.open(directory) as ledger:
        assert reserve(ledger, 1) == ledger.reservations[0]
        with pytest.raises(Refused):
            reserve(ledger, 1, "another")
    assert (directory / FILE).read_bytes() == before


def test_a_check_that_refuses_leaves_no_trace(tmp_path: Path) -> None:
    directory = filled(tmp_path / "s", 1)
    before = (directory / FILE).read_bytes()

    def no(reservations: tuple[Reservation, ...]) -> None:
        raise BudgetExceeded(f"{len(reservations)}")

    with Ledger.open(directory) as ledger, pytest.raises(BudgetExceeded, match="2"):
        ledger.reserve(
            run_id="run", round=2, noise_multiplier=1.0, sample_rate=1.0, steps=1,
            max_grad_norm=1.0, request_digest="d", private=True, check=no,
        )  # fmt: skip
    assert (directory / FILE).read_bytes() == before


@settings(
    deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_changed_byte_of_ledger_or_head_is_found(
    original: Path, tmp_path: Path, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from([FILE, HEAD]))
    content = bytearray((original / name).read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    target = copy_with(original, tmp_path, None)
    (target / name).write_bytes(bytes(content))
    assert refused(target)


def lines(original: Path) -> list[bytes]:
    return (original / FILE).read_bytes().splitlines(keepends=True)


def test_any_deleted_duplicated_swapped_or_cut_off_line_is_found(
    original: Path, tmp_path: Path
) -> None:
    whole = lines(original)
    for i in range(len(whole)):
        spoilt = [
            whole[:i] + whole[i + 1 :],
            whole[: i + 1] + whole[i:],
            whole[:i],
        ]
        spoilt += [
            [*whole[:i], whole[j], *whole[i + 1 : j], whole[i], *whole[j + 1 :]]
            for j in range(i + 1, len(whole))
        ]
        for changed in spoilt:
            assert refused(copy_with(original, tmp_path, b"".join(changed)))


def test_an_acknowledged_last_line_cut_at_any_byte_is_found(original: Path, tmp_path: Path) -> None:
    """The head names the line, so nothing of it may be missing."""
    content, last = (original / FILE).read_bytes(), lines(original)[-1]
    for cut in range(1, len(last) + 1):
        assert refused(copy_with(original, tmp_path, content[:-cut]))


def test_lines_of_another_ledger_and_a_missing_or_foreign_head_are_found(
    original: Path, tmp_path: Path
) -> None:
    other = filled(tmp_path / "other")
    mixed = lines(original)[:3] + lines(other)[3:]
    assert refused(copy_with(original, tmp_path, b"".join(mixed)))
    assert refused(copy_with(original, tmp_path, None, (other / HEAD).read_bytes()))
    target = copy_with(original, tmp_path, None)
    (target / HEAD).unlink()
    assert refused(target)


def test_an_old_head_is_found(original: Path, tmp_path: Path) -> None:
    """Else whoever puts back an old head could then cut the ledger down to it, line by line."""
    chain = [json.loads(line) for line in lines(original)]
    for entry in chain[:-2]:
        old = encode_head(Head(entry["seq"], entry["hash"]))
        assert refused(copy_with(original, tmp_path, None, old))


def test_an_interrupted_append_is_mended_at_any_byte(original: Path, tmp_path: Path) -> None:
    """The head is written last: with the head of one line before, any cut of the last is legal."""
    whole = lines(original)
    shorter = filled(tmp_path / "shorter", 2)
    with Ledger.open(shorter) as ledger:
        reserve(ledger, 3)
        acknowledged = ledger.reservations
        head = (shorter / HEAD).read_bytes()
        ledger.commit(acknowledged[-1], "release-3")
    content, last = (shorter / FILE).read_bytes(), lines(shorter)[-1]
    assert len(whole) == len(lines(shorter))
    for cut in range(len(last) + 1):
        target = copy_with(shorter, tmp_path, content[: len(content) - cut], head)
        assert verify(target).ok
        with Ledger.open(target) as mended:
            assert mended.reservations == acknowledged
            assert (mended.committed(acknowledged[-1]) is not None) == (cut == 0)
        assert verify(target).ok
        assert (target / FILE).read_bytes().endswith(b"\n")


def test_a_removed_ledger_is_not_replaced_by_an_empty_one(original: Path, tmp_path: Path) -> None:
    target = copy_with(original, tmp_path, None)
    (target / FILE).unlink()
    with pytest.raises(LedgerError, match="gone"):
        Ledger.create(target, GENESIS)
    with pytest.raises(LedgerError, match="exists"):
        Ledger.create(original, GENESIS)


def _try_open(directory: str, answer: multiprocessing.SimpleQueue[str]) -> None:
    try:
        with Ledger.open(Path(directory)):
            answer.put("opened")
    except LedgerError as error:
        answer.put(str(error))


def test_a_second_writer_is_locked_out_at_once(tmp_path: Path) -> None:
    directory = filled(tmp_path / "s")
    context = multiprocessing.get_context("fork")
    answer: multiprocessing.SimpleQueue[str] = context.SimpleQueue()
    with Ledger.open(directory):
        process = context.Process(target=_try_open, args=(str(directory), answer))
        process.start()
        process.join(20)
        assert "in use" in answer.get()
        assert verify(directory).ok, "reading does not need the lock"
    process = context.Process(target=_try_open, args=(str(directory), answer))
    process.start()
    process.join(20)
    assert answer.get() == "opened"


@pytest.mark.parametrize(
    "change",
    [
        *({"noise_multiplier": s} for s in (-1.0, 0.0, 1e-200, 1e300, math.nan, math.inf)),
        {"sample_rate": 0.0},
        {"sample_rate": 7.0},
        {"steps": 0},
        {"steps": 10**400},
        {"round": 0},
        {"max_grad_norm": float("inf")},
    ],
)
def test_a_reservation_that_makes_no_sense_is_never_written(
    tmp_path: Path, change: dict[str, float]
) -> None:
    directory = filled(tmp_path / "s", 1)
    before = (directory / FILE).read_bytes()
    values: dict[str, object] = {
        "run_id": "run", "round": 2, "noise_multiplier": 1, "sample_rate": 1, "steps": 1,
        "max_grad_norm": 1, "request_digest": "d", "private": True,
        "check": lambda reservations: None,
    }  # fmt: skip
    with Ledger.open(directory) as ledger:
        with pytest.raises(LedgerError):
            ledger.reserve(**{**values, **change})  # type: ignore[arg-type]
        assert (directory / FILE).read_bytes() == before
        ledger.reserve(**values)  # type: ignore[arg-type]
    assert verify(directory).ok, "whole numbers are written as the floats they stand for"


def test_shared_noise_is_on_record_and_an_unknown_mechanism_is_damage(tmp_path: Path) -> None:
    plain = Reservation(0, "run", 1, 1.0, 1.0, 1, 0.5, "d", True)
    shared = Reservation(0, "run", 1, 1.0, 1.0, 1, 0.5, "d", True, "discrete-shared", 7)
    for record in (plain, shared):
        raw = encode_line(Line(0, GENESIS_HASH, record))
        assert decode_line(raw, 0, GENESIS_HASH).record == record
        assert (b"mechanism" in raw) == (record is shared), "older ledgers keep their bytes"
    raw = encode_line(Line(0, GENESIS_HASH, shared))
    for changed in (b'"laplace"', b"7", b"null"):
        with pytest.raises(LedgerError):
            decode_line(raw.replace(b'"discrete-shared"', changed), 0, GENESIS_HASH)
    for shares, rate, steps in ((1, 1.0, 1), (7, 0.5, 1), (7, 1.0, 2)):
        with pytest.raises(LedgerError):
            dataclasses.replace(shared, shares=shares, sample_rate=rate, steps=steps)
