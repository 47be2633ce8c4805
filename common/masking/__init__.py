"""Secure aggregation: the server learns the sum over sites and nothing of a single one."""

from common.masking.fixed_point import EncodedSum, FixedPoint, NoisedShare
from common.masking.keys import Participants, advertise
from common.masking.messages import (
    Advertisement,
    Confirmation,
    MaskedUpdate,
    RoundRequest,
    SurvivorsRequest,
    UnmaskRequest,
    UnmaskShares,
)
from common.masking.noise import Adversaries, ShareNoise, adversaries, calibrate
from common.masking.server import MaskedRound, SiteFault, SumOverSites
from common.masking.site import MaskingSite
from common.masking.terms import Terms

__all__ = [
    "Adversaries",
    "Advertisement",
    "Confirmation",
    "EncodedSum",
    "FixedPoint",
    "MaskedRound",
    "MaskedUpdate",
    "MaskingSite",
    "NoisedShare",
    "Participants",
    "RoundRequest",
    "ShareNoise",
    "SiteFault",
    "SumOverSites",
    "SurvivorsRequest",
    "Terms",
    "UnmaskRequest",
    "UnmaskShares",
    "adversaries",
    "advertise",
    "calibrate",
]
