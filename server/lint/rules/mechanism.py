"""Rules about noise and what it is scaled to."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from server.lint.project import Hit, Project, rule
from server.lint.settings import Settings
from server.lint.source import Source, argument

_SEEDERS = frozenset({"manual_seed", "manual_seed_all", "seed_everything", "set_seed"})
_NUMPY_NOISE = frozenset(
    {
        *("LocalDpMod", "add_gaussian_noise_inplace", "add_localdp_gaussian_noise_to_params"),
        *("DifferentialPrivacyServerSideFixedClipping", "add_gaussian_noise_to_params"),
        *("DifferentialPrivacyServerSideAdaptiveClipping",),
        *("DifferentialPrivacyClientSideFixedClipping",),
        *("DifferentialPrivacyClientSideAdaptiveClipping",),
    }
)
_PRIVATE_CALLS = ("make_private", "make_private_with_epsilon", "DPOptimizer")
_SECRET = ("secrets", "os.urandom", "random.SystemRandom", "torchcsprng")


def _no_noise(project: Project) -> Iterator[Hit]:
    for at in project.recorded:
        bare = sum(r.steps for r in at.settings.releases if r.noise_multiplier == 0)
        if bare:
            yield Hit(at.where, f"{bare:,} steps were released without noise")
    for source in project.private:
        for call in source.calls(_PRIVATE_CALLS):
            if source.number(argument(call, "noise_multiplier")) == 0:
                yield Hit(source.at(call), "noise_multiplier is 0")


NO_NOISE = rule(
    "no-noise",
    "a release without noise",
    why="A clipped sum without noise has no finite epsilon.",
    mend="Choose the noise multiplier from the budget, for all rounds together.",
)(_no_noise)


def _seeded_noise(project: Project) -> Iterator[Hit]:
    for at in project.recorded:
        if at.settings.noise_source == "seeded":
            yield Hit(at.where, "the noise comes from a seed")
    secure = _secure_mode(project)
    for source in project.private:
        yield from _given_generators(source)
        if not secure and not source.server_only:
            yield from _seeds(source, _SEEDERS)
        if any(other.called(_NUMPY_NOISE) for other in project.private):
            yield from _seeds(source, ("seed",), "numpy.random")


def _secure_mode(project: Project) -> bool:
    engines = [
        (source, call)
        for source in project.private
        for call in source.calls(("PrivacyEngine",), "opacus")
    ]
    modes = [source.value(argument(call, "secure_mode")) is True for source, call in engines]
    return bool(modes) and all(modes)


def _seeds(
    source: Source, names: frozenset[str] | tuple[str, ...], package: str = ""
) -> Iterator[Hit]:
    """Calls that seed a library's own generator, from which it then draws the noise."""
    for call in source.calls(names, package):
        name = source.name(call.func)
        # generator.manual_seed(...) seeds that generator alone.
        if (
            name.startswith(("torch.", "lightning", "pytorch_lightning", "numpy."))
            or "." not in name
        ):
            seed = argument(call, "seed", 0)
            apart = source.under(call, ("fork_rng",))
            if seed is not None and not apart and not _is_secret(source, seed):
                yield Hit(source.at(call), f"{name} before noise is drawn from the same generator")


def _given_generators(source: Source) -> Iterator[Hit]:
    for call in source.calls(_PRIVATE_CALLS):
        keyword = (
            "generator" if source.name(call.func).endswith("DPOptimizer") else "noise_generator"
        )
        given = argument(call, keyword)
        if given is None or (isinstance(given, ast.Constant) and given.value is None):
            continue
        if not _is_secret(source, given):
            yield Hit(
                source.at(call),
                f"{keyword}: a torch.Generator has a fixed seed even where none is given",
            )


def _is_secret(source: Source, node: ast.expr) -> bool:
    parts = [*ast.walk(node), *ast.walk(source.meaning(node))]
    return any(source.name(part).startswith(_SECRET) for part in parts)


SEEDED_NOISE = rule(
    "seeded-noise",
    "noise that a seed gives again",
    why="Whoever knows or guesses the seed subtracts the noise: then nothing is hidden.",
    mend="Draw noise from a cryptographic generator with a fresh secret key, and seed only what is "
    "public (splits, initial weights) through generators of their own.",
)(_seeded_noise)


def _framework_noise(project: Project) -> Iterator[Hit]:
    for at in project.recorded:
        if at.settings.noise_source == "framework":
            yield Hit(at.where, "the noise is a framework's pseudo-random numbers", "warning")
    for source in project.private:
        for call in source.calls(("PrivacyEngine",), "opacus"):
            if source.value(argument(call, "secure_mode")) is not True:
                yield Hit(source.at(call), "PrivacyEngine without secure_mode=True", "warning")


FRAMEWORK_NOISE = rule(
    "framework-noise",
    "noise from a generator that is not cryptographic",
    why="Such a generator is not built to withstand someone who looks for its state, and floating "
    "point shows which values noise can reach (Mironov 2012). Opacus' secure_mode needs "
    "torchcsprng, which has had no release since 2021.",
    mend="Draw noise from AES in counter mode under a fresh key, on a grid (common/mechanism.py).",
)(_framework_noise)


def _low_sensitivity(project: Project) -> Iterator[Hit]:
    for at in project.recorded:
        needed, reason = _needed(at.settings)
        if at.settings.sensitivity < needed * (1 - 1e-9):
            yield Hit(
                at.where,
                f"noise is scaled to {at.settings.sensitivity:g}, not {needed:g}: {reason}",
            )
    for source in project.private:
        for call in source.calls(("LocalDpMod",), "flwr"):
            clip = source.number(argument(call, "clipping_norm", 0))
            sensitivity = source.number(argument(call, "sensitivity", 1))
            if clip is not None and sensitivity is not None and sensitivity < clip:
                yield Hit(
                    source.at(call), f"clipping_norm {clip:g} but sensitivity {sensitivity:g}"
                )


def _needed(settings: Settings) -> tuple[float, str]:
    """The L2 sensitivity of a sum over the privacy unit, and why it is not just the clip."""
    needed, reasons = settings.max_grad_norm, ["the clip"]
    if (settings.privacy_unit, settings.clip_unit) == ("person", "image"):
        needed *= settings.images_per_person
        reasons.append(f"each of {settings.images_per_person} images of a person")
    if settings.adjacency == "replace-one":
        needed *= 2
        reasons.append("one out and another in")
    return needed, ", ".join(reasons)


LOW_SENSITIVITY = rule(
    "low-sensitivity",
    "noise scaled to less than what one person can change",
    why="The noise multiplier is noise over sensitivity: clipped images bound a person by K clips, "
    "replacing a person by two.",
    mend="Clip the mean gradient of a person, and scale noise to the clip (twice that if "
    "neighbours replace a person).",
)(_low_sensitivity)


def _non_finite(project: Project) -> Iterator[Hit]:
    for at in project.recorded:
        if at.settings.non_finite == "kept":
            yield Hit(at.where, "a gradient with a NaN or an infinity stays in the sum")


NON_FINITE = rule(
    "non-finite",
    "a NaN is not clipped",
    why="min(1, C / NaN) is NaN: one person turns the whole sum into NaN, which shows that they "
    "are there. Opacus' clip factor for norms (.5, NaN, inf) is (1, NaN, 0).",
    mend="Set the gradient of such a person to zero before clipping.",
)(_non_finite)
