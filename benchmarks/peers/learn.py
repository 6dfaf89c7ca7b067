"""One method learns one category and judges its test images; or is only exported, with random weights, for its speed.

Runs in the other methods' environment: python -m nnet_edge.benchmarks.peers.learn JOB.json. The job names method, backbone,
seed, folders and limits (rows.py writes it); it leaves in its `out`:

    facts.json                          what was built, how long it learned, what was counted
    model.pt, openvino/, openvino-int8/ anomalib's own exports
    maps-fp32.npy, scores-fp32.npy      float32 (N, 256, 256) and (N,): the torch module's, not scaled or clamped
    maps-int8.npy, scores-int8.npy      those of the INT8 graph in anomalib's OpenVINO inferencer
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import signal
import sys
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from nnet_edge.benchmarks.peers.methods import METHODS, RANDOM, Method

JUDGED_AT_ONCE = 4  # PatchCore's distances to its whole bank take 60 MB an image


def main(job: dict[str, Any]) -> None:
    """Do `job`; facts.json is written last, so a job without it is not done."""
    from nnet_edge.methods.torchvision_operators import import_torchvision

    import_torchvision()  # before lightning, which imports it by itself
    import lightning
    import torch

    from nnet_edge.benchmarks.peers.anomalib_model import build_model, count_macs, count_values

    warnings.filterwarnings("ignore")
    torch.set_num_threads(job["threads"])
    lightning.seed_everything(job["seed"], workers=True)
    method, out = METHODS[job["method"]], Path(job["out"])
    out.mkdir(parents=True, exist_ok=True)
    model = build_model(method, job["backbone"])
    facts: dict[str, Any] = {"method": method.name, "backbone": job["backbone"], "seed": job["seed"]}
    if job["backbone"] != RANDOM:
        facts["training"] = train(model, method, job)
        maps, scores = judge_in_torch(model, np.load(job["test"], mmap_mode="r"))
        np.save(out / "maps-fp32.npy", maps)
        np.save(out / "scores-fp32.npy", scores)
    model.eval()
    facts["parameters"], facts["values"] = count_values(model.model)
    facts["macs"] = count_macs(model.model, method.side)
    facts["exports"] = export(model, method, job)
    facts["versions"] = versions()
    (out / "facts.json").write_text(json.dumps(facts, indent=2))


def train(model: Any, method: Method, job: dict[str, Any]) -> dict[str, Any]:
    """Let the model learn the PNG files of the job's folder; how many steps and minutes it took and what was planned."""
    from anomalib.engine import Engine

    epochs = job["epochs"] or method.epochs
    engine = Engine(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=job["out"],
        max_epochs=epochs,
        max_steps=method.steps,
        max_time=timedelta(minutes=job["minutes"]) if job["minutes"] and method.is_iterative else None,
        limit_val_batches=0,
    )
    began = time.perf_counter()
    engine.fit(model=model, datamodule=images_module(job["train"], method.batch))
    done = engine.trainer.current_epoch
    return {
        "images": len(list(Path(job["train"]).glob("*.png"))),
        "epochs": done,
        "epochs_planned": epochs,
        "steps": engine.trainer.global_step,
        "seconds": time.perf_counter() - began,
        "limit_minutes": job["minutes"] if method.is_iterative else None,
        "cut_short": method.is_iterative and done < epochs,
    }


def images_module(folder: str, batch: int, split: str = "none") -> Any:
    """anomalib's own data module over the good images of `folder`."""
    from anomalib.data import Folder

    return Folder(
        name="peer",
        normal_dir=folder,
        train_batch_size=batch,
        eval_batch_size=1,
        num_workers=0,
        test_split_mode="none",
        val_split_mode=split,
        val_split_ratio=0.5,
        seed=0,
    )


