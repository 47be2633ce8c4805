"""The adapter: its formula, what trains, what it takes, and that no row sees another."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.backbones.adapter import AdapterHead
from common.errors import InputError
from common.parameters import trainable_parameters

torch.set_num_threads(1)
FEATURES, DIM = 12, 5


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def projection(*, bias: bool) -> nn.Linear:
    layer = nn.Linear(FEATURES, DIM, bias=bias)
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.copy_(drawn(*parameter.shape, seed=seed))
    return layer


def trained(bank: Tensor, *, bias: bool = True) -> AdapterHead:
    head = AdapterHead(projection(bias=bias), bank)
    with torch.no_grad():
        head.adapter.weight.copy_(drawn(DIM, FEATURES, seed=7))
    return head


def learned_from(head: AdapterHead, h: Tensor) -> Tensor:
    """Return h' of the formula: what the trained matrix is multiplied with."""
    seen: list[Tensor] = []
    hook = head.adapter.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        head(h)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("bias", [True, False])
def test_a_trained_adapter_computes_its_formula(bias: bool) -> None:
    bank, h = drawn(20, FEATURES, seed=3) + 2.0, drawn(4, FEATURES, seed=4)
    head, W, A = trained(bank, bias=bias), projection(bias=bias), drawn(DIM, FEATURES, seed=7)
    with torch.no_grad():
        raw = W(bank)
        public = (W(h) - raw.mean(dim=0) / 2) / raw.norm(dim=1).mean()
        expected = F.normalize(public + learned_from(head, h) @ A.T, dim=-1)
        torch.testing.assert_close(head(h), expected)


def test_the_features_an_adapter_learns_from_are_centred_with_mean_norm_1_on_the_bank() -> None:
    bank = drawn(20, FEATURES, seed=3) * torch.linspace(0.1, 9.0, FEATURES) + 2.0
    inputs = learned_from(trained(bank), bank)
    torch.testing.assert_close(inputs.mean(dim=0), torch.zeros(FEATURES), rtol=0, atol=1e-5)
    torch.testing.assert_close(inputs.norm(dim=1).mean(), torch.tensor(1.0))


def test_only_the_adapter_trains_and_the_public_projection_is_a_copy() -> None:
    public = projection(bias=True)
    before = copy.deepcopy(public.state_dict())
    head = AdapterHead(public, drawn(9, FEATURES, seed=3))
    assert list(trainable_parameters(head)) == ["adapter.weight"]
    frozen = {k: v.clone() for k, v in head.state_dict().items() if k != "adapter.weight"}
    head(drawn(4, FEATURES, seed=4))[:, 0].sum().backward()
    torch.optim.SGD(head.parameters(), lr=1.0, weight_decay=0.5).step()
    assert head.adapter.weight.abs().max() > 0
    assert all(torch.equal(head.state_dict()[k], v) for k, v in frozen.items())
    with torch.no_grad():
        public.weight.zero_()
    assert torch.equal(head.projection.weight, before["weight"])


def test_an_embedding_does_not_depend_on_the_other_rows() -> None:
    head, rows = trained(drawn(20, FEATURES, seed=3)).train(), drawn(6, FEATURES, seed=4)
    with torch.no_grad():
        alone = torch.cat([head(row[None]) for row in rows])
        torch.testing.assert_close(head(rows), alone)
        torch.testing.assert_close(head(rows.view(2, 3, FEATURES)), alone.view(2, 3, DIM))


def test_the_unit_of_the_features_does_not_matter() -> None:
    bank, h = drawn(20, FEATURES, seed=3), drawn(4, FEATURES, seed=4)
    with torch.no_grad():
        one, other = trained(bank, bias=False)(h), trained(40 * bank, bias=False)(40 * h)
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "bank, names",
    [
        (drawn(1, FEATURES, seed=0), "at least two public images"),
        (drawn(FEATURES, seed=0), "at least two public images"),
        (drawn(3, FEATURES + 1, seed=0), "13 numbers an image, not 12"),
        (torch.full((3, FEATURES), float("inf")), "NaN or an infinity"),
        (drawn(1, FEATURES, seed=0).expand(8, FEATURES), "all alike"),
    ],
)
def test_a_public_bank_without_statistics_is_refused(bank: Tensor, names: str) -> None:
    with pytest.raises(InputError, match=names):
        AdapterHead(projection(bias=True), bank)
