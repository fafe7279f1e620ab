"""Photographs with masks as they lie in folders and tables: who belongs to whom, and what is wrong is named."""

from __future__ import annotations

import csv
import gzip
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sre_triton.training.data.pairs import pair_by_name
from sre_triton.training.data.segmentation_set import SegmentationSet, read_segmentation_set
from sre_triton.training.options import SegmentOptions
from sre_triton.training.tasks.segmentation import segmentation_scores
from tests.training.conftest import Command

SIDE = 48
TINY = [
    *("--crop-size", "32", "--crops-per-image", "1", "-b", "2", "--epochs", "1", "--window-size", "64"),
    *("--model-args", '{"features": [4, 4], "sre_conv_size": 3}'),
]


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    """A picture with bright squares on noise; returns where they are."""
    rng = np.random.default_rng(seed)
    truth = np.kron(rng.random((6, 6)) < 0.3, np.ones((8, 8))).astype(bool)[: size[0], : size[1]]
    pixels = rng.integers(0, 100, (*size, 3)) + 120 * truth[..., None]
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(pixels.astype(np.uint8))
    if path.suffix == ".gz":
        picture.save(path.with_suffix(""))
        path.write_bytes(gzip.compress(path.with_suffix("").read_bytes()))
        path.with_suffix("").unlink()
    else:
        picture.save(path)
    return truth


def write_mask(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(values if values.dtype != bool else (255 * values).astype(np.uint8))
    if path.suffix == ".gz":
        picture.save(path.with_suffix(""))
        path.write_bytes(gzip.compress(path.with_suffix("").read_bytes()))
        path.with_suffix("").unlink()
    else:
        picture.save(path)


def write_pairs(root: Path, names: Sequence[str], image: str = "images/{}.png", mask: str = "masks/{}.png") -> None:
    for seed, name in enumerate(names):
        write_mask(root / mask.format(name), write_image(root / image.format(name), seed))


def read(root: Path, **options: Any) -> SegmentationSet:
    return read_segmentation_set(SegmentOptions(data=root, **options))


def names(found: SegmentationSet) -> dict[str, list[str]]:
    return {split: [photograph.name for photograph in photographs] for split, photographs in found.splits.items()}


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
        (lambda root: {"val_fraction": 1.5}, "--val-fraction must be at least 0 and below 1, got 1.5"),
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
    assert any("1 files are no pictures and left out (notes.txt)" in note for note in notes)
    assert any("1 masks have no image (9.png)" in note for note in notes)


# Masks ------------------------------------------------------------------------------------------------


def test_every_value_is_a_class(tmp_path: Path) -> None:
    write_pairs(tmp_path, [str(n) for n in range(6)])
    values = np.zeros((SIDE, SIDE), np.uint8)
    values[:16], values[16:24] = 100, 255
    write_mask(tmp_path / "masks" / "0.png", values)
    found = read(tmp_path)
    assert (found.classes, found.values) == (3, (0, 100, 255))
    (one,) = [p for split in found.splits.values() for p in split if p.name == "0.png"]
    assert np.array_equal(one.labels[0], np.select([values == 100, values == 255], [1, 2]))
    two = read(tmp_path, mask_threshold=100)
    assert two.classes == 2
    (one,) = [p for split in two.splits.values() for p in split if p.name == "0.png"]
    assert np.array_equal(one.labels[0], values >= 100)


def smoothed() -> np.ndarray:
    mask = Image.fromarray((255 * (np.hypot(*np.mgrid[-24:24, -24:24]) < 15)).astype(np.uint8))
    return np.asarray(mask.resize((24, 24), Image.Resampling.BOX).resize((SIDE, SIDE), Image.Resampling.NEAREST))


def few_levels() -> np.ndarray:
    disc = (np.hypot(*np.mgrid[-24:24, -24:24]) < 15).astype(np.uint8)
    inner = (np.hypot(*np.mgrid[-24:24, -24:24]) < 14).astype(np.uint8)
    return (127 * disc + 128 * inner).astype(np.uint8)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.arange(SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint8), "holds 256 values (0 to 255): smoothed edges"),
        (few_levels(), "holds 3 values (0 to 255), those between on edges alone: they are smoothed"),
        (np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8), "colours (#"),
        (np.ones((SIDE, SIDE), np.uint8) * np.eye(SIDE, dtype=np.uint8), "stores the foreground as 1 and"),
        (np.zeros((SIDE, SIDE - 1), bool), "0.png has 47x48 pixels, "),
    ],
)
def test_a_wrong_mask_is_named(values: np.ndarray, message: str, tmp_path: Path) -> None:
    write_pairs(tmp_path, [str(n) for n in range(6)])
    write_mask(tmp_path / "masks" / "0.png", values)
    with pytest.raises(ValueError) as error:  # noqa: PT011 - matched below, as text
        read(tmp_path)
    assert message in str(error.value)
    assert str(tmp_path / "masks" / "0.png") in str(error.value)


