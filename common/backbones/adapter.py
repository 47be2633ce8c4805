"""A residual linear adapter on frozen pooled features: the smallest thing worth training.

    z = normalize( (W h - m / 2) / s + A h' ),   h' = (h - mean) / scale

W is the public projection; m and s are the mean and the mean norm of W h over the public bank;
mean and scale centre the features and bring their norm to about 1. A starts at zero, so training
starts at the public model, half centred. Only A is trained: few parameters mean little noise.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import InputError


class AdapterHead(nn.Module):
    """Pooled features [..., F] -> unit-norm embeddings [..., D]; `adapter.weight` [D, F] trains.

    All other tensors are public: the frozen projection and statistics of the public bank.
    """

    center: Tensor
    scale: Tensor
    feature_mean: Tensor
    feature_scale: Tensor

    def __init__(self, projection: nn.Linear, public_features: Tensor) -> None:
        """Take the public projection and the public bank's features [N, F], N >= 2.

        A bank of another shape, not finite, or of N equal rows, has no such statistics: InputError.
        """
        super().__init__()
        _check(public_features, projection.in_features)
        self.projection = nn.Linear(
            projection.in_features, projection.out_features, bias=projection.bias is not None
        )
        self.projection.load_state_dict(projection.state_dict())
        self.projection.requires_grad_(False)
        with torch.no_grad():
            raw = self.projection(public_features)
            mean = public_features.mean(dim=0)
            self.register_buffer("center", raw.mean(dim=0) / 2)
            self.register_buffer("scale", raw.norm(dim=1).mean().clamp(min=1e-12))
            self.register_buffer("feature_mean", mean)
            norm = (public_features - mean).norm(dim=1).mean().clamp(min=1e-12)
            self.register_buffer("feature_scale", norm)
        self.adapter = nn.Linear(projection.in_features, projection.out_features, bias=False)
        nn.init.zeros_(self.adapter.weight)

    def forward(self, features: Tensor) -> Tensor:
        public = (self.projection(features) - self.center) / self.scale
        learned: Tensor = self.adapter((features - self.feature_mean) / self.feature_scale)
        return F.normalize(public + learned, dim=-1)


def _check(public_features: Tensor, features: int) -> None:
    if public_features.dim() != 2 or len(public_features) < 2:
        raise InputError("the adapter needs the features of at least two public images")
    if public_features.shape[1] != features:
        raise InputError(
            f"the public features have {public_features.shape[1]} numbers an image, not {features}",
            hint="compute them with the same backbone",
        )
    if not torch.isfinite(public_features).all():
        raise InputError("the public features hold a NaN or an infinity")
    if torch.equal(public_features, public_features[:1].expand_as(public_features)):
        raise InputError(
            "the public images are all alike", hint="give a bank of different people's faces"
        )
