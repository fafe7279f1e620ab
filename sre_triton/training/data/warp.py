"""Turning, flipping and warping of batches on their own device, in two and three dimensions.

Matrices map centred coordinates of the output to those of the input, in pixels, counted from the last dimension
(across, down, deep), as PyTorch's grids are. The axes "x", "y" and "z" of a volume are its first, second and third
dimension, as in the reference script; an image is a slice of a volume and turns about "x". A quarter turn of a square
only moves pixels; every other map interpolates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sre_triton.training.options import TurningOptions

__all__ = [
    "AXES",
    "FLIPS",
    "PADDING_MODES",
    "Symmetry",
    "affine",
    "centred_square",
    "flip",
    "identity",
    "middle",
    "pad_to",
    "rotation_matrix",
    "turn",
    "turned_size",
]

AXES = ("x", "y", "z")

FLIPS = {"": "none", "v": "upside down", "h": "left to right", "d": "front to back"}
"""The names of flips in tables and files."""

PADDING_MODES = {"zeros": "zeros", "reflect": "reflection"}
"""What ``F.grid_sample`` calls the values of ``--padding``."""


class Symmetry(NamedTuple):
    """A turn by ``angle`` degrees about ``axis``, then a flip of the dimensions ``flips`` ("v", "h", "d")."""

    angle: float = 0.0
    axis: str = "x"
    flips: str = ""

    def __call__(self, x: Tensor, how: TurningOptions) -> Tensor:
        turned = turn(x, self.angle, self.axis, how.interpolation, how.padding, how.expand)
        return flip(turned, self.flips)

    def __str__(self) -> str:
        return f"flip {self.flips}" if self.flips else f"{self.angle:g} about {self.axis}"


def identity(count: int, ndim: int, device: torch.device | None = None) -> Tensor:
    """``count`` identities, (count, ndim, ndim + 1)."""
    return torch.eye(ndim, ndim + 1, device=device).repeat(count, 1, 1)


def rotation_matrix(angles: Tensor, axis: str, ndim: int) -> Tensor:
    """The matrices that turn by ``angles`` degrees, counter-clockwise as seen in a picture, (N, ndim, ndim + 1)."""
    i, j = _plane(axis, ndim)
    radians = torch.deg2rad(angles)
    matrix = identity(len(angles), ndim, angles.device).to(angles.dtype)
    # The input is looked up at the place that is turned onto the output's, and rows are counted downwards.
    matrix[:, i, i], matrix[:, i, j] = radians.cos(), -radians.sin()
    matrix[:, j, i], matrix[:, j, j] = radians.sin(), radians.cos()
    return matrix


def affine(
    x: Tensor,
    matrix: Tensor,
    interpolation: str = "nearest",
    padding: str = "zeros",
    size: Sequence[int] | None = None,
) -> Tensor:
    """Maps each item of a batch by its own matrix.

    Args:
        x: (N, C, *space).
        matrix: (N, ndim, ndim + 1); see the module.
        interpolation: "nearest", "bilinear" (trilinear in 3-D) or, in 2-D, "bicubic".
        padding: "zeros" or "reflect".
        size: of the result; None for that of the input.
    """
    if interpolation == "bicubic" and x.dim() == 5:
        raise ValueError("interpolation 'bicubic' is for images only: use 'nearest' or 'bilinear' for volumes")
    size = tuple(x.shape[2:] if size is None else size)
    half = torch.tensor(x.shape[:1:-1], dtype=torch.float64, device=x.device) / 2
    reach = torch.tensor(size[::-1], dtype=torch.float64, device=x.device) / 2
    linear = matrix[:, :, :-1].double() * reach[None, None, :] / half[None, :, None]
    offset = matrix[:, :, -1:].double() / half[None, :, None]
    grid = F.affine_grid(torch.cat([linear, offset], dim=-1), [*x.shape[:2], *size], align_corners=False)
    return F.grid_sample(x, grid.to(x), interpolation, PADDING_MODES[padding], align_corners=False)


def turn(
    x: Tensor,
    angle: float,
    axis: str = "x",
    interpolation: str = "nearest",
    padding: str = "zeros",
    expand: bool = False,
) -> Tensor:
    """Turns a batch (N, C, *space) about its centre by ``angle`` degrees, counter-clockwise.

    Args:
        axis: "x", "y" or "z"; an image turns about "x" whatever is given.
        expand: enlarge the frame so that nothing is cut off.
        others: as for :func:`affine`.
    """
    ndim = x.dim() - 2
    i, j = (x.dim() - 1 - axis_index for axis_index in _plane(axis, ndim))
    # Less than an eighth of a turn by interpolation, the rest by moving pixels: angles that differ by quarter turns
    # then differ by nothing else.
    quarters = math.floor(angle / 90 + 0.5)
    if x.shape[i] == x.shape[j] or quarters % 2 == 0 or (expand and angle % 90 == 0):
        x, angle = torch.rot90(x, quarters, (j, i)), angle - 90 * quarters
    if angle == 0:
        return x.contiguous()
    if expand:
        x = pad_to(x, turned_size(x.shape[2:], angle, axis), padding)
    matrix = rotation_matrix(torch.tensor([angle], dtype=torch.float64), axis, ndim).to(x.device)
    return affine(x, matrix.expand(len(x), -1, -1), interpolation, padding)


def turned_size(space: torch.Size | tuple[int, ...], angle: float, axis: str = "x") -> tuple[int, ...]:
    """The frame that holds a turned image, as large as needed and of the parity of the image's own."""
    ndim = len(space)
    i, j = (ndim - 1 - axis_index for axis_index in _plane(axis, ndim))
    c, s = abs(math.cos(math.radians(angle))), abs(math.sin(math.radians(angle)))
    size = list(space)
    for a, b in ((i, j), (j, i)):
        wanted = max(space[a], math.ceil(space[a] * c + space[b] * s - 1e-6))
        size[a] = wanted + (wanted - space[a]) % 2
    return tuple(size)


