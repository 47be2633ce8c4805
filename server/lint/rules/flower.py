"""Rules about Flower's own privacy helpers, as of 1.41."""

from __future__ import annotations

from collections.abc import Iterator

from server.lint.project import Hit, Project, rule
from server.lint.source import argument

_CLIPS = frozenset(
    {
        *("fixedclipping_mod", "adaptiveclipping_mod", "clip_inputs_inplace"),
        *("compute_clip_model_update", "compute_adaptive_clip_model_update"),
        *("DifferentialPrivacyServerSideFixedClipping",),
        *("DifferentialPrivacyServerSideAdaptiveClipping",),
        *("DifferentialPrivacyClientSideFixedClipping",),
        *("DifferentialPrivacyClientSideAdaptiveClipping",),
    }
)
_MASKS = frozenset({"secaggplus_mod", "secagg_mod", "SecAggPlusWorkflow", "SecAggWorkflow"})


def _flower_local_dp(project: Project) -> Iterator[Hit]:
    for source in project.sources:
        for call in source.calls(("LocalDpMod",), "flwr"):
            epsilon = source.number(argument(call, "epsilon", 2))
            faults = ["it never composes, so its epsilon is that of one round"]
            if project.rounds is not None and project.rounds > 1:
                faults[0] += f" of {project.rounds}"
            if epsilon is not None and epsilon > 1:
                faults.append(f"its formula does not hold at epsilon {epsilon:g}")
            yield Hit(source.at(call), f"LocalDpMod: {'; '.join(faults)}")


FLOWER_LOCAL_DP = rule(
    "flower-local-dp",
    "Flower's LocalDpMod",
    why="Its noise is sensitivity sqrt(2 ln(1.25/delta)) / epsilon, proven for epsilon up to 1 "
    "only (Dwork and Roth 2014, theorem A.1; Balle and Wang 2018 show it fails above); the cost "
    "of rounds is never added up; NaN and 0-d arrays pass its clip.",
    mend="Calibrate the analytic Gaussian mechanism for all rounds together and keep a ledger.",
)(_flower_local_dp)


def _flower_clipping(project: Project) -> Iterator[Hit]:
    for source in project.sources:
        for use in source.uses(_CLIPS, "flwr"):
            yield Hit(source.at(use), source.name(use).rpartition(".")[2])


FLOWER_CLIPPING = rule(
    "flower-clipping",
    "Flower's clipping helpers",
    why="They divide by a zero norm, leave NaN unclipped and skip 0-d arrays (a scalar of 123.0 "
    "stays as it is, without noise), so the noise is scaled to a bound that does not hold.",
    mend="Clip in code of your own that zeroes what is not finite and covers every array.",
)(_flower_clipping)


def _flower_secagg(project: Project) -> Iterator[Hit]:
    for source in project.sources:
        for use in source.uses(_MASKS, "flwr"):
            yield Hit(source.at(use), source.name(use).rpartition(".")[2])


FLOWER_SECAGG = rule(
    "flower-secagg",
    "Flower's SecAgg+",
    why="Mask seeds are folded to 32 bits for RandomState (flwrlabs/flower issue 7522), which can "
    "be tried out, and the key exchange is unsigned, so the server can sit in the middle. An "
    "epsilon that counts on the masks does not hold.",
    mend="State the epsilon of each site's own noise, as against a server that sees every update.",
)(_flower_secagg)
