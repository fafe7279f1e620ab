"""How exactly trained networks turn with a photograph: at right angles, and at others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sre_triton.equivariance import equivariance_errors
from sre_triton.training.data.standardise import standardise
from sre_triton.training.runs.restore import load_network

__all__ = ["fundus", "symmetry_of"]

ANGLES = (30.0, 45.0)
_SIDE, _CROP, _MARGIN = 705, 384, 32


def fundus() -> Tensor:
    """The middle of scikit-image's fundus photograph, halved so that its field is as wide as CHASE_DB1's, as a network
    sees it: (1, 3, 384, 384), standardised by the whole photograph."""
    from skimage import data, transform

    picture = transform.resize(data.retina(), (_SIDE, _SIDE), anti_aliasing=True)
    whole = standardise(torch.from_numpy(picture).permute(2, 0, 1)[None].float(), "field")
    first = (_SIDE - _CROP) // 2
    return whole[:, :, first : first + _CROP, first : first + _CROP].contiguous()


class _Probability(nn.Module):
    """The probability of the last class."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.network(x).softmax(dim=1)[:, -1:]
        return y


@torch.no_grad()
def symmetry_of(run: Path, picture: Tensor) -> dict[str, dict[str, float]]:
    """Relative errors of a trained segmentation network, by symmetry, of its logits and of its probabilities.

    Angles turn by cubic splines, and what is compared ends 32 px within the inscribed disc.
    """
    network: Any = load_network(run)[0]
    found = {}
    for name, module in (("logits", network), ("probabilities", _Probability(network))):
        found[name] = equivariance_errors(module, picture, "rotations")
        found[name] |= equivariance_errors(module, picture, ANGLES, margin=_MARGIN)
    return found
