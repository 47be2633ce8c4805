"""Another recipe than the recommended one: what a run may change of its constants, all public."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from common.constants import MomentsConfig
from common.errors import InputError
from common.recipe import Recipe, recommended
from common.vocabulary import TrainSet

# Lowest and highest that make sense. A site takes no contract beyond its own bounds, whatever a
# recipe says (`common.contract`).
_BOUNDS: Final[dict[str, tuple[float, float]]] = {
    "max_grad_norm": (1e-6, 1e6),
    "images_per_person": (1, 1000),
    "temperature": (1e-3, 1e3),
    "margin": (0.0, 2.0),
    "public_negatives": (1, 100_000),
    "learning_rate": (1e-6, 1e3),
    "momentum": (0.0, 0.999),
    "average_from": (0.0, 1.0),
    "steps": (1, 100_000),
    "block": (0, 1024),
    "embedding_scale": (1e-6, 1e6),
    "mean_scale": (0.0, 1e6),
    "pair_scale": (0.0, 1e6),
    "counter_scale": (1e-6, 1e6),
}
_STATISTICS: Final = {"max_grad_norm", "images_per_person", "moments"}


class _Options:
    """Options of which None leaves what is recommended."""

    def __post_init__(self) -> None:
        if not self.given:
            raise InputError("the recipe changes nothing", hint="state what it changes, or none")
        for name, value in self.given.items():
            low, high = _BOUNDS.get(name, (None, None))
            if low is not None and high is not None and not low <= value <= high:
                raise InputError(f"recipe: {name} must lie in {low:g} to {high:g}, not {value}")

    @property
    def given(self) -> dict[str, Any]:
        """Return what is changed, by its name."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class StartOptions(_Options):
    """What is changed of the training on public images (`common.recipe.PublicStart`)."""

    steps: int | None = None
    temperature: float | None = None
    images_per_person: int | None = None
    public_negatives: int | None = None
    learning_rate: float | None = None
    momentum: float | None = None


@dataclass(frozen=True)
class MomentsOptions(_Options):
    """How the one budget is split among a person's statistics (`common.constants.MomentsConfig`).

    What is told in a public basis counts only where the run has one.
    """

    block: int | None = None
    embedding_scale: float | None = None
    mean_scale: float | None = None
    pair_scale: float | None = None
    counter_scale: float | None = None

    def of(self, told: MomentsConfig) -> MomentsConfig:
        """Return what a person tells instead; a block larger than the basis is an InputError."""
        in_basis = {"block", "mean_scale", "pair_scale"}
        changes = {n: v for n, v in self.given.items() if told.directions or n not in in_basis}
        return replace(told, **changes)


@dataclass(frozen=True)
class RecipeOptions(_Options):
    """What a recipe file, or the table `[training.recipe]`, holds: none of it is needed.

    `public_start` is for the adapter, `moments` for statistics; see `common.recipe.Recipe`.
    """

    max_grad_norm: float | None = None
    images_per_person: int | None = None
    temperature: float | None = None
    margin: float | None = None
    public_negatives: int | None = None
    public_gradient: bool | None = None
    learning_rate: float | None = None
    momentum: float | None = None
    average_from: float | None = None
    public_start: StartOptions | None = None
    moments: MomentsOptions | None = None

    def told(self) -> str:
        """Return in words what is changed."""
        flat = dict(self.given)
        for name in ("public_start", "moments"):
            inner = flat.pop(name, None)
            if inner is not None:
                flat |= {f"{name}.{key}": value for key, value in inner.given.items()}
        return ", ".join(f"{name} {value}" for name, value in flat.items())


def effective(train_set: TrainSet, options: RecipeOptions | None) -> Recipe:
    """Return the recipe of a run; what a train set does not use is an InputError."""
    recipe = recommended(train_set)
    if options is None:
        return recipe
    usable = _STATISTICS if train_set == "statistics" else set(asdict(options)) - {"moments"}
    if recipe.public_start is None:
        usable = usable - {"public_start"}
    changes = options.given
    for name in changes:
        if name not in usable:
            raise InputError(
                f"recipe: {name} is not for the train set {train_set}",
                hint=f"it takes {', '.join(sorted(usable))}",
            )
    changes.pop("moments", None)
    start = changes.pop("public_start", None)
    if start is not None and recipe.public_start is not None:
        changes["public_start"] = replace(recipe.public_start, **start.given)
    return replace(recipe, **changes)
