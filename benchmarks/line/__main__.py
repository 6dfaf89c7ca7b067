"""`python -m nnet_edge.benchmarks.line`."""

import sys

from nnet_edge.benchmarks.harness.command_line import run_command
from nnet_edge.benchmarks.line.line import command

sys.exit(run_command(command))
