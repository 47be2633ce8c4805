"""Rules about how a step's batch is drawn, and what the accountant takes it for."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from server.lint.project import Hit, Project, rule
from server.lint.source import Source, argument

_PRIVATE = ("make_private", "make_private_with_epsilon")
_POISSON = ("DPDataLoader", "UniformWithReplacementSampler", *_PRIVATE)


def _shuffle_as_poisson(project: Project) -> Iterator[Hit]:
    for at in project.recorded:
        actual, assumed = at.settings.sampler, at.settings.accounted_as
        if assumed == "poisson" and actual in ("shuffle", "fixed-size"):
            yield Hit(at.where, f"batches are drawn as {actual}, epsilon as if by Poisson sampling")
        sampled = any(r.sample_rate < 1.0 for r in at.settings.releases)
        if actual == "full-batch" and assumed == "poisson" and sampled:
            yield Hit(at.where, "every step sees all, epsilon assumes a sample")
    for source in project.private:
        yield from _without_poisson(source)
        yield from _by_hand(source)


def _without_poisson(source: Source) -> Iterator[Hit]:
    for call in source.calls(_PRIVATE):
        given = argument(call, "poisson_sampling")
        if given is None or _full_batch(source):
            continue
        value = source.value(given)
        if value is None:
            yield Hit(
                source.at(call), "poisson_sampling depends on what is not in the files", "warning"
            )
        elif not value:
            yield Hit(source.at(call), "poisson_sampling=False, but get_epsilon assumes it")


def _by_hand(source: Source) -> Iterator[Hit]:
    """An accountant that is told a rate, while a shuffling loader draws."""
    if source.called(_POISSON):
        return
    shuffling = [
        call
        for call in source.calls(("DataLoader",), "torch")
        if source.value(argument(call, "shuffle", 2)) is True
    ]
    for call in source.calls(("step", "get_optimizer_hook_fn")) if shuffling else ():
        if argument(call, "sample_rate") is not None and not _full_batch(source):
            yield Hit(source.at(call), "a sample_rate is accounted, a shuffling DataLoader draws")


def _full_batch(source: Source) -> bool:
    """Whether a loader takes all data at once: then there is no sampling to account."""
    sizes = [argument(call, "batch_size", 1) for call in source.calls(("DataLoader",), "torch")]
    return any(size is not None and source.counts_data(size) for size in sizes)


SHUFFLE_AS_POISSON = rule(
    "shuffle-as-poisson",
    "shuffled batches accounted as Poisson sampling",
    why="The amplification that RDP, PRV and GDP compute holds for independent coins. Shuffled "
    "batches can cost several times as much (Chua et al. 2024, arXiv:2403.17673).",
    mend="Draw by Poisson sampling, or use full batches and account them as plain Gaussian.",
)(_shuffle_as_poisson)


def _loader_unused(project: Project) -> Iterator[Hit]:
    for source in project.private:
        for call in source.calls(_PRIVATE):
            target = source.assigned(call)
            if not isinstance(target, ast.Tuple) or not isinstance(target.elts[-1], ast.Name):
                continue
            value = source.value(argument(call, "poisson_sampling"))
            if value is not False and not _read_later(source, target.elts[-1], call):
                name = target.elts[-1].id
                yield Hit(source.at(call), f"the loader that it returns, {name!r}, is never used")


def _read_later(source: Source, name: ast.Name, call: ast.Call) -> bool:
    scope = source.function(call) or source.tree
    return any(
        isinstance(node, ast.Name)
        and node.id == name.id
        and isinstance(node.ctx, ast.Load)
        and node.lineno > call.lineno
        and node not in ast.walk(call)
        for node in ast.walk(scope)
    )


LOADER_UNUSED = rule(
    "loader-unused",
    "make_private's loader is thrown away",
    why="Poisson sampling lives in the loader that make_private returns. Whoever iterates the old "
    "one trains on shuffled batches, while the accountant assumes Poisson sampling.",
    mend="Iterate the returned loader.",
)(_loader_unused)
