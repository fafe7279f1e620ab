"""Patches: a small, real classification set without a preferred orientation, cut from photographs of scikit-image.

Eight photographs that ship inside scikit-image's wheel, one class each. Training, validation and test patches come
from disjoint bands of each photograph, and no two patches overlap.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sre_triton.training.data.checksum import checksums
from sre_triton.training.data.medmnist import ImageSet, Split
from sre_triton.training.data.splits import SPLITS

__all__ = ["PATCHES", "PHOTOGRAPHS", "cut_patches", "read_patches"]

PATCHES = "patches"
PHOTOGRAPHS = ("retina", "immunohistochemistry", "cell", "brick", "grass", "gravel", "moon", "hubble_deep_field")
_SIDE = 28
_PER_CLASS = {"train": 192, "val": 36, "test": 64}
_BANDS = {"train": (0, 11), "val": (11, 13), "test": (13, 18)}  # eighteenths of the height, top to bottom
_LEAST_CONTRAST = 0.004  # below it a patch shows nothing, as outside the retina's disc
_SEED = 0


def read_patches() -> ImageSet:
    """The patches as a set; cut anew each time, in less than a second, and written nowhere.

    Raises:
        ImportError: scikit-image is not installed.
    """
    splits = cut_patches()
    items = {
        split: zip(map(np.ndarray.tobytes, content.images), content.labels.tolist(), strict=True)
        for split, content in splits.items()
    }
    return ImageSet(PATCHES, len(PHOTOGRAPHS), 1, 2, False, splits, checksums=checksums(items))


def cut_patches() -> dict[str, Split]:
    """Cuts the patches: 8 classes, 192 to train, 36 to validate and 64 to test each, grey, 28x28."""
    rng = np.random.default_rng(_SEED)
    images: dict[str, list[npt.NDArray[np.uint8]]] = {split: [] for split in SPLITS}
    for photograph in PHOTOGRAPHS:
        grey = _grey(photograph)
        for split in SPLITS:
            tiles = _tiles(grey, *_BANDS[split])
            chosen = rng.permutation(len(tiles))[: _PER_CLASS[split]]
            images[split].append((255 * tiles[np.sort(chosen)]).round().astype(np.uint8))
    return {
        split: Split(
            np.concatenate(groups)[:, None],
            np.repeat(np.arange(len(PHOTOGRAPHS)), [len(group) for group in groups]).astype(np.int64),
        )
        for split, groups in images.items()
    }


def _grey(photograph: str) -> npt.NDArray[np.float64]:
    from skimage import color, data
    from skimage.util import img_as_float

    pixels = img_as_float(getattr(data, photograph)())
    return color.rgb2gray(pixels) if pixels.ndim == 3 else pixels


def _tiles(grey: npt.NDArray[np.float64], first: int, last: int) -> npt.NDArray[np.float64]:
    """The tiles of a grid that lie inside a band and show something, (N, side, side)."""
    rows, columns = (length // _SIDE for length in grey.shape)
    grid = grey[: rows * _SIDE, : columns * _SIDE].reshape(rows, _SIDE, columns, _SIDE).swapaxes(1, 2)
    band = grid[rows * first // 18 : rows * last // 18].reshape(-1, _SIDE, _SIDE)
    return band[band.std(axis=(1, 2)) >= _LEAST_CONTRAST]
