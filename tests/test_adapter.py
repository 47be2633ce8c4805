"""The adapter: its formula, what trains, what it takes, and that no row sees another."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.backbones.adapter import DIRECTIONS, AdapterHead, PublicStatistics
from common.errors import InputError
from common.parameters import trainable_parameters

torch.set_num_threads(1)
FEATURES, MAP, DIM = 12, 30, 5


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


BANK = drawn(20, FEATURES + MAP, seed=3) * torch.linspace(0.1, 9.0, FEATURES + MAP) + 2.0


def projection(*, bias: bool) -> nn.Linear:
    layer = nn.Linear(FEATURES, DIM, bias=bias)
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.copy_(drawn(*parameter.shape, seed=seed))
    return layer


def trained(bank: Tensor, *, bias: bool = True) -> AdapterHead:
    head = AdapterHead(projection(bias=bias), PublicStatistics.of(projection(bias=bias), bank))
    with torch.no_grad():
        head.adapter.weight.copy_(drawn(*head.adapter.weight.shape, seed=7))
    return head


def embedded(head: AdapterHead, rows: Tensor) -> Tensor:
    with torch.no_grad():
        embeddings: Tensor = head(head.condense(rows))
    return embeddings


@pytest.mark.parametrize("bias", [True, False])
def test_a_trained_adapter_computes_its_formula(bias: bool) -> None:
    rows, head, W = (
        drawn(4, FEATURES + MAP, seed=4),
        trained(BANK, bias=bias),
        projection(bias=bias),
    )
    with torch.no_grad():
        raw = W(BANK[:, :FEATURES])
        public = (W(rows[:, :FEATURES]) - raw.mean(dim=0) / 2) / raw.norm(dim=1).mean()
        x = (rows[:, FEATURES:] - BANK[:, FEATURES:].mean(dim=0)) @ head.condense.directions.T
        expected = F.normalize(public + x @ head.adapter.weight.T, dim=-1)
    torch.testing.assert_close(embedded(head, rows), expected)


def test_directions_are_the_banks_principal_ones_stretched_by_the_root_of_their_value() -> None:
    """Against an SVD: the coordinates of the bank are its left vectors times value^(3/2)."""
    maps = (BANK[:, FEATURES:] - BANK[:, FEATURES:].mean(dim=0)).double()
    left, values, _ = torch.linalg.svd(maps, full_matrices=False)
    left, values = left[:, :19], values[:19]  # 20 centred rows span 19 directions
    found = trained(BANK).condense(BANK)[:, FEATURES:].double()
    expected = left * values**1.5
    expected *= found.norm(dim=1).mean() / expected.norm(dim=1).mean()
    torch.testing.assert_close(found.abs(), expected.abs(), rtol=1e-3, atol=1e-4)


def test_what_an_adapter_learns_from_is_centred_with_mean_norm_1_on_the_bank() -> None:
    inputs = trained(BANK).condense(BANK)[:, FEATURES:]
    torch.testing.assert_close(inputs.mean(dim=0), torch.zeros(19), rtol=0, atol=1e-5)
    torch.testing.assert_close(inputs.norm(dim=1).mean(), torch.tensor(1.0))


def test_never_more_directions_than_the_limit_and_never_an_empty_one() -> None:
    wide = drawn(400, FEATURES + 300, seed=1)
    assert trained(wide).adapter.in_features == DIRECTIONS
    flat = torch.cat([BANK[:, :FEATURES], drawn(20, 1, seed=2) * torch.ones(1, MAP)], dim=1)
    assert trained(flat).adapter.in_features == 1


def test_only_the_adapter_trains_and_the_public_projection_is_a_copy() -> None:
    public = projection(bias=True)
    before = copy.deepcopy(public.state_dict())
    head = AdapterHead(public, PublicStatistics.of(public, BANK))
    assert list(trainable_parameters(head)) == ["adapter.weight"]
    frozen = {k: v.clone() for k, v in head.state_dict().items() if k != "adapter.weight"}
    head(head.condense(drawn(4, FEATURES + MAP, seed=4)))[:, 0].sum().backward()
    torch.optim.SGD(head.parameters(), lr=1.0, weight_decay=0.5).step()
    assert head.adapter.weight.abs().max() > 0
    assert all(torch.equal(head.state_dict()[k], v) for k, v in frozen.items())
    with torch.no_grad():
        public.weight.zero_()
    assert torch.equal(head.projection.weight, before["weight"])


def test_the_statistics_travel_in_the_state() -> None:
    head = trained(BANK)
    other = AdapterHead(projection(bias=True), PublicStatistics.in_state(head.state_dict()))
    other.load_state_dict(head.state_dict())
    rows = drawn(4, FEATURES + MAP, seed=4)
    assert torch.equal(embedded(head, rows), embedded(other, rows))
    with pytest.raises(InputError, match="center is missing"):
        PublicStatistics.in_state({"scale": torch.ones(1)})


def test_an_embedding_does_not_depend_on_the_other_rows() -> None:
    head = trained(BANK).train()
    rows = head.condense(drawn(6, FEATURES + MAP, seed=4))
    with torch.no_grad():
        alone = torch.cat([head(row[None]) for row in rows])
        torch.testing.assert_close(head(rows), alone)
        torch.testing.assert_close(head(rows.view(2, 3, -1)), alone.view(2, 3, DIM))


def test_the_unit_of_the_features_does_not_matter() -> None:
    rows = drawn(4, FEATURES + MAP, seed=4)
    one, other = trained(BANK, bias=False), trained(40 * BANK, bias=False)
    torch.testing.assert_close(embedded(one, rows), embedded(other, 40 * rows))


@pytest.mark.parametrize(
    "bank, names",
    [
        (drawn(1, FEATURES + MAP, seed=0), "at least two public images"),
        (drawn(FEATURES + MAP, seed=0), "at least two public images"),
        (drawn(3, FEATURES, seed=0), "12 numbers an image, not more than 12"),
        (torch.full((3, FEATURES + MAP), float("inf")), "NaN or an infinity"),
        (drawn(1, FEATURES + MAP, seed=0).expand(8, FEATURES + MAP), "all alike"),
    ],
)
def test_a_public_bank_without_statistics_is_refused(bank: Tensor, names: str) -> None:
    with pytest.raises(InputError, match=names):
        PublicStatistics.of(projection(bias=True), bank)
