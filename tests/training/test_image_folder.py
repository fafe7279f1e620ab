"""Classification of one's own pictures: folders of classes and tables, and what is wrong with them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from sre_triton.training.data.image_folder import read_image_folder
from sre_triton.training.data.medmnist import ImageSet
from sre_triton.training.options import TrainOptions
from tests.training.conftest import TINY, Command

CLASSES = ("cat", "dog", "owl")


def write_picture(path: Path, brightness: int, seed: int = 0, *, grey: bool = False) -> None:
    rng = np.random.default_rng(seed)
    pixels = (rng.integers(0, 60, (20, 30, 3)) + brightness).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[..., 0] if grey else pixels).save(path)


def write_classes(root: Path, count: int = 6, *, grey: bool = False) -> None:
    for level, name in enumerate(CLASSES):
        for number in range(count):
            write_picture(root / name / f"{number}.png", 90 * level, number, grey=grey)


def read(root: Path, **options: Any) -> ImageSet:
    return read_image_folder(TrainOptions(data=root, **{"image_size": 16, **options}))


def write_csv(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_a_folder_of_classes_is_trained_and_its_names_are_kept(sre: Command, tmp_path: Path, capsys: Any) -> None:
    write_classes(tmp_path / "zoo")
    arguments = ["--data", tmp_path / "zoo", "--image-size", "16", *TINY, "--epochs", "2", "--eval-rot"]
    assert sre("train", *arguments) == 0
    said = capsys.readouterr().out
    assert "18 pictures of 3 classes: cat (4 train, 1 val, 1 test), dog (4 train, 1 val, 1 test)" in said
    run = tmp_path / "logs" / "task" / "zoo-sre_resnet18-seed1"
    held = torch.load(run / "best.ckpt", weights_only=True)["sre_triton"]
    assert (held["class_names"], held["classes"], held["channels"]) == (list(CLASSES), 3, 3)
    assert len(json.loads((run / "logs.json").read_text())["eval_rot_acc"]) == 36
    assert sre("evaluate", run, "--split", "all", "--step-degrees", "90") == 0
    (tmp_path / "zoo" / "dog").rename(tmp_path / "zoo" / "fox")
    capsys.readouterr()
    assert sre("evaluate", run) == 2
    assert "was trained on data with class_names ['cat', 'dog', 'owl']; zoo now has" in capsys.readouterr().err


def test_pictures_are_the_middle_square_at_one_size(tmp_path: Path) -> None:
    write_classes(tmp_path, grey=True)
    found = read(tmp_path)
    assert (found.channels, found.ndim, found.multi_label) == (1, 2, False)
    stack = found.splits["train"].images
    assert (stack[[0, 1]].shape, stack[[0]].dtype) == ((2, 1, 16, 16), np.uint8)
    whole = read(tmp_path, image_size=20).splits["train"].images[[0]]
    assert np.array_equal(whole[0, 0], np.asarray(Image.open(tmp_path / "cat" / "0.png"))[:, 5:25])


def test_deep_pictures_stay_deep(tmp_path: Path) -> None:
    write_classes(tmp_path, grey=True)
    values = np.full((16, 16), 1000, np.uint16)
    tifffile.imwrite(tmp_path / "cat" / "deep.tif", values)
    found = read(tmp_path, max_value=4095, val_fraction=0.1, test_fraction=0.0)
    stack = np.concatenate([split.images[list(range(len(split)))] for split in found.splits.values() if len(split)])
    assert stack.dtype == np.float32
    assert any(np.allclose(image, 1000 / 4095) for image in stack)


def test_the_division_has_every_class(tmp_path: Path) -> None:
    write_classes(tmp_path, 10)
    for split in read(tmp_path).splits.values():
        assert np.bincount(split.labels, minlength=3).tolist() == [len(split) // 3] * 3
    (tmp_path / "owl").rename(tmp_path.parent / "owl")
    write_picture(tmp_path / "hen" / "only.png", 10)
    found = read(tmp_path)
    assert "classes of one picture, which trains and is never tested: hen" in found.notes
    assert found.class_names == ("cat", "dog", "hen")


def test_folders_of_splits(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("val", 2), ("test", 1)):
        write_classes(tmp_path / split, count)
    found = read(tmp_path)
    assert {split: len(content) for split, content in found.splits.items()} == {"train": 12, "val": 6, "test": 3}


def test_tables_of_one_label_and_of_several(tmp_path: Path) -> None:
    write_classes(tmp_path)
    rows = [[f"{name}/{n}.png", str(label + 1)] for label, name in enumerate(CLASSES) for n in range(6)]
    one = read(write_csv(tmp_path / "one.csv", [["image", "label"], *rows]))
    assert (one.classes, one.multi_label, one.class_names) == (3, False, ("1", "2", "3"))
    assert "labels begin at 1: output 0 of the network is label 1" in one.notes
    sets = ["", "red", "red;blue"]
    rows = [[f"{name}/{n}.png", sets[n % 3]] for name in CLASSES for n in range(6)]
    several = read(write_csv(tmp_path / "several.csv", [["image", "labels"], *rows]))
    assert (several.classes, several.multi_label, several.class_names) == (2, True, ("blue", "red"))
    assert set(map(tuple, several.splits["train"].labels.tolist())) == {(0, 0), (0, 1), (1, 1)}


def table(*rows: list[str]) -> Callable[[Path], Any]:
    return lambda root: {"data": write_csv(root / "set.csv", [*rows])}


def untrained(root: Path) -> dict[str, Any]:
    for split in ("train", "val"):
        write_classes(root / "parts" / split, 2)
    write_picture(root / "parts" / "val" / "hen" / "1.png", 0)
    return {"data": root / "parts"}


def empty_class(root: Path) -> dict[str, Any]:
    (root / "bat").mkdir()
    return {}


def one_class(root: Path) -> dict[str, Any]:
    write_picture(root / "alone" / "cat" / "1.png", 0)
    return {"data": root / "alone"}


def damaged(root: Path) -> dict[str, Any]:
    (root / "cat" / "9.png").write_bytes(b"no picture")
    return {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: {"data": root / "nowhere"}, "nowhere is missing"),
        (lambda root: {"data": root / "cat"}, "has no folders of classes: expected one per class"),
        (empty_class, "bat is a class without pictures"),
        (one_class, "has 1 class (cat): at least 2 are needed"),
        (untrained, "class 'hen' has no training picture"),
        (damaged, "9.png is not a whole picture"),
        (table(["image"], ["cat/0.png"]), "must have a column 'label', or 'labels' for several per picture"),
        (table(["image", "label"], ["cat/0.png", ""]), "line 2: cat/0.png has no label"),
        (table(["image", "label"], ["cat/99.png", "cat"]), "line 2: image 'cat/99.png' is missing"),
        (table(["image", "label"], *[["cat/0.png", "cat"]] * 2), "line 3: cat/0.png is in line 2 already"),
        (table(["image", "label", "split"], ["cat/0.png", "cat", "x"]), "split must be train, val or test, got 'x'"),
    ],
)
def test_what_is_wrong_with_pictures_is_one_clear_line(
    change: Callable[[Path], dict[str, Any]], message: str, tmp_path: Path
) -> None:
    write_classes(tmp_path)
    options = change(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        read(options.pop("data", tmp_path), **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--med-mnist", "tiny"], "--data and --med-mnist tiny name two sets: choose one"),
        (["--multi-label"], "--multi-label: zoo has one label per image, of 3 classes"),
        (["--model-type", "sre_r3d_18"], "is for 3-D images, the set's are 2-D"),
    ],
)
def test_options_that_do_not_fit_pictures(
    arguments: list[str], message: str, sre: Command, tmp_path: Path, capsys: Any
) -> None:
    write_classes(tmp_path / "zoo")
    assert sre("train", "--data", tmp_path / "zoo", *arguments) == 2
    assert message in capsys.readouterr().err


def test_image_size_is_for_own_pictures(sre: Command, capsys: Any) -> None:
    assert sre("train", "--image-size", "64") == 2
    assert "--image-size is for images of --data, which is not given" in capsys.readouterr().err