def flip(x: Tensor, flips: str) -> Tensor:
    """Flips a batch: "v" upside down, "h" left to right, "d" front to back."""
    dims = [{"h": -1, "v": -2, "d": -3}[letter] for letter in flips]
    if dims and -min(dims) > x.dim() - 2:
        raise ValueError("flip 'd' needs a volume, got images")
    return x.flip(dims) if dims else x


def _plane(axis: str, ndim: int) -> tuple[int, int]:
    """The two coordinates, counted from the last dimension, that turn into each other."""
    return {"x": (0, 1), "y": (0, 2), "z": (1, 2)}[axis] if ndim == 3 else (0, 1)


def pad_to(x: Tensor, size: tuple[int, ...], padding: str = "zeros") -> Tensor:
    """Centres a batch in a larger frame."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    margins = [(wanted - have) for wanted, have in zip(reversed(size), reversed(x.shape[2:]), strict=True)]
    pads = [side for margin in margins for side in (margin // 2, margin - margin // 2)]
    return F.pad(x, pads, "constant" if padding == "zeros" else "reflect")


def middle(x: Tensor, side: int) -> Tensor:
    """The middle of a batch (N, C, *space), at most ``side`` pixels long in each dimension; 0 for all of it."""
    for dim in range(2, x.dim()):
        length = x.shape[dim]
        if 0 < side < length:
            x = x.narrow(dim, (length - side) // 2, side)
    return x


def centred_square(pixels: Tensor, side: int, channels: int) -> Tensor:
    """The middle square of pictures (N, 3, H, W), resized; their grey for one channel."""
    square = min(pixels.shape[2:])
    top, left = ((length - square) // 2 for length in pixels.shape[2:])
    pixels = pixels[..., top : top + square, left : left + square]
    pixels = F.interpolate(pixels, (side, side), mode="bilinear", align_corners=False, antialias=True)
    return pixels.mean(dim=1, keepdim=True) if channels == 1 else pixels
