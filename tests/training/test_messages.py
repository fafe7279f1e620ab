"""What goes wrong is said in one line that names the option or file and what was expected."""

from __future__ import annotations

import errno
import importlib.util
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers.logger import Logger
from PIL import Image

from sre_triton.training.files import replacing
from sre_triton.training.runs.callbacks import AtomicCheckpoints
from sre_triton.training.runs.loggers import show_pictures
from tests.training.conftest import TINY, TINY_UNET, Command, MakeSet


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained segmentation."""
    from sre_triton.cli import main

    logs = tmp_path_factory.mktemp("logs")
    with torch.backends.__allow_nonbracketed_mutation():
        assert main(["segment", *TINY_UNET, "--epochs", "1", "--quiet", "--base-log-dir", str(logs)]) == 0
    return logs / "task" / "vessels-sre_unet-seed1"


@pytest.fixture
def refused(sre: Command, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command that is refused, and returns its line."""

    def refuse(command: str, *arguments: str | Path) -> str:
        capsys.readouterr()
        assert sre(command, *arguments) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error.removeprefix(f"sre-triton {command.split()[0]}: ").rstrip("\n")

    return refuse


def test_a_download_without_a_network(refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*arguments: Any, **settings: Any) -> None:
        raise URLError(OSError(errno.EHOSTUNREACH, "Name or service not known"))

    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    error = refused("train", "--med-mnist", "bloodmnist", "--download")
    assert error.startswith("--download: cannot fetch https://")
    assert error.endswith("bloodmnist.npz?download=1: Name or service not known")
    assert not list((tmp_path / "data").glob("*"))


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.csv"

    def fill() -> None:
        with replacing(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=f"^no space left on the disk of {path}"):
        fill()

    def write(*arguments: Any) -> None:  # as PyTorch's writer says it
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", write)
    said = {0: f"^no space left on the disk of {path}", 2**40: f"^cannot write {path}: .*enforce fail"}
    for free, message in said.items():
        monkeypatch.setattr("shutil.disk_usage", lambda folder, free=free: SimpleNamespace(free=free))
        with pytest.raises(OSError, match=message):
            AtomicCheckpoints().save_checkpoint({}, path)
    assert not list(tmp_path.iterdir())


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name in names else find(name, *more))


def test_packages_of_loggers_that_are_missing(
    sre: Command, refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without(monkeypatch, "wandb", "tensorboard")
    error = refused("segment", *TINY_UNET, "--wandb")
    assert error == "--wandb: wandb is not installed (pip install 'sre-triton[wandb]')"
    assert not (tmp_path / "logs").exists()
    assert sre("segment", *TINY_UNET, "--epochs", "1", "--log") == 0
    assert "tensorboard is not installed (pip install 'sre-triton[tensorboard]')" in capsys.readouterr().out


class Remembered(Logger):
    """Keeps what a logger is given, as W&B's is."""

    name, version = "remembered", "0"

    def __init__(self) -> None:
        super().__init__()
        self.configuration: dict[str, Any] = {}
        self.images: dict[str, list[str]] = {}
        self.metrics: list[str] = []

    def log_hyperparams(self, params: Any, *arguments: Any, **settings: Any) -> None:
        self.configuration = dict(params)

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.metrics += metrics

    def log_image(self, key: str, images: list[str]) -> None:
        self.images[key] = images


def test_loggers_get_configuration_and_pictures(sre: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = Remembered()
    monkeypatch.setattr("sre_triton.training.runs.fitting.loggers", lambda *arguments: [logger])
    tested = [option for option in TINY_UNET if option != "--no-test"]
    assert sre("segment", *tested, "--epochs", "1", "--log-img") == 0
    run = tmp_path / "logs" / "task" / "vessels-sre_unet-seed1"
    assert logger.configuration["options"]["crop_size"] == 32
    assert logger.configuration["data"] == "vessels"
    assert "val/dice" in logger.metrics
    assert set(logger.images) == {"batch", "curves", "confusion"}
    assert all(Path(path).is_file() and run in Path(path).parents for (path,) in logger.images.values())


def test_tensorboard_gets_pixels(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (4, 5, 3)).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "curves.png")
    shown: list[Any] = []
    experiment = SimpleNamespace(add_image=lambda *arguments, **settings: shown.append((*arguments, settings)))
    pictures = {"curves": tmp_path / "curves.png", "none": tmp_path / "none.png", "other": tmp_path / "curves.pdf"}
    show_pictures([SimpleNamespace(experiment=experiment)], pictures, 7)
    ((name, pixels, step, settings),) = shown
    assert (name, step, settings) == ("curves", 7, {"dataformats": "HWC"})
    np.testing.assert_array_equal(pixels, picture)


def test_what_is_no_checkpoint(refused: Any, run: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    (tmp_path / "text.ckpt").write_text("hello")
    for number, content in enumerate((b"", b"abc", b"\x80\x02X", b"\x80\x02hch")):
        (tmp_path / f"{number}.ckpt").write_bytes(content)
    for name in ("picture.png", "text.ckpt", *(f"{number}.ckpt" for number in range(4))):
        path = tmp_path / name
        for command in (["evaluate", path], ["predict", path, path], ["export", path]):
            error = refused(*command)
            assert error == f"{path} is not a whole checkpoint: it is no file that torch.save has written"
    (tmp_path / "cut.ckpt").write_bytes((run / "best.ckpt").read_bytes()[:-100])
    assert refused("evaluate", tmp_path / "cut.ckpt").startswith(f"{tmp_path / 'cut.ckpt'} is not a whole checkpoint: ")


@pytest.mark.parametrize("shape", [(3, 28, 28), (1, 28, 28)])
def test_channels_that_come_first(shape: tuple[int, ...], refused: Any, make_set: MakeSet) -> None:
    path = make_set("mine")
    with np.load(path) as content:
        arrays = dict(content)
    for split in ("train", "val", "test"):
        images = arrays[f"{split}_images"]
        arrays[f"{split}_images"] = np.repeat(images[:, None], shape[0], axis=1)
    np.savez(path, **arrays)
    error = refused("train", "--med-mnist", "mine", *TINY)
    assert error.startswith(f"{path}: train_images has shape (12, {shape[0]}, 28, 28): expected channels last")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model-type", "unet"], "--model-type unet is for `sre-triton segment`: take a classifier, as sre_resnet18"),
        (["--model-type", "monai:UNet"], "--model-type monai:UNet is for `sre-triton segment`"),
        (["--sre-conv-size", "4"], "--sre-conv-size must be odd and positive, got 4"),
        (["--sre-conv-size-list", "9", "9", "4", "5"], "--sre-conv-size-list must be odd and positive, got 9 9 4 5"),
        (["--res-inplanes", "0"], "--res-inplanes must be at least 1, got 0"),
        (["--num-workers", "-1"], "--num-workers must be at least 0, got -1"),
        (["--threads", "-1"], "--threads must be at least 0, got -1"),
    ],
)
def test_options_of_a_classifier(arguments: list[str], message: str, refused: Any, make_set: MakeSet) -> None:
    make_set("tiny")
    assert refused("train", *TINY, "--med-mnist", "tiny", *arguments).startswith(message)


