"""Pictures brought to one mean and one contrast, each by itself.

What is measured depends on the picture's values alone, not on where they stand: a picture that is turned or flipped is
standardised alike, and so is one that nobody has marked the field of view of.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sre_triton.training.options import NORMALISATIONS

__all__ = ["mean_and_deviation", "standardise"]

_WHITE = 0.95  # the brightest channel's quantile that is white; above it are reflections
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
    if how not in NORMALISATIONS:
        raise ValueError(f"how must be one of {', '.join(NORMALISATIONS)}, got {how!r}")
    channels = picture.flatten(1)
    if how == "none":
        return torch.zeros_like(channels[:, :1, None]), torch.ones_like(channels[:, :1, None])
    if how == "field":
        brightest = channels.amax(dim=0)
        white = brightest.kthvalue(max(1, round(_WHITE * len(brightest)))).values
        inside = brightest > _BLACK * white
        channels = channels[:, inside] if bool(inside.any()) else channels
    deviation, mean = torch.std_mean(channels.double(), dim=1, correction=0)
    return mean.to(picture)[:, None, None], deviation.clamp(min=_LEAST).to(picture)[:, None, None]


def standardise(pictures: Tensor, how: str) -> Tensor:
    """Pictures (N, C, H, W) with mean 0 and deviation 1 in each channel, each by itself; see above."""
    if how == "none":
        return pictures
    means, deviations = zip(*(mean_and_deviation(picture, how) for picture in pictures), strict=True)
    return (pictures - torch.stack(means)) / torch.stack(deviations)
