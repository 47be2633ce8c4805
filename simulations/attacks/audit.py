"""One audit from options to report: build the pipeline once, then attack it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from common.backbones.registry import create
from common.embedding import embed
from common.errors import InputError
from simulations.attacks import (
    gradient_audit,
    inversion,
    masked_updates,
    membership,
    one_run,
    template_linkage,
)
from simulations.attacks.controls import broken_build
from simulations.attacks.pipeline import Draws, Pipeline
from simulations.attacks.record import AttackReport, Figure, Finding, Scores
from simulations.experiment import Experiment
from simulations.federation import build
from simulations.material import Material, gather

Attack = Literal["gradient", "one-run", "membership", "masks", "inversion", "templates"]
ATTACKS: Final[tuple[Attack, ...]] = get_args(Attack)
_PORTRAIT: Final = 32
_VARIATION: Final = 0.3


@dataclass(frozen=True)
class Sizes:
    """How long each attack tries.

    Attributes:
        steps: of the gradient audit; None is twice what it needs to notice half the noise.
        canaries: of the one run.
        runs: shadow runs, and as many attacked ones, of the membership attack.
        masked: rounds under masks.
        search: steps of each gradient inversion.
        vaults: pairs of vaults.
    """

    steps: int | None
    canaries: int
    runs: int
    masked: int
    search: int
    vaults: int


QUICK: Final = Sizes(steps=400, canaries=128, runs=12, masked=60, search=120, vaults=3)
STANDARD: Final = Sizes(steps=None, canaries=512, runs=32, masked=200, search=400, vaults=10)
DEEP: Final = Sizes(steps=40_000, canaries=1024, runs=300, masked=2000, search=2400, vaults=40)


@dataclass(frozen=True)
class AuditOptions:
    """What is audited, and how; `seed` None takes all chance from the operating system."""

    data: Path | None
    aligned: bool
    cache: Path | None
    backbone: str
    weights: Path | None
    persons: int
    rounds: int
    epsilon: float
    delta: float
    attacks: tuple[Attack, ...]
    control: str | None
    sizes: Sizes
    seed: int | None

    def experiment(self) -> Experiment:
        """The simulation of one site that is audited; InputError on options that cannot work."""
        experiment = Experiment(
            data=self.data,
            shift=("none",),
            sites=1,
            persons=self.persons,
            rounds=self.rounds,
            local_steps=1,
            epsilon=self.epsilon,
            delta=self.delta,
            sample_rate=1.0,
            trust="local",
            train_set="adapter",
            loss="public-negatives",
            backbone=self.backbone,
            weights=self.weights,
            aggregator="mean",
            engine="inprocess",
            seed=self.seed or 0,
            seeded_noise=self.seed is not None,
            aligned=self.aligned,
            cache=self.cache,
        )
        experiment.check()
        return experiment


@dataclass(frozen=True)
class Inverted:
    """Images [2, 3, S, S] that an inversion found from one update."""

    train_set: str
    private: bool
    images: Tensor


@dataclass(frozen=True)
class Evidence:
    """What an audit can show besides numbers; what was not attacked is empty."""

    scores: dict[str, Scores] = dataclasses.field(default_factory=dict)
    truth: Tensor | None = None
    inverted: tuple[Inverted, ...] = ()
    drawn: template_linkage.Drawn | None = None


def run_audit(
    options: AuditOptions, workspace: Path, progress: Callable[[str, int, int], None]
) -> tuple[AttackReport, Evidence]:
    """Attack the pipeline that the options name; sites and vaults are made in `workspace`."""
    started = time.monotonic()
    experiment = options.experiment()
    material = gather(experiment, partial(progress, "faces"))
    draws = Draws.of(options.seed)
    pipeline = Pipeline.of(experiment, material, workspace / "federation")
    scores: dict[str, Scores] = {}
    findings: list[Finding] = []
    evidence = Evidence(scores)
    with broken_build(options.control):
        for number, attack in enumerate(options.attacks):
            progress("attacks", number, len(options.attacks))
            place = workspace / attack
            match attack:
                case "gradient":
                    found, scores[attack] = gradient_audit.gradient_audit(
                        pipeline, draws, options.sizes.steps
                    )
                case "one-run":
                    found, scores[attack] = one_run.one_run_audit(
                        pipeline, draws, options.sizes.canaries, place
                    )
                case "membership":
                    found, scores[attack] = membership.membership_audit(
                        pipeline, draws, options.sizes.runs
                    )
                case "masks":
                    found, scores[attack] = masked_updates.masks_audit(
                        pipeline, draws, options.sizes.masked, place
                    )
                case "inversion":
                    found, truth, inverted = _invert(options, draws, place)
                    evidence = dataclasses.replace(evidence, truth=truth, inverted=inverted)
                case "templates":
                    found, drawn = template_linkage.template_audit(
                        template_material(material), draws, options.sizes.vaults, place
                    )
                    if options.data is None:  # no picture of a real person is ever written
                        evidence = dataclasses.replace(evidence, drawn=drawn)
            findings.append(found)
    report = AttackReport(
        epsilon=pipeline.claimed,
        delta=options.delta,
        rounds=options.rounds,
        control=options.control,
        noise="from the operating system" if options.seed is None else f"from seed {options.seed}",
        findings=tuple(findings),
        seconds=time.monotonic() - started,
    )
    return report, evidence


def _invert(
    options: AuditOptions, draws: Draws, workspace: Path
) -> tuple[Finding, Tensor, tuple[Inverted, ...]]:
    """Invert one update of a rendered person, so that no real face is ever written anywhere.

    The network is the small one, which is the easiest to invert.
    """
    experiment = dataclasses.replace(
        options.experiment(), data=None, backbone="lenet", weights=None, persons=12
    )
    material = gather(experiment)
    chips = material.sites[0].chips[: inversion.IMAGES]
    truth = inversion.unit_pixels(chips)
    judge = inversion.Judge.of(create("dlib-resnet"), inversion.unit_pixels(material.bank.chips))
    others = inversion.unit_pixels(material.test.chips[: inversion.IMAGES])
    figures = list(_figures("another person's photographs", judge.compare(truth, others)))
    inverted: list[Inverted] = []
    for number, train_set in enumerate(("full", "adapter")):
        for private in (False, True):
            asked = dataclasses.replace(
                experiment,
                train_set="full" if train_set == "full" else "adapter",
                epsilon=options.epsilon if private else None,
            )
            simulation = build(asked, "inversion", workspace, material)
            target = inversion.Target(simulation.federation, simulation.rows, chips)
            delta = inversion.one_update(target, draws, 10 + 2 * number + private)
            rng = draws.coins("inversion", train_set, str(private))
            images = inversion.invert(target, delta, options.sizes.search, _VARIATION, rng)
            inverted.append(Inverted(train_set, private, images))
            name = f"{train_set}, {'private' if private else 'no privacy'}"
            figures += _figures(name, judge.compare(truth, images))
    finding = Finding(
        attack="inversion",
        adversary="the server, of a site with one person of two images",
        claimed=None,
        bounds=(),
        figures=tuple(figures),
        judged=False,
    )
    return finding, truth, tuple(inverted)


def _figures(name: str, found: inversion.Likeness) -> tuple[Figure, ...]:
    return (
        Figure(f"{name}: PSNR, dB", found.psnr),
        Figure(f"{name}: SSIM", found.ssim),
        Figure(f"{name}: face cosine", found.cosine),
    )


def template_material(material: Material) -> template_linkage.TemplateMaterial:
    """Two photographs of each private person with two; the rest is what the thief learns from."""
    faces = material.sites[0]
    rows = [np.flatnonzero(faces.index == person)[:2] for person in range(len(faces.subjects))]
    pairs = np.array([pair for pair in rows if len(pair) == 2])
    if len(pairs) < 2:
        raise InputError("linkage needs two persons with two images each")
    embedded = _embedded(material, faces.chips)
    public = torch.cat([material.bank.chips, material.test.chips, material.judges.chips])
    return template_linkage.TemplateMaterial(
        first=embedded[pairs[:, 0]],
        second=embedded[pairs[:, 1]],
        portraits=_portraits(faces.chips[pairs[:, 0]]),
        public=_embedded(material, public),
        pictures=_portraits(public),
    )


def _embedded(material: Material, chips: Tensor) -> template_linkage.Rows:
    backbone = material.backbone
    found: template_linkage.Rows = embed(backbone, chips, backbone.preprocess, 16).numpy()
    return found


def _portraits(chips: Tensor) -> template_linkage.Rows:
    """uint8 chips [N, S, S, 3] -> small grey pictures in [0, 1], [N, 32, 32]."""
    grey = inversion.unit_pixels(chips).mean(dim=1, keepdim=True)
    small: Tensor = torch.nn.functional.interpolate(grey, size=_PORTRAIT, mode="area")
    found: template_linkage.Rows = small[:, 0].numpy()
    return found
