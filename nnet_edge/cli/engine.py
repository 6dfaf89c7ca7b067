"""`nnet-edge build-engine`: build TensorRT engines into a bundle and measure those that run here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nnet_edge.cli.options import FOLDER, Command, find_dataset, gpu_option, labelled_data_options, shown_option
from nnet_edge.cli.view import say, steps_bar, stop_on_signal

if TYPE_CHECKING:
    from nnet_edge.export.engine_settings import EngineSettings


def engine_settings(options: Mapping[str, Any]) -> EngineSettings:
    """The settings that the command line's options stand for. Raises ConfigError for invalid ones."""
    from nnet_edge.export.engine_settings import EngineSettings, Profile, parse_target

    return EngineSettings(
        parse_target(options["target"], gpu_index=options["gpu"]), Profile.parse(options["batch"]), options["workspace"],
        options["optimization"], options["hardware_compatibility"], options["version_compatible"], options["gpu"],
    )  # fmt: skip


@click.command("build-engine", cls=Command, example="nnet-edge build-engine runs/part/bundle --target rtx:sm86,sm89")
@click.argument("bundle", type=FOLDER)
@shown_option("--precision", type=click.Choice(["fp32", "fp16", "int8", "best"]), default="best",
              help="best: the fastest that passes the gate here.")  # fmt: skip
@shown_option("--target", metavar="TARGET", default="local", help="local, jetson, or cards: rtx:sm86,sm89,sm120.")
@shown_option("--batch", metavar="N,N,N", default="1,8,32", help="Smallest,best,largest, in images; or one number.")
@click.option("--workspace", type=int, metavar="MIB", help="MiB that the builder may use (default: all).")
@shown_option("--optimization", type=int, metavar="LEVEL", default=3, help="0 builds quickest, 5 tries most.")
@shown_option("--hardware-compatibility", type=click.Choice(["none", "ampere_plus", "same_compute_capability"]),
              default="none", help="GPUs beside this one (TensorRT only).")  # fmt: skip
@click.option("--version-compatible", is_flag=True, help="Later versions of the same major load it (TensorRT only).")
@click.option("--accept", is_flag=True, help="Use an engine that the gate refuses.")
@click.option(
    "--measure", "only_measure", is_flag=True, help="Build nothing: measure the engines that fit this machine."
)
@gpu_option
@labelled_data_options
def command(bundle: Path, precision: str, only_measure: bool, **options: Any) -> None:
    """Build a TensorRT engine of BUNDLE's graph into BUNDLE, and judge it here if this machine runs it."""
    from nnet_edge.export.engines import EngineJob, Judging, build_engines, load_labelled, measure_engines

    dataset = None if options["data"] is None else find_dataset(options["data"], options)
    judging = Judging(options["accept"], load_labelled(bundle, dataset, options["skip_bad_images"]), say)
    with stop_on_signal() as stop:
        if only_measure:
            measure_engines(bundle, judging, options["gpu"])
        else:
            build_engines(bundle, precision, EngineJob(engine_settings(options), judging, steps_bar, stop))
