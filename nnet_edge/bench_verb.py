"""The group `nnet-edge bench`: a subcommand a question, each one short function; libraries are imported by the one that runs.

A subcommand lives in a module of its own whose import is as light as this one's, and is registered at the end of this file.
"""

from __future__ import annotations

import click

from nnet_edge.bench_accuracy_verb import accuracy, levers
from nnet_edge.bench_peers_verb import peers
from nnet_edge.bench_speed_verb import growth, guard, speed
from nnet_edge.cli_options import Verbs


@click.group(cls=Verbs)
def bench() -> None:
    """Measure speed and accuracy on this machine: every figure with its command, its spread and the machine in words."""


bench.add_command(accuracy)
bench.add_command(levers)
bench.add_command(speed)
bench.add_command(growth)
bench.add_command(peers)
bench.add_command(guard)
