"""Training: what it learns, what it leaves, how it stops, and that going on is bit for bit what never stopped."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nnet_edge.errors import ConfigError, TrainingError
from nnet_edge.geometry import Geometry
from nnet_edge.methods.backbone import find_backbone
from nnet_edge.methods.compute import choose_device, choose_precision
from nnet_edge.methods.nnet.network import build_nnet
from nnet_edge.methods.nnet.settings import PAPER, TrainSettings
from nnet_edge.methods.teacher_weights import load_teacher
from nnet_edge.settings.augmentation import Augmentation
from nnet_edge.training import loop
from nnet_edge.training.checkpoint import CHECKPOINT, Checkpoint, read_checkpoint, read_held_out
from nnet_edge.training.log import LOG, PICTURE
from nnet_edge.training.loop import Progress, Trained, Trainer, TrainOptions, epoch_rows, train

FP32 = TrainOptions(device="cpu", precision="fp32", checkpoint_every=100)
SMALL = replace(
    PAPER, epochs=1, batch=2, align_epochs=2, model=replace(PAPER.model, memory_slots=32), input=Geometry(64, 64)
)
SMOOTH = replace(  # everything that has a state, which must go on after a stop
    SMALL,
    epochs=3,
    schedule="cosine",
    ema_decay=0.9,
    memory_rate=0.1,
    model=replace(SMALL.model, memory_init="coreset", recall_residual=True, standardise=True, anchor=0.3),
)
TRAIN = [sys.executable, "-c", "from nnet_edge.cli import main; main()", "train", "--protocol", "paper", "--size", "64",
         "--set", "model.memory_slots=32"]  # fmt: skip
PATIENCE_S = 240.0  # for a subprocess on a machine that others use


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images(small_washers: np.ndarray) -> np.ndarray:
    """Four to learn from and one held out."""
    return small_washers[:5]


Training = Callable[..., Trained]
Stopping = Callable[[], AbstractContextManager[Callable[[], bool]]]


@pytest.fixture
def training(images: np.ndarray, tmp_path: Path) -> Training:
    """Trains on the first two images by `settings` in a folder of its own; everything else as `train` takes it."""

    def run(settings: TrainSettings, name: str = "training", options: TrainOptions = FP32, **more: Any) -> Trained:
        return train(more.pop("images", images[:2]), images[4:], settings, tmp_path / name, options, **more)

    return run


def stop_after(steps: int) -> Stopping:
    """Says True when it was asked so many times."""
    asked = iter(range(1, 1 << 20))
    return lambda: nullcontext(lambda: next(asked) >= steps)


def assert_same(one: Checkpoint, other: Checkpoint) -> None:
    for part in ("network", "averaged", "best", "optimiser"):
        first, second = getattr(one, part), getattr(other, part)
        assert first.keys() == second.keys()
        different = [name for name in first if not torch.equal(first[name], second[name])]
        assert not different


def read_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / LOG).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def straight(images: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, list[Progress]]:
    """Three epochs of two steps, never interrupted."""
    seen: list[Progress] = []
    folder = tmp_path_factory.mktemp("straight")
    return train(images[:4], images[4:], SMOOTH, folder, FP32, report=seen.append), seen


def test_what_a_training_leaves(straight: tuple[Trained, list[Progress]], images: np.ndarray) -> None:
    trained, _ = straight
    assert {file.name for file in trained.folder.iterdir()} == {CHECKPOINT, "held_out.safetensors", LOG, PICTURE}
    np.testing.assert_array_equal(read_held_out(trained.folder), images[4:])
    assert cv2.imread(str(trained.folder / PICTURE)) is not None
    checkpoint = read_checkpoint(trained.folder)
    assert checkpoint.settings == SMOOTH
    assert (checkpoint.epoch, checkpoint.step) == (3, 0)
    assert checkpoint.facts["teacher"]["is_random"] is False
    assert (trained.finished, trained.epochs, trained.precision) == (True, 3, "fp32")
    assert trained.step_ms > 0
    assert 0 < trained.saved_share < 1


def test_a_default_training_that_is_killed_loses_less_than_an_epoch(training: Training, tmp_path: Path) -> None:
    def killed(progress: Progress) -> None:
        if progress.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training(
            replace(SMALL, epochs=3),
            options=replace(FP32, checkpoint_every=TrainOptions().checkpoint_every),
            report=killed,
        )
    assert read_checkpoint(tmp_path / "training").epoch == 1


def test_quick_epochs_share_a_checkpoint(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    write = loop.write_checkpoint
    monkeypatch.setattr(
        loop, "write_checkpoint", lambda folder, one: (written.append(one.epoch), write(folder, one))[1]
    )
    training(replace(SMALL, epochs=3), options=replace(FP32, checkpoint_every=None))
    assert written == [1, 3]


def test_progress_is_reported_after_every_step(straight: tuple[Trained, list[Progress]]) -> None:
    _, seen = straight
    assert [progress.epoch for progress in seen] == [1, 1, 2, 2, 3, 3]
    assert all(progress.epochs == 3 for progress in seen)
    assert all(progress.seconds_left > 0 for progress in seen[:-1])
    assert seen[-1].seconds_left == 0
    for progress in seen:
        terms = {name: value for name, value in progress.losses.items() if name != "loss"}
        assert set(terms) >= {"reverse", "forward", "query"}
        assert sum(terms.values()) == pytest.approx(progress.losses["loss"], rel=1e-5)
    assert seen[-1].losses["reverse"] < seen[1].losses["reverse"], "nothing was learned"


class Fetches(TorchDispatchMode):
    """Counts what a GPU would be waited for: a single number of a tensor that is asked for."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*arguments, **(named or {}))


