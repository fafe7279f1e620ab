"""Random brightness, contrast, gamma and blur of training images, in two and three dimensions."""

from __future__ import annotations

from torch import Tensor

from sre_triton.training.options import RunOptions

__all__ = ["Contrast"]


class Contrast:
    """``--gain``, ``--offset``, ``--gamma-ratio`` and ``--blur``, of each channel by itself; nothing without these.

    Attributes:
        changes: whether any of them is asked for.
    """

    def __init__(self, options: RunOptions) -> None:
        from monai.transforms import (
            Compose,
            EnsureType,
            RandAdjustContrast,
            RandGaussianSmooth,
            RandScaleIntensity,
            RandShiftIntensity,
        )

        steps = []
        if options.blur > 0:
            reach = (0.0, options.blur)
            steps.append(RandGaussianSmooth(reach, reach, reach, prob=0.5))
        if options.gamma_ratio > 0:
            most = 1 + options.gamma_ratio
            steps.append(RandAdjustContrast(prob=1.0, gamma=(1 / most, most)))
        if options.gain > 0:
            steps.append(RandScaleIntensity(options.gain, prob=1.0, channel_wise=True))
        if options.offset > 0:
            steps.append(RandShiftIntensity(options.offset, prob=1.0, channel_wise=True))
        self.changes = bool(steps)
        # Without the last step MONAI's own kind of tensor would go through the network.
        self._transform = Compose([*steps, EnsureType(track_meta=False)])

    def __call__(self, image: Tensor, seed: int) -> Tensor:
        """Another (C, *space); depends on the seed alone."""
        if not self.changes:
            return image
        self._transform.set_random_state(seed % 2**32)
        changed = self._transform(image)
        assert isinstance(changed, Tensor)
        return changed
