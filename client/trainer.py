"""The one training loop: sample persons, clip by person, add noise, step; then the delta."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.gradients import GradientEngine
from client.optimizer import PersonOptimizer
from common.contract import Contract
from common.losses import PersonLoss, PublicSide, create_loss
from common.mechanism import ClippedSum
from common.parameters import assign, flatten, layout_of, trainable_parameters
from common.persons import Persons
from common.randomness import KeyStream, derive_key
from common.sampling import sample_persons

# Bounds the memory of one batch of images; the sum over chunks is the sum over all persons.
_PERSONS_A_CHUNK = 256


@dataclass(frozen=True)
class RoundKeys:
    """Three independent 256-bit keys of one round; `private` as the key they come from."""

    noise: bytes
    sampling: bytes
    images: bytes
    private: bool

    @staticmethod
    def derive(key: bytes, *, private: bool) -> RoundKeys:
        """Return the keys of a round from the key that was drawn for it."""
        return RoundKeys(
            noise=derive_key(key, "noise"),
            sampling=derive_key(key, "sampling"),
            images=derive_key(key, "images"),
            private=private,
        )

    def image_choice(self) -> np.random.Generator:
        """Return what chooses each person's images and the public negatives; guards nobody."""
        return np.random.Generator(np.random.Philox(key=int.from_bytes(self.images[:16], "big")))


def train_round(
    model: nn.Module,
    parameters: NDArray[np.float32],
    persons: Persons,
    public_inputs: Tensor,
    contract: Contract,
    keys: RoundKeys,
    engine: GradientEngine,
) -> NDArray[np.float32]:
    """Return what one round of private training changes, float32 [d]: safe to leave the site.

    `model` is the trainable part, `parameters` the global values [d] it starts from, and
    `public_inputs` [N, ...] the public bank as the trainable part takes it (for the codebook loss:
    unit codes [N, D]). Each of the contract's local steps releases one noised sum; what follows
    (scaling, momentum, the difference) is post-processing. A site without persons, or a Poisson
    sample without any, still adds its noise.
    """
    assign(model, torch.from_numpy(parameters))
    model.eval()
    privacy = contract.privacy
    loss = create_loss(contract.loss)
    noise = KeyStream(keys.noise, private=keys.private)
    # Of the data too: coins that came back with a put-back state would not be secret any more.
    coins = KeyStream(derive_key(keys.sampling, persons.digest), private=keys.private)
    images = keys.image_choice()
    optimizer = PersonOptimizer(
        model,
        torch.optim.SGD(
            trainable_parameters(model).values(),
            lr=contract.local_learning_rate,
            momentum=contract.local_momentum,
        ),
        noise_multiplier=privacy.noise_multiplier,
        max_grad_norm=privacy.max_grad_norm,
        public_denominator=privacy.public_denominator,
        stream=noise,
    )
    for _ in range(contract.local_steps):
        drawn = sample_persons(len(persons), privacy.sample_rate, coins)
        public = _public_side(model, public_inputs, contract, persons, images)
        clipped = _clipped_sum(model, persons, drawn, loss, public, contract, images, engine)
        optimizer.step_with(clipped)
    delta: NDArray[np.float32] = flatten(model).numpy() - parameters
    return delta


def sum_of_round(
    model: nn.Module,
    parameters: NDArray[np.float32],
    persons: Persons,
    public_inputs: Tensor,
    contract: Contract,
    keys: RoundKeys,
    engine: GradientEngine,
) -> ClippedSum:
    """Return the sum of all persons' clipped gradients at `parameters`, float64 [d]: not private.

    It is what the one local step of `train_round` adds noise to; with secure aggregation the noise
    is discrete and shared, and the step is the server's.
    """
    assign(model, torch.from_numpy(parameters))
    model.eval()
    images = keys.image_choice()
    public = _public_side(model, public_inputs, contract, persons, images)
    everyone = np.arange(len(persons), dtype=np.intp)
    loss = create_loss(contract.loss)
    return _clipped_sum(model, persons, everyone, loss, public, contract, images, engine)


def _public_side(
    model: nn.Module,
    public_inputs: Tensor,
    contract: Contract,
    persons: Persons,
    images: np.random.Generator,
) -> PublicSide:
    """The public side of the loss in this step, under the parameters of this step."""
    if contract.loss.name == "codebook":
        return PublicSide(public_inputs, embedded=True)
    count = min(contract.public_negatives, len(public_inputs))
    rows = torch.from_numpy(images.choice(len(public_inputs), size=count, replace=False))
    inputs = persons.prepare(public_inputs[rows])
    if contract.loss.public_gradient:
        return PublicSide(inputs, embedded=False)
    with torch.no_grad():
        return PublicSide(model(inputs), embedded=True)


def _clipped_sum(
    model: nn.Module,
    persons: Persons,
    drawn: NDArray[np.intp],
    loss: PersonLoss,
    public: PublicSide,
    contract: Contract,
    images: np.random.Generator,
    engine: GradientEngine,
) -> ClippedSum:
    """Clipped sum over the drawn persons, chunk by chunk; each person is in one chunk only."""
    clip = contract.privacy.max_grad_norm
    value = torch.zeros(layout_of(model).dimension, dtype=torch.float64)
    if len(drawn) == 0:
        # What the server sent may break the loss: then it has to break here too, or a refusal
        # instead of noise would say that somebody is there.
        engine(model, persons.stand_in(contract.images_per_person), loss, public, clip)
    for start in range(0, len(drawn), _PERSONS_A_CHUNK):
        chunk = drawn[start : start + _PERSONS_A_CHUNK]
        batch = persons.batch(chunk, contract.images_per_person, images)
        value += engine(model, batch, loss, public, clip).value
    return ClippedSum(value, clip)
