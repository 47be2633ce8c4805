"""The audit does not accuse the right build, and catches each broken one.

An attack alarms on a right build with probability at most 1e-6 (`bounds.ALARM`): over the 20 seeds
and five judged attacks here a false alarm has probability under 1e-4.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import client.optimizer
import client.vault.transform
import common.masking.site
from client import gradients
from common import mechanism
from common.errors import InputError
from common.ledger import Ledger
from simulations.attacks.audit import AuditOptions, Sizes, run_audit, template_material
from simulations.attacks.controls import CONTROLS, broken_build
from simulations.attacks.gradient_audit import gradient_audit
from simulations.attacks.masked_updates import masks_audit
from simulations.attacks.membership import membership_audit
from simulations.attacks.one_run import one_run_audit
from simulations.attacks.pipeline import Draws, Pipeline, chosen, together
from simulations.attacks.record import AttackReport, Finding
from simulations.attacks.template_linkage import TemplateMaterial, linkage, template_audit
from simulations.material import Material, gather

SEEDS, STEPS, CANARIES, RUNS = 20, 400, 128, 6
LOOP = ("noise-off", "noise-half", "clip-off", "per-image-clip")

OPTIONS = AuditOptions(
    data=None,
    aligned=True,
    cache=None,
    backbone="lenet",
    weights=None,
    persons=6,
    rounds=1,
    epsilon=8.0,
    delta=1e-4,
    attacks=("gradient",),
    control=None,
    sizes=Sizes(steps=STEPS, canaries=CANARIES, runs=RUNS, masked=60, search=20, vaults=2),
    seed=0,
)


@pytest.fixture(scope="module")
def material() -> Material:
    return gather(OPTIONS.experiment())


@pytest.fixture(scope="module")
def templates(material: Material) -> TemplateMaterial:
    return template_material(material)


@pytest.fixture(scope="module")
def pipeline(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline.of(OPTIONS.experiment(), material, tmp_path_factory.mktemp("federation"))


def describe(finding: Finding) -> str:
    return f"{finding.attack}: {finding.bounds} over {finding.claimed}, {finding.broken}"


@pytest.mark.parametrize("seed", range(SEEDS))
def test_the_right_build_is_not_flagged(
    pipeline: Pipeline, templates: TemplateMaterial, tmp_path: Path, seed: int
) -> None:
    draws = Draws.of(seed)
    findings = [
        gradient_audit(pipeline, draws, STEPS)[0],
        one_run_audit(pipeline, draws, CANARIES, tmp_path / "site")[0],
        membership_audit(pipeline, draws, RUNS)[0],
        masks_audit(pipeline, draws, 60, tmp_path / "masks")[0],
        template_audit(templates, draws, 1, tmp_path / "vaults")[0],
    ]
    for finding in findings:
        assert not finding.alarm, describe(finding)
    step = findings[0].bounds[0]
    assert 2.0 < step.epsilon < step.reading, "an audit that shows nothing could not fail"


@pytest.mark.parametrize("seed", [100, 101])
@pytest.mark.parametrize("control", LOOP)
def test_every_broken_loop_is_caught(pipeline: Pipeline, control: str, seed: int) -> None:
    with broken_build(control):
        finding, _ = gradient_audit(pipeline, Draws.of(seed), STEPS)
    assert finding.alarm, describe(finding)
    assert finding.verdict == "bound above the claim"


def test_a_vault_without_its_secret_space_is_caught(
    templates: TemplateMaterial, tmp_path: Path
) -> None:
    with broken_build("transform-off"):
        finding, _ = template_audit(templates, Draws.of(1), 6, tmp_path / "vaults")
    assert finding.alarm
    assert any("linkage" in text for text in finding.broken)
    assert any("cosine" in text for text in finding.broken)


@pytest.mark.parametrize("control", ["masks-off", "masks-reused"])
def test_missing_and_repeated_masks_are_caught(
    pipeline: Pipeline, tmp_path: Path, control: str
) -> None:
    with broken_build(control):
        finding, _ = masks_audit(pipeline, Draws.of(1), 60, tmp_path / "masks")
    expected = "tells who is there" if control == "masks-off" else "repeat between rounds"
    assert any(expected in text for text in finding.broken), describe(finding)


@pytest.mark.parametrize("control", ["noise-off", "clip-off"])
def test_one_run_catches_gross_mistakes_under_a_small_claim(
    material: Material, tmp_path: Path, control: str
) -> None:
    """One run shows little (docs/attacks.md): at a claim of 0.5, what hides nothing is seen."""
    small = dataclasses.replace(OPTIONS, epsilon=0.5)
    pipeline = Pipeline.of(small.experiment(), material, tmp_path / "federation")
    with broken_build(control):
        caught, _ = one_run_audit(pipeline, Draws.of(3), 256, tmp_path / "broken")
    right, _ = one_run_audit(pipeline, Draws.of(3), 256, tmp_path / "right")
    assert caught.alarm, describe(caught)
    assert not right.alarm, describe(right)


def test_the_control_of_controls_is_complete_and_leaves_no_trace() -> None:
    """Each changes the loop inside its block, and nothing after it, also after an error."""
    places = [
        (client.optimizer, "add_noise"),
        (mechanism, "clip_factors"),
        (gradients, "book_keeping"),
        (client.vault.transform, "orthogonal"),
        (common.masking.site, "add_mask"),
    ]
    before = [getattr(module, name) for module, name in places]
    for control in CONTROLS:
        with pytest.raises(RuntimeError), broken_build(control):
            assert [getattr(module, name) for module, name in places] != before, control
            raise RuntimeError
        assert [getattr(module, name) for module, name in places] == before
    with pytest.raises(InputError, match="noise-half"), broken_build("noise-quarter"):
        pass


def test_the_auditors_gradients_are_those_of_the_loop(pipeline: Pipeline) -> None:
    """Computed apart from the code that is audited, they are what a noiseless round sums up."""
    canaries = pipeline.canaries(3, np.random.default_rng(5))
    persons = together(pipeline.crowd, canaries)
    expected = pipeline.contributions(pipeline.initial, persons)
    clip = pipeline.contract.privacy.max_grad_norm
    assert np.allclose(expected.norm(dim=1)[-3:], clip), "each canary is clipped"
    with broken_build("noise-off"):
        released = pipeline.update(pipeline.initial, persons, Draws.of(0).round_key(0), 1)
    seen = pipeline.noised_sum(released)
    assert float((seen - expected.sum(dim=0)).norm()) < 1e-4 * clip * len(persons)


def test_a_site_is_audited_with_its_ledger(pipeline: Pipeline, tmp_path: Path) -> None:
    """With secret noise the ledger counts the audited rounds as private, and the claim is its."""
    finding, _ = one_run_audit(pipeline, Draws.of(None), 32, tmp_path / "site")
    with Ledger.open(tmp_path / "site") as ledger:
        assert [r.private for r in ledger.reservations] == [True]
    assert finding.claimed == pytest.approx(pipeline.claimed)


def test_a_seed_repeats_an_audit_and_another_does_not(pipeline: Pipeline) -> None:
    first, again, other = (gradient_audit(pipeline, Draws.of(s), 40)[1] for s in (5, 5, 6))
    assert np.array_equal(first.scores, again.scores)
    assert not np.array_equal(first.scores, other.scores)
    fresh = [gradient_audit(pipeline, Draws.of(None), 40)[1] for _ in range(2)]
    assert not np.array_equal(fresh[0].scores, fresh[1].scores)


def test_membership_is_found_out_without_privacy_and_less_with_it(pipeline: Pipeline) -> None:
    def auc(control: str | None) -> float:
        with broken_build(control):
            finding, _ = membership_audit(pipeline, Draws.of(2), 40)
        return next(f.value for f in finding.figures if f.name == "AUC")

    assert auc("noise-off") > auc(None) + 0.02


def test_some_persons_keep_their_images(pipeline: Pipeline) -> None:
    crowd = pipeline.crowd
    some = chosen(crowd, [2, 0])
    assert len(some) == 2
    one = crowd.inputs[crowd.offsets[2] : crowd.offsets[3]]
    assert np.array_equal(some.inputs[: len(one)], one)
    assert len(together(some, chosen(crowd, []))) == 2


def test_linkage_is_an_auc() -> None:
    scores = np.zeros((4, 4))
    assert linkage(scores) == 0.5
    assert linkage(np.eye(4)) == 1.0
    assert linkage(-np.eye(4)) == 0.0


def test_an_audit_reports_all_attacks_in_numbers_that_json_knows(tmp_path: Path) -> None:
    everything = dataclasses.replace(
        OPTIONS,
        attacks=("gradient", "one-run", "membership", "masks", "inversion", "templates"),
        sizes=Sizes(steps=40, canaries=16, runs=4, masked=10, search=5, vaults=1),
    )
    report, evidence = run_audit(everything, tmp_path, lambda *_: None)
    assert [finding.attack for finding in report.findings] == list(everything.attacks)
    assert set(evidence.scores) == {"gradient", "one-run", "membership", "masks"}
    assert [(one.train_set, one.private) for one in evidence.inverted] == [
        (kind, private) for kind in ("full", "adapter") for private in (False, True)
    ]
    assert report.alarm is False
    assert report.to_json()["claimed"] == {
        "epsilon": pytest.approx(8.0, abs=1e-3), "delta": 1e-4, "rounds": 1,
    }  # fmt: skip
    assert isinstance(report, AttackReport)
