"""Rules about who adds up what was spent."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from common.accounting import cross_checked_epsilon
from server.lint.lifetimes import Lifetimes
from server.lint.project import Hit, Project, rule
from server.lint.source import Source, argument

_ACCOUNTANTS = frozenset(
    {"PrivacyEngine", "RDPAccountant", "PRVAccountant", "GaussianAccountant", "create_accountant"}
)
# A claim rounded to two places may lie below the truth by half a unit.
_ROUNDING = 0.0051


def _fresh_accountant(project: Project) -> Iterator[Hit]:
    for at in project.recorded:
        if at.settings.accountant_state == "per-round" and at.settings.rounds > 1:
            yield Hit(
                at.where,
                f"a new accountant in each of {at.settings.rounds} rounds forgets the rest",
            )
    lifetimes = Lifetimes(project.at_sites)
    for source in project.at_sites:
        if _restores(source):
            continue
        for call in source.calls(_ACCOUNTANTS, "opacus"):
            again = lifetimes.each_round(source, call) if project.federated else False
            if again or source.in_loop(call):
                name = source.name(call.func).rpartition(".")[2]
                yield Hit(source.at(call), f"{name} is made anew each time and told no history")


def _restores(source: Source) -> bool:
    """Whether an accountant's history is loaded from somewhere."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call):
            name = source.name(node.func)
            if name.endswith(".load_checkpoint") or name.endswith("accountant.load_state_dict"):
                return True
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(
            isinstance(t, ast.Attribute) and t.attr in ("history", "accountant") for t in targets
        ):
            return True
    return False


FRESH_ACCOUNTANT = rule(
    "fresh-accountant",
    "a new accountant every round",
    why="Each round starts to count at zero, so the printed epsilon is that of one round whatever "
    "the number of rounds. Measured with Opacus over three rounds: 2.865, 2.865, 2.865 where the "
    "truth is 2.865, 3.60, 4.19. A Flower client is a new process each round, so a global "
    "variable forgets too.",
    mend="Keep the accountant's state on the site's disk: load_state_dict before training, "
    "state_dict after it, written before anything is sent.",
)(_fresh_accountant)


def _gdp_accountant(project: Project) -> Iterator[Hit]:
    for at in project.recorded:
        if at.settings.accountant.lower() in ("gdp", "gaussianaccountant"):
            kinds = {(r.noise_multiplier, r.sample_rate) for r in at.settings.releases}
            mixed = f"{len(kinds)} kinds of step, of which it reads the last alone"
            yield Hit(at.where, f"accountant gdp: {mixed if len(kinds) > 1 else 'a limit theorem'}")
    for source in project.private:
        for call in source.calls(("PrivacyEngine",), "opacus"):
            if source.value(argument(call, "accountant", 0)) == "gdp":
                yield Hit(source.at(call), "PrivacyEngine(accountant='gdp')")
        for call in source.calls(("create_accountant",), "opacus"):
            if source.value(argument(call, "mechanism", 0)) == "gdp":
                yield Hit(source.at(call), "create_accountant('gdp')")
        for call in source.calls(("GaussianAccountant",), "opacus"):
            yield Hit(source.at(call), "GaussianAccountant")


GDP_ACCOUNTANT = rule(
    "gdp-accountant",
    "Opacus' GDP accountant",
    why="It reads only the last entry of a mixed history (it says 1.44 where the truth is 6.72), "
    "and its central limit is no upper bound even where all steps are alike (Gopi et al. 2021, "
    "arXiv:2106.02848; Opacus itself warns of it).",
    mend="Use accountant='prv' or 'rdp', or dp_accounting's PLD.",
)(_gdp_accountant)


def _claim_below_truth(project: Project) -> Iterator[Hit]:
    for at in project.recorded:
        claim = at.settings.epsilon
        if claim is None:
            continue
        events = [release.event() for release in at.settings.releases]
        truth = cross_checked_epsilon(events, at.settings.delta).epsilon
        if claim < truth - _ROUNDING:
            yield Hit(
                at.where,
                f"claims epsilon {claim:g} at delta {at.settings.delta:g}; its releases cost "
                f"{truth:.4g}",
            )


CLAIM_BELOW_TRUTH = rule(
    "claim-below-truth",
    "the claimed epsilon is less than the releases cost",
    why="All recorded releases were composed again by two independent accountants "
    "(common/accounting.py), and the claim lies below both.",
    mend="State the recomputed epsilon, or record the releases that are missing or wrong.",
)(_claim_below_truth)


def _delta_too_large(project: Project) -> Iterator[Hit]:
    for at in project.recorded:
        persons, delta = at.settings.persons, at.settings.delta
        if persons is not None and delta * persons >= 1:
            yield Hit(at.where, f"delta {delta:g} with {persons:,} persons")


DELTA_TOO_LARGE = rule(
    "delta-too-large",
    "delta is not below one over the number of persons",
    why="Publishing one person at random in full satisfies delta = 1/persons (Dwork and Roth 2014, "
    "section 2.3), whatever epsilon is.",
    mend="Choose delta well below one over the number of persons.",
)(_delta_too_large)
