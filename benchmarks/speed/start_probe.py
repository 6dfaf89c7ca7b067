"""One start of `nnet-edge stream`, from the new process to the first verdict, its phases as a JSON line; `start.py` runs it.

Nothing is imported up here that the phases are to pay for. The arguments: the moment at which the process was started
(time.monotonic(), seconds), bundle, picture, precision, and cache folder or "-".
"""

from __future__ import annotations

import json
import sys
import time


def main(began_s: str, bundle: str, picture: str, precision: str, cache: str) -> None:
    """Print phase -> (milliseconds by the clock, milliseconds of the processor)."""
    phases: dict[str, tuple[float, float]] = {}
    before_s, before_processor_s = float(began_s), 0.0

    def end(phase: str) -> None:
        nonlocal before_s, before_processor_s
        now_s, now_processor_s = time.monotonic(), time.process_time()
        phases[phase] = 1e3 * (now_s - before_s), 1e3 * (now_processor_s - before_processor_s)
        before_s, before_processor_s = now_s, now_processor_s

    end("python")
    from pathlib import Path

    import nnet_edge.runtime.runners.openvino_runner  # noqa: F401
    from nnet_edge.bundle import read_bundle
    from nnet_edge.runtime.sinks import CallbackSink
    from nnet_edge.runtime.sources.images import ImageFileSource
    from nnet_edge.runtime.stream.model import open_graph
    from nnet_edge.runtime.stream.running import run
    from nnet_edge.settings.runner import RunnerSettings
    from nnet_edge.settings.stream import VerdictSettings

    end("imports")
    opened = read_bundle(Path(bundle))
    end("bundle read, hashes checked")
    settings = RunnerSettings("openvino", hint="throughput", cache_dir=None if cache == "-" else Path(cache))
    runner, threshold = open_graph(opened, settings, precision)
    end("graph read and compiled")
    source = ImageFileSource([Path(picture)], "folder", "start")
    run(source, runner, [CallbackSink(lambda prediction: end("first verdict"))], VerdictSettings(threshold))
    sys.stdout.write(json.dumps(phases) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
