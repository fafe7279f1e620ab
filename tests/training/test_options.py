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
from sre_triton.training.data.photographs import Photograph
from sre_triton.training.data.standardise import standardise
from sre_triton.training.options import SegmentOptions
from sre_triton.training.tasks.segmentation import CropSet, slide
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


def test_one_cycle_rises_and_falls_within_the_training(make_set: MakeSet, sre: Command, tmp_path: Path) -> None:
    make_set("tiny")
    command = [*(word for word in TINY if word != "--cos"), "--med-mnist", "tiny", "--epochs", "10", "--one-cycle"]
    assert sre("train", *command) == 0
    found = rates(tmp_path / "logs" / "task" / "tiny-sre_resnet18-seed1")
    assert found[0] == pytest.approx(0.01 / 25)
    top = found.index(max(found))
    assert top == 3  # 0.3 of 10 epochs
    assert found[top] == pytest.approx(0.01, rel=0.02)
    assert found == sorted(found[:top]) + sorted(found[top:], reverse=True)
    assert found[-1] < 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--one-cycle", "--cos"], "--cos and --one-cycle ask for more than one schedule"),
        (["--one-cycle", "--epochs", "3", "--cur-ep", "1"], "--one-cycle begins with the first epoch"),
        (["--ema", "1"], "--ema must be at least 0 and below 1, got 1.0"),
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
