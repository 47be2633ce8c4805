"""Stages that only a simulation can show: each site alone, and federated with its own adaptation.

Neither is noised, and in a deployment neither leaves a site. "Why federate?" is answered here: a
site alone has the same public model and its own persons, and releases nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client.adaptation import adaptable, adapted
from common.paired import Measured, difference
from common.parameters import assign
from common.persons import Persons
from server.public_faces import Model
from server.report.run_record import SiteAlone, Unreleased
from server.report.utility import DetPoints
from server.stages import PublicTest

# Each is adapted and measured twice: more of them would take longer than the training.
MOST_SITES: Final = 5


def unreleased(
    trainable: nn.Module,
    start: NDArray[np.float32],
    after: NDArray[np.float32],
    persons: Sequence[Callable[[], Persons]],
    cameras: Sequence[int],
    names: Sequence[str],
    test: PublicTest,
    released: Measured,
) -> Unreleased | None:
    """Return what the first sites reach alone, and federated and own; None for `tail` and `full`.

    `start` and `after` [d] are the parameters of the public and of the trained model, `released`
    is the latter's measurement; `persons`, `cameras` and `names` have one entry a site.
    """
    if adaptable(trainable) is None:
        return None
    count = min(len(persons), max(MOST_SITES, len(set(cameras))))
    alone, own, sizes = [], [], []
    for site in range(count):
        theirs = persons[site]()
        sizes.append(len(theirs))
        alone.append((_own(trainable, start, theirs), cameras[site]))
        own.append((_own(trainable, after, theirs), cameras[site]))
    mean, federated = test.measure_sites(alone), test.measure_sites(own)
    return Unreleased(
        alone=mean.verification,
        det_alone=DetPoints.of(mean.det),
        difference=difference(released, mean),
        by_site=tuple(
            SiteAlone(names[site], sizes[site], test.rates_under(*alone[site]))
            for site in range(count)
        ),
        after_own=federated.verification,
        det_after_own=DetPoints.of(federated.det),
    )


def _own(trainable: nn.Module, parameters: NDArray[np.float32], persons: Persons) -> Model:
    """Return a site's model: that of the parameters [d], with what its own persons say."""
    model = copy.deepcopy(trainable)
    assign(model, torch.from_numpy(parameters))
    head = adaptable(model)
    if head is None:
        raise TypeError("this model has no place for a site's own statistics")
    return Model.of(adapted(head, persons).head)
