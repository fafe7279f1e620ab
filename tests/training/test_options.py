"""What a training is asked for beside its network and data: normalisation, contrast, schedules, averaged weights."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sre_triton
from sre_triton.training.data.crops import CropSet
from sre_triton.training.data.photographs import Photograph
from sre_triton.training.data.standardise import standardise
from sre_triton.training.options import SegmentOptions
from sre_triton.training.tasks.optimisation import optimiser_and_schedules
from sre_triton.training.tasks.segmentation import slide
from tests.training.conftest import TINY, TINY_UNET, Command, MakeSet


def fundus(side: int = 65) -> torch.Tensor:
    """A round bright field on a nearly black ground, (1, 3, side, side)."""
    y, x = (torch.linspace(-1, 1, side)[:, None], torch.linspace(-1, 1, side))
    inside = (x**2 + y**2 < 0.8).float()
    colours = torch.tensor([0.7, 0.4, 0.2])[:, None, None]
    noise = torch.rand(3, side, side, generator=torch.Generator().manual_seed(0))
    return ((colours + 0.2 * noise) * inside + 0.02 * noise)[None]


def test_the_field_is_brought_to_mean_0_and_deviation_1() -> None:
    picture = fundus()
    inside = picture[0].amax(dim=0) > 0.1
    seen = standardise(picture, "field")[0][:, inside]
    torch.testing.assert_close(seen.mean(dim=1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.std(dim=1, correction=0), torch.ones(3), atol=1e-5, rtol=0)
    whole = standardise(picture, "image")
    torch.testing.assert_close(whole.mean(dim=(2, 3)), torch.zeros(1, 3), atol=1e-5, rtol=0)
    assert (standardise(picture, "none") == picture).all()


def test_exposure_and_turns_change_nothing_that_the_network_sees() -> None:
    picture = fundus()
    seen = standardise(picture, "field")
    torch.testing.assert_close(standardise(picture * 0.4, "field"), seen, atol=2e-5, rtol=0)
    torch.testing.assert_close(standardise(picture.rot90(1, (2, 3)), "field"), seen.rot90(1, (2, 3)))
    torch.testing.assert_close(standardise(picture.flip(3), "field"), seen.flip(3))
    wide = torch.nn.functional.pad(picture, (9, 9, 0, 0))  # a black frame is no part of the field
    torch.testing.assert_close(standardise(wide, "field")[..., 9:-9], seen, atol=1e-5, rtol=0)


@pytest.mark.parametrize("how", ["image", "field"])
def test_a_picture_without_contrast_stays_finite(how: str) -> None:
    for value in (0.0, 0.5):
        assert (standardise(torch.full((2, 3, 8, 9), value), how).abs() < 1e-3).all()


def test_an_unknown_normalisation_is_refused() -> None:
    with pytest.raises(ValueError, match="how must be one of none, image, field, got 'fields'"):
        standardise(torch.rand(1, 3, 4, 4), "fields")


def crops(**options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    image = fundus(48)[0].numpy()
    photograph = Photograph(image, (image[:1] > 0.5).astype(np.uint8), "one")
    chosen = CropSet([photograph], SegmentOptions(crop_size=48, crops_per_image=8, **options))
    return chosen[list(range(8))]


def test_crops_are_standardised_by_their_whole_photograph() -> None:
    images, _ = crops(normalise="field")
    torch.testing.assert_close(images, standardise(fundus(48), "field").expand(8, -1, -1, -1), atol=1e-5, rtol=0)


def test_gain_and_offset_are_each_crops_and_channels_own() -> None:
    plain, _ = crops(normalise="field")
    changed, _ = crops(normalise="field", gain=0.3, offset=0.5)
    flat_plain, flat = plain.flatten(2), changed.flatten(2)
    gain = flat.std(dim=2) / flat_plain.std(dim=2)
    offset = flat.mean(dim=2) - gain * flat_plain.mean(dim=2)
    assert len(gain.unique()) > 20
    assert len(offset.unique()) > 20
    assert ((gain > 0.69) & (gain < 1.31)).all()
    assert (offset.abs() < 0.51).all()
    assert gain.max() - gain.min() > 0.3
    assert offset.max() - offset.min() > 0.5
    torch.testing.assert_close(flat, flat_plain * gain[..., None] + offset[..., None], atol=1e-4, rtol=0)


def test_masks_are_flipped_with_their_images() -> None:
    images, labels = crops(train_flip_p=0.5)
    assert len(images.unique(dim=0)) == 4  # neither, one, the other and both flips
    torch.testing.assert_close(labels, (images[:, :1] > 0.5).long())


def rates(run: Path) -> list[float]:
    with (run / "metrics.csv").open(newline="") as file:
        return [float(row["lr"]) for row in csv.DictReader(file)]


def test_the_normalisation_is_kept_and_used_wherever_the_network_is(sre: Command, tmp_path: Path) -> None:
    assert sre("segment", *TINY_UNET, "--epochs", "1", "--normalise", "field") == 0
    run = tmp_path / "logs" / "task" / "vessels-sre_unet-seed1"
    model = sre_triton.load(run)
    assert model.options.normalise == "field"
    picture = fundus(40)
    answer = model.probabilities(picture[0])
    with torch.no_grad():
        by_hand = slide(model.network, standardise(picture, "field"), SegmentOptions(crop_size=32)).softmax(dim=1)
    np.testing.assert_allclose(answer, by_hand[0].numpy(), atol=1e-6)
    np.testing.assert_allclose(model.probabilities(0.5 * picture[0]), answer, atol=1e-4)


def rates_of_steps(epochs: int, steps: int, **options: Any) -> list[float]:
    """The rate of every step of a training, its schedules advanced as Lightning does."""
    network = torch.nn.Linear(1, 1)
    chosen = SegmentOptions(epochs=epochs, lr=0.01, sgd=True, **options)
    optimiser, schedules = optimiser_and_schedules(network, chosen, steps)
    found = []
    for step in range(1, epochs * steps + 1):
        found.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        for schedule, frequency in schedules:
            if step % frequency == 0:
                schedule.step()
    return found


def test_one_cycle_rises_and_falls_within_the_training() -> None:
    found = rates_of_steps(10, 3, one_cycle=True)
    top = found.index(max(found))
    assert found[0] == pytest.approx(0.01 / 25)
    assert top == 8  # 0.3 of 30 steps
    assert found[top] == pytest.approx(0.01)
    assert found == sorted(found[:top]) + sorted(found[top:], reverse=True)
    assert found[-1] == pytest.approx(0.01 / 25 / 1e4)


def test_warm_up_rises_to_the_schedule_step_by_step() -> None:
    rise = [0.01 * number / 7 for number in range(1, 7)]
    assert rates_of_steps(5, 3, warm_up=2) == pytest.approx([*rise, *[0.01] * 9])
    stepped = rates_of_steps(5, 3, warm_up=2, step=True, step_size=3, gamma=0.5)
    assert stepped == pytest.approx([*rise, *[0.01] * 3, *[0.005] * 6])


def test_the_table_of_epochs_has_the_rate_of_each_ones_first_step(sre: Command, tmp_path: Path) -> None:
    assert sre("segment", *TINY_UNET, "--epochs", "2", "--lr", "0.01", "--warm-up", "1") == 0
    assert rates(tmp_path / "logs" / "task" / "vessels-sre_unet-seed1") == pytest.approx([0.01 / 3, 0.01])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--one-cycle", "--cos"], "--cos and --one-cycle ask for more than one schedule"),
        (["--one-cycle", "--epochs", "3", "--cur-ep", "1"], "--one-cycle begins with the first epoch"),
        (["--one-cycle", "--warm-up", "2"], "--warm-up 2 with --one-cycle: its rate rises by itself"),
        (["--ema", "1"], "--ema must be at least 0 and below 1, got 1.0"),
        (["--label-smoothing", "-0.1"], "--label-smoothing must be at least 0 and below 1, got -0.1"),
        (["--accumulate", "0"], "--accumulate must be at least 1, got 0"),
        (["--gain", "1.5"], "--gain must be at least 0 and below 1, got 1.5"),
        (["--blur", "-1"], "--blur must be at least 0, got -1"),
        (["--class-weights", "1", "2", "3"], "--class-weights must be balanced or 2 positive numbers, got 1 2 3"),
        (["--class-weights", "even"], "--class-weights must be balanced or 2 positive numbers, got even"),
    ],
)
def test_what_cannot_be_is_one_clear_line(arguments: list[str], message: str, sre: Command, capsys: Any) -> None:
    assert sre("segment", *TINY_UNET, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_averaged_weights_are_validated_and_kept(sre: Command, tmp_path: Path) -> None:
    arguments = ["segment", *TINY_UNET, "--epochs", "2", "--lr", "0.01"]
    for exp, more in {"plain": [], "mean": ["--ema", "0.5"]}.items():
        assert sre(*arguments, "--exp", exp, *more) == 0
    runs = [tmp_path / "logs" / exp / "vessels-sre_unet-seed1" for exp in ("plain", "mean")]
    plain, mean = (torch.load(run / "last.ckpt", weights_only=True) for run in runs)
    for name, value in plain["state_dict"].items():
        torch.testing.assert_close(mean["current_model_state"][name], value)  # it trains as without
    name = "network.final_conv.weight"
    assert not torch.equal(mean["state_dict"][name], plain["state_dict"][name])
    logs = [json.loads((run / "logs.json").read_text()) for run in runs]
    assert logs[0]["train_loss"] == logs[1]["train_loss"]
    assert logs[0]["val_loss"] != logs[1]["val_loss"]
    kept = sre_triton.load(runs[1] / "last.ckpt").network.state_dict()
    assert torch.equal(kept["final_conv.weight"], mean["state_dict"][name])


def test_accumulated_batches_step_as_one_of_their_size(sre: Command, tmp_path: Path) -> None:
    # Without batch normalisation, whose statistics are of a batch.
    arguments = ["segment", *TINY_UNET, "--epochs", "1", "--norm-layer", "instance", "--sgd", "--lr", "0.1"]
    for exp, more in {"one": ["-b", "4"], "two": ["-b", "2", "--accumulate", "2"]}.items():
        assert sre(*arguments, "--exp", exp, *more) == 0
    runs = [torch.load(tmp_path / "logs" / exp / "vessels-sre_unet-seed1/last.ckpt", weights_only=True) for exp in
            ("one", "two")]  # fmt: skip
    assert [run["global_step"] for run in runs] == [1, 1]
    for name, value in runs[0]["state_dict"].items():
        torch.testing.assert_close(runs[1]["state_dict"][name], value, atol=1e-6, rtol=1e-5)


def test_a_training_that_gets_no_better_ends_and_stays_ended(sre: Command, tmp_path: Path, capsys: Any) -> None:
    arguments = ["segment", *TINY_UNET, "--epochs", "9", "--lr", "1e-12", "--early-stop", "2"]
    assert sre(*arguments) == 0
    run = tmp_path / "logs" / "task" / "vessels-sre_unet-seed1"
    assert "no better for 2 epochs: stopped after epoch 3" in capsys.readouterr().out
    before = rates(run)
    assert len(before) == 3
    assert sre(*arguments, "--resume") == 0
    assert rates(run) == before


def test_smoothed_labels_and_class_weights_change_the_loss_as_they_say() -> None:
    from sre_triton.training.tasks.segmentation import SegmentationTask

    logits = torch.tensor([[2.0, -1.0], [0.5, 1.5]])[:, :, None, None]
    labels = torch.tensor([0, 1])[:, None, None, None]
    weight = torch.tensor([1.0, 3.0])
    chances = logits[:, :, 0, 0].log_softmax(dim=1)
    smooth = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    expected = -(smooth * chances * weight).sum() / weight.sum()
    options = SegmentOptions(
        vessels_size=64, vessels_count=[1, 1, 1], class_weights=["1", "3"], label_smoothing=0.2, model_args=UNET
    )
    task = SegmentationTask.from_options(options)
    torch.testing.assert_close(task.loss(logits, labels), expected)


UNET = '{"features": [8, 8], "sre_conv_size": 3}'


def test_balanced_weights_are_those_of_the_training_masks() -> None:
    from sre_triton.training.tasks.segmentation import SegmentationTask

    options = SegmentOptions(vessels_size=64, vessels_count=[2, 1, 1], class_weights=["balanced"], model_args=UNET)
    task = SegmentationTask.from_options(options)
    share = np.mean([photograph.labels.mean() for photograph in task.photographs.splits["train"]])
    torch.testing.assert_close(task.loss.weight, torch.tensor([0.5 / (1 - share), 0.5 / share], dtype=torch.float32))


def test_a_run_with_class_weights_is_loaded(make_set: MakeSet, sre: Command, tmp_path: Path) -> None:
    assert sre("segment", *TINY_UNET, "--epochs", "1", "--class-weights", "balanced") == 0
    run = tmp_path / "logs" / "task" / "vessels-sre_unet-seed1"
    assert sre_triton.load(run).predict(np.zeros((32, 32, 3), np.uint8)).shape == (32, 32)
    assert sre("evaluate", run, "--step-degrees", "180") == 0
    make_set("tiny")
    weights = ["--class-weights", "balanced", "--label-smoothing", "0.1", "--balanced-sampler"]
    assert sre("train", *TINY, "--med-mnist", "tiny", "--epochs", "1", *weights) == 0


def test_a_balanced_sampler_draws_every_class_alike() -> None:
    from sre_triton.training.data.augment import Share
    from sre_triton.training.data.loading import TrainingBatches
    from sre_triton.training.tasks.class_weights import balanced_weights

    labels = torch.tensor([0] * 900 + [1] * 90 + [2] * 10)
    weights = balanced_weights(labels.bincount())[labels]
    assert float(weights.mean()) == pytest.approx(1)
    drawn = torch.tensor([index for batch in TrainingBatches(1000, 10, 0, Share(), weights) for index in batch])
    assert len(drawn) == 1000
    assert (labels[drawn].bincount() / 1000 - 1 / 3).abs().max() < 0.05
    again = [index for batch in TrainingBatches(1000, 10, 0, Share(), weights) for index in batch]
    assert again == drawn.tolist()


def test_gamma_and_blur_keep_the_range_and_the_mean() -> None:
    plain, _ = crops(train_flip_p=0)
    darker, labels = crops(gamma_ratio=1.0)
    for one in (plain, darker):
        torch.testing.assert_close(one.amin(dim=(1, 2, 3)), plain.amin(dim=(1, 2, 3)))
        torch.testing.assert_close(one.amax(dim=(1, 2, 3)), plain.amax(dim=(1, 2, 3)))
    assert darker.mean(dim=(1, 2, 3)).min() < plain.mean() < darker.mean(dim=(1, 2, 3)).max()
    assert (labels == crops()[1]).all()

    blurred, _ = crops(blur=2.0)
    rough = (blurred[..., 1:] - blurred[..., :-1]).abs().mean(dim=(1, 2, 3))
    sharp = (plain[..., 1:] - plain[..., :-1]).abs().mean()
    assert 1 <= int((rough < 0.9 * sharp).sum()) < len(rough)  # about half


def test_turned_crops_and_their_masks_stay_together() -> None:
    images, labels = crops(train_rotate=True, train_degree=180.0, interpolation="nearest")
    assert len(images.unique(dim=0)) == 8
    torch.testing.assert_close(labels, (images[:, :1] > 0.5).long())
    assert images.shape[2:] == (48, 48)


def test_contrast_of_images_and_volumes_depends_on_the_seed_alone() -> None:
    from sre_triton.training.data.augment import Preparation, Share
    from sre_triton.training.options import TrainOptions

    options = TrainOptions(gain=0.3, offset=0.2, gamma_ratio=0.5, blur=1.0)
    for space in ((32, 32), (32, 32, 32)):
        images = torch.rand(4, 1, *space, generator=torch.Generator().manual_seed(0))
        whole = Preparation(options, len(space)).trained(images, 5)
        assert (whole != Preparation(TrainOptions(), len(space)).trained(images, 5)).flatten(1).any(dim=1).all()
        parts = [Preparation(options, len(space)).trained(images[rank::2], 5, Share(rank, 2)) for rank in (0, 1)]
        torch.testing.assert_close(torch.stack(parts, dim=1).flatten(0, 1), whole)


def test_the_threshold_of_validation_is_kept_and_used(sre: Command, tmp_path: Path) -> None:
    arguments = ["segment", *TINY_UNET, "--epochs", "2", "--lr", "0.005"]
    for exp, more in {"half": [], "tuned": ["--tune-threshold"]}.items():
        assert sre(*arguments, "--exp", exp, *more) == 0
    half, tuned = (tmp_path / "logs" / exp / "vessels-sre_unet-seed1" for exp in ("half", "tuned"))
    dice = [json.loads((run / "logs.json").read_text())["val_dice"] for run in (half, tuned)]
    assert all(more >= less for less, more in zip(*dice, strict=True))
    model = sre_triton.load(tuned)
    assert model.threshold is not None
    assert sre_triton.load(half).threshold is None
    picture = np.random.default_rng(0).random((40, 40, 3), np.float32)
    probabilities = model.probabilities(picture)
    np.testing.assert_array_equal(model.predict(picture) > 0, probabilities[1] >= model.threshold)
    assert sre("evaluate", tuned, "--split", "val", "--step-degrees", "360", "--no-flips") == 0
    summary = next(iter(json.loads((tuned / "evaluation-val/evaluation.json").read_text()).values()))["rotation"][
        "summary"
    ]
    assert summary["dice"]["at_0"] == pytest.approx(max(dice[1]), abs=1e-4)
