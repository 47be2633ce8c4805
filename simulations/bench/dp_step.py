"""`veilface bench dp-step`: one private step beside a non-private one, and beside Opacus' hooks.

All take the same images, the same loss over the same public embeddings and one SGD step. The
private step clips each person's gradient (K images), adds cryptographic noise and divides; the
non-private one is a plain backward of the mean loss. For `tail`, frozen features are cached, as in
training.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from client.gradients import choose_engine
from client.optimizer import PersonOptimizer
from common.backbones.registry import create
from common.backbones.split import split
from common.constants import LossConfig
from common.embedding import Rows
from common.losses import PersonBatch, PublicSide, create_loss
from common.parameters import trainable_parameters
from common.randomness import KeyStream, fresh_key
from common.vocabulary import TrainSet
from simulations.bench.timing import Case, compare

IMAGES, CLIP, NOISE = 4, 0.5, 1.0
# Persons a step: cached features leave room for many, as the default full batch takes them; from
# pixels, 32 images are what Opacus' hooks hold in memory.
CASES: tuple[tuple[str, TrainSet, int], ...] = (
    ("dlib-resnet", "tail", 256),
    ("mobilefacenet", "full", 8),
    ("resnet18", "full", 8),
)


class _PersonHooks(DPOptimizer):  # type: ignore[misc]  # Opacus ships no types
    """Opacus' hooks made person-level: per-image gradients averaged over a person's K images."""

    def _get_flat_grad_sample(self, p: Tensor) -> Tensor:
        flat: Tensor = super()._get_flat_grad_sample(p)
        return flat.view(-1, IMAGES, *flat.shape[1:]).sum(dim=1)

    @property
    def grad_samples(self) -> list[Tensor]:
        return [self._get_flat_grad_sample(p) for p in self.params]


def dp_step(runs: int) -> list[Case]:
    """Return the cases of all models: against non-private and against Opacus' hooks."""
    cases = []
    for name, train_set, persons in CASES:
        private, plain, hooks = _steps(name, train_set, persons)
        label = f"{name}-{train_set}"
        cases.append(compare(f"{label}/non-private", private, plain, runs))
        cases.append(compare(f"{label}/opacus-hooks", private, hooks, max(3, runs // 3)))
    return cases


def _steps(
    name: str, train_set: TrainSet, persons: int
) -> tuple[Callable[[], None], Callable[[], None], Callable[[], None]]:
    torch.manual_seed(0)
    backbone = create(name)
    parts = split(backbone, train_set, None)
    chips = torch.randint(0, 256, (persons * IMAGES, *_chip_shape(backbone.chip.size))).byte()
    rows = Rows(backbone, parts, train_set)
    inputs = rows.prepare(rows.of(chips))
    batch = PersonBatch(
        inputs.view(persons, IMAGES, *inputs.shape[1:]),
        torch.ones(persons, IMAGES, dtype=torch.bool),
        torch.zeros(persons, dtype=torch.int64),
    )
    bank = torch.nn.functional.normalize(torch.randn(100, backbone.dim), dim=1)
    public, loss = PublicSide(bank, True), create_loss(LossConfig())

    def joint_loss(model: nn.Module) -> Tensor:
        embeddings = model(inputs).view(persons, IMAGES, -1)
        return loss(embeddings, batch.present, batch.codes, bank)

    model = copy.deepcopy(parts.trainable)
    engine = choose_engine(model, train_set)
    optimizer = PersonOptimizer(
        model,
        _sgd(model),
        noise_multiplier=NOISE,
        max_grad_norm=CLIP,
        public_denominator=persons,
        stream=KeyStream(fresh_key(), private=True),
    )

    def private() -> None:
        optimizer.step_with(engine(model, batch, loss, public, CLIP))

    plain_model = copy.deepcopy(parts.trainable)
    plain_optimizer = _sgd(plain_model)

    def plain() -> None:
        plain_optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(joint_loss(plain_model).mean())
        plain_optimizer.step()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Opacus records activations in training mode only; no layer here behaves differently.
        hooked = GradSampleModule(copy.deepcopy(parts.trainable).train(), loss_reduction="sum")
    hooks_optimizer = _PersonHooks(
        _sgd(hooked), noise_multiplier=NOISE, max_grad_norm=CLIP, expected_batch_size=persons
    )

    def hooks() -> None:
        hooks_optimizer.zero_grad(set_to_none=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.autograd.backward(joint_loss(hooked).sum())
        hooks_optimizer.step()

    return private, plain, hooks


def _chip_shape(size: int) -> tuple[int, int, int]:
    return size, size, 3


def _sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(trainable_parameters(model).values(), lr=1e-4)
