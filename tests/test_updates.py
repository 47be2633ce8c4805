"""What the server takes from a site: one well-formed update; everything else is named and left."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.config import digest
from common.contract import Contract
from common.errors import InputError, Refused, UpdateRejected
from common.layout import Layout
from common.update import (
    FORMAT,
    Expected,
    Update,
    check_arrays,
    check_header,
    check_refusal,
    model_id_of,
)
from server.checkpoint import RoundRecord, load
from server.optimizer import OptimizerConfig
from server.rounds import Federation, RoundFailed, run_rounds
from simulations.inprocess import InProcessGrid
from tests.test_site import CONTRACT

LAYOUT = Layout(("a.weight", "b"), ((2, 3), (4,)))
SITES = 5
GOOD = np.arange(10, dtype=np.float32)


class Silent:
    def __init__(self) -> None:
        self.records: list[RoundRecord] = []

    def round_started(self, round_: int, nodes: Collection[int]) -> None:
        pass

    def round_finished(self, record: RoundRecord) -> None:
        self.records.append(record)


def federation(minimum_sites: int = 1, contract: Contract = CONTRACT) -> Federation:
    return Federation(
        contract=contract,
        layout=LAYOUT,
        state={},
        public_inputs=torch.zeros(1),
        initial=np.zeros(10, dtype=np.float32),
        optimizer=OptimizerConfig("sgd", 1.0, momentum=0.0),
        aggregator="mean",
        minimum_sites=minimum_sites,
        timeout=None,
        weights={},
    )


def reply_of(message: Message) -> tuple[dict[str, object], dict[str, Array]]:
    """An honest answer's header and arrays, to be spoilt."""
    vector = message.content.array_records["parameters"]["vector"].numpy()
    round_ = int(str(message.content.config_records["request"]["round"]))
    update = Update(CONTRACT.run_id, model_id_of(CONTRACT.run_id, vector), round_, GOOD)
    arrays = {name: Array(value) for name, value in update.arrays(LAYOUT).items()}
    return dict(update.header()), arrays


def ready(**changes: object) -> RecordDict:
    header = {"format": FORMAT, "ready": digest(CONTRACT), **changes}
    return RecordDict({"header": ConfigRecord(header)})  # type: ignore[arg-type]


Spoil = Callable[[dict[str, object], dict[str, Array]], None]


def nan(header: dict[str, object], arrays: dict[str, Array]) -> None:
    arrays["b"] = Array(np.array([1, np.nan, 1, 1], dtype=np.float32))


def infinite(header: dict[str, object], arrays: dict[str, Array]) -> None:
    arrays["b"] = Array(np.array([1, np.inf, 1, 1], dtype=np.float32))


def wrong_shape(header: dict[str, object], arrays: dict[str, Array]) -> None:
    arrays["b"] = Array(np.zeros(5, dtype=np.float32))


def wrong_type(header: dict[str, object], arrays: dict[str, Array]) -> None:
    arrays["b"] = Array(np.zeros(4, dtype=np.float64))


def oversized(header: dict[str, object], arrays: dict[str, Array]) -> None:
    arrays["b"] = Array(np.zeros(1_000_000, dtype=np.float32))


def missing(header: dict[str, object], arrays: dict[str, Array]) -> None:
    del arrays["b"]


def unknown(header: dict[str, object], arrays: dict[str, Array]) -> None:
    arrays["c"] = Array(np.zeros(1, dtype=np.float32))


def wrong_model(header: dict[str, object], arrays: dict[str, Array]) -> None:
    header["model_id"] = "0" * 64


def replayed(header: dict[str, object], arrays: dict[str, Array]) -> None:
    header["round"] = int(str(header["round"])) - 1


def other_run(header: dict[str, object], arrays: dict[str, Array]) -> None:
    header["run_id"] = "other"


def with_count(header: dict[str, object], arrays: dict[str, Array]) -> None:
    header["num-examples"] = 17


