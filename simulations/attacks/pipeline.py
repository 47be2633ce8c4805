"""What is attacked: the real site's loop on a cut backbone, seen with an auditor's eyes.

The auditor knows everything but one secret bit a canary: model, public bank, crowd and recipe. It
sees every noised update, as the server does, and computes what a person ought to add from the
formula of the mechanism, not with the code that it audits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from client.gradients import choose_engine
from client.site import Prepared, RoundKey, SecretRoundKey, Site
from client.trainer import RoundKeys, train_round
from common.contract import Contract
from common.errors import InputError
from common.losses import create_loss
from common.parameters import assign, trainable_parameters
from common.persons import Persons
from common.plan import PrivacyPlan, epsilon_after
from common.randomness import experiment_generator, fresh_key
from server.optimizer import OptimizerState, advance
from server.rounds import Federation
from simulations.experiment import Experiment
from simulations.federation import SeededRoundKey, build
from simulations.material import Material

_AT_ONCE = 64


@dataclass(frozen=True)
class Draws:
    """Where an audit's chance comes from: coins from `seed`; noise from it too if `seeded_noise`.

    Without seeded noise the build draws its round keys from the operating system, as a site does.
    """

    seed: int
    seeded_noise: bool

    @staticmethod
    def of(seed: int | None) -> Draws:
        """A seed repeats the whole audit; None is fresh coins and secret noise."""
        if seed is not None:
            return Draws(seed, True)
        return Draws(int.from_bytes(fresh_key()[:6], "big"), False)

    def coins(self, *labels: str) -> np.random.Generator:
        """The auditor's own generator for one attack."""
        return experiment_generator(self.seed, "attack", *labels)

    def round_key(self, site: int) -> RoundKey:
        """The keys of one audited site; another site, another stream."""
        return SeededRoundKey(self.seed, site) if self.seeded_noise else SecretRoundKey()


