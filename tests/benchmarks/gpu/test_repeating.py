"""Work of the TensorRT runner repeated for a measurement, on a GPU made of the processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnet_edge.anomaly_map import PAPER_FUSION, anomaly_map
from nnet_edge.benchmarks.gpu.repeating import RepeatingRunner
from nnet_edge.errors import StreamError
from nnet_edge.settings.runner import RunnerSettings
from tests.runtime.conftest import gpu_parts, host_kernels  # noqa: F401

RTOL = 1e-5  # FP32 kernels against the reference in float64


@pytest.fixture
def make(host_kernels, gpu_parts, tmp_path: Path) -> Any:  # noqa: F811
    """A function that makes a runner; its device is `runner.gpu`."""

    def make_runner() -> RepeatingRunner:
        path = tmp_path / "nnet.engine"
        path.write_bytes(b"")
        device = gpu_parts.HostDevice(host_kernels, 0)
        with device.current():
            engine = gpu_parts.BlockEngine(device)
            runner = RepeatingRunner(path, RunnerSettings(max_batch=8), device, engine, PAPER_FUSION)
        runner.gpu = device
        return runner

    return make_runner


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 256, 256, 3), np.uint8)


def reference(images: np.ndarray, parts: Any) -> np.ndarray:
    names = [f"{branch}_{side}" for branch in ("forward", "reverse") for side in (64, 32, 16)]
    maps = {name: parts.block_map(images, name).astype(np.float32) for name in names}
    return anomaly_map(maps, fusion=PAPER_FUSION)[:, 0]


def test_the_work_can_be_repeated_for_a_measurement(make, gpu_parts) -> None:  # noqa: F811
    images = noise(2)
    with make() as runner:
        with pytest.raises(StreamError, match="has computed nothing yet"):
            runner.compute_again(1)
        collect = runner.start(images)
        runner.compute_again(5)
        np.testing.assert_allclose(collect().anomaly_map, reference(images, gpu_parts), rtol=RTOL)
        assert runner.gpu.launches["anomaly_map"] + runner.gpu.graph_launches >= 6


def test_the_network_alone_gives_the_same_layer_maps_without_another_kernel(make, gpu_parts) -> None:  # noqa: F811
    images = noise(2)
    with make() as runner:
        with pytest.raises(StreamError, match="has computed nothing yet"):
            runner.network_alone()
        collect = runner.start(images)
        compute = runner.network_alone()
        before = runner.gpu.launches["anomaly_map"]
        compute(3)
        assert runner.gpu.launches["anomaly_map"] == before
        np.testing.assert_allclose(collect().anomaly_map, reference(images, gpu_parts), rtol=RTOL)


def test_the_network_alone_is_a_cuda_graph_where_the_runner_has_one(make) -> None:
    with make() as runner:
        runner.start(noise(2))()
        graphs = runner.gpu.graphs
        runner.network_alone()(3)
        assert (runner.gpu.graphs - graphs, runner.gpu.graph_launches) == (1, 3)


def test_a_closed_runner_computes_nothing(make) -> None:
    runner = make()
    with runner:
        runner.start(noise(1))()
        alone = runner.network_alone()
    with pytest.raises(StreamError, match="is closed: load it again"):
        alone(1)
