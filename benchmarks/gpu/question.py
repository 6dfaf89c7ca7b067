"""Do the installed TensorRT flavours run on this GPU? One line each, asked anew whatever the cache says.

python -m nnet_edge.benchmarks.gpu_question
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from nnet_edge.benchmarks.harness.command_line import run_command
from nnet_edge.errors import StreamError
from nnet_edge.gpu import NoGpu, find_gpu
from nnet_edge.runtime.runners.trt.flavours import Answer, ask_in_process
from nnet_edge.runtime.runners.trt.library import installed_flavours


@click.command()
@click.option("--gpu", "index", type=int, default=0, show_default=True, help="As CUDA counts them.")
def command(index: int) -> None:
    """Say whether TensorRT runs on this machine's GPU: a line for each flavour, then JSON on standard output."""
    gpu = find_gpu(index)
    if isinstance(gpu, NoGpu):
        raise StreamError(f"{gpu.reason}: the question needs one")
    answers = [ask_in_process(flavour, gpu) for flavour in installed_flavours()]
    absent = Answer(gpu.compute_capability, None, None, "neither TensorRT nor TensorRT-RTX is installed")
    for answer in answers or [absent]:
        click.echo(answer.sentence(), err=True)
    click.echo(json.dumps([asdict(answer) for answer in answers]))


if __name__ == "__main__":
    sys.exit(run_command(command))