def test_masks_of_nothing_are_refused(tmp_path: Path) -> None:
    for number in range(4):
        write_image(tmp_path / "images" / f"{number}.png", number)
        write_mask(tmp_path / "masks" / f"{number}.png", np.zeros((SIDE, SIDE), bool))
    with pytest.raises(ValueError, match="all 4 masks hold nothing but 0: there is nothing to find"):
        read(tmp_path)
    with pytest.raises(ValueError, match="--mask-threshold 3 puts every pixel of every mask on one side"):
        read(tmp_path, mask_threshold=3)


def test_options_of_own_data_need_it() -> None:
    for options in ({"fov": Path("x")}, {"split": Path("x")}, {"mask_threshold": 1.0}, {"group": "x"}):
        with pytest.raises(ValueError, match="is for images of --data, which is not given"):
            read_segmentation_set(SegmentOptions(**options))  # type: ignore[arg-type]


# Scores -----------------------------------------------------------------------------------------------


def test_scores_of_three_classes_by_hand() -> None:
    labels = torch.tensor([0, 1, 1, 2])
    probabilities = torch.tensor([[0.8, 0.1, 0.6, 0.1], [0.1, 0.8, 0.3, 0.1], [0.1, 0.1, 0.1, 0.8]])
    scores = segmentation_scores(probabilities, labels)
    assert scores["dice"] == pytest.approx((2 / 3 + 1) / 2)
    assert scores["accuracy"] == 0.75
    assert scores["auc"] == 1


