"""`veilface export`: a model as one ONNX file, for use without this package."""

from __future__ import annotations

import json
from pathlib import Path

import click

from common.errors import InputError

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option("--backbone", help="Which public model.  [default: dlib-resnet]")
@click.option("--weights", type=FILE, help="Weights for --backbone, or that --model started from.")
@click.option("--model", type=FILE, help="The model of a run, instead of --backbone.")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The ONNX file."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def export(
    backbone: str | None, weights: Path | None, model: Path | None, out: Path, as_json: bool
) -> None:
    """Write a model as ONNX: aligned uint8 chips in, embeddings of length 1 out."""
    if not out.parent.is_dir():
        raise InputError(f"{out.parent} is not a folder", hint="--out names a file in a folder")
    from common.backbones.onnx_export import export_onnx  # here, so that --help needs no torch
    from common.network import open_network

    network = open_network(backbone, weights, model)
    export_onnx(network.module, network.backbone, out)
    spec = network.backbone.chip
    if as_json:
        facts = {
            "model": network.name,
            "path": str(out),
            "bytes": out.stat().st_size,
            "input": ["batch", spec.size, spec.size, 3],
            "alignment": spec.template,
            "output": ["batch", network.dim],
            "probes": network.probe_order is not None,
        }
        click.echo(json.dumps(facts))
        return
    click.echo(f"Wrote {out} ({out.stat().st_size / 1e6:.1f} MB): {network.name}")
    click.echo(f"Input:  uint8 chips [batch, {spec.size}, {spec.size}, 3], RGB, {spec.template}")
    click.echo(f"Output: float32 embeddings [batch, {network.dim}] of length 1")
    if network.probe_order is not None:
        click.echo("Output: probes of the same size; a score is an embedding times a probe")
