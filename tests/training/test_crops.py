"""Crops that are looked up through one map are those of a photograph that was warped as a whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sre_triton.training.data import crops, warp
from sre_triton.training.data.crops import CropSet
from sre_triton.training.data.photographs import Photograph
from sre_triton.training.options import SegmentOptions


def photograph(height: int, width: int) -> Photograph:
    rng = np.random.default_rng(height * width)
    image = rng.random((3, height, width), np.float32)
    return Photograph(image, (image[:1] > 0.5).astype(np.uint8), "one")


def cut_by_place(one: Photograph, options: SegmentOptions, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same crop, the long way: every pixel of it looked up in the whole photograph, in float64."""
    linear, centre = crops._random_map(one.image.shape[1:], options, torch.Generator().manual_seed(seed))
    side = options.crop_size
    steps = torch.arange(side, dtype=torch.float64) + 0.5 - side / 2
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    places = torch.einsum("ij,hwj->hwi", linear, torch.stack([x, y], dim=-1)) + centre
    half = torch.tensor(one.image.shape[:0:-1], dtype=torch.float64) / 2
    padding = warp.PADDING_MODES[options.padding]
    answers = []
    for part, how in ((one.image, options.interpolation), (one.labels, "nearest")):
        whole = torch.from_numpy(part)[None].double()
        answers.append(torch.nn.functional.grid_sample(whole, (places / half)[None], how, padding, align_corners=False))
    return answers[0][0].float(), answers[1][0].float()


@pytest.mark.parametrize("padding", ["zeros", "reflect"])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_a_crop_is_that_of_the_whole_photograph(padding: str, interpolation: str) -> None:
    chosen: dict[str, Any] = {"padding": padding, "interpolation": interpolation, "crop_size": 24}
    changes: list[dict[str, Any]] = [
        {"affine_prob": 1.0, "scale_ratio": 0.4, "shear_ratio": 0.3},
        {"train_rotate": True, "train_degree": 180.0},
        {"affine_prob": 0.5, "train_rotate": True, "train_flip_p": 0.5},
    ]
    for space in ((60, 47), (24, 24), (17, 90)):
        one = photograph(*space)
        for number, change in enumerate(changes):
            options = SegmentOptions(**chosen, **change)
            for seed in range(4):
                image, labels = crops._mapped(one, options, torch.Generator().manual_seed(seed))
                expected = cut_by_place(one, options, seed)
                # A pixel that lies on the boundary of two may be rounded to either.
                alike = (image - expected[0]).abs() < 1e-4
                assert alike.float().mean() > 0.999, (space, number, seed)
                assert (labels == expected[1]).float().mean() > 0.995


def test_turns_and_scales_are_as_large_as_they_say() -> None:
    options = SegmentOptions(crop_size=32, affine_prob=1.0, scale_ratio=0.1, shear_ratio=0.2, train_flip_p=0.5)
    maps = torch.stack([
        crops._random_map((96, 96), options, torch.Generator().manual_seed(seed))[0] for seed in range(200)
    ])  # fmt: skip
    assert 0.85 < maps[:, 0, 0].abs().min() < 0.93
    assert 1.07 < maps[:, 0, 0].abs().max() < 1.15
    assert 0.15 < maps[:, 0, 1].abs().max() < 0.23
    assert {(a > 0, b > 0) for a, b in maps.diagonal(dim1=1, dim2=2).tolist()} == {
        (a, b) for a in (True, False) for b in (True, False)
    }
    turned = SegmentOptions(crop_size=32, train_rotate=True, train_degree=20.0)
    found = torch.stack([
        crops._random_map((96, 96), turned, torch.Generator().manual_seed(seed))[0] for seed in range(200)
    ])  # fmt: skip
    angles = torch.rad2deg(torch.atan2(found[:, 1, 0], found[:, 0, 0]))
    assert 17 < angles.abs().max() <= 20
    assert angles.min() < -15


def test_crops_come_from_everywhere_within_a_photograph() -> None:
    options = SegmentOptions(crop_size=8, train_rotate=True, train_degree=0.0)
    room = 40 - 12  # a turned crop of 8 needs 12
    centres = [crops._random_map((40, 40), options, torch.Generator().manual_seed(seed))[1] for seed in range(400)]
    found = {float(centre[0]) for centre in centres}
    assert found == {first + 6 - 20 for first in range(room + 1)}


def test_a_crop_reads_no_more_of_a_large_photograph(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    affine = warp.affine

    def watched(x: torch.Tensor, *arguments: Any) -> torch.Tensor:
        seen.append(max(x.shape[2:]))
        return affine(x, *arguments)

    monkeypatch.setattr(warp, "affine", watched)
    options = SegmentOptions(crop_size=32, crops_per_image=10, affine_prob=1.0, train_rotate=True)
    images, labels = CropSet([photograph(500, 600)], options)[list(range(10))]
    assert images.shape == (10, 3, 32, 32)
    assert labels.shape == (10, 1, 32, 32)
    assert max(seen) < 64


def test_parts_of_a_batch_are_the_same_crops() -> None:
    options = SegmentOptions(crop_size=16, affine_prob=0.5, train_rotate=True, train_flip_p=0.5)
    chosen = CropSet([photograph(40, 50), photograph(31, 33)], options)
    images, labels = chosen[[0, 1, 2, 3]]
    for part in ([0, 1], [2, 3]):
        some = chosen[part]
        assert torch.equal(some[0], images[part])
        assert torch.equal(some[1], labels[part])