def garbage(header: dict[str, object], arrays: dict[str, Array]) -> None:
    arrays["b"] = Array("float32", (4,), "numpy.ndarray", b"not an array")


def unbalanced(header: dict[str, object], arrays: dict[str, Array]) -> None:
    """Bytes on which numpy's own reader fails with an error of Python's tokenizer."""
    data = bytearray(arrays["b"].data)
    data[8] = 1
    arrays["b"] = Array("float32", (4,), "numpy.ndarray", bytes(data))


def pickled(header: dict[str, object], arrays: dict[str, Array]) -> None:
    arrays["b"] = Array("object", (4,), "pickle", b"cos\nsystem\n(S'false'\ntR.")


SPOILERS: list[Spoil] = [
    nan, infinite, wrong_shape, wrong_type, oversized, missing, unknown, wrong_model, replayed,
    other_run, with_count, garbage, unbalanced,
    pickled,
]  # fmt: skip


def app_with(hostile: int, spoil: Spoil | None) -> ClientApp:
    """Sites of which the first `hostile` spoil their answers (or fail, if `spoil` is None)."""
    app = ClientApp()

    @app.query("prepare")
    def prepare(message: Message, context: Context) -> Message:
        return Message(ready(), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        header, arrays = reply_of(message)
        if context.node_id <= hostile:
            if spoil is None:
                return Message(Error(code=0, reason="CANARY"), reply_to=message)
            spoil(header, arrays)
        content = RecordDict(
            {
                "header": ConfigRecord(header),  # type: ignore[arg-type]
                "update": ArrayRecord(arrays),
            }
        )
        return Message(content, reply_to=message)

    return app


def run(app: ClientApp, path: Path, minimum_sites: int = 1) -> tuple[Silent, NDArray[np.float32]]:
    observer = Silent()
    done = run_rounds(
        InProcessGrid(app, SITES),
        federation(minimum_sites),
        path / "checkpoint.safetensors",
        lambda round_, parameters: {},
        observer,
    )
    return observer, done.state.released()


@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda s: s.__name__)
def test_a_spoilt_update_is_rejected_with_its_site_named_and_the_round_goes_on(
    spoil: Spoil, tmp_path: Path
) -> None:
    observer, released = run(app_with(2, spoil), tmp_path)
    assert len(observer.records) == CONTRACT.rounds
    for record in observer.records:
        assert record.accepted == SITES - 2
        assert [node for node, _ in record.rejected] == [1, 2]
        assert all(reason for _, reason in record.rejected)
    np.testing.assert_allclose(released, GOOD * CONTRACT.rounds)


def test_a_site_whose_app_fails_is_left_out_and_its_words_are_not_repeated(tmp_path: Path) -> None:
    observer, _ = run(app_with(1, None), tmp_path)
    assert observer.records[0].accepted == SITES - 1
    assert "CANARY" not in str(observer.records)


def test_too_few_usable_updates_stop_the_run_and_keep_the_last_round(tmp_path: Path) -> None:
    with pytest.raises(RoundFailed, match="3 usable updates, 4 needed"):
        run(app_with(2, nan), tmp_path, minimum_sites=4)
    kept = load(tmp_path / "checkpoint.safetensors", digest(CONTRACT))
    assert kept.state.round == 0


