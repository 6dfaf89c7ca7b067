"""The box at the camera as a container: without a home, a user without a name, a quota of time, libraries that do not load."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from nnet_edge.cli.doctor import describe, examine, judge_commands, owners_words
from nnet_edge.errors import DataError, MissingExtraError, missing_library
from nnet_edge.image_files import read_image
from nnet_edge.machine import LIBRARIES, Cuda, Library, Processor, cpu_quota, loading_problem, owners_of, usable_cores
from nnet_edge.runtime.runners import openvino_runner
from nnet_edge.settings.runner import RunnerSettings

ROOT = Path(__file__).parents[1]
NNET_EDGE = Path(sys.executable).with_name("nnet-edge")
NO_GL = "libGL.so.1: cannot open shared object file: No such file or directory"


def group_folder(root: Path, path: str, **files: str) -> Path:
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/", {"": {"cpu__max": "150000 100000"}}, 1.5),
        ("0::/", {"": {"cpu__max": "max 100000"}}, None),
        ("0::/a/b", {"a": {"cpu__max": "50000 100000"}, "a/b": {"cpu__max": "max 100000"}}, 0.5),  # of the group above
        ("0::/of/the/host", {"": {"cpu__max": "200000 100000"}}, 2.0),  # only the container's own group can be seen
        ("4:cpu,cpuacct:/box", {"cpu/box": {"cpu__cfs_quota_us": "300000", "cpu__cfs_period_us": "100000"}}, 3.0),
        ("4:cpu,cpuacct:/box", {"cpu/box": {"cpu__cfs_quota_us": "-1", "cpu__cfs_period_us": "100000"}}, None),
        ("7:memory:/box", {"memory/box": {"cpu__max": "1 1"}}, None),
        ("", {}, None),
    ],
)
def test_the_quota_of_either_version_is_read(
    own: str, files: dict[str, dict[str, str]], quota: float | None, tmp_path: Path
) -> None:
    for path, content in files.items():
        group_folder(tmp_path / "groups", path, **content)
    (tmp_path / "own").write_text(f"{own}\n")
    assert cpu_quota(tmp_path / "groups", tmp_path / "own") == quota
    assert cpu_quota(tmp_path / "groups", tmp_path / "absent") is None


def test_threads_follow_the_quota(trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = len(os.sched_getaffinity(0))
    monkeypatch.setattr("nnet_edge.machine.cpu_quota", lambda: None)
    assert usable_cores() == seen
    monkeypatch.setattr("nnet_edge.machine.cpu_quota", lambda: seen + 5.0)
    assert usable_cores() == seen
    monkeypatch.setattr("nnet_edge.machine.cpu_quota", lambda: 0.5)
    assert usable_cores() == 1
    if seen > 1:
        settings = RunnerSettings(kind="openvino", hint="throughput")
        with openvino_runner.OpenvinoRunner(trained_run / "bundle/nnet.onnx", settings) as runner:
            assert runner._single.compiled.get_property("INFERENCE_NUM_THREADS") == 1


def test_torch_and_opencv_follow_the_quota() -> None:
    code = (
        "import nnet_edge.machine as m; m.cpu_quota = lambda: 1.5\n"
        "import cv2, torch, nnet_edge.imaging, nnet_edge.methods.compute, nnet_edge.data.images as i\n"
        "print(cv2.getNumThreads(), torch.get_num_threads(), i.THREADS)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1", "1"]


@pytest.fixture
def no_gl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes find an OpenCV that is installed and lacks the system's libGL."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/cv2.py").write_text(f"raise ImportError({NO_GL!r})\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))


@pytest.mark.usefixtures("no_gl", "no_broadcast")
def test_an_opencv_without_libgl_is_one_sentence_and_the_doctor_says_so(parts_folder: Path) -> None:
    done = subprocess.run([NNET_EDGE, "evaluate", "bundle", parts_folder], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"nnet-edge: error: a library cannot be loaded: {NO_GL}: apt-get install libgl1, or pip"
    )
    assert done.stderr.count("\n") == 1
    assert (loading_problem("cv2") or "").startswith(NO_GL)
    findings = examine()
    assert not any(command.is_ready for command in findings.verbs)
    assert f"CANNOT BE LOADED: {NO_GL}" in describe(findings)


@pytest.mark.parametrize(
    "names", [("opencv-python-headless",), ("opencv-python",), ("opencv-python-headless", "opencv-python")]
)
def test_two_distributions_of_one_library_are_told(
    names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in names:
        facts = tmp_path / f"{name.replace('-', '_')}-99.0.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 99.0\n")
        (facts / "RECORD").write_text(f"cv2/__init__.py,,\n{facts.name}/METADATA,,\n{facts.name}/RECORD,,\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    owners = owners_of("cv2", LIBRARIES["cv2"][0])
    assert owners == (names if len(names) > 1 else ())
    if owners:
        words = owners_words(Library("cv2", "99.0", "", None, owners))
        assert words.endswith(
            "pip uninstall opencv-python-headless opencv-python, then pip install opencv-python-headless"
        )


def test_a_runner_that_does_not_load_leaves_the_other() -> None:
    versions: dict[str, str | None] = dict.fromkeys(LIBRARIES, "1.0")
    cuda, processor = Cuda(None, (), None, "none"), Processor("some", 4, 4, (), 8.0)

    def stream(*broken: str) -> tuple[bool, str]:
        judged = judge_commands(versions, cuda, processor, dict.fromkeys(broken, "libgomp.so.1: not there"))
        (found,) = (one for one in judged if one.name == "stream")
        return found.is_ready, found.uses or found.advice

    assert stream("openvino") == (True, "onnxruntime 1.0 on 4 CPU core(s)")
    assert stream("openvino", "onnxruntime") == (False, "openvino cannot be loaded: libgomp.so.1: not there")


def test_absent_and_broken_are_told_apart() -> None:
    absent = missing_library("openvino", "cpu", ModuleNotFoundError("No module named 'openvino'", name="openvino"))
    assert isinstance(absent, MissingExtraError)
    assert str(absent) == "openvino is not installed: pip install 'nnet-edge[cpu]'"
    broken = missing_library("openvino", "cpu", ImportError("libgomp.so.1: cannot open shared object file"))
    assert str(broken) == (
        "openvino is installed and cannot be loaded: libgomp.so.1: cannot open shared object file: apt-get install libgomp1"
    )


def unshare_works() -> bool:
    try:
        return subprocess.run(["unshare", "--user", "--map-user=12345", "true"], capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not unshare_works(), reason="NO USER NAMESPACES: a user without name and home was NOT tried")
@pytest.mark.parametrize("runner", ["openvino", "onnxruntime"])
def test_a_user_without_name_and_home_streams(
    runner: str, trained_run: Path, parts_folder: Path, tmp_path: Path
) -> None:
    nobody = ["unshare", "--user", "--map-user=12345", "env", "-i", f"PATH={os.environ['PATH']}", f"TMPDIR={tmp_path}"]
    stream = [NNET_EDGE, "stream", parts_folder / "test_good", "--bundle", trained_run / "bundle", "--runner", runner]
    done = subprocess.run([*nobody, *stream, "--json", "lines.jsonl"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "lines.jsonl").read_text().splitlines()) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lines.jsonl"]


# Everything can be read and only the folder $1 written, which is /mnt inside; /tmp is the container's --tmpfs, where a
# project that lies there ($2) and its Python ($3) are seen again
READ_ONLY_ROOT = """set -eu
mount --make-rprivate / && mount --bind "$1" /mnt && mount -o remount,bind,ro /
exec 8<"$2" 9<"$3"
mount -t tmpfs -o size=16m tmpfs /tmp && mount -t tmpfs -o size=64k tmpfs /dev/shm
for number in 8 9; do
    seen=$2; [ $number = 8 ] || seen=$3
    case $seen in /tmp/*) mkdir -p "$seen" && mount --no-canonicalize --bind /proc/self/fd/$number "$seen";; esac
done
! touch /var/tmp/written 2>/dev/null && cd /mnt && shift 3 && exec "$@"
"""


def test_a_read_only_root_and_64_kib_of_shared_memory_are_enough(
    trained_run: Path, parts_folder: Path, tmp_path: Path
) -> None:
    box = [
        "unshare",
        "--map-root-user",
        "--mount",
        "bash",
        "-c",
        READ_ONLY_ROOT,
        "box",
        str(tmp_path),
        str(ROOT),
        sys.prefix,
    ]
    if not shutil.which("unshare") or subprocess.run([*box, "true"], capture_output=True).returncode:
        pytest.skip("NO MOUNTS MAY BE MADE: a read-only root was NOT tried")
    shutil.copytree(trained_run / "bundle", tmp_path / "bundle")
    shutil.copytree(parts_folder / "test_good", tmp_path / "parts")
    outputs = ["--json", "lines.jsonl", "--rejects", "rejects", "--video", "line.mp4", "--cache-dir", "/tmp/cache"]
    command = [NNET_EDGE, "stream", "left=parts", "right=parts", "--bundle", "bundle", "--threshold", "1e-6", *outputs]
    log, lines = tmp_path / "log", tmp_path / "lines.jsonl"
    lines.touch()
    with log.open("w") as said, subprocess.Popen([*box, *command, "--page", "0"], stderr=said) as line:
        end_s = time.monotonic() + 60  # the page keeps the line open when its sources have ended
        while line.poll() is None and time.monotonic() < end_s and len(lines.read_text().splitlines()) < 8:
            time.sleep(0.1)
        line.terminate()
    assert line.returncode == 0, log.read_text()
    assert "the page is at http://127.0.0.1:" in log.read_text()
    assert len(lines.read_text().splitlines()) == 8
    assert len([*(tmp_path / "rejects").rglob("*.jpg")]) == 8
    assert sum(path.suffix == ".mp4" and path.stat().st_size > 0 for path in tmp_path.rglob("*")) == 2


def test_names_with_a_colon_or_a_line_end_are_names(trained_run: Path, parts_folder: Path, tmp_path: Path) -> None:
    odd = tmp_path / "a:b\nc"
    odd.mkdir()
    command = [NNET_EDGE, "stream", parts_folder / "test_good", "--bundle", trained_run / "bundle"]
    made = subprocess.run([*command, "--video", "http:1.avi", "--json", "o:1"], cwd=odd, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    again = [NNET_EDGE, "stream", "http:1.avi", "--bundle", trained_run / "bundle", "--json", "o:2"]
    seen = subprocess.run(again, cwd=odd, capture_output=True, text=True)
    assert seen.returncode == 0, seen.stderr
    assert [len((odd / name).read_text().splitlines()) for name in ("o:1", "o:2")] == [4, 4]


def chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


@pytest.mark.parametrize(
    "note",
    [
        chunk(b"tEXt", b"Comment\0hello"),
        chunk(b"tEXt", b"Comment\0" + bytes(900 << 10)) * 80,
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3 << 20))),
        chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(bytes(3 << 20))),
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(3 << 20))),
        chunk(b"zTXt", b"Comment\0\0no zlib"),
        chunk(b"eXIf", b"none"),
    ],
    ids=["text", "many texts", "large zTXt", "large iTXt", "large profile", "damaged text", "no EXIF"],
)
@pytest.mark.parametrize("is_last", [False, True], ids=["in front", "behind"])
def test_notes_in_a_png_do_not_matter(note: bytes, is_last: bool, parts_folder: Path, tmp_path: Path) -> None:
    plain = parts_folder / "test_good/0.png"
    content = plain.read_bytes()
    place = len(content) - 12 if is_last else 33  # before the end, or behind the head
    (tmp_path / "noted.png").write_bytes(content[:place] + note + content[place:])
    assert np.array_equal(read_image(tmp_path / "noted.png"), read_image(plain))


def test_a_png_that_is_cut_off_is_still_refused(parts_folder: Path, tmp_path: Path) -> None:
    content = (parts_folder / "test_good/0.png").read_bytes()
    noted = content[:33] + chunk(b"tEXt", b"Comment\0hello") + content[33:]
    (tmp_path / "cut.png").write_bytes(noted[: len(noted) // 2])
    with pytest.raises(DataError):
        read_image(tmp_path / "cut.png")