def test_a_steps_losses_are_fetched_together(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many losses a method has; what its own check asks for is left out."""
    fetched: list[int] = []
    step = Trainer.train_step

    def counted(self: Trainer, *arguments: Any) -> dict[str, float]:
        with Fetches() as fetches:
            losses = step(self, *arguments)
        fetched.append(fetches.count)
        assert losses["loss"] == pytest.approx(sum(value for name, value in losses.items() if name != "loss"), rel=1e-6)
        assert len(losses) > 2
        return losses

    monkeypatch.setattr(Trainer, "train_step", counted)
    monkeypatch.setattr(Trainer, "check", lambda self, loss, compared, where: None)
    training(SMALL)
    assert fetched == [0]


def test_log_has_a_row_for_every_epoch(straight: tuple[Trained, list[Progress]]) -> None:
    trained, seen = straight
    rows = read_rows(trained.folder)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [bool(row["align"]) for row in rows] == [True, True, False], "an absent term is empty, not zero"
    assert [bool(row["held_out"]) for row in rows] == [False, False, True]
    rates = [float(row["learning_rate"]) for row in rows]
    assert max(rates) <= SMOOTH.learning_rate
    assert rates[-1] < max(rates)
    assert float(rows[-1]["loss"]) == pytest.approx(seen[-1].losses["loss"], rel=1e-4)


@pytest.mark.parametrize("steps", [3, 4], ids=["in the middle of epoch 2", "at its end"])
def test_going_on_is_bit_for_bit_what_never_stopped(
    steps: int, straight: tuple[Trained, list[Progress]], images: np.ndarray, training: Training
) -> None:
    stopped = training(SMOOTH, images=images[:4], stopping=stop_after(steps))
    assert not stopped.finished
    middle = read_checkpoint(stopped.folder)
    assert (middle.epoch, middle.step) == (1, steps - 2)
    torch.manual_seed(12345)  # whatever else the process drew meanwhile
    ended = training(SMOOTH, images=images[:4], resume=middle)
    assert ended.finished
    assert ended.seconds > float(middle.facts["seconds"])
    assert_same(read_checkpoint(ended.folder), read_checkpoint(straight[0].folder))
    without_time = [[{**row, "seconds": ""} for row in read_rows(run.folder)] for run in (ended, straight[0])]
    assert without_time[0] == without_time[1]


def test_going_on_twice_and_after_the_end(training: Training) -> None:
    first = training(replace(SMALL, epochs=3), stopping=stop_after(1))
    for _ in range(2):
        training(replace(SMALL, epochs=3), resume=read_checkpoint(first.folder), stopping=stop_after(1))
    seen: list[Progress] = []
    again = training(replace(SMALL, epochs=3), resume=read_checkpoint(first.folder), report=seen.append)
    assert again.finished
    assert not seen, "three steps were all"
    assert [row["epoch"] for row in read_rows(first.folder)] == ["1", "2", "3"]
    assert read_checkpoint(first.folder).epoch == 3


def test_same_seed_same_weights_other_seed_other_weights(training: Training) -> None:
    one, same, other = (
        read_checkpoint(training(replace(SMALL, seed=seed), name).folder)
        for seed, name in ((5, "one"), (5, "same"), (6, "other"))
    )
    assert_same(one, same)
    weights = [
        name for name, value in one.network.items() if value.dim() > 1 and not name.startswith(("teacher.", "feature_"))
    ]
    assert not any(torch.equal(one.network[name], other.network[name]) for name in weights)


def test_features_on_disk_train_the_same_weights(training: Training) -> None:
    in_memory = training(SMALL, "memory")
    on_disk = training(SMALL, "disk", replace(FP32, memory_limit=0))
    assert_same(read_checkpoint(in_memory.folder), read_checkpoint(on_disk.folder))
    assert not [file for file in on_disk.folder.iterdir() if file.suffix == ".bin"]


def test_running_mean_lies_between_start_and_end(training: Training) -> None:
    settings = replace(SMALL, ema_decay=0.5)
    ended = read_checkpoint(training(settings).folder)
    start = build_nnet(settings.model, load_teacher(find_backbone("efficientnet_lite0")), settings.seed)
    deployed = ended.build_network().state_dict()
    moved = 0
    for name, first in start.named_parameters():
        last, mean = ended.network[name], ended.averaged[name]
        assert bool((mean >= torch.minimum(first, last) - 1e-6).all())
        assert bool((mean <= torch.maximum(first, last) + 1e-6).all())
        moved += not torch.equal(mean, last)
        assert torch.equal(deployed[name], mean)
    assert moved > 0
    assert not read_checkpoint(training(SMALL, "plain").folder).averaged


def test_copies_are_learned_from_too(images: np.ndarray, training: Training) -> None:
    seen: list[Progress] = []
    augmentation = Augmentation(copies=3, flip_horizontal=True, brightness=0.1)
    training(replace(SMALL, augmentation=augmentation), report=seen.append)
    assert len(seen) == 3  # six images, two a step


@pytest.mark.parametrize("start", ["features", "coreset"])
def test_memory_starts_from_features_and_learns_at_its_own_rate(
    start: str, images: np.ndarray, training: Training
) -> None:
    settings = replace(SMALL, memory_rate=0.0, model=replace(SMALL.model, memory_init=start))
    memory = read_checkpoint(training(settings).folder).network["memory.memory"]
    with torch.no_grad():
        network = build_nnet(SMALL.model, load_teacher(find_backbone("efficientnet_lite0")), SMALL.seed)
        third = network.teacher_features(network.normalise(torch.from_numpy(images[:2])))[2]
    positions = third.permute(0, 2, 3, 1).flatten(0, 2)
    nearest = torch.stack([(positions - slot).square().sum(dim=1).min() for slot in memory]).sqrt()
    assert float(nearest.max()) < 1e-4 * float(positions.norm(dim=1).mean()), "at a rate of 0 the memory stays"
    moved = read_checkpoint(training(replace(settings, memory_rate=1.0), "moved").folder).network["memory.memory"]
    assert not torch.equal(moved, memory)


def test_projections_learn_at_their_own_rate(training: Training) -> None:
    weights = read_checkpoint(training(replace(SMALL, projection_rate=0.0)).folder).network
    start = build_nnet(SMALL.model, load_teacher(find_backbone("efficientnet_lite0")), SMALL.seed)
    for name, before in start.named_parameters():
        if "_projections." in name:
            assert torch.equal(weights[name], before), name
        elif name.startswith("forward_student.") and before.ndim == 4:
            assert not torch.equal(weights[name], before), name


def test_dying_memory_stops_the_training_and_names_the_share(training: Training) -> None:
    settings = replace(SMALL, model=replace(SMALL.model, memory_lambda_times_slots=3.0))
    with pytest.raises(TrainingError, match=r"100% of the memory.*epoch 1.*memory_lambda_times_slots"):
        training(settings)


def test_loss_that_is_no_number_keeps_the_last_good_checkpoint(training: Training) -> None:
    settings = replace(SMALL, epochs=3)
    folder = training(settings, stopping=stop_after(1)).folder
    content = (folder / CHECKPOINT).read_bytes()
    good = read_checkpoint(folder)
    poisoned = {name: value.clone() for name, value in good.network.items()}
    name = next(name for name in poisoned if name.startswith("reverse_student") and poisoned[name].dim() == 4)
    poisoned[name][0] = float("nan")
    with pytest.raises(TrainingError, match=r"loss is nan in step 1 of epoch.*checkpoint.*--learning-rate") as caught:
        training(settings, resume=replace(good, network=poisoned))
    assert "\n" not in str(caught.value)
    assert (folder / CHECKPOINT).read_bytes() == content
    assert_same(read_checkpoint(folder), good)


def test_weights_that_are_no_numbers_are_never_saved(training: Training) -> None:
    """The loss of the last step was a number; the weights behind it are not."""
    settings = replace(SMALL, epochs=2)
    folder = training(settings, stopping=stop_after(1)).folder
    content = (folder / CHECKPOINT).read_bytes()
    good = read_checkpoint(folder)
    broken = {name: torch.full_like(value, float("nan")) for name, value in good.optimiser.items() if "exp_avg" in name}
    with pytest.raises(TrainingError, match="NaN"):
        training(settings, resume=replace(good, optimiser={**good.optimiser, **broken}))
    assert (folder / CHECKPOINT).read_bytes() == content


def test_absurd_learning_rate_stops_with_one_line(training: Training) -> None:
    with pytest.raises(TrainingError, match="there was no checkpoint yet") as caught:
        training(replace(SMALL, epochs=5, learning_rate=1e30))
    assert "\n" not in str(caught.value)


def test_batch_larger_than_the_images_is_wrong_use(training: Training, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch of 3 is impossible with 2 images"):
        training(replace(SMALL, batch=3))
    assert not list(tmp_path.iterdir())


def test_no_held_out_images_are_wrong_use(images: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="held out"):
        train(images[:2], images[:0], SMALL, tmp_path / "training", FP32)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", [{"device": "abacus"}, {"precision": "int1"}])
def test_unknown_device_or_precision_is_wrong_use(change: dict[str, str], training: Training, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown: choose"):
        training(SMALL, options=replace(FP32, **change))
    assert not list(tmp_path.iterdir())


def test_choice_of_the_device() -> None:
    if torch.cuda.is_available():
        assert choose_device("auto") == choose_device("cuda") == "cuda"
    else:
        assert choose_device("auto") == "cpu"
        with pytest.raises(ConfigError, match="no CUDA GPU"):
            choose_device("cuda")


def test_bfloat16_trains_close_to_fp32_where_the_processor_has_it(training: Training) -> None:
    if choose_precision("auto", "cpu") == "fp32":
        with pytest.raises(ConfigError, match="multiplies no BF16"):
            choose_precision("bf16", "cpu")
        pytest.skip("this processor multiplies no BF16: only the refusal was tested")
    losses: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for precision, seen in losses.items():
        options = replace(FP32, precision=precision)
        trained = training(SMALL, precision, options, report=lambda now, seen=seen: seen.append(now.losses["loss"]))
        assert trained.precision == precision
        weights = read_checkpoint(trained.folder).network
        assert all(value.dtype in (torch.float32, torch.int64) for value in weights.values())
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.03)
    assert losses["bf16"] != losses["fp32"]


def test_deterministic_mode_is_put_back(training: Training) -> None:
    before = torch.are_deterministic_algorithms_enabled()
    inside: list[bool] = []
    training(
        SMALL,
        options=replace(FP32, deterministic=True),
        report=lambda _: inside.append(torch.are_deterministic_algorithms_enabled()),
    )
    assert inside == [True]
    assert torch.are_deterministic_algorithms_enabled() == before


@pytest.mark.parametrize(("count", "batch", "sizes"), [(10, 4, [4, 4, 2]), (9, 4, [4, 4]), (4, 4, [4]), (3, 2, [2])])
def test_batches_of_an_epoch(count: int, batch: int, sizes: list[int]) -> None:
    """Every image once; a last batch of one image is dropped."""
    rows = list(epoch_rows(count, batch, seed=1, epoch=0))
    assert [len(part) for part in rows] == sizes
    together = np.concatenate(rows)
    assert len(set(together.tolist())) == len(together) == sum(sizes)
    assert set(together.tolist()) <= set(range(count))


def test_order_of_the_images_is_drawn_from_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(list(epoch_rows(32, 8, seed, epoch))).tolist()

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


@pytest.fixture(scope="module")
def good_folder(images: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve good photographs: two to learn from, ten held out."""
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(12):
        assert cv2.imwrite(str(folder / f"{number:02d}.png"), np.roll(images[0], number, axis=0))
    return folder


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], errors: Path) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, f"ended too early: {errors.read_text()}"
        assert time.monotonic() < end, "the training did not start in time"
        time.sleep(0.05)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("phase", ["cache", "export"])
