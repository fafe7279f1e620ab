"""Turning and augmentation of batches, and what the rotation test measures."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sre_triton.training.data.augment import Preparation, Share, derived_seed
from sre_triton.training.data.warp import AXES, Symmetry, affine, rotation_matrix, turn
from sre_triton.training.options import SegmentOptions, TrainOptions, TurningOptions
from sre_triton.training.tasks.classification import classification_scores
from sre_triton.training.tasks.histogram import HistogramClassifier
from sre_triton.training.tasks.segmentation import SegmentationTask
from sre_triton.training.tasks.segmentation_scores import segmentation_scores
from sre_triton.training.tasks.turning import symmetries
from tests.training.conftest import TINY, Command, MakeSet


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("side", [6, 7])
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("angle", [90.0, 180.0, 270.0])
def test_quarter_turns_by_interpolation_are_those_by_moving_pixels(
    ndim: int, side: int, axis: str, angle: float
) -> None:
    x = torch.randn(2, 3, *[side] * ndim)
    matrix = rotation_matrix(torch.tensor([angle, angle]), axis, ndim)
    for interpolation in ("nearest", "bilinear"):
        torch.testing.assert_close(affine(x, matrix, interpolation), turn(x, angle, axis), atol=2e-5, rtol=0)


def test_a_positive_angle_turns_counter_clockwise() -> None:
    x = torch.zeros(1, 1, 5, 5)
    x[..., 0, 4] = 1
    assert turn(x, 90)[0, 0, 0, 0] == 1
    assert turn(x, 30).nonzero().tolist() != x.nonzero().tolist()


def test_reference_axes_of_volumes() -> None:
    x = torch.randn(1, 1, 4, 4, 4)
    torch.testing.assert_close(turn(x, 90, "x"), torch.rot90(x, 1, (3, 4)))
    torch.testing.assert_close(turn(x, 90, "y"), torch.rot90(x, 1, (2, 4)))
    torch.testing.assert_close(turn(x, 90, "z"), torch.rot90(x, 1, (2, 3)))


@pytest.mark.parametrize("angle", [10, 30, 45, 80])
def test_angles_that_differ_by_a_quarter_turn_differ_by_nothing_else(angle: float) -> None:
    x = torch.randn(1, 2, 9, 9)
    for k in range(4):
        assert torch.equal(turn(x, angle + 90 * k), torch.rot90(turn(x, angle), k, (2, 3)))


def test_turning_there_and_back_keeps_the_middle() -> None:
    y, x = torch.meshgrid(torch.linspace(-2, 2, 33), torch.linspace(-2, 2, 33), indexing="ij")
    smooth = (torch.sin(y) + torch.cos(2 * x))[None, None]
    back = turn(turn(smooth, 25, interpolation="bilinear"), -25, interpolation="bilinear")
    torch.testing.assert_close(back[..., 12:21, 12:21], smooth[..., 12:21, 12:21], atol=0.02, rtol=0)


def test_expanding_keeps_every_corner() -> None:
    x = torch.ones(1, 1, 10, 14)
    turned = turn(x, 45, expand=True)
    assert turned.shape == (1, 1, 18, 18)
    assert turned.sum() == pytest.approx(140, rel=0.1)
    assert turn(x, 90, expand=True).shape == (1, 1, 14, 10)


def test_the_middle_of_a_photograph_turns_with_what_is_around_it() -> None:
    options = SegmentOptions(
        vessels_size=64, vessels_count=[1, 1, 1], model_args='{"features": [2, 2], "sre_conv_size": 3}', test_crop=24
    )
    task = SegmentationTask.from_options(options)
    seen: list[Tensor] = []
    task.network.register_forward_hook(lambda network, inputs, output: seen.append(inputs[0]))
    image = torch.from_numpy(task.photographs.splits["test"][0].image)[None]
    for angle in (0.0, 40.0, 90.0):
        scores, each = task.eval().each_scored("test", Symmetry(angle), TurningOptions(interpolation="bilinear"))
        assert each == [scores]
    upright, turned, quarter = seen
    assert torch.equal(upright, image[:, :, 20:44, 20:44])
    assert torch.equal(quarter, upright.rot90(1, (2, 3)))
    assert (turn(upright, 40.0, "x", "bilinear")[:, :, 0, 0] != turned[:, :, 0, 0]).any()  # whose corners are black
    assert (turned - turn(image, 40.0, "x", "bilinear")[:, :, 20:44, 20:44]).abs().max() < 1e-5


def test_the_protocols_count_what_they_say() -> None:
    assert [s.angle for s in symmetries(2)] == list(range(0, 360, 10))
    assert [s.angle for s in symmetries(2, reference_protocol=True)] == list(range(0, 361, 10))
    assert len(symmetries(3)) == 3 * 12
    assert len(symmetries(3, reference_protocol=True)) == 3 * 13
    with pytest.raises(ValueError, match="must divide 360"):
        symmetries(2, 7)


EVERYTHING = TrainOptions(moco_aug=True, translation=True, train_rotate=True, affine_prob=0.5, train_flip_p=0.5)


@pytest.mark.parametrize("ndim", [2, 3])
def test_processes_share_one_augmentation(ndim: int) -> None:
    preparation = Preparation(EVERYTHING, ndim)
    x = torch.randint(0, 256, (6, 3 if ndim == 2 else 1, *[28] * ndim), dtype=torch.uint8)
    whole = preparation.trained(x, seed=5)
    assert whole.shape[2:] == (32,) * ndim
    for rank in range(2):
        torch.testing.assert_close(preparation.trained(x[rank::2], 5, Share(rank, 2)), whole[rank::2])
    assert not torch.equal(preparation.trained(x, seed=6), whole)


def test_any_axis_is_one_of_the_three_by_lot() -> None:
    x = torch.randint(0, 256, (12, 1, 9, 9, 9), dtype=torch.uint8)
    fixed = TrainOptions(train_rotate=True, train_degree=90, fix_rotate=True, image_size=9)
    about = {axis: Preparation(replace(fixed, aug_axis=axis), 3).trained(x, seed=0) for axis in AXES}
    turned = Preparation(replace(fixed, aug_axis="any"), 3).trained(x, seed=0)
    chosen = [[axis for axis in AXES if torch.equal(one, about[axis][n])] for n, one in enumerate(turned)]
    assert all(len(axes) == 1 for axes in chosen)
    assert {axes[0] for axes in chosen} == {*AXES}


def test_without_augmentation_training_sees_what_testing_sees() -> None:
    x = torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8)
    for options in (TrainOptions(), TrainOptions(no_aug=True, moco_aug=True, train_rotate=True)):
        preparation = Preparation(options, 2)
        assert torch.equal(preparation.trained(x, 0), preparation.evaluated(x, range(4)))
    assert preparation.evaluated(x, range(4)).abs().max() <= 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (TrainOptions(rotate=True, fix_rotate=True, degree=90), lambda x: torch.rot90(x, 1, (2, 3))),
        (TrainOptions(vflip=True), lambda x: x.flip(2)),
        (TrainOptions(hflip=True), lambda x: x.flip(3)),
        (TrainOptions(pad_size_h=36, pad_size_w=34), lambda x: torch.nn.functional.pad(x, (1, 1, 2, 2))),
    ],
)
def test_test_time_options(options: TrainOptions, expected: object) -> None:
    x = torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8)
    plain = Preparation(TrainOptions(), 2).evaluated(x, range(4))
    torch.testing.assert_close(Preparation(options, 2).evaluated(x, range(4)), expected(plain))  # type: ignore[operator]


def test_what_is_around_a_view_is_turned_into_it() -> None:
    x = torch.randint(130, 256, (2, 1, 42, 42), dtype=torch.uint8)  # above the middle grey, which would be 0
    seeing, whole = Preparation(TrainOptions(), 2, view=28), Preparation(TrainOptions(image_size=48), 2)
    for angle in (0, 45):
        seen = seeing.turned(x, range(2), Symmetry(angle), TurningOptions())
        assert seen.shape == (2, 1, 32, 32)
        torch.testing.assert_close(seen, whole.turned(x, range(2), Symmetry(angle), TurningOptions())[..., 8:40, 8:40])
        assert (seen != 0).all()  # nothing is filled in
    trained = Preparation(TrainOptions(train_rotate=True, train_degree=180), 2, view=28).trained(x, 1)
    assert trained.shape == (2, 1, 32, 32)
    assert (trained != 0).all()


def test_a_histogram_sees_no_structure() -> None:
    network = HistogramClassifier(5, 3)
    for shape in ((2, 3, 8, 8), (2, 3, 4, 4, 4)):
        x = torch.randn(shape)
        moved = x.flatten(2)[:, :, torch.randperm(64)].reshape(shape)
        torch.testing.assert_close(network(moved), network(x))
        assert network(x).shape == (2, 5)
        assert (network(2 * x) != network(x)).any()


def test_translation_moves_whole_pixels() -> None:
    x = torch.randint(1, 256, (8, 1, 28, 28), dtype=torch.uint8)
    still = Preparation(TrainOptions(), 2).evaluated(x, range(8))
    moved = Preparation(TrainOptions(translation=True, translate_ratio=0.1), 2).trained(x, 1)
    for before, after in zip(still, moved, strict=True):
        values = after[after != 0].unique()
        assert torch.isin(values, before.unique()).all()


def test_derived_seeds_differ_in_every_part() -> None:
    assert len({derived_seed(a, b) for a in range(40) for b in range(40)}) == 1600


def test_classification_scores_by_hand() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    logits = torch.tensor([[2.0, 1, 0], [2, 1, 0], [0, 1, 0], [0, 2, 0]])
    scores = classification_scores(logits, labels, multi_label=False)
    assert scores["accuracy"] == 0.75
    assert scores["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)  # the third class does not occur
    assert scores["auc"] == 1
    several = classification_scores(
        torch.tensor([[1.0, -1], [-1, -1], [1, 1]]), torch.tensor([[1, 0], [0, 1], [1, 1]]), True
    )
    assert several["accuracy"] == pytest.approx(5 / 6)  # decided at a probability of one half, not a logit of it
    assert several["balanced_accuracy"] == pytest.approx((1 + 0.75) / 2)


def test_segmentation_scores_by_hand() -> None:
    vessel = torch.tensor([0.9, 0.8, 0.2, 0.1])
    scores = segmentation_scores(torch.stack([1 - vessel, vessel]), torch.tensor([1, 0, 1, 0]))
    assert scores["dice"] == 0.5
    assert scores["iou"] == pytest.approx(1 / 3)
    assert (scores["sensitivity"], scores["specificity"], scores["accuracy"]) == (0.5, 0.5, 0.5)
    assert scores["auc"] == 0.75
    nothing = segmentation_scores(torch.tensor([[1.0] * 4, [0.0] * 4]), torch.zeros(4))
    assert nothing["dice"] == 1
    assert np.isnan(nothing["auc"])


def test_evaluate_names_every_checkpoint(make_set: MakeSet, sre: Command, tmp_path: Path) -> None:
    make_set("tiny")
    for model in ("sre_resnet18", "resnet18"):
        assert sre("train", *TINY, "--model-type", model, "--med-mnist", "tiny", "--epochs", "1") == 0
    runs = [tmp_path / "logs" / "task" / f"tiny-{model}-seed1" for model in ("sre_resnet18", "resnet18")]
    output = tmp_path / "evaluation"
    options = [
        "--names",
        "rings",
        "plain",
        "--reference-protocol",
        "--padding",
        "reflect",
        "--interpolation",
        "bilinear",
    ]
    assert sre("evaluate", *runs, *options, "--output", output) == 0
    results = json.loads((output / "evaluation.json").read_text())
    assert list(results) == ["rings", "plain"]
    rows = results["rings"]["rotation"]["rows"]
    assert len(rows) == 37
    assert {**rows[36], "angle": 0} == rows[0]
    accuracy = [row["accuracy"] for row in rows]
    assert results["rings"]["rotation"]["summary"]["accuracy"]["std"] == pytest.approx(float(np.std(accuracy)))
    with (output / "rotation.csv").open() as file:
        assert sum(1 for _ in csv.DictReader(file)) == 2 * (37 + 3)
    assert (output / "rotation.png").stat().st_size > 0


def test_turned_scores_are_those_of_turned_images(make_set: MakeSet, sre: Command, tmp_path: Path) -> None:
    """Batched on the device, the test gives what image by image gives."""
    from sre_triton.training.runs.restore import load_task

    make_set("tiny", counts=(8, 4, 6))
    assert sre("train", *TINY, "--med-mnist", "tiny", "--epochs", "1") == 0
    task = load_task(tmp_path / "logs" / "task" / "tiny-sre_resnet18-seed1")
    turning = TurningOptions(test_batch_size=4)
    batched, images = task.each_scored("test", Symmetry(30), turning)
    split = task.images.splits["test"]  # type: ignore[union-attr]

    def answer(image: Tensor) -> Tensor:
        with torch.no_grad():
            return task.network(turn((image.float() / 255).sub(0.5).div(0.5), 30))

    resized = torch.nn.functional.interpolate(torch.from_numpy(split.images).float(), (32, 32), mode="bilinear")
    logits = torch.cat([answer(image[None]) for image in resized])
    single = classification_scores(logits, torch.from_numpy(split.labels), multi_label=False)
    assert batched == pytest.approx(single)
    right = logits.argmax(dim=1) == torch.from_numpy(split.labels)
    assert [row["accuracy"] for row in images] == right.double().tolist()


def test_compare_goes_on_where_it_stopped(make_set: MakeSet, sre: Command, tmp_path: Path) -> None:
    make_set("tiny")
    output = tmp_path / "comparison"
    arguments = [*TINY, "--med-mnist", "tiny", "--epochs", "1", "--output", output]
    assert sre("compare train", *arguments, "--seeds", "1") == 0
    kept = {path: path.stat().st_mtime_ns for path in output.glob("*/seed-1/last.ckpt")}
    assert len(kept) == 2
    assert sre("compare train", *arguments, "--seeds", "1", "2") == 0
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())
    rows = {row["network"]: row for row in json.loads((output / "comparison.json").read_text())["networks"]}
    rings, plain = rows["sre_resnet18"], rows["resnet18"]
    assert rings["seeds"] == plain["seeds"] == 2
    assert rings["parameters"] < plain["parameters"]
    assert rings["gmac"] < rings["gmac_dense"] == pytest.approx(plain["gmac"])
    assert rings["ms_per_image"] > 0
    runs = json.loads((output / "comparison.json").read_text())["runs"]["sre_resnet18"]
    means = [run["rotation"]["summary"]["accuracy"]["mean"] for run in runs]
    assert rings["accuracy_mean"] == pytest.approx(np.mean(means))
    assert rings["accuracy_mean_sd"] == pytest.approx(np.std(means, ddof=1))
    lines = (output / "comparison.md").read_text().splitlines()
    assert len([line for line in lines if line.startswith("|")]) == 4
    assert len([line for line in lines if "sre_resnet18 ahead of resnet18: mean of angles" in line]) == 1
    assert rings["gadd"] > 0 == plain["gadd"]
    assert sre("compare train", *arguments, "--seeds", "1", "--lr", "1") == 2