def judge_in_torch(model: Any, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maps (N, 256, 256) and scores (N,) of uint8 RGB images (N, 256, 256, 3), as the bare torch module gives them."""
    import torch

    model.eval()
    maps, scores = [], []
    with torch.inference_mode():
        for start in range(0, len(images), JUDGED_AT_ONCE):
            batch = torch.from_numpy(np.ascontiguousarray(images[start : start + JUDGED_AT_ONCE]))
            found = model(batch.permute(0, 3, 1, 2).float() / 255)  # RGB (N, 3, H, W) in [0, 1]
            maps.append(found.anomaly_map.float().reshape(-1, *images.shape[1:3]).numpy())
            scores.append(found.pred_score.float().reshape(-1).numpy())
    return np.concatenate(maps), np.concatenate(scores)


def export(model: Any, method: Method, job: dict[str, Any]) -> dict[str, Any]:
    """anomalib's exports by name: bytes on disk, or why one could not be made."""
    from anomalib.deploy import CompressionType

    out = Path(job["out"])
    side = (method.side, method.side)
    found: dict[str, Any] = {}
    one = {"dynamic_shapes": None}  # a batch of one, as we measure; with a free batch PatchCore's graph takes only two
    makers: dict[str, Any] = {
        "torch": lambda: model.to_torch(out / "torch"),
        "openvino": lambda: model.to_openvino(out / "openvino", input_size=side, onnx_kwargs=one),
    }
    if job["int8"] and job["backbone"] != RANDOM:
        makers["openvino-int8"] = lambda: model.to_openvino(
            out / "openvino-int8", input_size=side, onnx_kwargs=one, compression_type=CompressionType.INT8_PTQ,
            datamodule=images_module(job["train"], 1, "from_train"))  # fmt: skip
    for name, make in makers.items():
        try:
            path = Path(make())
            if name == "openvino-int8":
                in_a_process(judge_int8, path, Path(job["test"]), out, job["threads"])
        except Exception as error:  # whatever export or inferencer raises is the method's answer, for the table
            found[name] = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
            continue
        size = sum(file.stat().st_size for file in path.parent.glob(f"{path.stem}.*"))
        found[name] = {"path": str(path.relative_to(out)), "bytes": size}
    return found


def judge_int8(graph: Path, images: Path, out: Path, threads: int) -> None:
    """maps-int8.npy and scores-int8.npy of the INT8 graph, through anomalib's own inferencer."""
    from nnet_edge.benchmarks.peers.serve import anomalib_openvino

    judge = anomalib_openvino(graph, threads)
    found = [judge(image) for image in np.load(images, mmap_mode="r")]
    np.save(out / "maps-int8.npy", np.stack([anomaly_map for anomaly_map, _ in found]))
    np.save(out / "scores-int8.npy", np.array([score for _, score in found], np.float32))


def in_a_process(work: Callable[..., None], *arguments: Any) -> None:
    """Do `work` where its death costs nothing else: OpenVINO 2026.4 dies of PaDiM's INT8 graph on a processor without AMX.

    Raises RuntimeError when it fails, with its error where it could still tell one.
    """
    spawning = multiprocessing.get_context("spawn")
    mine, its = spawning.Pipe(duplex=False)
    process = spawning.Process(target=telling, args=(its, work, *arguments))
    process.start()
    its.close()
    with contextlib.suppress(EOFError):  # it said nothing
        raise RuntimeError(f"{work.__name__}: {mine.recv()}")
    process.join()
    if code := process.exitcode:
        died = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        raise RuntimeError(f"{work.__name__} {died}: the log has its last words")


def telling(its: Connection, work: Callable[..., None], *arguments: Any) -> None:
    """`work`, whose error goes through the pipe."""
    try:
        work(*arguments)
    except Exception as error:
        its.send(f"{type(error).__name__}: {error}")
        raise


def versions() -> dict[str, str]:
    """What can change a number."""
    from importlib.metadata import version

    return {name: version(name) for name in ("anomalib", "torch", "timm", "lightning", "openvino", "nncf")}


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
