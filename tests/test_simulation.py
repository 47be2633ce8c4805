"""A whole run in one process: what leaves a site, what stays after a kill, what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Message
from flwr.common.serde import message_to_proto
from rich.console import Console
from scipy import stats

from common.backbones.weights import load_model
from common.embedding import Rows
from common.errors import InputError, LedgerError, Refused
from common.ledger import Commit, Reservation, verify
from common.masking import MaskedUpdate
from common.randomness import KeyStream, experiment_key
from common.vocabulary import TRAIN_SETS, TrainSet
from server.report.page import write_page
from server.report.run_record import RunRecord
from server.report.wording import epsilon as epsilon_in_words
from simulations.experiment import Experiment, Material, gather
from simulations.federation import build, site_directory
from simulations.progress import LiveProgress
from simulations.run_folder import RunFolder
from simulations.simulate import simulate


def run(
    experiment: Experiment,
    out: Path,
    on_reply: Callable[[Message], None] = lambda reply: None,
) -> RunRecord:
    folder = RunFolder.start(out, experiment)
    with LiveProgress(Console(stderr=True), quiet=True) as progress:
        return simulate(experiment, folder, gather(experiment), progress, on_reply)


def records(out: Path, site: int) -> tuple[tuple[Reservation, ...], tuple[Commit, ...]]:
    report = verify(site_directory(out, site))
    assert report.ok, report.findings
    return report.reservations, report.commits


def test_a_run_spends_its_budget_and_no_more_in_every_ledger(
    experiment: Experiment, tmp_path: Path
) -> None:
    record = run(experiment, tmp_path / "run")
    assert record.privacy.private
    for site in record.privacy.per_site:
        assert site.epsilon is not None
        assert 3.99 < site.epsilon <= 4.0
    for index in range(experiment.sites):
        reservations, commits = records(tmp_path / "run", index)
        assert [r.round for r in reservations] == [1, 2, 3]
        assert [c.reservation for c in commits] == [r.seq for r in reservations]
        assert not list(site_directory(tmp_path / "run", index).glob("*.key"))
    saved = load_model(tmp_path / "run" / "model.safetensors")
    assert saved.model_id == record.model


@pytest.mark.parametrize("loss", ["public-negatives", "triplet", "codebook"])
@pytest.mark.parametrize("train_set", TRAIN_SETS)
def test_every_loss_trains_every_part(
    experiment: Experiment, tmp_path: Path, loss: str, train_set: TrainSet
) -> None:
    chosen = dataclasses.replace(experiment, loss=loss, train_set=train_set, rounds=1, sites=2)
    simulation = build(chosen, "x", tmp_path / "unused", gather(chosen))
    start = simulation.federation.initial
    run(chosen, tmp_path / "run")
    state = load_model(tmp_path / "run" / "model.safetensors").state
    names = simulation.federation.layout.names
    moved = torch.cat([state[name].reshape(-1) for name in names]).numpy() - start
    assert np.abs(moved).max() > 0


def test_poisson_sampling_and_local_steps_fit_the_budget(
    experiment: Experiment, tmp_path: Path
) -> None:
    chosen = dataclasses.replace(experiment, sample_rate=0.5, local_steps=2)
    record = run(chosen, tmp_path / "run")
    for site in record.privacy.per_site:
        assert site.epsilon is not None
        assert site.epsilon <= 4.0
        assert site.steps == 6


WHITELIST = {"format", "run_id", "model_id", "round"}


def test_only_the_whitelisted_update_leaves_a_site_and_no_canary_is_in_any_byte(
    experiment: Experiment, tmp_path: Path
) -> None:
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
    assert "Private: epsilon 4.00" in page


def message_in(reply: Message) -> bytes:
    message = reply.content.config_records["masking"]["message"]
    assert isinstance(message, bytes)
    return message


def is_uniform(data: bytes) -> bool:
    """Whether the bytes pass a chi-square test for uniformity at alpha 1e-6."""
    counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
    return bool(stats.chisquare(counts).pvalue > 1e-6)


def test_the_same_seed_gives_the_same_model_with_secure_aggregation_as_the_plain_sum(
    experiment: Experiment, tmp_path: Path
) -> None:
    bare = dataclasses.replace(experiment, epsilon=None)
    plain = run(bare, tmp_path / "plain")
    masked = run(dataclasses.replace(bare, trust="secagg"), tmp_path / "masked")
    assert not masked.privacy.private
    assert masked.privacy.worst is None
    assert masked.after.tmr_at_fmr_1e2 == pytest.approx(plain.after.tmr_at_fmr_1e2, abs=0.02)
    seeded = dataclasses.replace(experiment, trust="secagg", seeded_noise=True)
    first, second = run(seeded, tmp_path / "a"), run(seeded, tmp_path / "b")
    assert first.model == second.model, "masks are secret, and leave no trace in the sum"
    assert not first.privacy.private


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


def test_the_same_seed_gives_the_same_model_bit_by_bit_when_noise_is_seeded(
    experiment: Experiment, tmp_path: Path
) -> None:
    seeded = dataclasses.replace(experiment, seeded_noise=True)
    first, second = run(seeded, tmp_path / "a"), run(seeded, tmp_path / "b")
    assert first.model == second.model
    assert not first.privacy.private
    assert "seed" in first.privacy.not_private
    reservations, _ = records(tmp_path / "a", 0)
    assert not any(reservation.private for reservation in reservations)
    assert run(experiment, tmp_path / "c").model != first.model


def test_ray_gives_the_same_model_as_one_process(experiment: Experiment, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    seeded = dataclasses.replace(experiment, seeded_noise=True)
    first = run(seeded, tmp_path / "a")
    second = run(dataclasses.replace(seeded, engine="ray"), tmp_path / "b")
    assert first.model == second.model
    masked = dataclasses.replace(seeded, trust="secagg")
    third = run(masked, tmp_path / "c")
    assert run(dataclasses.replace(masked, engine="ray"), tmp_path / "d").model == third.model


def test_a_hundred_sites_work(experiment: Experiment, tmp_path: Path) -> None:
    many = dataclasses.replace(
        experiment, data=None, persons=100, sites=100, rounds=2, backbone="lenet", aligned=False
    )
    record = run(many, tmp_path / "run")
    assert len(record.privacy.per_site) == 100


def test_a_run_without_privacy_says_so_and_has_no_epsilon(
    experiment: Experiment, tmp_path: Path
) -> None:
    record = run(dataclasses.replace(experiment, epsilon=None), tmp_path / "run")
    assert not record.privacy.private
    assert {a.epsilon for a in record.privacy.adversaries} == {None}
    assert "no noise" in record.privacy.not_private


def test_robust_aggregation_runs_end_to_end(experiment: Experiment, tmp_path: Path) -> None:
    for rule in ("median", "trimmed-mean", "krum"):
        run(dataclasses.replace(experiment, aggregator=rule, rounds=1), tmp_path / rule)


def test_a_folder_that_holds_a_run_is_never_overwritten(
    experiment: Experiment, tmp_path: Path
) -> None:
    run(experiment, tmp_path / "run")
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="not empty"):
        RunFolder.start(tmp_path / "run", experiment)
    with pytest.raises(InputError, match="rounds"):
        RunFolder.resume(tmp_path / "run", dataclasses.replace(experiment, rounds=9))
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("taken", [1, 3])
def test_a_run_whose_ledgers_were_taken_away_states_nothing(
    experiment: Experiment, tmp_path: Path, taken: int
) -> None:
    """A new ledger would forget the rounds before, and the run would state too small an epsilon."""
    out = tmp_path / "run"
    run(experiment, out)
    for site in range(taken):
        shutil.rmtree(site_directory(out, site))
    folder, material = RunFolder.resume(out, experiment), gather(experiment)
    progress = LiveProgress(Console(stderr=True), quiet=True)
    with pytest.raises(LedgerError, match=f"round 1 used 3 updates, .* know of {3 - taken}"):
        simulate(experiment, folder, material, progress)


def arguments(experiment: Experiment, out: Path, *more: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "common.cli",
        "simulate",
        *("--data", str(experiment.data), "--aligned", "--backbone", "lenet", "--sites", "3"),
        *("--persons", "12", "--rounds", "12", "--epsilon", "4", "--insecure-seeded-noise"),
        *("--out", str(out), "--json", *more),
    ]


def test_a_run_killed_with_kill_9_goes_on_to_the_same_model_and_the_same_ledgers(
    experiment: Experiment, tmp_path: Path
) -> None:
    whole = subprocess.run(
        arguments(experiment, tmp_path / "whole"), capture_output=True, check=True
    )
    killed, kills = tmp_path / "killed", 0
    process = subprocess.Popen(
        arguments(experiment, killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for wanted in (2, 5, 9):
        while process.poll() is None and len(reserved(killed)) < 3 * wanted:
            time.sleep(0.002)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
        process = subprocess.Popen(
            arguments(experiment, killed, "--resume"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    output, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    assert kills >= 2
    assert json.loads(output)["model"] == json.loads(whole.stdout)["model"]
    for site in range(3):
        assert records(killed, site) == records_of_other_run(tmp_path / "whole", killed, site)


def reserved(out: Path) -> list[Path]:
    """One entry for each reservation on disk, over all sites."""
    lines = []
    for ledger in out.glob("sites/*/ledger.jsonl"):
        lines += [ledger] * ledger.read_bytes().count(b'"kind":"reserve"')
    return lines


def records_of_other_run(
    whole: Path, killed: Path, site: int
) -> tuple[tuple[Reservation, ...], tuple[Commit, ...]]:
    """The unkilled run's records under the killed run's id, which requests are bound to."""
    reservations, commits = records(whole, site)
    theirs, _ = records(killed, site)
    renamed = tuple(
        dataclasses.replace(ours, run_id=other.run_id, request_digest=other.request_digest)
        for ours, other in zip(reservations, theirs, strict=True)
    )
    return renamed, commits


def test_more_sites_than_persons_is_refused_before_anything_is_written(
    experiment: Experiment,
) -> None:
    with pytest.raises(InputError, match="sites"):
        dataclasses.replace(experiment, sites=13).check()


def test_a_site_whose_budget_is_spent_refuses_and_the_run_stops_with_a_refusal(
    experiment: Experiment, tmp_path: Path
) -> None:
    run(experiment, tmp_path / "run")
    (tmp_path / "run" / "checkpoint.safetensors").unlink()
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    settings["run_id"] = "another-run"
    (tmp_path / "run" / "settings.json").write_text(json.dumps(settings))
    folder = RunFolder.resume(tmp_path / "run", experiment)
    before = [records(tmp_path / "run", site) for site in range(3)]
    with (
        LiveProgress(Console(stderr=True), quiet=True) as progress,
        pytest.raises(Refused, match="budget"),
    ):
        simulate(experiment, folder, gather(experiment), progress)
    assert [records(tmp_path / "run", site) for site in range(3)] == before


def test_no_epsilon_is_ever_printed_below_the_truth() -> None:
    for value in (3.99951, 0.12341, 1.0000001, 7.0004):
        shown = epsilon_in_words(value)
        assert float(shown) >= value, f"{value} is shown as {shown}"
