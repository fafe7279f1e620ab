"""Classes of masks, and scores inside the field of view and of whole images."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sre_triton.training.data.segmentation_set import read_segmentation_set
from sre_triton.training.options import SegmentOptions
from sre_triton.training.tasks.segmentation_scores import segmentation_scores
from tests.training.conftest import Command
from tests.training.photographs import SIDE, TINY, read, write_image, write_mask, write_pairs

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
