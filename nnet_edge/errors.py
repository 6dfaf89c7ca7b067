"""Errors that nnet-edge raises on purpose; each says what is wrong, where, and what to do.

NnetEdgeError
  ConfigError          an invalid setting or path (the command line ends with exit code 2)
  MissingExtraError    (also ImportError) names the extra to install
  DataError            a folder, an image or a mask that cannot be used
  BundleError          a bundle that is absent, altered, incomplete or of another schema
  WeightsError         a teacher's weights that are absent or do not fit
  TrainingError        training that cannot go on, a NaN loss for one
  ExportError          EngineBuildError, ParityError
  CalibrationError
  StreamError          SourceError, SinkError, NotFiniteError
"""

from nnet_edge.text import one_line

EXIT_FAILURE = 1
EXIT_WRONG_USE = 2
EXIT_INTERRUPTED = 130  # as a shell says of Ctrl-C; the same command goes on


class NnetEdgeError(Exception):
    """The root: whatever nnet-edge raises on purpose; `exit_code` is what the command line ends with."""

    exit_code = EXIT_FAILURE

    def __str__(self) -> str:
        """One line; a file name in it cannot write to the terminal."""
        return one_line(super().__str__())


class ConfigError(NnetEdgeError):
    """An invalid setting or path."""

    exit_code = EXIT_WRONG_USE


class MissingExtraError(NnetEdgeError, ImportError):
    """A library that is not installed; the message names the extra that brings it."""


SYSTEM_PACKAGES = {  # file that a wheel expects of the system -> what brings it on Debian and Ubuntu
    "libGL.so.1": "libgl1, or pip install opencv-python-headless in place of opencv-python",
    "libgthread-2.0.so.0": "libglib2.0-0",
    "libglib-2.0.so.0": "libglib2.0-0",
    "libgomp.so.1": "libgomp1",
    "libstdc++.so.6": "libstdc++6",
}


def loading_fault(text: str) -> str:
    """What an ImportError said of a library that is there and cannot be loaded, in one line, with the package to install."""
    reason = " ".join(text.split())
    found = [package for file, package in SYSTEM_PACKAGES.items() if file in reason]
    return f"{reason}: apt-get install {found[0]}" if found else reason


def missing_library(library: str, extra: str, error: ImportError) -> MissingExtraError:
    """What to raise where `import library` failed: whether it is not installed, or installed and cannot be loaded."""
    if isinstance(error, ModuleNotFoundError) and error.name == library:
        return MissingExtraError(f"{library} is not installed: pip install 'nnet-edge[{extra}]'")
    return MissingExtraError(f"{library} is installed and cannot be loaded: {loading_fault(str(error))}")


class DataError(NnetEdgeError):
    """A folder, an image or a mask that cannot be used."""


class BundleError(NnetEdgeError):
    """A bundle that is absent, altered, incomplete or of another schema."""


class WeightsError(NnetEdgeError):
    """A teacher's weights that are absent or do not fit its layers."""


class TrainingError(NnetEdgeError):
    """Training that cannot go on."""


class ExportError(NnetEdgeError):
    """A graph or an engine that could not be written."""


class EngineBuildError(ExportError):
    """TensorRT could not build an engine."""


class ParityError(ExportError):
    """Two runners disagree on the same images by more than the stated tolerance."""


class CalibrationError(NnetEdgeError):
    """Activation ranges that could not be measured."""


class StreamError(NnetEdgeError):
    """A stream that cannot start or go on."""


class NotFiniteError(StreamError):
    """A score or an anomaly map that is NaN or infinite: no verdict can rest on it."""


class SourceError(StreamError):
    """A source that is unknown, cannot be opened, or died."""


class SinkError(StreamError):
    """A sink that cannot take a prediction; `wait_s` is for how many seconds the receiver asks to be left alone."""

    def __init__(self, message: str = "", wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s
