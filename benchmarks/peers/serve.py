"""A candidate in a process of its own: it loads, warms up, and answers "time so many frames" over its pipe.

    python -m nnet_edge.benchmarks.peers.serve SYSTEM ARTEFACT FRAMES.npy THREADS PRECISION

One frame is a uint8 RGB image (256, 256, 3) that lies ready; its time ends when map and score are in NumPy. In: lines of
JSON, {"frames": 10}. Out: {"ready": true} once, then {"latencies_ms": [...]} for each; the end of the input ends it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Judge = Callable[[np.ndarray], tuple[np.ndarray, float]]  # uint8 RGB (256, 256, 3) -> map (256, 256), score
WARM_UP_CALLS = 3
NS_PER_MS = 1e6


def main(system: str, artefact: Path, frames: Path, threads: int, precision: str) -> None:
    """Serve until the input ends; what the libraries print goes to standard error."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    images = np.load(frames)
    judge = SYSTEMS[system](artefact, threads, precision)
    for number in range(WARM_UP_CALLS):
        judge(images[number % len(images)])
    print(json.dumps({"ready": True}), file=answers)
    place = 0
    for line in sys.stdin:
        count = int(json.loads(line)["frames"])
        judge(images[place % len(images)])  # not counted: the pools of threads went to sleep between the rounds
        took_ns = []
        for _ in range(count):
            image = images[place % len(images)]
            place += 1
            began_ns = time.perf_counter_ns()
            judge(image)
            took_ns.append(time.perf_counter_ns() - began_ns)
        print(json.dumps({"latencies_ms": [value / NS_PER_MS for value in took_ns]}), file=answers)


def anomalib_torch(artefact: Path, threads: int, precision: str = "fp32") -> Judge:
    """anomalib's TorchInferencer on its own torch export."""
    os.environ["TRUST_REMOTE_CODE"] = "1"  # the file was written by learn.py on this machine
    from nnet_edge.methods.torchvision_operators import import_torchvision

    import_torchvision()
    import torch
    from anomalib.deploy import TorchInferencer

    torch.set_num_threads(threads)
    inferencer = TorchInferencer(artefact, device="cpu")

    @torch.inference_mode()
    def judge(image: np.ndarray) -> tuple[np.ndarray, float]:
        pixels = torch.from_numpy(image).permute(2, 0, 1).float() / 255
        return unpack(inferencer.model(inferencer.pre_process(pixels)))

    return judge


def anomalib_openvino(artefact: Path, threads: int, precision: str = "fp32") -> Judge:
    """anomalib's OpenVINOInferencer on its own export; FP32 is computed in FP32, as our runner does."""
    from nnet_edge.methods.torchvision_operators import import_torchvision

    import_torchvision()
    from anomalib.deploy import OpenVINOInferencer

    config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    inferencer = OpenVINOInferencer(artefact, device="CPU", config=config)
    height, width = inferencer.input_blob.shape[2], inferencer.input_blob.shape[3]

    def judge(image: np.ndarray) -> tuple[np.ndarray, float]:
        if image.shape[:2] != (height, width):  # the inferencer does not resize: whoever uses it has to
            import cv2

            image = cv2.resize(image, (width, height))
        return unpack(inferencer.predict(image))

    return judge


def unpack(found: Any) -> tuple[np.ndarray, float]:
    """Map and score of one image out of anomalib's batches."""
    anomaly_map, score = np.asarray(found.anomaly_map, np.float32), np.asarray(found.pred_score, np.float32)
    return anomaly_map.reshape(anomaly_map.shape[-2:]), float(score.reshape(-1)[0])


def our_torch(artefact: Path, threads: int, precision: str) -> Judge:
    """The network of a bundle in eager PyTorch, its tail as `evaluate --torch` computes it."""
    import torch

    from nnet_edge.bundle import read_bundle
    from nnet_edge.evaluation.artefact import load_network
    from nnet_edge.methods.network import TorchRunner

    torch.set_num_threads(threads)
    return runner_judge(TorchRunner(load_network(read_bundle(artefact)), max_batch=1))


def our_graph(kind: str) -> Callable[[Path, int, str], Judge]:
    """The network of a bundle on a runner of ours."""

    def open_it(artefact: Path, threads: int, precision: str) -> Judge:
        from nnet_edge.bundle import read_bundle
        from nnet_edge.runtime.runners.base import load_runner
        from nnet_edge.settings.runner import RunnerSettings

        graph = read_bundle(artefact).graph_for(kind, precision).path
        runner = load_runner(graph, RunnerSettings(kind, "fp32", threads, max_batch=1))
        runner.__enter__()  # its end is the process's
        return runner_judge(runner)

    return open_it


def runner_judge(runner: Any) -> Judge:
    """A runner for one image at a time."""

    def judge(image: np.ndarray) -> tuple[np.ndarray, float]:
        outputs = runner.infer(image[None])
        return outputs.anomaly_map[0], float(outputs.image_score[0])

    return judge


SYSTEMS: dict[str, Callable[[Path, int, str], Judge]] = {
    "anomalib torch": anomalib_torch,
    "anomalib openvino": anomalib_openvino,
    "torch": our_torch,
    "openvino": our_graph("openvino"),
    "onnxruntime": our_graph("onnxruntime"),
}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
