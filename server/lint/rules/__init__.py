"""The rules, in the order in which findings are shown."""

from __future__ import annotations

from server.lint.project import Rule
from server.lint.rules.accounting import (
    CLAIM_BELOW_TRUTH,
    DELTA_TOO_LARGE,
    FRESH_ACCOUNTANT,
    GDP_ACCOUNTANT,
)
from server.lint.rules.flower import FLOWER_CLIPPING, FLOWER_LOCAL_DP, FLOWER_SECAGG
from server.lint.rules.leaks import COUNTS_LEAVE, DATA_NORMALISER, METRICS_LEAVE
from server.lint.rules.mechanism import (
    FRAMEWORK_NOISE,
    LOW_SENSITIVITY,
    NO_NOISE,
    NON_FINITE,
    SEEDED_NOISE,
)
from server.lint.rules.model import BATCH_NORM, COUPLED_LOSS, IDENTITY_HEAD
from server.lint.rules.reading import NO_MECHANISM, UNREADABLE
from server.lint.rules.sampling import LOADER_UNUSED, SHUFFLE_AS_POISSON
from server.lint.rules.unit import IMAGE_UNIT

RULES: tuple[Rule, ...] = (
    UNREADABLE,
    NO_MECHANISM,
    NO_NOISE,
    SEEDED_NOISE,
    FRAMEWORK_NOISE,
    LOW_SENSITIVITY,
    IMAGE_UNIT,
    NON_FINITE,
    FRESH_ACCOUNTANT,
    GDP_ACCOUNTANT,
    CLAIM_BELOW_TRUTH,
    DELTA_TOO_LARGE,
    SHUFFLE_AS_POISSON,
    LOADER_UNUSED,
    DATA_NORMALISER,
    COUNTS_LEAVE,
    METRICS_LEAVE,
    COUPLED_LOSS,
    IDENTITY_HEAD,
    BATCH_NORM,
    FLOWER_LOCAL_DP,
    FLOWER_CLIPPING,
    FLOWER_SECAGG,
)
