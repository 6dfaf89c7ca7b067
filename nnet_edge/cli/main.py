"""Entry point of the command line: one module a command, imported when its command is asked for."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from importlib import import_module

import click

from nnet_edge import __version__
from nnet_edge.cli.options import CommandGroup
from nnet_edge.cli.view import Verbosity, set_verbosity
from nnet_edge.errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_WRONG_USE, NnetEdgeError, loading_fault
from nnet_edge.text import printable
from nnet_edge.threads import wait_passively


def main() -> None:
    """Run the command line; every expected failure is one line on standard error and an exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: nothing half-written stays
    wait_passively()  # before torch is imported
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """The exit code of `nnet-edge` with these arguments: 0, 1 for a failure, 2 for wrong use, 130 when interrupted."""
    try:
        return int(commands.main(arguments, "nnet-edge", standalone_mode=False, terminal_width=help_width()) or 0)
    except NnetEdgeError as error:
        return complain(str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return EXIT_WRONG_USE
    except click.ClickException as error:
        return complain(error.format_message(), EXIT_WRONG_USE)
    except (click.Abort, KeyboardInterrupt):
        return complain("interrupted", EXIT_INTERRUPTED)
    except MemoryError:
        return complain("out of memory: use fewer images, a smaller --batch or a smaller --backbone", EXIT_FAILURE)
    except ImportError as error:  # a library of every installation: OpenCV without the system's libGL
        return complain(f"a library cannot be loaded: {loading_fault(str(error))} (see nnet-edge doctor)", EXIT_FAILURE)
    except OSError as error:  # a full disk, a folder without permission
        where = f"{error.filename}: " if error.filename else ""
        return complain(f"{where}{error.strerror or error}", EXIT_FAILURE)
    except Exception as error:
        if arguments[0] == "--debug":
            traceback.print_exception(error)
        told = f"unexpected: {type(error).__name__}: {error}; please report it with what `nnet-edge --debug ...` prints"
        return complain(told, EXIT_FAILURE)
    finally:
        set_verbosity(Verbosity.NORMAL)


def help_width() -> int:
    """The width of a help text as click chooses it, but without shutil, whose import takes 3 ms."""
    try:
        columns = int(os.environ.get("COLUMNS") or 0) or os.get_terminal_size().columns
    except (OSError, ValueError):
        columns = 0
    return max(min(columns if columns > 0 else 80, 80) - 2, 50)


def complain(message: str, code: int) -> int:
    """Print one line on standard error; return the exit code."""
    click.echo(f"nnet-edge: error: {printable(' '.join(message.split()))}", err=True)
    return code


COMMANDS = {  # name -> its module, and what --help says of it; a test holds these lines against the commands' own
    "answers": ("answers", "Give BUNDLE, one of before, its known answers."),
    "bench": ("bench", "Measure speed and accuracy on this machine."),
    "build-engine": ("engine", "Build a TensorRT engine of BUNDLE's graph."),
    "calibrate": ("calibrate", "Make INT8 and FP16 graphs of BUNDLE."),
    "cameras": ("cameras", "List the cameras that are there."),
    "collect": ("collect", "Collect photographs of good parts from SOURCE."),
    "config": ("config", "Begin, check and describe a line's settings file."),
    "data": ("data", "Show what DATA holds and how it is read."),
    "demo": ("demo", "Build, train and judge an example line."),
    "doctor": ("doctor", "Show what this machine has."),
    "evaluate": ("evaluate", "Measure BUNDLE on the test images of DATA."),
    "export": ("export", "Make a bundle of the folder TRAINING."),
    "export-model": ("export_model", "Write the graph of BUNDLE for another program: Triton, the OpenVINO model..."),
    "fleet": ("fleet", "Train many parts and score many pictures, on this machine's cores or on a Ray cluster."),
    "history": ("history", "Show what a line's history PATH says of a shift."),
    "pack": ("pack", "Pack BUNDLE, nnet-edge and all its wheels for a box without a network."),
    "pairs": ("pairs", "Draw good images of DATA beside damaged copies."),
    "review": ("review", "Propose from the parts that people labelled in HISTORY, and that BUNDLE judged."),
    "serve": ("serve", "Serve BUNDLE, or NAME=BUNDLE, by HTTP: Open Inference..."),
    "stream": ("stream", "Judge every frame of SOURCE."),
    "swap": ("swap", "Let a running line judge by BUNDLE."),
    "train": ("train", "Learn from the good images of DATA."),
}


class Commands(CommandGroup):
    """The commands by name, imported on demand so that --help stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"nnet_edge.cli.{COMMANDS[cmd_name][0]}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


def show_version(context: click.Context, option: click.Parameter, is_asked: bool) -> None:
    """Print what a bug report needs: the versions here, and on what they run."""
    if not is_asked or context.resilient_parsing:
        return
    import platform

    from nnet_edge.machine import find_processor, installed_versions

    processor = find_processor()
    click.echo(f"nnet-edge, version {__version__}")
    click.echo(f"Python {platform.python_version()}, {platform.platform()}")
    click.echo(f"{processor.model}, {processor.usable_cores or processor.cores or '?'} cores")
    click.echo(", ".join(f"{module} {version}" for module, version in installed_versions().items()))
    context.exit()


@click.group(cls=Commands)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=show_version,
              help="Show the versions that a bug report needs, and exit; doctor says more.")  # fmt: skip
@click.option("--debug", is_flag=True, help="Show the traceback of an unexpected error.")
def commands(debug: bool) -> None:
    """From a folder of good photographs to a live verdict on every part.

    \b
    nnet-edge train photos/ --out runs/part
    nnet-edge stream 0 --bundle runs/part/bundle
    """
