"""`python -m nnet_edge.benchmarks.gpu`."""

import sys

from nnet_edge.benchmarks.gpu.all import command
from nnet_edge.benchmarks.harness.command_line import run_command

sys.exit(run_command(command))