def test_compare_has_nothing_to_resume(refused: Any, make_set: MakeSet, tmp_path: Path) -> None:
    make_set("tiny")
    output = ["--output", tmp_path / "compared"]
    error = refused("compare train", *TINY, "--med-mnist", "tiny", "--resume", *output)
    assert error.startswith("--resume: compare goes on by itself")
    assert not (tmp_path / "compared").exists()


def test_a_step_of_no_degrees(refused: Any, run: Path, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "picture.png")
    assert refused("evaluate", run, "--step-degrees", "0") == "--step-degrees must divide 360, got 0"
    visualize = ["visualize", tmp_path / "picture.png", "--checkpoint", run, "--output", tmp_path / "seen"]
    assert refused(*visualize, "--step-degrees", "0") == "--step-degrees must divide 360, got 0"


def test_a_picture_that_is_missing_is_said_before_the_checkpoint(refused: Any, tmp_path: Path) -> None:
    missing = tmp_path / "missing.png"
    for checkpoint in ([], ["--checkpoint", tmp_path / "none"]):
        assert refused("visualize", missing, *checkpoint, "--output", tmp_path / "seen") == f"{missing} is missing"
    folder = refused("visualize", tmp_path, *checkpoint, "--output", tmp_path / "seen")
    assert folder == f"{tmp_path} is a folder: expected a file"


@pytest.mark.parametrize("place", ["file", "file/deeper", "/proc/none"])
def test_folders_that_cannot_be_written_to(place: str, refused: Any, run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    picture = tmp_path / "picture.png"
    Image.new("RGB", (32, 32)).save(picture)
    folder = tmp_path / place
    for command in (
        ["evaluate", run],
        ["predict", run, picture],
        ["visualize", picture, "--checkpoint", run],
        ["compare segment", *TINY_UNET],
        ["demo"],
    ):
        assert refused(*command, "--output", folder).startswith(f"--output {folder}: cannot write there: ")
    error = refused("segment", *TINY_UNET, "--exp", folder)
    assert error.startswith(f"--base-log-dir {folder}/vessels-sre_unet-seed1: cannot write there: ")
    assert (tmp_path / "file").read_text() == "no folder"


def test_an_export_that_cannot_be_written(refused: Any, run: Path) -> None:
    error = refused("export", run, "--output", "/proc/network.onnx")
    assert error.startswith("--output /proc: cannot write there: ")
