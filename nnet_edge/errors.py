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
