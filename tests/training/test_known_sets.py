"""DRIVE, CHASE_DB1, STARE and HRF as they are distributed, made small, and the real ones where they are."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.conftest import Command
from tests.training.photographs import TINY, names, read, write_image, write_mask, write_pairs

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
    found = json.loads((run / "evaluation-val/evaluation.json").read_text())[run.name]["rotation"]["summary"]
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

DATA = os.environ.get("SRE_TRITON_TEST_DATA")
"""Folder of chase_db1, chase_db1_fov, hrf_quarter and nuclei."""


def real(name: str) -> Path:
    """The folder of a real set; the test is skipped where there is none."""
    folder = Path(DATA or "") / name
    if not DATA or not folder.is_dir():
        pytest.skip(f"the variable SRE_TRITON_TEST_DATA names no folder with {name}")
    return folder


@pytest.mark.parametrize(
    ("name", "counts", "has_fields"),
    [("chase_db1", (16, 4, 8), True), ("hrf_quarter", (27, 9, 9), True), ("nuclei", (200, 67, 67), False)],
)
def test_real_sets_are_found(name: str, counts: tuple[int, ...], has_fields: bool, tmp_path: Path) -> None:
    found = read(real(name), **({"fov": real("chase_db1_fov")} if name == "chase_db1" else {}))
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
    assert sre("segment", "--data", real(name), *TINY, "--window-size", "512") == 0


def test_other_data_are_evaluated_whole(sre: Command, tmp_path: Path) -> None:
    write_pairs(tmp_path / "one", [str(n) for n in range(5)])
    make_hrf(tmp_path / "two")
    assert sre("segment", "--data", tmp_path / "one", *TINY, "--layout", "folder") == 0
    run = tmp_path / "logs" / "task" / "one-sre_unet-seed1"
    assert sre("evaluate", run, "--data", tmp_path / "two", "--split", "all", "--step-degrees", "180") == 0
    result = json.loads((run / "evaluation-all-hrf/evaluation.json").read_text())[run.name]
    assert (result["data"], result["split"]) == ("hrf", "all")
    shutil.rmtree(tmp_path / "one")
    assert sre("evaluate", run) == 2
