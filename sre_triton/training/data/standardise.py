"""Pictures brought to one mean and one contrast, each by itself.

What is measured depends on the picture's values alone, not on where they stand: a picture that is turned or flipped is
standardised alike, and so is one that nobody has marked the field of view of. All is arithmetic on tensors, which
exported programs hold for pictures of every size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sre_triton.training.options import NORMALISATIONS

__all__ = ["mean_and_deviation", "standardise"]

_WHITE = (19, 20)  # the brightest channel's quantile that is white; above it are reflections
_BLACK = 0.10  # share of white up to which a pixel is outside the field of view
_LEAST = 1 / 255  # deviation of a picture without contrast


def mean_and_deviation(picture: Tensor, how: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, (C, 1, 1) each; 0 and 1 for ``how`` = "none".

    Args:
        picture: (C, H, W), 0 to 1.
        how: one of ``NORMALISATIONS``. "field" leaves out what is black: pixels whose brightest channel is at
            most a tenth of the picture's white. Around a fundus photograph, and where one is turned, that is what the
            camera did not see; a picture that is black altogether is measured as a whole.

    Raises:
        ValueError: ``how`` is none of these.
    """
    if how == "none":
        return torch.zeros_like(picture[:, :1, :1]), torch.ones_like(picture[:, :1, :1])
    mean, deviation = _of_each(picture[None], how)
    return mean[0], deviation[0]


def standardise(pictures: Tensor, how: str) -> Tensor:
    """Pictures (N, C, H, W) with mean 0 and deviation 1 in each channel, each by itself; see above."""
    if how == "none":
        return pictures
    mean, deviation = _of_each(pictures, how)
    return (pictures - mean) / deviation


def _of_each(pictures: Tensor, how: str) -> tuple[Tensor, Tensor]:
    """Means and standard deviations, (N, C, 1, 1) each."""
    if how not in NORMALISATIONS:
        raise ValueError(f"how must be one of {', '.join(NORMALISATIONS)}, got {how!r}")
    channels = pictures.flatten(2).double()
    weights = torch.ones_like(channels[:, :1])
    if how == "field":
        brightest = pictures.flatten(2).amax(dim=1)
        rank = _rounded(_WHITE[0] * brightest.shape[1], _WHITE[1])
        white = brightest.topk(brightest.shape[1] - rank + 1, dim=1).values.amin(dim=1, keepdim=True)
        inside = (brightest > _BLACK * white).to(channels)[:, None]
        weights = torch.where(inside.amax(dim=2, keepdim=True) > 0, inside, weights)
    count = weights.sum(dim=2, keepdim=True)
    mean = (channels * weights).sum(dim=2, keepdim=True) / count
    deviation = ((channels - mean).square() * weights).sum(dim=2, keepdim=True).div(count).sqrt()
    return mean.to(pictures)[..., None], deviation.clamp(min=_LEAST).to(pictures)[..., None]


def _rounded(dividend: int, divisor: int) -> int:
    """The nearest positive integer to a quotient, even where two are as near; arithmetic alone, for sizes that are
    traced."""
    nearest = (2 * dividend + divisor) // (2 * divisor)
    remainder = (2 * dividend + divisor) % (2 * divisor)
    nearest = nearest - nearest % 2 * (1 // (remainder + 1))
    return nearest + 1 // (nearest + 1)