def test_the_start_is_kept_before_any_site_is_asked(tmp_path: Path) -> None:
    """Sites that answered round 1 answer no other model, so a killed server must not change it."""
    path = tmp_path / "checkpoint.safetensors"
    seen: list[bool] = []
    app = ClientApp()

    @app.query("prepare")
    def prepare(message: Message, context: Context) -> Message:
        seen.append(path.exists())
        return Message(Error(code=0, reason="x"), reply_to=message)

    with pytest.raises(RoundFailed):
        run(app, tmp_path)
    assert seen == [True] * SITES
    other = dataclasses.replace(federation(1), initial=federation(1).initial + 1.0)
    assert not np.array_equal(other.initial, federation(1).initial)
    done = run_rounds(InProcessGrid(app_with(0, None), SITES), other, path, lambda *_: {}, Silent())
    np.testing.assert_allclose(done.state.released(), GOOD * CONTRACT.rounds)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"ready": "0" * 64}, "malformed"),
        ({"count": 3}, "malformed"),
        ({"refusal": "contract"}, "a refusal has"),
        (None, "code 0"),
    ],
)
def test_a_site_that_is_not_ready_is_named_and_not_asked(
    answer: dict[str, object] | None, reason: str, tmp_path: Path
) -> None:
    asked: list[int] = []
    app, honest = ClientApp(), app_with(0, None)

    @app.query("prepare")
    def prepare(message: Message, context: Context) -> Message:
        if context.node_id > 1:
            return Message(ready(), reply_to=message)
        if answer is None:
            return Message(Error(code=0, reason="x"), reply_to=message)
        return Message(ready(**answer), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        asked.append(context.node_id)
        return honest(message, context)

    observer, _ = run(app, tmp_path)
    assert 1 not in asked
    for record in observer.records:
        assert record.asked == tuple(range(2, SITES + 1))
        assert [node for node, why in record.rejected if reason in why] == [1]


def test_a_site_that_lost_the_public_part_is_sent_it_again(tmp_path: Path) -> None:
    prepared: list[int] = []
    app, honest = ClientApp(), app_with(0, None)

    @app.query("prepare")
    def prepare(message: Message, context: Context) -> Message:
        prepared.append(context.node_id)
        return Message(ready(), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if context.node_id == 1 and prepared.count(1) == 1:
            refusal = {"format": FORMAT, "refusal": "unprepared"}
            content = RecordDict({"header": ConfigRecord(refusal)})  # type: ignore[arg-type]
            return Message(content, reply_to=message)
        return honest(message, context)

    observer, _ = run(app, tmp_path)
    assert [record.accepted for record in observer.records][:2] == [SITES - 1, SITES]
    assert prepared.count(1) == 2
    assert prepared.count(2) == 1


def test_a_refusal_is_one_word_from_the_list() -> None:
    assert check_refusal({"format": 1, "refusal": "budget"}) == "budget"
    for bad in (
        {"format": 1, "refusal": "Alice has 3 images"},
        {"format": 1, "refusal": "budget", "count": 3},
        {"format": 2, "refusal": "budget"},
        {"refusal": "budget"},
    ):
        with pytest.raises(UpdateRejected):
            check_refusal(bad)


@settings(deadline=None, max_examples=200)
@given(
    st.dictionaries(
        st.sampled_from(["format", "run_id", "model_id", "round", "loss"]),
        st.one_of(st.integers(0, 2), st.text(max_size=3), st.booleans(), st.floats()),
    )
)
def test_no_header_but_the_expected_one_passes(header: dict[str, object]) -> None:
    expected = Expected("r", "m", 1, LAYOUT)
    good = {"format": 1, "run_id": "r", "model_id": "m", "round": 1}
    check_header(good, expected)
    if header != good or any(type(header[k]) is not type(good[k]) for k in good):
        with pytest.raises(UpdateRejected):
            check_header(header, expected)


def test_a_good_update_comes_back_flat() -> None:
    update = Update("r", "m", 1, GOOD)
    assert np.array_equal(check_arrays(dict(update.arrays(LAYOUT)), LAYOUT), GOOD)


def test_a_damaged_or_foreign_checkpoint_is_named(tmp_path: Path) -> None:
    run(app_with(0, nan), tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(InputError, match="other settings"):
        load(path, "0" * 64)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="not a readable checkpoint"):
        load(path, "0" * 64)


def test_all_sites_out_of_budget_is_a_refusal(tmp_path: Path) -> None:
    app = ClientApp()

    @app.query("prepare")
    def prepare(message: Message, context: Context) -> Message:
        return Message(ready(), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        header = ConfigRecord({"format": 1, "refusal": "budget"})
        return Message(RecordDict({"header": header}), reply_to=message)

    with pytest.raises(Refused, match="budget"):
        run(app, tmp_path)
