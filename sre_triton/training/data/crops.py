"""Crops at random places of photographs, scaled, sheared, turned and flipped at random."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sre_triton.training.data import warp
from sre_triton.training.data.augment import derived_seed
from sre_triton.training.data.contrast import Contrast
from sre_triton.training.data.photographs import Photograph
from sre_triton.training.data.standardise import mean_and_deviation
from sre_triton.training.options import SegmentOptions

__all__ = ["CropSet"]


class CropSet(Dataset[tuple[Tensor, Tensor]]):
    """Crops at random places of photographs, which ``--affine-prob`` scales and shears and ``--train-rotate`` turns.

    They are flipped, standardised by the mean and deviation of their whole photograph, then given another contrast. A
    crop depends on the seed and its number alone; numbers count on from epoch to epoch, so that processes that load
    crops need not be told of a new one.
    """

    def __init__(self, photographs: Sequence[Photograph], options: SegmentOptions) -> None:
        self.photographs, self.options = photographs, options
        self._is_mapped = options.affine_prob > 0 or options.train_rotate
        self._cut = _cutter(options)
        self.contrast = Contrast(options)
        self._scales: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.photographs) * self.options.crops_per_image

    def __getitem__(self, numbers: list[int]) -> tuple[Tensor, Tensor]:
        images, labels = zip(*map(self._crop, numbers), strict=True)
        return torch.stack(images), torch.stack(labels).long()

    def _crop(self, number: int) -> tuple[Tensor, Tensor]:
        epoch, index = divmod(number, len(self))
        which = index % len(self.photographs)
        photograph = self.photographs[which]
        if which not in self._scales:
            self._scales[which] = mean_and_deviation(torch.from_numpy(photograph.image), self.options.normalise)
        mean, deviation = self._scales[which]
        seed = derived_seed(self.options.seed, epoch, index) % 2**32
        if self._is_mapped:
            image, labels = _mapped(photograph, self.options, torch.Generator().manual_seed(seed))
        else:
            self._cut.set_random_state(seed)
            crop = self._cut({"image": photograph.image, "labels": photograph.labels})
            image, labels = crop["image"], crop["labels"]
        return self.contrast((image - mean) / deviation, seed), labels


def _cutter(options: SegmentOptions) -> Any:
    """MONAI's transform for crops whose pixels are only moved."""
    from monai.transforms import Compose, EnsureTyped, RandFlipd, RandSpatialCropd, SpatialPadd

    keys, size = ("image", "labels"), (options.crop_size,) * 2
    flips = [RandFlipd(keys, prob=options.train_flip_p, spatial_axis=axis) for axis in (0, 1)]
    return Compose(
        [
            SpatialPadd(keys, size),
            RandSpatialCropd(keys, size, random_size=False),
            *(flips if options.train_flip_p > 0 else []),
            EnsureTyped(keys, track_meta=False),
        ]
    )


# By hand: MONAI's RandAffined warps the whole photograph and then throws most of it away; its lazy mode, which would
# not, fails on rotations in two dimensions.
def _mapped(photograph: Photograph, options: SegmentOptions, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A crop (3, side, side) whose pixels are looked up through one map, and its labels (1, side, side)."""
    size = (options.crop_size,) * 2
    space = photograph.image.shape[1:]
    linear, centre = _random_map(space, options, generator)
    window, middle = (
        _window(space, linear, centre, size) if options.padding == "zeros" else ((slice(None),) * 2, centre)
    )
    matrix = torch.cat([linear, middle[:, None]], dim=1)[None]
    image, labels = (
        warp.affine(torch.from_numpy(part[(slice(None), *window)])[None].float(), matrix, how, options.padding, size)
        for part, how in ((photograph.image, options.interpolation), (photograph.labels, "nearest"))
    )
    return image[0], labels[0]


def _random_map(space: Sequence[int], options: SegmentOptions, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """From centred coordinates of a crop to those of its photograph (see :mod:`.warp`): (2, 2), and the place that
    the crop's centre is mapped to, (2,)."""

    def uniform(low: float, high: float, count: int = 2) -> Tensor:
        return torch.rand(count, generator=generator, dtype=torch.float64) * (high - low) + low

    chosen = float(uniform(0, 1, 1)) < options.affine_prob
    shear, scale = uniform(-1, 1) * options.shear_ratio, 1 + uniform(-1, 1) * options.scale_ratio
    angle, place, mirrored = float(uniform(-1, 1, 1)) * options.train_degree, uniform(0, 1), uniform(0, 1)
    affine = torch.eye(2, dtype=torch.float64)
    if chosen:
        affine = torch.tensor([[1.0, float(shear[0])], [float(shear[1]), 1.0]], dtype=torch.float64) * scale
    turn = torch.eye(2, dtype=torch.float64)
    side = options.crop_size
    if options.train_rotate:
        # Its corners stay within the photograph where that is large enough.
        side = math.ceil(math.sqrt(2) * side)
        turn = warp.rotation_matrix(torch.tensor([angle], dtype=torch.float64), "x", 2)[0, :, :2]
    signs = torch.where(mirrored < options.train_flip_p, -1.0, 1.0).to(torch.float64)
    centre = torch.zeros(2, dtype=torch.float64)
    for axis, length in enumerate(reversed(space)):
        room = max(0, length - side)
        first = math.floor(float(place[axis]) * (room + 1)) if room else (length - side) // 2
        centre[axis] = first + side / 2 - length / 2
    return affine @ turn * signs, affine @ centre


def _window(
    space: Sequence[int], linear: Tensor, centre: Tensor, size: Sequence[int]
) -> tuple[tuple[slice, ...], Tensor]:
    """The part of a photograph that a crop looks at, and the crop's centre relative to that part's; beyond the part
    everything is 0, so that what is cut off makes no difference."""
    reach = linear.abs() @ torch.tensor(size[::-1], dtype=torch.float64) / 2 + 3  # bicubic reads two pixels further
    window, middle = [], centre.clone()
    for axis, length in enumerate(reversed(space)):
        low = min(max(0, math.floor(float(centre[axis] - reach[axis]) + length / 2)), length - 1)
        high = max(min(length, math.ceil(float(centre[axis] + reach[axis]) + length / 2)), low + 1)
        window.append(slice(low, high))
        middle[axis] = centre[axis] + length / 2 - (low + high) / 2
    return tuple(reversed(window)), middle
