"""The command line: one file a command."""

from nnet_edge.cli.main import main, run

__all__ = ["main", "run"]
