"""`nnet-edge export-model`: write a bundle's graph as another program takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nnet_edge.cli.options import FOLDER, Command, shown_option
from nnet_edge.cli.view import say

FORMS = ("onnx", "openvino-ir", "triton", "deepstream", "cpp")


@click.command("export-model", cls=Command, example="nnet-edge export-model runs/part/bundle --to triton --out triton/")
@click.argument("bundle", type=FOLDER)
@click.option("--to", type=click.Choice(FORMS), required=True, help="The form, see docs/contract.md (no default).")
@click.option("--out", type=FOLDER, required=True, help="The folder to write.")
@click.option("--backend", type=click.Choice(["onnxruntime", "openvino", "tensorrt"]),
              help="What computes: of triton all three, of onnx and cpp the first two (default: the first).")  # fmt: skip
@shown_option("--precision", type=click.Choice(["fp32", "fp16", "int8"]), default="fp32",
              help="fp16 and int8 come from calibrate.")  # fmt: skip
@click.option("--name", metavar="NAME", help="Of the model on its server (default: that of its folder).")
@shown_option(
    "--batch", "max_batch", type=click.IntRange(1, 256), metavar="IMAGES", default=8, help="Largest batch of a server."
)
@click.option("--threshold", type=click.FloatRange(0, min_open=True), metavar="SCORE",
              help="Above it a part is a reject (default: the bundle's).")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace the folder.")
def command(bundle: Path, to: str, out: Path, **options: Any) -> None:
    """Write the graph of BUNDLE for another program: Triton, the OpenVINO model server, DeepStream, C++."""
    from nnet_edge.export.forms import export_model

    order = export_model(bundle, to, out, **options)
    say(
        f"wrote {out}: {to} of {order.name}, {order.artefact.precision}, threshold {order.threshold:.6g} on {order.backend}"
    )
    say(f"how it is started: {out / 'README.md'}; what it takes and gives: {out / 'contract.json'}")
