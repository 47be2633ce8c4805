"""Rules about numbers of private data that steer an update or leave beside it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from server.lint.lifetimes import answers
from server.lint.project import Hit, Project, rule
from server.lint.source import Source, argument

_COUNT_KEYS = frozenset({"num-examples", "num_examples", "num_samples", "n_samples"})
# These say nothing about the data.
_HARMLESS = frozenset(
    {"epsilon", "delta", "noise_multiplier", "max_grad_norm", "sample_rate", "round", "rounds"}
)
_RATE_TAKERS = frozenset(
    {
        *("DPDataLoader", "UniformWithReplacementSampler", "get_noise_multiplier"),
        *("step", "get_optimizer_hook_fn", "DPOptimizer"),
    }
)


def _data_normaliser(project: Project) -> Iterator[Hit]:
    for at in project.recorded:
        if at.settings.normaliser == "data-size":
            yield Hit(at.where, "the sum is divided by how much data there is")
    for source in project.private:
        fixed = _fixed_batch_size(source)
        for call in source.calls(("make_private", "make_private_with_epsilon")):
            if not fixed:
                yield Hit(
                    source.at(call), "make_private divides by len(dataset) times the sample rate"
                )
        for call in source.calls(_RATE_TAKERS):
            for keyword in ("expected_batch_size", "sample_rate"):
                given = argument(call, keyword)
                if given is not None and source.counts_data(given):
                    yield Hit(source.at(call), f"{keyword} is computed from the size of the data")


def _fixed_batch_size(source: Source) -> bool:
    """Whether the optimiser's divisor is set afterwards, to what is not counted."""
    for node in ast.walk(source.tree):
        targets = node.targets if isinstance(node, ast.Assign) else []
        for target in targets:
            if isinstance(target, ast.Attribute) and target.attr == "expected_batch_size":
                return not source.counts_data(node.value)  # type: ignore[attr-defined]
    return False


DATA_NORMALISER = rule(
    "data-normaliser",
    "a divisor or a rate computed from the data's size",
    why="With one person more every coordinate is divided by another number, so neighbours differ "
    "by more than the clip and can be told apart (pytorch/opacus issues 571 and 819). "
    "make_private does this by default.",
    mend="Set optimizer.expected_batch_size to a public constant after make_private, and choose "
    "the sample rate publicly.",
)(_data_normaliser)


@dataclass(frozen=True)
class _Reply:
    """What `fit` or `evaluate` of a client gives Flower; a loss only in an evaluation."""

    node: ast.AST
    of: str
    count: ast.expr
    metrics: ast.expr
    loss: ast.expr | None


def _replies(source: Source) -> Iterator[_Reply]:
    for function in source.functions(answers):
        for node in ast.walk(function):
            reply = node.value if isinstance(node, ast.Return) else None
            if isinstance(reply, ast.Tuple) and len(reply.elts) == 3:
                first, count, metrics = reply.elts
                loss = first if function.name == "evaluate" else None
                yield _Reply(reply, function.name, count, metrics, loss)
    for call in source.calls(("FitRes", "EvaluateRes"), "flwr"):
        name = source.name(call.func).rpartition(".")[2]
        given = (argument(call, "num_examples", 2), argument(call, "metrics", 3))
        count, metrics = (value or ast.Constant(None) for value in given)
        loss = argument(call, "loss", 1) if name == "EvaluateRes" else None
        yield _Reply(call, name, count, metrics, loss)


def _records(source: Source) -> Iterator[tuple[ast.Call, ast.expr]]:
    """The metric records that a client's answers hold."""
    for call in source.calls(("MetricRecord", "MetricsRecord"), "flwr"):
        given = argument(call, "metric_dict", 0)
        if given is not None:
            yield call, given


def _pairs(source: Source, metrics: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """Keys and values of a mapping, where it is written out."""
    table = source.meaning(metrics)
    if not isinstance(table, ast.Dict):
        return
    for key, value in zip(table.keys, table.values, strict=True):
        yield (str(key.value) if isinstance(key, ast.Constant) else "?"), value


def _counts_leave(project: Project) -> Iterator[Hit]:
    for at in project.recorded:
        if at.settings.weighting == "num-examples":
            yield Hit(at.where, "the server weighs sites by how many examples they have")
    for source in project.at_sites:
        for reply in _replies(source):
            if source.counts_data(reply.count):
                yield Hit(source.at(reply.node), f"{reply.of} returns how much data there is")
        for call, table in _records(source):
            for key, value in _pairs(source, table):
                if key in _COUNT_KEYS and source.counts_data(value):
                    yield Hit(source.at(call), f"{key!r} is how much data there is")


COUNTS_LEAVE = rule(
    "counts-leave",
    "exact counts leave the site",
    why="FedAvg weighs by num-examples. The count is exact: it tells whether one person more is "
    "there, and the weighted mean depends on it too.",
    mend="Return a public constant as num-examples, the same for every round.",
)(_counts_leave)


def _metrics_leave(project: Project) -> Iterator[Hit]:
    for at in project.recorded:
        for metric in at.settings.metrics:
            if metric.private_data and not metric.noised:
                yield Hit(at.where, f"metric {metric.name!r} leaves without noise")
    for source in project.at_sites:
        for reply in _replies(source):
            told = _told(source, reply.metrics)
            if reply.loss is not None and source.value(reply.loss) is None:
                told.insert(0, "a loss")
            if told:
                yield Hit(source.at(reply.node), f"{reply.of} returns {', '.join(told)}")
        for call, table in _records(source):
            told = _told(source, table)
            if told:
                yield Hit(source.at(call), f"a metric record holds {', '.join(told)}")


def _told(source: Source, metrics: ast.expr) -> list[str]:
    """What a reply's metrics tell about the data; a mapping that is not written out counts."""
    table = source.meaning(metrics)
    if isinstance(table, ast.Constant):
        return []
    if not isinstance(table, ast.Dict):
        return ["metrics"]
    return [
        repr(key)
        for key, value in _pairs(source, metrics)
        if key not in _HARMLESS | _COUNT_KEYS and source.value(value) is None
    ]


METRICS_LEAVE = rule(
    "metrics-leave",
    "metrics of private data leave without noise",
    why="A loss or an accuracy on private images is one more release, and no accountant has seen "
    "it. Flower's privacy helpers let metrics pass.",
    mend="Evaluate on public data at the server; send nothing of private images but the update.",
)(_metrics_leave)
