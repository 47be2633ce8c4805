"""Every loss keeps the sentence true: a person's gradient ignores every other private person.

For neighbouring data sets D and D + p, random and crafted, the clipped sums differ by at most C.
A deliberately coupled loss must fail the same check.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from client.gradients import person_loop, person_vmap
from common.constants import LossConfig
from common.errors import InputError
from common.losses import (
    LOSSES,
    PersonBatch,
    PersonLoss,
    PublicSide,
    create_loss,
)
from common.mechanism import ClippedSum, clip_factors

PERSONS, IMAGES, FEATURES, DIM = 6, 4, 10, 5
CLIP = 0.5


class Unit(nn.Module):
    """A small net with unit-norm output, as every trainable part has."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, DIM)

    def forward(self, rows: Tensor) -> Tensor:
        return F.normalize(self.layer(rows), dim=-1)


def model() -> nn.Module:
    torch.manual_seed(3)
    return Unit().double()


def public() -> Tensor:
    rows = torch.randn(12, DIM, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return F.normalize(rows, dim=-1)


def batch(inputs: Tensor, present: Tensor | None = None) -> PersonBatch:
    mask = torch.ones(inputs.shape[:2], dtype=torch.bool) if present is None else present
    return PersonBatch(inputs, mask, torch.arange(len(inputs)) % 12)


def random_persons(seed: int) -> PersonBatch:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(PERSONS, IMAGES, FEATURES, generator=generator, dtype=torch.float64)
    present = torch.rand(PERSONS, IMAGES, generator=generator) < 0.7
    return batch(inputs.masked_fill(~present[..., None], 0.0), present)


def crafted_persons() -> PersonBatch:
    """The last person is another's twin, opposite, tiny, huge: what couples if anything does."""
    base = random_persons(9).inputs
    base[-1] = base[0] * 1e3
    base[-1, 1::2] = -base[1, 1::2] * 1e3
    return batch(base)


def everybody_else() -> PersonBatch:
    """The last person is the mean of all others: a decoy for each of them at once."""
    base = random_persons(23).inputs
    base[-1] = base[:-1].mean(dim=(0, 1))
    return batch(base)


NEIGHBOURS: dict[str, Callable[[], PersonBatch]] = {
    "random": lambda: random_persons(1),
    "other random": lambda: random_persons(2),
    "crafted": crafted_persons,
    "decoy": everybody_else,
    "twins": lambda: batch(random_persons(7).inputs[:1].expand(PERSONS, -1, -1).contiguous()),
    "one image each": lambda: batch(
        random_persons(8).inputs,
        torch.tensor([[True, False, False, False]]).expand(PERSONS, -1).clone(),
    ),
}


def first(people: PersonBatch, count: int) -> PersonBatch:
    return PersonBatch(people.inputs[:count], people.present[:count], people.codes[:count])


def clipped_joint(
    net: nn.Module,
    people: PersonBatch,
    loss: PersonLoss,
    others: Callable[[nn.Module], Tensor] = lambda net: public(),
) -> ClippedSum:
    """What a naive trainer does: per-person gradients of a loss over everybody together."""
    parameters = list(net.parameters())
    embeddings = net(people.inputs.flatten(0, 1)).view(len(people), IMAGES, DIM)
    losses = loss(embeddings, people.present, people.codes, others(net))
    total = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    for value in losses:
        found = torch.autograd.grad(value, parameters, retain_graph=True)
        flat = torch.cat([g.reshape(-1) for g in found])
        total += float(clip_factors(flat.norm(), CLIP)) * flat
    return ClippedSum(total, CLIP)


def embedded_bank(net: nn.Module) -> Tensor:
    """Public faces that the model embeds itself, so that the gradient flows through them."""
    rows = torch.randn(12, FEATURES, generator=torch.Generator().manual_seed(6)).double()
    bank: Tensor = net(rows)
    return bank


def moved(
    loss: PersonLoss,
    people: PersonBatch,
    others: Callable[[nn.Module], Tensor] = lambda net: public(),
) -> float:
    """||G(D + p) - G(D)|| with p the last person, gradients taken over everybody together."""
    net = model()
    with_person = clipped_joint(net, people, loss, others).value
    without = clipped_joint(net, first(people, PERSONS - 1), loss, others).value
    return float((with_person - without).norm())


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("neighbours", NEIGHBOURS)
def test_a_person_moves_the_sum_by_at_most_the_clip(name: str, neighbours: str) -> None:
    loss = create_loss(LossConfig(name, temperature=32.0))
    for others in (lambda net: public(), embedded_bank):
        assert moved(loss, NEIGHBOURS[neighbours](), others) <= CLIP * (1 + 1e-9)


def test_a_coupled_loss_breaks_the_bound() -> None:
    def in_batch_prototypes(
        embeddings: Tensor, present: Tensor, codes: Tensor, public: Tensor
    ) -> Tensor:
        e = embeddings
        centres = e.mean(dim=1)  # every private person is a negative of every other: forbidden
        logits = 32.0 * torch.einsum("pkd,qd->pkq", e, centres)
        target = torch.arange(len(e))[:, None].expand(-1, IMAGES)
        return (
            F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
            .view(target.shape)
            .mean(dim=1)
        )

    assert moved(in_batch_prototypes, everybody_else()) > 2.0 * CLIP


@pytest.mark.parametrize("name", LOSSES)
def test_other_persons_do_not_change_a_persons_gradient(name: str) -> None:
    loss = create_loss(LossConfig(name, temperature=8.0))
    net, people = model(), random_persons(5)
    alone = person_vmap(net, first(people, 1), loss, PublicSide(public(), True), 1e6).value
    joint = clipped_joint(net, people, loss)  # same loss over all; entry 0 recomputed below
    assert joint.value.shape == alone.shape
    embeddings = net(people.inputs.flatten(0, 1)).view(PERSONS, IMAGES, DIM)
    value = loss(embeddings, people.present, people.codes, public())[0]
    found = torch.autograd.grad(value, list(net.parameters()))
    torch.testing.assert_close(torch.cat([g.reshape(-1) for g in found]), alone)


@pytest.mark.parametrize("name", ["public-negatives", "triplet"])
def test_one_image_has_no_pair_and_so_no_gradient(name: str) -> None:
    loss = create_loss(LossConfig(name))
    value = person_loop(
        model(), NEIGHBOURS["one image each"](), loss, PublicSide(public(), True), CLIP
    ).value
    assert float(value.norm()) == 0.0


def test_the_codebook_learns_from_one_image() -> None:
    loss = create_loss(LossConfig("codebook"))
    value = person_loop(
        model(), NEIGHBOURS["one image each"](), loss, PublicSide(public(), True), CLIP
    ).value
    assert float(value.norm()) > 0.0


def test_public_negatives_equals_its_formula() -> None:
    e = F.normalize(torch.randn(1, 2, DIM, dtype=torch.float64), dim=-1)
    value = create_loss(LossConfig(temperature=3.0))(
        e, torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, dtype=torch.int64), public()
    )
    terms = []
    for a, p in ((0, 1), (1, 0)):
        up = torch.exp(3.0 * e[0, a] @ e[0, p])
        terms.append(-torch.log(up / (up + torch.exp(3.0 * public() @ e[0, a]).sum())))
    torch.testing.assert_close(value[0], torch.stack(terms).mean())


def test_triplet_takes_the_hardest_negative_below_the_positive() -> None:
    e = F.normalize(torch.tensor([[[1.0, 0.0], [0.8, 0.6]]]), dim=-1)
    angles = torch.tensor([0.2, 1.0, 2.0])  # cosines with anchor 0: .98 (too hard), .54, -.42
    negatives = torch.stack([angles.cos(), -angles.sin()], dim=1)
    value = create_loss(LossConfig("triplet", margin=0.5))(
        e, torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, dtype=torch.int64), negatives
    )
    from_0 = 0.5 + float(angles.cos()[1]) - 0.8
    second = (negatives @ e[0, 1]).clamp(max=0.8)
    from_1 = max(0.0, 0.5 + float(second[second < 0.8].max()) - 0.8)
    assert float(value) == pytest.approx((from_0 + from_1) / 2, abs=1e-6)


def test_an_unknown_loss_is_refused_with_the_known_ones_listed() -> None:
    with pytest.raises(InputError, match="public-negatives"):
        create_loss(LossConfig("supcon"))
