"""What leaves a site in a whole run: every byte of it is read."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message
from flwr.common.serde import message_to_proto
from scipy import stats

from common.embedding import Rows
from common.masking import MaskedUpdate
from common.randomness import KeyStream, experiment_key
from common.vocabulary import TrainSet
from server.report.page import write_page
from simulations.experiment import Experiment
from simulations.federation import build, site_directory
from simulations.material import Material, gather
from tests.simulation_rig import records, run

WHITELIST = {"format", "run_id", "model_id", "round"}


@pytest.mark.parametrize("train_set", ["adapter", "statistics"])
def test_only_the_whitelisted_update_leaves_a_site_and_no_canary_is_in_any_byte(
    experiment: Experiment, tmp_path: Path, train_set: TrainSet
) -> None:
    if train_set == "statistics":
        experiment = dataclasses.replace(experiment, train_set=train_set, rounds=1)
    wire: list[tuple[Message, bytes]] = []

    def record(reply: Message) -> None:
        wire.append((reply, message_to_proto(reply).SerializeToString()))

    run(experiment, tmp_path / "run", record)
    updates = [entry for entry in wire if entry[0].metadata.message_type == "train"]
    assert len(updates) == experiment.sites * experiment.rounds

    simulation = build(experiment, "x", tmp_path / "unused", gather(experiment))
    layout = simulation.federation.layout
    for reply, _ in updates:
        assert set(reply.content) == {"header", "update"}
        assert set(reply.content.config_records["header"]) == WHITELIST
        arrays = reply.content.array_records["update"]
        assert {n: tuple(a.shape) for n, a in arrays.items()} == dict(
            zip(layout.names, layout.shapes, strict=True)
        )
    for reply, _ in wire:
        if reply.metadata.message_type != "train":
            assert set(reply.content) == {"header"}
            assert set(reply.content.config_records["header"]) == {"format", "ready"}

    sent = b"".join(raw for _, raw in wire)
    assert canaries_in(sent, simulation.material, simulation.rows) == []
    planted = sent + simulation.material.sites[0].chips[0].numpy().tobytes()
    assert canaries_in(planted, simulation.material, simulation.rows) != []


def test_with_secure_aggregation_only_masked_messages_leave_and_nothing_in_them_can_be_read(
    experiment: Experiment, tmp_path: Path
) -> None:
    secagg = dataclasses.replace(experiment, trust="secagg", colluders=1)
    wire: list[tuple[Message, bytes]] = []

    def record(reply: Message) -> None:
        wire.append((reply, message_to_proto(reply).SerializeToString()))

    found = run(secagg, tmp_path / "run", record)
    headers = {
        "query.prepare": {"format", "ready"},
        "train.mask": {"format", "stage"},
        "query.unmask": {"format", "stage"},
        "query.end": {"format", "ended"},
    }
    stages = [reply.metadata.message_type for reply, _ in wire]
    counts = {kind: stages.count(kind) for kind in set(stages)}
    assert counts == {"query.prepare": 3, "train.mask": 9, "query.unmask": 9, "query.end": 3}
    for reply, _ in wire:
        kind = reply.metadata.message_type
        beside = set() if kind == "query.end" else {"masking"}
        assert set(reply.content) == {"header"} | beside
        assert set(reply.content.config_records["header"]) == headers[kind]
        for name in beside:
            assert set(reply.content.config_records[name]) == {"message"}
    simulation = build(secagg, "x", tmp_path / "unused", gather(secagg))
    sent = b"".join(raw for _, raw in wire)
    assert canaries_in(sent, simulation.material, simulation.rows) == []

    masking = simulation.federation.contract.masking
    assert masking is not None
    encoding = masking.encoding(simulation.federation.contract.privacy.max_grad_norm)
    noise = KeyStream(experiment_key(3), private=False)
    bare = encoding.add_noise(encoding.encode(np.zeros(masking.dimension)), noise)
    updates = [
        MaskedUpdate.from_bytes(message_in(reply)).vector
        for reply, _ in wire
        if reply.metadata.message_type == "train.mask"
    ]
    for vector in updates:
        assert len(vector) == 4 * masking.dimension
        assert is_uniform(vector)
    assert not is_uniform(bare.value.astype("<u4").tobytes()), "an unmasked one can be told apart"
    assert len(set(updates)) == len(updates)

    for index in range(3):
        reservations, commits = records(tmp_path / "run", index)
        assert {(r.mechanism, r.shares) for r in reservations} == {("discrete-shared", 2)}
        assert len(commits) == 3
        assert not list(site_directory(tmp_path / "run", index).rglob("*.key"))
    against = {a.name: a.epsilon for a in found.privacy.adversaries}
    assert found.privacy.private
    assert found.privacy.worst is not None
    assert 3.99 < found.privacy.worst <= 4.0
    assert against["the server with 1 colluding site"] == pytest.approx(
        found.privacy.worst, rel=1e-6
    )
    masks_fail = against["the server, if masks fail and it sees every site's update"]
    model = against["anyone outside the sites who holds the released model"]
    assert masks_fail is not None and model is not None
    assert model < found.privacy.worst < masks_fail
    page = write_page(found, tmp_path).read_text()
    assert "Beyond what was agreed" in page and "2 colluding sites" in page
    assert "Moderate privacy: epsilon 4.00" in page


def message_in(reply: Message) -> bytes:
    message = reply.content.config_records["masking"]["message"]
    assert isinstance(message, bytes)
    return message


def is_uniform(data: bytes) -> bool:
    """Whether the bytes pass a chi-square test for uniformity at alpha 1e-6."""
    counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
    return bool(stats.chisquare(counts).pvalue > 1e-6)


def canaries_in(sent: bytes, material: Material, rows: Rows) -> list[str]:
    """Names, image bytes, features, embeddings and exact counts of sites found in `sent`."""
    found = []
    if b"CANARY" in sent or b"image" in sent:
        found.append("name")
    for index, site in enumerate(material.sites):
        for chip in site.chips:
            middle = chip[chip.shape[0] // 2].numpy().tobytes()
            if middle in sent or chip.numpy().tobytes()[:64] in sent:
                found.append(f"image of site {index}")
        features = rows.of(site.chips)
        for vector in (*features.numpy(), *rows.embed(features).numpy()):
            if np.ascontiguousarray(vector[:8]).tobytes() in sent:
                found.append(f"feature or embedding of site {index}")
        for count in (len(site.subjects), len(site.chips)):
            for name in (b"num-examples", b"num_examples", b"count"):
                if name in sent or struct.pack("<d", float(count)) + name in sent:
                    found.append(f"count of site {index}")
    return found
