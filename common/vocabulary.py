"""The names that terms, contracts, policies and options may use: backbones, losses, cameras.

What a name stands for is in `common.backbones`, `common.losses` and `server.aggregation`. It needs
torch; a name does not, so a site that reads a policy, or a status page, never loads it.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

TrainSet = Literal["statistics", "adapter", "tail", "full"]
TRAIN_SETS: Final[tuple[TrainSet, ...]] = get_args(TrainSet)

# Networks of torchvision's, whose own weights files a backbone of that name takes.
TORCHVISION: Final = ("alexnet", "vgg11", "googlenet", "resnet18", "resnet50")
BACKBONES: Final = ("dlib-resnet", "mobilefacenet", "lenet", *TORCHVISION)

LOSS_NAMES: Final = ("public-negatives", "triplet", "codebook")
AGGREGATOR_NAMES: Final = ("mean", "median", "trimmed-mean", "krum")

# Cameras that a simulation or an evaluation looks through: `simulations.shifts`.
Shift = Literal[
    "none", "cctv", "mask", "low-light", "near-infrared", "video", "tiny", "fisheye", "motion"
]
SHIFTS: Final[tuple[Shift, ...]] = get_args(Shift)

# What a simulation's public bank is seen through: nothing, the sites' cameras, or unknown ones.
BankShift = Literal["none", "same", "randomised"]
BANK_SHIFTS: Final[tuple[BankShift, ...]] = get_args(BankShift)
