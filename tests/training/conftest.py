"""Small data sets and quick command lines. Without the extra ``train`` none of these tests is collected."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from sre_triton.cli import main
from sre_triton.training.figures import style

_NEEDED = ("lightning", "torchmetrics", "monai", "skimage", "matplotlib", "rich")
collect_ignore_glob = [] if all(map(importlib.util.find_spec, _NEEDED)) else ["test_*.py"]

MakeSet = Callable[..., Path]
Command = Callable[..., int]


@pytest.fixture(autouse=True)
def backend_flags() -> Iterator[None]:
    """Lets a trainer set its flags: PyTorch's own test utilities, which other tests import, forbid it to all."""
    with torch.backends.__allow_nonbracketed_mutation():
        yield


@pytest.fixture(autouse=True)
def coarse_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws figures with fewer dots, which takes half the time and changes nothing else."""
    monkeypatch.setitem(style._STYLE, "savefig.dpi", 60)


@pytest.fixture(autouse=True)
def no_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands are silent on a kernel that is not built: these tests read what else they say."""
    monkeypatch.setattr("sre_triton.backends.native.advice", lambda: None)


@pytest.fixture
def make_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeSet:
    """Writes a small file of MedMNIST's format into the data folder and returns its path.

    One that has the name of a set of the release is taken for its file.
    """
    from sre_triton.training.data import medmnist

    monkeypatch.setattr(medmnist, "cache_directory", lambda: tmp_path / "cache")

    def make(
        name: str,
        *,
        classes: int = 3,
        channels: int = 1,
        ndim: int = 2,
        labels: int = 0,
        counts: tuple[int, int, int] = (12, 6, 6),
        side: int = 28,
    ) -> Path:
        rng = np.random.default_rng(0)
        arrays = {}
        for split, count in zip(("train", "val", "test"), counts, strict=True):
            shape = (count, *[side] * ndim, *([channels] if channels > 1 else []))
            found = rng.integers(0, 2, (count, labels)) if labels else (np.arange(count) % classes)[:, None]
            # Each class has its own brightness, so that there is something to learn.
            level = found.sum(axis=1) if labels else found[:, 0]
            images = rng.integers(0, 60, shape) + (180 * level // max(1, level.max())).reshape(
                -1, *[1] * (len(shape) - 1)
            )
            arrays[f"{split}_images"], arrays[f"{split}_labels"] = images.astype(np.uint8), found.astype(np.uint8)
        path = tmp_path / "data" / f"{name}.npz"
        path.parent.mkdir(exist_ok=True)
        np.savez_compressed(path, **arrays)
        if name in medmnist.KNOWN_SETS:
            monkeypatch.setitem(medmnist.KNOWN_SETS[name].md5, side, hashlib.md5(path.read_bytes()).hexdigest())
        return path

    return make


@pytest.fixture
def sre(tmp_path: Path) -> Command:
    """Runs ``sre-triton`` in this process, its logs and data in the test's folder."""

    def run(command: str, *arguments: str | Path) -> int:
        folders = []
        if "train" in command:
            folders += ["--data-root", tmp_path / "data"]
        if command in ("train", "segment"):
            folders += ["--base-log-dir", tmp_path / "logs"]
        return main([*command.split(), *map(str, arguments), *map(str, folders)])

    return run


TINY = ["--model-type", "sre_resnet18", "--res-inplanes", "8", "-b", "4", "--sgd", "--cos", "--lr", "0.01",
        "--no-test"]  # fmt: skip
"""A classifier that trains in a second."""

TINY_UNET = [
    *("--vessels-size", "64", "--vessels-count", "2", "1", "1", "--crop-size", "32", "--crops-per-image", "2"),
    *("-b", "2", "--no-test", "--model-type", "sre_unet", "--model-args", '{"features": [8, 8], "sre_conv_size": 3}'),
]
"""A segmentation that trains in a second."""
