"""From stored bytes to what a network sees: scaling, resizing and random augmentation of whole batches.

Random numbers come from a generator that the caller seeds by epoch and step. They are drawn for the batch of all
processes together, and each process uses those of its own items. So a resumed run and a run in several processes see
the same images as an uninterrupted run in one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from sre_triton.training.data import warp
from sre_triton.training.data.contrast import Contrast
from sre_triton.training.data.warp import Symmetry
from sre_triton.training.options import DEFAULT_SIDE, TrainOptions, TurningOptions

__all__ = ["Preparation", "Share", "derived_seed", "normalise"]


def derived_seed(*parts: int) -> int:
    """Mixes several numbers into one seed; different numbers give unrelated seeds."""
    mixed = 0
    for part in parts:  # the finaliser of SplitMix64
        mixed = (mixed + part + 0x9E3779B97F4A7C15) & (2**64 - 1)
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        mixed ^= mixed >> 31
    return mixed & (2**63 - 1)


@dataclass(frozen=True)
class Share:
    """A process's items of the batch of all processes: every ``world``-th, beginning with item ``rank``."""

    rank: int = 0
    world: int = 1

    def of(self, drawn: Tensor) -> Tensor:
        return drawn[self.rank :: self.world]


@dataclass(frozen=True)
class Preparation:
    """How the images of a classification set are prepared.

    Args:
        options: those of the training.
        ndim: 2 for images, 3 for volumes.
        view: side of the middle of each image that is left once it was turned; None for all of it.
    """

    options: TrainOptions
    ndim: int
    view: int | None = None

    @property
    def side(self) -> int:
        """Side of the prepared image; 28 becomes 32, which halves evenly."""
        if self.options.data is not None or self.options.image_size is not None:
            return self.options.image_size or DEFAULT_SIDE
        return 32 if self.options.medmnist_size == 28 else self.options.medmnist_size

    @cached_property
    def _contrast(self) -> Contrast:
        return Contrast(self.options)

    def evaluated(self, images: Tensor, numbers: Sequence[int]) -> Tensor:
        """Prepares a batch of a validation or test set, (N, C, *space), as float32.

        Args:
            numbers: of the images in their set; what is random depends on the seed and an image's number alone.
        """
        return self.pad(self._seen(self._as_tested(images, numbers)))

    def turned(self, images: Tensor, numbers: Sequence[int], symmetry: Symmetry, turning: TurningOptions) -> Tensor:
        """Prepares a batch of a test set for the rotation test: as :meth:`evaluated` does, then turned."""
        return self.pad(self._seen(symmetry(self._as_tested(images, numbers), turning)))

    def _as_tested(self, images: Tensor, numbers: Sequence[int]) -> Tensor:
        options = self.options
        x = normalise(self._resize(images))
        if options.rotate:
            x = self._warp(x, self._draw_each(numbers, 0, lambda g: self._turns(1, options.degree, g)))
        if options.test_translation:
            reach = options.translate_ratio if options.test_translate_ratio is None else options.test_translate_ratio
            x = self._warp(x, self._draw_each(numbers, 1, lambda g: _shifts(1, x.shape[2:], reach, g)))
        return warp.flip(x, "v" * options.vflip + "h" * options.hflip + "d" * options.dflip)

    def _draw_each(self, numbers: Sequence[int], purpose: int, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        """What is drawn for each image by itself, so that it does not depend on batches and processes."""
        seeds = (derived_seed(self.options.seed, purpose, number) for number in numbers)
        return torch.cat([draw(torch.Generator().manual_seed(seed)) for seed in seeds])

    def trained(self, images: Tensor, seed: int, share: Share | None = None) -> Tensor:
        """Prepares a batch of the training set, with augmentation.

        Args:
            images: (N, C, *space), uint8 or float32 in 0 to 1; this process's share of the joined batch.
            seed: of this step.
            share: which items of the joined batch ``images`` are.
        """
        options, share = self.options, share or Share()
        x = self._resize(images)
        if not options.no_aug:
            draw = _Draw(len(images), torch.Generator().manual_seed(seed), share, x.device)
            if options.moco_aug and self.ndim == 2:
                x = self._crop_and_colour(x, draw)
            x = normalise(x)
            matrix = self._training_map(x, draw)
            if matrix is not None:
                x = self._warp(x, matrix)
            if options.moco_aug and self.ndim == 3:
                x = _blur(x, draw.uniform(0, 0.5))
            x = self._flip(x, draw)
            if self._contrast.changes:
                seeds = (
                    derived_seed(seed, 2, number) for number in share.of(torch.arange(len(x) * share.world)).tolist()
                )
                x = torch.stack([self._contrast(image, one) for image, one in zip(x, seeds, strict=True)])
        else:
            x = normalise(x)
        return self.pad(self._seen(x))

    def _resize(self, images: Tensor) -> Tensor:
        x = images.float() / 255 if images.dtype == torch.uint8 else images
        # What is around the view is scaled as the view is.
        size = tuple(round(length * self.side / self.view) if self.view else self.side for length in x.shape[2:])
        if x.shape[2:] != size:
            x = F.interpolate(x, size, mode="bilinear" if self.ndim == 2 else "trilinear", align_corners=False)
        return x

    def _seen(self, x: Tensor) -> Tensor:
        return warp.middle(x, self.side if self.view else 0)

    def _warp(self, x: Tensor, matrix: Tensor) -> Tensor:
        return warp.affine(x, matrix.to(x.device), self.options.interpolation, self.options.padding)

    def pad(self, x: Tensor) -> Tensor:
        """Centres images in the frame of ``--pad-size-h`` and ``--pad-size-w``."""
        size = list(x.shape[2:])
        size[-2:] = self.options.pad_size_h or size[-2], self.options.pad_size_w or size[-1]
        if any(wanted < have for wanted, have in zip(size, x.shape[2:], strict=True)):
            raise ValueError(
                f"--pad-size-h and --pad-size-w must be at least {tuple(x.shape[-2:])}, got {tuple(size[-2:])}"
            )
        return warp.pad_to(x, tuple(size), self.options.padding)

    def _crop_and_colour(self, x: Tensor, draw: _Draw) -> Tensor:
        """Half to all of the area, at an aspect of 3/4 to 4/3; brightness and saturation by 0.1, half the time."""
        height, width = x.shape[2:]
        area = draw.uniform(0.5, 1.0)
        aspect = draw.uniform(-1, 1).mul(torch.log(torch.tensor(4 / 3))).exp()
        across, down = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
        matrix = warp.identity(len(x), 2, x.device)
        matrix[:, 0, 0], matrix[:, 1, 1] = across, down
        matrix[:, 0, 2] = draw.uniform(-1, 1) * (1 - across) * width / 2
        matrix[:, 1, 2] = draw.uniform(-1, 1) * (1 - down) * height / 2
        x = warp.affine(x, matrix, "bilinear", "reflect")
        chosen = draw.uniform(0, 1) < 0.5
        brightness, saturation = draw.uniform(0.9, 1.1), draw.uniform(0.9, 1.1)
        coloured = _each(x, brightness) * x
        coloured = coloured.clamp(0, 1)
        if x.shape[1] == 3:
            grey = (coloured * torch.tensor([0.299, 0.587, 0.114], device=x.device).view(1, 3, 1, 1)).sum(
                1, keepdim=True
            )
            coloured = (grey + _each(x, saturation) * (coloured - grey)).clamp(0, 1)
        return torch.where(_each(x, chosen), coloured, x)

    def _training_map(self, x: Tensor, draw: _Draw) -> Tensor | None:
        """Scale, shear, rotation and translation in one map, so that pixels are interpolated once; or None."""
        options, space = self.options, x.shape[2:]
        maps = []
        if options.moco_aug and self.ndim == 3:
            matrix = warp.identity(len(x), 3, x.device)
            for axis in range(3):
                matrix[:, axis, axis] = 1 / draw.uniform(0.8, 1.2)
                matrix[:, axis, -1] = draw.uniform(-3, 3)
            maps.append(matrix)
        if options.affine_prob > 0:
            matrix = warp.identity(len(x), self.ndim, x.device)
            chosen = draw.uniform(0, 1) < options.affine_prob
            scale = 1 + draw.uniform(-1, 1) * options.scale_ratio
            for axis in range(self.ndim):
                shear = draw.uniform(-1, 1) * options.shear_ratio
                matrix[:, axis, axis] = torch.where(chosen, 1 / scale, 1.0)
                matrix[:, axis, (axis + 1) % self.ndim] = torch.where(chosen, shear, 0.0)
            maps.append(matrix)
        if options.train_rotate:
            maps.append(draw.of(lambda n, g: self._turns(n, options.train_degree, g)))
        if options.translation:
            maps.append(draw.of(lambda n, g: _shifts(n, space, options.translate_ratio, g)))
        if not maps:
            return None
        joined = maps[0].float()
        for matrix in maps[1:]:
            joined = _compose(joined, matrix.float())
        return joined

    def _turns(self, count: int, degree: float, generator: torch.Generator) -> Tensor:
        """Matrices that turn by random angles up to ``degree``, or by exactly that, about the axis asked for."""
        options = self.options
        angles = _angles(count, degree, options.fix_rotate, generator)
        if options.aug_axis != "any":
            return warp.rotation_matrix(angles, options.aug_axis, self.ndim)
        about_each = torch.stack([warp.rotation_matrix(angles, axis, self.ndim) for axis in warp.AXES])
        return about_each[torch.randint(len(warp.AXES), (count,), generator=generator), torch.arange(count)]

    def _flip(self, x: Tensor, draw: _Draw) -> Tensor:
        if self.options.train_flip_p > 0:
            for dim in range(2, x.dim()):
                chosen = draw.uniform(0, 1) < self.options.train_flip_p
                x = torch.where(_each(x, chosen), x.flip(dim), x)
        return x


class _Draw:
    """Random numbers for the items of a batch; drawn for the batch of all processes, this process's share is kept."""

    def __init__(self, count: int, generator: torch.Generator, share: Share, device: torch.device) -> None:
        self._joined, self._generator, self._share, self._device = count * share.world, generator, share, device

    def uniform(self, low: float, high: float) -> Tensor:
        return self.of(lambda n, g: torch.rand(n, generator=g) * (high - low) + low)

    def of(self, draw: Callable[[int, torch.Generator], Tensor]) -> Tensor:
        return self._share.of(draw(self._joined, self._generator)).to(self._device)


def normalise(x: Tensor) -> Tensor:
    """Values of 0 to 1 as values of -1 to 1."""
    return (x - 0.5) / 0.5


def _each(x: Tensor, values: Tensor) -> Tensor:
    """One value per item, in the shape that broadcasts over ``x``."""
    return values.view(-1, *[1] * (x.dim() - 1))


def _angles(count: int, degree: float, fixed: bool, generator: torch.Generator) -> Tensor:
    if fixed:
        return torch.full((count,), float(degree))
    return (2 * torch.rand(count, generator=generator) - 1) * degree


def _shifts(count: int, space: torch.Size, ratio: float, generator: torch.Generator) -> Tensor:
    """Translations by whole pixels up to a share of each side."""
    matrix = warp.identity(count, len(space))
    for axis, side in enumerate(reversed(space)):
        matrix[:, axis, -1] = ((2 * torch.rand(count, generator=generator) - 1) * ratio * side).round()
    return matrix


def _compose(first: Tensor, second: Tensor) -> Tensor:
    """One map for both: an output place is mapped by ``second``, the result by ``first``."""
    linear = first[:, :, :-1] @ second[:, :, :-1]
    return torch.cat([linear, first[:, :, :-1] @ second[:, :, -1:] + first[:, :, -1:]], dim=-1)


def _blur(x: Tensor, deviations: Tensor, reach: int = 2) -> Tensor:
    """Gaussian blur of each volume by its own standard deviation, in voxels; one dimension after the other."""
    steps = torch.arange(-reach, reach + 1, device=x.device)
    kernels = torch.exp(-0.5 * (steps / deviations.clamp(min=1e-3)[:, None]) ** 2)
    kernels = (kernels / kernels.sum(dim=1, keepdim=True)).repeat_interleave(x.shape[1], dim=0)
    n, c, *space = x.shape
    flat = x.reshape(1, n * c, *space)
    for dim in range(len(space)):
        shape = [1] * len(space)
        shape[dim] = 2 * reach + 1
        pads = [p for d in reversed(range(len(space))) for p in ((reach, reach) if d == dim else (0, 0))]
        flat = F.conv3d(F.pad(flat, pads, "replicate"), kernels.view(n * c, 1, *shape), groups=n * c)
    return flat.view(x.shape)
