"""What an audit looks like: ROC curves under the claim, and faces found beside the true ones."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from common.storage import write_private
from server.report.drawing import AFTER, QUIET, SIZE, STYLE, WARNING
from server.report.wording import epsilon_with_delta
from simulations.attacks.audit import Evidence
from simulations.attacks.record import AttackReport, Scores, highest_tpr

_TRAINED = {"full": "all trained", "adapter": "adapter trained"}


def write_pictures(report: AttackReport, evidence: Evidence, folder: Path) -> tuple[Path, ...]:
    """Write a PNG for each attack that has something to show, and return their paths."""
    drawn = [
        (f"roc-{name}.png", _roc(name, scores, report)) for name, scores in evidence.scores.items()
    ]
    if evidence.truth is not None:
        found = evidence.inverted
        rows = [evidence.truth, *(one.images for one in found)]
        labels = ["truth"]
        labels += [
            f"{_TRAINED[one.train_set]}, {'private' if one.private else 'no privacy'}"
            for one in found
        ]
        pictures = [torch.stack(list(row)).permute(0, 2, 3, 1).numpy() for row in rows]
        drawn.append(("inversion.png", _gallery(labels, pictures)))
    if (faces := evidence.drawn) is not None:
        most = slice(0, 6)
        labels = ["truth", "from an embedding", "from a stored template"]
        kinds = [faces.truth[most], faces.from_plain[most], faces.from_template[most]]
        drawn.append(("templates.png", _gallery(labels, kinds)))
    written = []
    for name, figure in drawn:
        written.append(folder / name)
        write_private(written[-1], _png(figure))
    return tuple(written)


def _roc(name: str, found: Scores, report: AttackReport) -> Figure:
    """True over false positive rate on logarithmic axes, and the highest that the claim allows."""
    order = np.argsort(-found.scores)
    members = found.members[order]
    tpr = np.cumsum(members) / max(1, int(members.sum()))
    fpr = np.cumsum(~members) / max(1, int((~members).sum()))
    least = 0.5 / max(1, len(members))
    grid = np.geomspace(least, 1.0, 400)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot()
        axes.grid(visible=True)
        axes.loglog(
            grid,
            highest_tpr(grid, report.epsilon, report.delta),
            color=WARNING,
            linestyle=(0, (5, 2)),
            label=f"at most, {epsilon_with_delta(report.epsilon, report.delta)}",
        )
        axes.loglog(grid, grid, color=QUIET, linewidth=1, label="chance")
        seen = np.maximum(fpr, least)
        axes.loglog(seen, tpr, color=AFTER, drawstyle="steps-post", label="attack")
        axes.set_xlim(least, 1.0)
        axes.set_ylim(least, 1.2)
        axes.set_xlabel("false positive rate")
        axes.set_ylabel("true positive rate")
        of = "right build" if report.control is None else f"control {report.control}"
        axes.set_title(f"{name}: {len(members):,} coins, {of}", loc="left", fontsize=10)
        axes.legend(frameon=False, loc="lower right", fontsize=9)
    return figure


def _gallery(labels: list[str], rows: list[NDArray[np.float32]]) -> Figure:
    """Rows of pictures, grey [n, S, S] or colour [n, S, S, 3] in [0, 1], a label beside each."""
    across = len(rows[0])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.4 + 1.2 * across, 1.25 * len(rows)), layout="constrained")
        for row, (label, pictures) in enumerate(zip(labels, rows, strict=True)):
            for column, picture in enumerate(pictures):
                axes = figure.add_subplot(len(rows), across, row * across + column + 1)
                axes.imshow(np.clip(picture, 0, 1), cmap="gray", vmin=0, vmax=1)
                axes.set_xticks([])
                axes.set_yticks([])
                for spine in axes.spines.values():
                    spine.set_visible(False)
                if column == 0:
                    axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=10)
    return figure


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    found = io.BytesIO()
    figure.savefig(found, format="png", dpi=130, facecolor="white")
    return found.getvalue()