def test_scores_are_those_inside_the_field_and_of_the_whole_image(sre: Command, tmp_path: Path) -> None:
    from sre_triton.training.data.warp import Symmetry
    from sre_triton.training.options import TurningOptions
    from sre_triton.training.runs.restore import load_task

    write_pairs(tmp_path / "set", [str(n) for n in range(5)])
    field = np.hypot(*np.mgrid[-24:24, -24:24]) < 18
    for number in range(5):
        write_mask(tmp_path / "set" / "fov" / f"{number}.png", field)
    assert sre("segment", "--data", tmp_path / "set", *TINY) == 0
    run = tmp_path / "logs" / "task" / "set-sre_unet-seed1"
    with (run / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert {"val_dice", "val_whole_dice", "val_auc", "val_whole_auc"} <= set(row)
    task = load_task(run)
    (one,) = task.photographs.splits["test"]  # type: ignore[union-attr]
    with torch.no_grad():
        probabilities = task.network(torch.from_numpy(one.image)[None]).softmax(dim=1)[0]
    labels, inside = torch.from_numpy(one.labels[0]), torch.from_numpy(field)
    scores = task.turned_scores("test", Symmetry(), TurningOptions(test_batch_size=1))
    assert scores["dice"] == pytest.approx(segmentation_scores(probabilities[:, inside], labels[inside])["dice"])
    whole = segmentation_scores(probabilities.flatten(1), labels.flatten())
    assert scores["whole_dice"] == pytest.approx(whole["dice"])
    assert scores["whole_auc"] == pytest.approx(whole["auc"], abs=1e-6)
    assert whole["dice"] != pytest.approx(scores["dice"], abs=1e-6)


# The known sets ---------------------------------------------------------------------------------------


def make_drive(root: Path, *, test_labels: bool) -> None:
    for folder, first, count in (("training", 21, 6), ("test", 1, 2)):
        for number in range(first, first + count):
            truth = write_image(root / folder / "images" / f"{number:02d}_{folder}.tif", number)
            write_mask(root / folder / "mask" / f"{number:02d}_{folder}_mask.gif", np.ones_like(truth))
            if test_labels or folder == "training":
                write_mask(root / folder / "1st_manual" / f"{number:02d}_manual1.gif", truth)


def make_chase(root: Path) -> None:
    for person in range(1, 15):
        for eye in "LR":
            stem = f"Image_{person:02d}{eye}"
            truth = write_image(root / f"{stem}.jpg", person)
            write_mask(root / f"{stem}_1stHO.png", truth)
            write_mask(root / f"{stem}_2ndHO.png", ~truth)


def make_stare(root: Path, ending: str, apart: bool = False) -> None:
    for number in range(1, 7):
        folder = root / "stare-images" if apart else root
        truth = write_image(folder / f"im{number:04d}.{ending}", number)
        for observer, mask in (("ah", truth), ("vk", ~truth)):
            folder = root / f"labels-{observer}" if apart else root
            write_mask(folder / f"im{number:04d}.{observer}.{ending}", mask)


def make_hrf(root: Path) -> None:
    for number in (1, 2):
        for kind, ending in (("dr", "JPG"), ("g", "jpg"), ("h", "jpg")):
            truth = write_image(root / "images" / f"{number:02d}_{kind}.{ending}", 3 * number + len(kind))
            write_mask(root / "manual1" / f"{number:02d}_{kind}.tif", truth)
            write_mask(root / "mask" / f"{number:02d}_{kind}_mask.tif", np.ones_like(truth))


def test_drive_without_test_labels_is_trained_and_validated(sre: Command, tmp_path: Path, capsys: Any) -> None:
    make_drive(tmp_path / "DRIVE", test_labels=False)
    assert sre("segment", "--data", tmp_path / "DRIVE", *TINY) == 0
    said = capsys.readouterr().out
    assert "6 photographs: 2 train, 4 val, 0 test; scores inside the field of view (of 6) and on whole images" in said
    assert "test has no 1st_manual: its 2 photographs are not used" in said
    assert sre("segment", "--data", tmp_path / "DRIVE", *TINY, "--eval-rot") == 2
    assert "drive has no test images to turn" in capsys.readouterr().err
    run = tmp_path / "logs" / "task" / "drive-sre_unet-seed1"
    assert sre("evaluate", run, "--split", "val", "--step-degrees", "90") == 0
    found = json.loads((run / "evaluation.json").read_text())[run.name]["rotation"]["summary"]
    assert {"dice", "whole_dice"} <= set(found)
    assert sre("evaluate", run) == 2


def test_drive_with_test_labels(tmp_path: Path) -> None:
    make_drive(tmp_path, test_labels=True)
    assert {split: len(found) for split, found in read(tmp_path).splits.items()} == {"train": 2, "val": 4, "test": 2}


def test_chase_db1_is_divided_by_person(tmp_path: Path) -> None:
    make_chase(tmp_path)
    found = read(tmp_path)
    assert found.name == "chase_db1"
    people = {split: sorted({int(name[6:8]) for name in members}) for split, members in names(found).items()}
    assert people == {"train": list(range(1, 9)), "val": [9, 10], "test": [11, 12, 13, 14]}
    other = read(tmp_path, observer=2, layout="chase_db1")
    assert np.array_equal(other.splits["val"][0].labels, 1 - found.splits["val"][0].labels)
    for members in names(read(tmp_path, val_fraction=0.3)).values():
        assert {name[6:8] for name in members if "L" in name} == {name[6:8] for name in members if "R" in name}
    (tmp_path / "Image_03L_1stHO.png").unlink()
    with pytest.raises(ValueError, match=r"Image_03L.jpg has no vessels in"):
        read(tmp_path)


@pytest.mark.parametrize("ending", ["ppm", "ppm.gz"])
def test_stare_is_trained(ending: str, sre: Command, tmp_path: Path, capsys: Any) -> None:
    make_stare(tmp_path / "STARE", ending, apart=ending == "ppm.gz")
    assert sre("segment", "--data", tmp_path / "STARE", *TINY, "--eval-flip") == 0
    assert "the vessels of the other observer (.vk) are left out" in capsys.readouterr().out
    first, second = (read(tmp_path / "STARE", observer=observer) for observer in (1, 2))
    assert np.array_equal(first.splits["val"][0].labels, 1 - second.splits["val"][0].labels)
    (image,) = (tmp_path / "STARE").rglob(f"im0003.{ending}")
    image.unlink()
    with pytest.raises(ValueError, match=r"im0003.ah.ppm.* has no photograph im0003.ppm"):
        read(tmp_path / "STARE")


def test_hrf_pairs_its_three_kinds(tmp_path: Path) -> None:
    make_hrf(tmp_path)
    found = read(tmp_path)
    assert (found.name, found.has_fields) == ("hrf", True)
    assert sum(len(photographs) for photographs in found.splits.values()) == 6
    (tmp_path / "manual1" / "01_g.tif").unlink()
    with pytest.raises(ValueError, match=r"01_g.jpg has no vessels in .*manual1"):
        read(tmp_path)


# Real sets --------------------------------------------------------------------------------------------

DATA = Path(os.environ.get("SRE_TRITON_TEST_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"))


@pytest.mark.parametrize(
    ("name", "counts", "has_fields"),
    [("chase_db1", (16, 4, 8), True), ("hrf_quarter", (27, 9, 9), True), ("nuclei", (200, 67, 67), False)],
)
def test_real_sets_are_found(name: str, counts: tuple[int, ...], has_fields: bool, tmp_path: Path) -> None:
    if not (DATA / name).is_dir():
        pytest.skip(f"there is no {DATA / name}; the variable SRE_TRITON_TEST_DATA names its folder")
    found = read(DATA / name, **({"fov": DATA / "chase_db1_fov"} if name == "chase_db1" else {}))
    assert tuple(len(found.splits[split]) for split in ("train", "val", "test")) == counts
    assert (found.classes, found.has_fields) == (2, has_fields)
    one = found.splits["train"][0]
    assert one.image.shape[1:] == one.labels.shape[1:]
    if one.field is not None:
        assert one.field.mean() > 0.5
        assert one.labels[one.field == 0].mean() < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chase_db1", "hrf_quarter", "nuclei"])
def test_real_sets_are_trained(name: str, sre: Command, tmp_path: Path) -> None:
    if not (DATA / name).is_dir():
        pytest.skip(f"there is no {DATA / name}; the variable SRE_TRITON_TEST_DATA names its folder")
    assert sre("segment", "--data", DATA / name, *TINY, "--window-size", "512") == 0


def test_other_data_are_evaluated_whole(sre: Command, tmp_path: Path) -> None:
    write_pairs(tmp_path / "one", [str(n) for n in range(5)])
    make_hrf(tmp_path / "two")
    assert sre("segment", "--data", tmp_path / "one", *TINY, "--layout", "folder") == 0
    run = tmp_path / "logs" / "task" / "one-sre_unet-seed1"
    assert sre("evaluate", run, "--data", tmp_path / "two", "--split", "all", "--step-degrees", "180") == 0
    result = json.loads((run / "evaluation.json").read_text())[run.name]
    assert (result["data"], result["split"]) == ("hrf", "all")
    shutil.rmtree(tmp_path / "one")
    assert sre("evaluate", run) == 2
