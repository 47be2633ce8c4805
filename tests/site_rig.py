"""A site's answer to a round, as the server gets it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from client.app import OpenSite
from client.preparation import PublicPart
from client.site import Prepared


def assert_answers_with_noise(
    opened: OpenSite, part: PublicPart, initial: NDArray[np.float32]
) -> None:
    """Let a site without usable persons answer the first round: an update of its noise alone."""
    update = opened.site.train(
        lambda: Prepared(part.contract, opened.model(part), part.inputs, opened.persons(part)),
        part.contract,
        1,
        torch.from_numpy(initial),
        part.id,
    )
    noise = part.contract.privacy.noise_multiplier * part.contract.privacy.max_grad_norm
    scale = noise / part.contract.privacy.public_denominator
    assert float(np.std(update.delta)) == pytest.approx(scale, rel=0.1)
