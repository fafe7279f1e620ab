"""Photographs with masks in folders and tables: who belongs to whom, who trains, and what is wrong is named."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sre_triton.training.data.pairs import pair_by_name
from sre_triton.training.data.segmentation_set import read_segmentation_set
from sre_triton.training.options import SegmentOptions
from tests.training.photographs import SIDE, names, read, write_image, write_mask, write_pairs

# Names ------------------------------------------------------------------------------------------------


def paired(images: list[str], masks: list[str]) -> list[str]:
    return [path.name for path in pair_by_name([Path(n) for n in images], [Path("m") / n for n in masks])]


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (["1.png", "11.png", "2.png"], ["1_mask.png", "11_mask.png", "2_mask.png"]),
        (["01_dr.JPG", "01_g.jpg", "01_h.jpg"], ["01_dr.tif", "01_g.tif", "01_h.tif"]),
        (["21_training.tif", "22_training.tif"], ["21_manual1.gif", "22_manual1.gif"]),
        (["Image_01L.jpg", "Image_01R.jpg"], ["mask_01L.png", "mask_01R.png"]),
        (["image_1.png", "image_2.png"], ["image_mask_1.png", "image_mask_2.png"]),
        (["cat.png", "cat_2.png"], ["cat_label.png", "cat_2_label.png"]),
        (["only.png"], ["the_only_one.png"]),
        (["a.png", "b.png"], ["a.png", "b.png"]),
    ],
)
def test_masks_are_found_by_their_names(images: list[str], masks: list[str]) -> None:
    assert paired(images, masks) == masks
    assert paired(images, masks[::-1]) == masks


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        (["01_dr.jpg", "01_g.jpg", "01_h.jpg"], ["01_h.tif"], "01_dr.jpg has no mask"),
        (["a_1.png", "a_2.png"], ["a_1.png"], "a_2.png has no mask: no name in m fits it"),
        (
            ["1.png", "2.png"],
            ["1_x.png", "1_y.png", "2_x.png"],
            "1.png has 2 masks that fit alike: 1_x.png and 1_y.png",
        ),
        (["a_1.png", "b_1.png", "c_2.png"], ["1.png", "2.png"], "1.png is the mask of two images: a_1.png and b_1.png"),
        (["07_left.png", "08_left.png"], ["08_left.png"], "07_left.png has no mask"),
        (["a.png"], [], "a.png has no mask: no name in an empty folder fits it"),
    ],
)
def test_what_does_not_pair_is_named(images: list[str], masks: list[str], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - matched below, as text
        paired(images, masks)
    assert message in str(error.value)


# Folders and tables -----------------------------------------------------------------------------------


def test_a_folder_is_divided_by_seed_and_fraction(tmp_path: Path) -> None:
    write_pairs(tmp_path, [f"{number:02d}" for number in range(10)])
    found = read(tmp_path)
    assert {split: len(photographs) for split, photographs in found.splits.items()} == {"train": 6, "val": 2, "test": 2}
    assert names(found) == names(read(tmp_path))
    assert names(found) != names(read(tmp_path, split_seed=1))
    assert {split: len(n) for split, n in names(read(tmp_path, val_fraction=0.5, test_fraction=0.0)).items()} == {
        "train": 5, "val": 5, "test": 0,
    }  # fmt: skip
    assert sorted(name for members in names(found).values() for name in members) == [
        f"{number:02d}.png" for number in range(10)
    ]
    one = found.splits["train"][0]
    assert np.array_equal(one.labels[0], write_image(tmp_path / "again.png", int(one.name[:2])))
    assert one.image.shape == (3, SIDE, SIDE)
    assert found.notes[0] == "10 photographs: 6 train, 2 val, 2 test; scores on whole images"
    assert found.notes[1].startswith("2 classes by the values of the masks: 0 (")


def test_images_of_a_person_stay_together(tmp_path: Path) -> None:
    write_pairs(tmp_path, [f"p{person}_{eye}" for person in range(6) for eye in ("left", "right")])
    found = names(read(tmp_path, group=r"p\d"))
    for members in found.values():
        assert len(members) % 2 == 0
        assert {name[:2] for name in members} == {name[:2] for name in members if "left" in name}
    assert all(found.values())


def test_folders_of_splits_are_kept(tmp_path: Path) -> None:
    write_pairs(tmp_path / "train", ["1", "2", "3", "4", "5"])
    assert {split: len(members) for split, members in names(read(tmp_path)).items()} == {
        "train": 4,
        "val": 1,
        "test": 0,
    }
    write_pairs(tmp_path / "val", ["6"])
    write_pairs(tmp_path / "test", ["7"])
    assert names(read(tmp_path)) == {"train": [f"{n}.png" for n in range(1, 6)], "val": ["6.png"], "test": ["7.png"]}
    with pytest.raises(ValueError, match="--val-fraction: the data say themselves which images are in 'val'"):
        read(tmp_path, val_fraction=0.5)


def write_csv(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_a_table_of_paths(tmp_path: Path) -> None:
    write_pairs(tmp_path, ["1", "2", "3"], "x/{}.png", "y/{}_m.png")
    rows = [[f"x/{n}.png", f"y/{n}_m.png", split] for n, split in zip("123", ("train", "val", "test"), strict=True)]
    table = write_csv(tmp_path / "set.csv", [["image", "mask", "split"], *rows])
    found = read(table)
    assert found.name == "set"
    assert names(found) == {"train": ["1.png"], "val": ["2.png"], "test": ["3.png"]}


def test_a_file_of_splits(tmp_path: Path) -> None:
    write_pairs(tmp_path, ["1", "2", "3"])
    path = write_csv(tmp_path / "split.csv", [["image", "split"], ["1", "val"], ["2.png", "train"], ["3", "test"]])
    assert names(read(tmp_path, split=path)) == {"train": ["2.png"], "val": ["1.png"], "test": ["3.png"]}


def divide(rows: list[list[str]]) -> Callable[[Path], dict[str, Any]]:
    return lambda root: {"split": write_csv(root / "split.csv", [["image", "split"], *rows])}


def table(rows: list[list[str]]) -> Callable[[Path], dict[str, Any]]:
    return lambda root: {"data": write_csv(root / "set.csv", rows)}


WHOLE = [[f"{n}.png", "train" if n < 3 else "val"] for n in range(6)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (lambda root: {"data": root / "nowhere"}, "nowhere is missing"),
        (lambda root: {"data": root / "images"}, "has no layout that is known: expected images/ and masks/"),
        (lambda root: {"layout": "chase_db1"}, "--layout chase_db1: "),
        (lambda root: {"observer": 2}, "--observer 2: "),
        (lambda root: {"val_fraction": 0.5, "test_fraction": 0.6}, "leave nothing to train"),
        (lambda root: {"val_fraction": 0.0}, "of 6 images none is left to validate"),
        (lambda root: {"group": "("}, "--group must be a regular expression"),
        (lambda root: {"group": "person"}, "--group 'person' does not occur in 0.png"),
        (divide(WHOLE[:-1]), "split.csv does not say where 5.png belongs"),
        (divide([*WHOLE, ["7", "train"]]), "split.csv names '7', which is none of the 6 images"),
        (divide([*WHOLE, ["1.png", "val"]]), "line 8: 1.png was put in 'train' before"),
        (divide([["1.png", "rest"]]), "line 2: split must be train, val or test, got 'rest'"),
        (lambda root: {**divide(WHOLE)(root), "val_fraction": 0.1}, "--split says where each image belongs"),
        (
            lambda root: {**divide(WHOLE)(root), "group": r"\."},
            "group '.' is divided: 0.png is in 'train', 3.png in 'val'",
        ),
        (lambda root: {"split": root / "no.csv"}, "no.csv is missing"),
        (table([["picture", "mask"]]), "set.csv must have a column 'image': its first line is 'picture,mask'"),
        (table([["image", "mask"]]), "set.csv has no rows below its first line"),
        (table([["image", "mask"], ["images/0.png"]]), "set.csv, line 2: expected 2 values"),
        (table([["image", "mask"], ["images/0.png", "masks/0.png\0\0"]]), "NUL"),
        (table([["image", "mask"], ["images/9.png", "masks/0.png"]]), "line 2: image 'images/9.png' is missing"),
        (table([["image", "mask"], *[["images/0.png", "masks/0.png"]] * 2]), "line 3: 0.png is in line 2 already"),
        (table([["image", "mask", "split"], ["images/0.png", "masks/0.png", "x"]]), "split must be train, val or test"),
        (lambda root: {"fov": root / "images" / "0.png"}, "is missing or not a folder"),
    ],
)
def test_a_wrong_division_or_table_is_one_clear_line(
    options: Callable[[Path], dict[str, Any]], message: str, tmp_path: Path
) -> None:
    write_pairs(tmp_path, [str(n) for n in range(6)])
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        read_segmentation_set(SegmentOptions(**{"data": tmp_path, **options(tmp_path)}))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_left_out_are_said(tmp_path: Path) -> None:
    write_pairs(tmp_path, [str(n) for n in range(6)])
    for name in ("images/._1.png", "images/Thumbs.db", "images/notes.txt"):
        (tmp_path / name).write_bytes(b"no picture")
    write_mask(tmp_path / "masks" / "9.png", np.zeros((SIDE, SIDE), bool))
    notes = read(tmp_path).notes
    assert any(": 1 is no picture and left out (notes.txt)" in note for note in notes)
    assert any("1 masks have no image (9.png)" in note for note in notes)
