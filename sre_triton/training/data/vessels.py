"""Vessels: seeded images of branching vessel trees on a fundus-like ground, with exact masks.

Each image imitates a fundus photograph centred on the macula, as a camera takes it, upright: the vessels leave a
bright disc at one side and run across the field, their main stems arching above and below the dark spot in the
middle; branches leave them at small angles and taper (Murray's law); the round field is lit unevenly, blurred and
noisy. Vessels cover about an eighth of the field and are faint, the thin ones most, as in photographs: what is trained
on them finds vessels there. They have a preferred direction, which a network may come to rely on.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sre_triton.training.data.photographs import Photograph

__all__ = ["draw_vessels"]

_MURRAY = 3.0  # r^3 = a^3 + b^3 where a stem of radius r splits
_PULL = 3.0  # radians per side of the image by which a vessel that runs upright bends
_REACH = 0.26  # mean way between two branches, as a share of the side
_THINNEST = 0.0020  # radius at which a vessel ends, as a share of the side
_SUPERSAMPLING = 2
_FIELD = 0.47  # radius of the field of view, as a share of the side


def draw_vessels(size: int, seed: int, index: int) -> Photograph:
    """Draws one image.

    Args:
        size: its side in pixels, at least 64.
        seed: of the set.
        index: of the image in the set; each is drawn from its own stream of random numbers.

    Raises:
        ValueError: ``size`` is below 64.
        ImportError: SciPy is not installed.
    """
    if size < 64:
        raise ValueError(f"size of a vessel image must be at least 64, got {size}")
    from scipy import ndimage

    rng = np.random.default_rng([seed, index])
    fine = size * _SUPERSAMPLING
    side = rng.choice([-1.0, 1.0])  # a left or a right eye
    disc = np.array([0.5 + rng.uniform(-0.03, 0.03), 0.5 + side * rng.uniform(0.36, 0.42)])
    depth = _blood(fine, disc, side, rng)
    vessels = depth[::_SUPERSAMPLING, ::_SUPERSAMPLING] > 0
    blur = (0.3 + rng.uniform(0.0, 0.8) * size / 512) * _SUPERSAMPLING
    contrast = ndimage.gaussian_filter(depth, blur)[::_SUPERSAMPLING, ::_SUPERSAMPLING]
    y, x = np.mgrid[:size, :size] / size - 0.5
    field = np.hypot(y, x) < _FIELD
    ground = _ground(size, disc, side, rng)
    absorbed = np.array([0.12, 0.45, 0.30])[:, None, None] * contrast * rng.uniform(0.6, 1.0)
    light = 1 + rng.uniform(-0.5, 0.5) * x + rng.uniform(-0.5, 0.5) * y - 0.8 * (x**2 + y**2)
    image = ground * (1 - absorbed) * light
    noise = rng.uniform(0.2, 1.0)  # of the camera, and of what its software makes of it
    image += rng.normal(0, 0.02 * noise, image.shape)
    image += ndimage.gaussian_filter(rng.normal(0, 0.04 * noise, image.shape), (0, 1, 1))
    image = np.where(field, image.clip(0, 1), 0)
    return Photograph(image.astype(np.float32), (vessels & field)[None].astype(np.uint8), f"vessels-{seed}-{index}")


def _ground(size: int, disc: npt.NDArray[np.float64], side: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """The fundus without vessels, (3, size, size): its colour, mottling, bright disc, dark spot and bright lesions."""
    from scipy import ndimage

    y, x = np.mgrid[:size, :size] / size
    mottling = sum(
        ndimage.gaussian_filter(rng.normal(0, 1, (size, size)), sigma) * sigma * weight
        for sigma, weight in ((size / 120, 0.03), (size / 50, 0.08), (size / 16, 0.20))
    )
    tone = 1 + mottling
    tone = tone - 0.35 * np.exp(-((y - disc[0]) ** 2 + (x - disc[1] + side * 0.39) ** 2) / (2 * 0.06**2))
    ground = np.array([0.72, 0.40, 0.20])[:, None, None] * tone
    glow = np.exp(-((((y - disc[0]) ** 2 + (x - disc[1]) ** 2) / 0.055**2) ** 2))
    for _ in range(rng.integers(0, 12)):
        centre, radius = rng.uniform(0.15, 0.85, 2), rng.uniform(0.004, 0.012)
        glow = glow + 0.5 * np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / (2 * radius**2))
    return ground + np.array([0.25, 0.40, 0.30])[:, None, None] * glow.clip(0, 1)


def _blood(fine: int, disc: npt.NDArray[np.float64], side: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """How much blood light passes at each fine pixel: 0 outside vessels, up to 1 in the thickest."""

    stems = []
    ahead = 0.0 if side < 0 else np.pi  # across the field, away from the disc
    for radius, spread in ((0.0085, 1.0), (0.007, 0.75), (0.0045, 0.3)):  # the thickest arch furthest from the middle
        for up in (-1.0, 1.0):
            angle = ahead + up * (spread + rng.uniform(-0.15, 0.15))
            stems.append((disc, angle, radius * rng.uniform(0.8, 1.2), rng.uniform(0.5, 1.0)))
    depth = np.zeros((fine, fine))
    while stems:
        _grow(*stems.pop(), ahead, depth, stems, rng)
    return depth


def _grow(
    start: npt.NDArray[np.float64],
    angle: float,
    radius: float,
    strength: float,
    ahead: float,
    depth: npt.NDArray[np.float64],
    stems: list[tuple[npt.NDArray[np.float64], float, float, float]],
    rng: np.random.Generator,
) -> None:
    """Draws one vessel until it is too thin or leaves the field; adds its branches to ``stems``.

    Vessels wander, and bend back to the direction ``ahead``.
    """
    fine = len(depth)
    step = 1 / fine
    position, wander, until_branch, until_stroke = start.copy(), 0.0, rng.exponential(_REACH) + 0.02, 0.0
    while radius > _THINNEST and np.hypot(*(position - 0.5)) < _FIELD:
        wander = 0.995 * wander + rng.normal(0, 0.25)
        angle += (wander - _PULL * np.sin(angle - ahead)) * step
        position = position + step * np.array([np.sin(angle), np.cos(angle)])
        until_branch -= step
        until_stroke -= step
        if until_stroke < 0:
            _stroke(depth, position * fine, radius * fine, strength * (0.3 + 0.7 * min(1.0, radius / 0.008)))
            until_stroke = radius / 4
        if until_branch < 0:
            share = rng.uniform(0.2, 0.5)
            turn = rng.choice([-1.0, 1.0]) * rng.uniform(0.3, 0.9)
            stems.append((position, angle + turn * (1 - share), radius * share ** (1 / _MURRAY), strength))
            radius *= (1 - share) ** (1 / _MURRAY)
            angle -= 0.3 * turn * share
            until_branch = rng.exponential(_REACH) + 0.02


def _stroke(depth: npt.NDArray[np.float64], centre: npt.NDArray[np.float64], radius: float, value: float) -> None:
    """Raises a disc of fine pixels to a value."""
    low = np.maximum(np.floor(centre - radius).astype(int), 0)
    high = np.floor(centre + radius).astype(int) + 1
    part = depth[low[0] : high[0], low[1] : high[1]]
    y, x = np.ogrid[low[0] : low[0] + part.shape[0], low[1] : low[1] + part.shape[1]]
    inside = (y + 0.5 - centre[0]) ** 2 + (x + 0.5 - centre[1]) ** 2 <= radius**2
    part[inside] = np.maximum(part[inside], value)