@dataclass(frozen=True)
class Pipeline:
    """A federation of one site, ready for its first round.

    Attributes:
        federation: contract, initial parameters [d] and server optimiser, as in a simulation.
        model: the trainable part.
        public: the public bank's rows, at most as many as one step takes, so that every step
            takes all of them and the auditor knows which.
        crowd: the private persons at the site who are no canaries, at most K images each.
    """

    federation: Federation
    model: nn.Module
    public: Tensor
    crowd: Persons

    @staticmethod
    def of(experiment: Experiment, material: Material, directory: Path) -> Pipeline:
        """Build it as `veilface simulate` does."""
        simulation = build(experiment, "audit", directory, material)
        federation, faces = simulation.federation, material.sites[0]
        most = federation.contract.images_per_person
        kept = [
            row
            for person in range(len(faces.subjects))
            for row in np.flatnonzero(faces.index == person)[:most].tolist()
        ]
        rows = simulation.rows
        crowd = Persons.group(
            rows.of(faces.chips[kept]),
            faces.index[kept].tolist(),
            [0] * len(faces.subjects),
            rows.prepare,
        )
        public = federation.public_inputs[: federation.contract.public_negatives]
        return Pipeline(federation, rows.split.trainable, public, crowd)

    @property
    def contract(self) -> Contract:
        return self.federation.contract

    @property
    def initial(self) -> NDArray[np.float32]:
        return self.federation.initial

    @cached_property
    def claimed(self) -> float:
        """The epsilon that the contract states after all rounds."""
        return epsilon_after(self.contract, self.contract.rounds)

    def canaries(self, count: int, rng: np.random.Generator) -> Persons:
        """Return persons of K images who look like nobody: noise as large as the bank's rows.

        Each has two faces, in turns, that do not match. Its gradient has a direction of its own
        and is kept only if it is large enough to be clipped to C at the initial parameters; and one
        image's part of it looks like another's, so a clip by image lets K parts through.
        """
        images = self.contract.images_per_person
        size, drawn = self.public.square().mean().sqrt(), 2 * count + 8
        two = rng.standard_normal((drawn, 2, *self.public.shape[1:]))
        turns = torch.from_numpy(two[:, np.arange(images) % 2]).float().flatten(0, 1)
        subjects = np.repeat(np.arange(drawn), images).tolist()
        found = Persons.group(size * turns, subjects, [0] * drawn, self.crowd.prepare)
        norms = self.contributions(self.initial, found).norm(dim=1)
        clipped = np.flatnonzero(norms.numpy() >= self.contract.privacy.max_grad_norm * (1 - 1e-9))
        if len(clipped) < count:
            raise InputError(
                f"only {len(clipped)} of {drawn} canaries have a gradient as large as the clip",
                hint="this loss or model gives small gradients: audit it with a smaller clip",
            )
        return chosen(found, clipped[:count])

    def contributions(self, parameters: NDArray[np.float32], persons: Persons) -> Tensor:
        """Return what each person adds to a step's sum by definition, float64 [P, d], norm <= C."""
        contract = self.contract
        loss = create_loss(contract.loss)
        assign(self.model, torch.from_numpy(parameters))
        values = {name: p.detach() for name, p in trainable_parameters(self.model).items()}
        everyone = np.arange(len(persons), dtype=np.intp)
        batch = persons.batch(everyone, contract.images_per_person, np.random.default_rng(0))
        seen = persons.prepare(self.public)
        with torch.no_grad():
            constant = functional_call(self.model, values, (seen,))

        def one(of: dict[str, Tensor], inputs: Tensor, present: Tensor, code: Tensor) -> Tensor:
            own = functional_call(self.model, of, (inputs,))
            through = contract.loss.public_gradient
            others = functional_call(self.model, of, (seen,)) if through else constant
            return loss(own[None], present[None], code[None], others).sum()

        each = vmap(grad(one), in_dims=(None, 0, 0, 0), chunk_size=_AT_ONCE)
        found = each(values, batch.inputs, batch.present, batch.codes)
        flat = torch.cat([found[name].flatten(1) for name in values], dim=1).double()
        norms = flat.norm(dim=1, keepdim=True).clamp(min=1e-300)
        clipped: Tensor = flat * (contract.privacy.max_grad_norm / norms).clamp(max=1.0)
        return clipped

    def update(
        self, parameters: NDArray[np.float32], persons: Persons, key: RoundKey, round_: int
    ) -> NDArray[np.float32]:
        """Return what one round of the site's loop releases, float32 [d]."""
        return train_round(
            self.model,
            parameters,
            persons,
            self.public,
            self.contract,
            RoundKeys.derive(key(self.contract, round_), private=key.private),
            choose_engine(self.model, self.contract.train_set),
        )

    def noised_sum(self, delta: NDArray[np.float32]) -> Tensor:
        """Return the noised sum over persons that a release of one local step was made of."""
        contract = self.contract
        scale = contract.privacy.public_denominator / contract.local_learning_rate
        return torch.from_numpy(-scale * delta.astype(np.float64))

    def advance(self, state: OptimizerState, delta: NDArray[np.float32]) -> OptimizerState:
        """The server's step, as in `run_rounds`."""
        return advance(state, delta, self.federation.optimizer, self.contract.rounds)

    def site(self, directory: Path, key: RoundKey) -> Site:
        """Open the audited site, with ledger and budget, in an empty directory."""
        privacy = self.contract.privacy
        budget = privacy.epsilon or 0.0
        plan = PrivacyPlan(budget, privacy.delta, allow_not_private=not key.private)
        return Site.open(directory, plan, key)

    def prepared(self, persons: Persons) -> Prepared:
        """What the site holds in memory."""
        return Prepared(self.contract, self.model, self.public, persons)


def chosen(persons: Persons, which: Sequence[int] | NDArray[np.intp]) -> Persons:
    """Return some of the persons, in the given order."""
    index = np.asarray(which, dtype=np.int64)
    spans = [range(persons.offsets[i], persons.offsets[i + 1]) for i in index.tolist()]
    offsets = (0, *np.cumsum([len(span) for span in spans]).tolist())
    rows = [row for span in spans for row in span]
    codes = persons.codes[torch.from_numpy(index)]
    return Persons(persons.inputs[rows], offsets, codes, persons.prepare)


def together(crowd: Persons, others: Persons) -> Persons:
    """Return both as the persons of one site."""
    offsets = (*crowd.offsets, *(crowd.offsets[-1] + last for last in others.offsets[1:]))
    return Persons(
        torch.cat([crowd.inputs, others.inputs]),
        offsets,
        torch.cat([crowd.codes, others.codes]),
        crowd.prepare,
    )