def test_interruption_outside_the_steps_leaves_nothing_half_written(
    good_folder: Path, tmp_path: Path, phase: str, sent: signal.Signals
) -> None:
    out, errors = tmp_path / "run", tmp_path / "errors.txt"
    command = [*TRAIN, str(good_folder), "--out", str(out)]
    long = ["--set", "augmentation.copies=400", "--feature-memory", "0"]  # 800 images through the teacher, to disk
    command += long if phase == "cache" else ["--epochs", "1"]
    with errors.open("wb") as written:
        process = subprocess.Popen(command, stdout=written, stderr=written, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        if phase == "cache":
            wait_for((out / "training" / "features_2.bin").exists, process, errors)
        else:
            wait_for(lambda: "exporting the graph" in errors.read_text(), process, errors)
        process.send_signal(sent)
        assert process.wait(timeout=PATIENCE_S) == 130, errors.read_text()
    finally:
        process.kill()
        process.wait()
    said = errors.read_text()
    assert "Traceback" not in said
    assert "interrupted" in said
    assert not list((out / "training").glob("features_*"))
    assert [file.name for file in out.iterdir()] == ["training"]
    if phase == "export":
        assert f"nnet-edge export {out / 'training'}" in said
        read_checkpoint(out / "training").build_network()


def test_ctrl_c_and_sigterm_leave_a_usable_checkpoint(good_folder: Path, tmp_path: Path) -> None:
    command = [*TRAIN, str(good_folder), "--epochs", "100000", "--checkpoint-every", "100000"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    signals = (signal.SIGINT, signal.SIGTERM)
    running: dict[signal.Signals, subprocess.Popen[bytes]] = {}
    try:
        for sent in signals:
            with (tmp_path / f"{sent.name}.txt").open("wb") as errors:
                arguments = [*command, "--out", str(tmp_path / sent.name)]
                running[sent] = subprocess.Popen(arguments, stdout=errors, stderr=errors, env=environment)
        for sent in signals:
            log = tmp_path / sent.name / "training" / LOG
            wait_for(
                lambda log=log: log.is_file() and len(log.read_text().splitlines()) > 2,  # head, then two epochs
                running[sent],
                tmp_path / f"{sent.name}.txt",
            )
            running[sent].send_signal(sent)
        for sent in signals:
            code = running[sent].wait(timeout=PATIENCE_S)
            said = (tmp_path / f"{sent.name}.txt").read_text()
            assert code == 130, said
            assert "Traceback" not in said
            assert "--resume" in said
            checkpoint = read_checkpoint(tmp_path / sent.name / "training")
            assert checkpoint.epoch > 1
            assert all(bool(torch.isfinite(value).all()) for value in checkpoint.network.values())
            checkpoint.build_network()
            assert not (tmp_path / sent.name / "bundle").exists()
    finally:
        for process in running.values():
            process.kill()
            process.wait()
