"""What pip would install on a camera box of each kind: names by the markers, and wheels by their tags.

A Jetson has TensorRT from JetPack, for the Python of its Ubuntu; pip must not bring another, and everything else must
come as a wheel for aarch64.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).parent.parent
CAMERA_BOX = ("cpu", "tensorrt", "rtx", "gpu")  # the extras that a camera box may ask for
SOURCE_ONLY = {"pycuda"}  # built on the box, against its own CUDA
OFFLINE = ("connection", "network", "resolve host", "timed out", "proxy")


@dataclass(frozen=True)
class Box:
    """A machine, as pip sees it."""

    name: str
    machine: str
    release: str  # of the kernel
    python: str
    glibc: int  # 2.x

    def names(self, metadata: Message, *extras: str) -> dict[str, Requirement]:
        """What nnet-edge with this metadata asks for here, by name, with these extras."""
        facts = {"platform_machine": self.machine, "platform_release": self.release, "sys_platform": "linux",
                 "python_version": self.python, "python_full_version": f"{self.python}.12"}  # fmt: skip
        wanted = {}
        for requirement in map(Requirement, metadata.get_all("Requires-Dist") or []):
            marker = requirement.marker
            if marker is None or any(marker.evaluate(facts | {"extra": extra}) for extra in ("", *extras)):
                wanted[canonicalize_name(requirement.name)] = requirement
        return wanted


JETPACK_6 = Box("JetPack 6", "aarch64", "5.15.148-tegra", "3.10", 35)
JETPACK_7 = Box("JetPack 7", "aarch64", "6.8.12-tegra", "3.12", 39)
SPARK = Box("DGX Spark", "aarch64", "6.11.0-1016-nvidia", "3.12", 39)
PC = Box("PC", "x86_64", "6.1.0-amd64", "3.11", 36)


@pytest.fixture(scope="module")
def metadata(tmp_path_factory: pytest.TempPathFactory) -> Message:
    """Name and requirements, as setup.py says it now; what an editable install remembers may be older."""
    folder = tmp_path_factory.mktemp("metadata")
    command = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (info,) = folder.glob("*.egg-info/PKG-INFO")
    return message_from_string(info.read_text(encoding="utf-8"))


@pytest.mark.parametrize("box", [JETPACK_6, JETPACK_7], ids=lambda box: box.name)
def test_pip_never_brings_tensorrt_to_a_jetson(box: Box, metadata: Message) -> None:
    names = box.names(metadata, *CAMERA_BOX)
    assert not [name for name in names if name.startswith("tensorrt")]
    assert {"numpy", "pycuda", "openvino", "onnxruntime"} <= names.keys()


def test_elsewhere_the_extras_bring_it(metadata: Message) -> None:
    assert "tensorrt" in PC.names(metadata, "tensorrt")
    assert "tensorrt-rtx-cu13" in PC.names(metadata, "rtx")
    assert "tensorrt-rtx-cu13" in SPARK.names(metadata, "rtx")
    assert "tensorrt" not in SPARK.names(metadata, "tensorrt")
    assert not [name for name in PC.names(metadata, "cpu", "gpu") if name.startswith("tensorrt")]


def test_tensorrt_rtx_is_tested_on_x86_64_only(metadata: Message) -> None:
    assert "tensorrt-rtx-cu13" in PC.names(metadata, "test")
    assert "tensorrt-rtx-cu13" not in JETPACK_7.names(metadata, "test")


@pytest.mark.parametrize("box", [JETPACK_6, JETPACK_7, PC], ids=lambda box: box.name)
def test_the_python_of_the_box_is_allowed(box: Box, metadata: Message) -> None:
    assert f"{box.python}.12" in SpecifierSet(str(metadata["Requires-Python"]))


def test_a_camera_box_gets_no_torch_and_no_onnx(metadata: Message) -> None:
    assert not {"torch", "torchvision", "onnx", "onnxscript"} & PC.names(metadata, *CAMERA_BOX).keys()


@pytest.mark.parametrize(("box", "extras"), [(PC, ("rtx", "gpu")), (PC, ("tensorrt", "gpu")), (JETPACK_6, ("gpu",))])
def test_a_box_with_a_gpu_can_judge_its_engines(box: Box, extras: tuple[str, ...], metadata: Message) -> None:
    """Against a CPU runner, with a threshold whose interval scipy computes."""
    assert {"pycuda", "openvino", "onnxruntime", "scipy"} <= box.names(metadata, *extras).keys()


@pytest.mark.parametrize("box", [JETPACK_6, JETPACK_7], ids=lambda box: box.name)
def test_every_other_package_has_a_wheel_for_aarch64(box: Box, metadata: Message, tmp_path: Path) -> None:
    """Resolved by pip with the box's tags, what they require in turn too; nothing is downloaded but metadata."""
    wanted = [
        str(item).split(";")[0] for name, item in box.names(metadata, *CAMERA_BOX).items() if name not in SOURCE_ONLY
    ]
    tags = [f"manylinux_2_{minor}_{box.machine}" for minor in range(17, box.glibc + 1)]
    platforms = [part for tag in (*tags, f"manylinux2014_{box.machine}") for part in ("--platform", tag)]
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet",
               "--target", str(tmp_path / "box"), "--implementation", "cp",
               "--python-version", box.python, *platforms, "--only-binary", ":all:",
               "--report", str(report), *wanted]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0 and any(word in done.stderr.lower() for word in OFFLINE):
        pytest.skip("NOT RUN: no package index can be reached from here")
    assert done.returncode == 0, done.stderr
    files = [item["download_info"]["url"].rsplit("/", 1)[1] for item in json.loads(report.read_text())["install"]]
    assert len(files) >= len(wanted)
    for file in files:
        platforms_of_wheel = {tag.platform for tag in parse_wheel_filename(file)[3]}
        assert all(name == "any" or name.endswith("_aarch64") for name in platforms_of_wheel), file


def test_a_wheel_holds_every_file_that_code_reads() -> None:
    probe = (
        "import json, setuptools; from distutils.core import run_setup; found = run_setup('setup.py', stop_after='init'); "
        "print(json.dumps([found.packages, found.package_data]))"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, check=True, capture_output=True, text=True)
    packages, data = json.loads(done.stdout.splitlines()[-1])
    assert {"nnet_edge.benchmarks.harness", "nnet_edge.cli.demo"} <= set(packages)
    for package, folder in (("nnet_edge.cli.demo", ROOT / "nnet_edge/cli/demo"),
                            *((f"nnet_edge.benchmarks.{name}", ROOT / "benchmarks" / name)
                              for name in ("accuracy", "line", "peers", "speed"))):  # fmt: skip
        held = {path for pattern in data[package] for path in folder.glob(pattern)}
        assert held == {path for path in folder.iterdir() if path.is_file() and path.suffix != ".py"}
