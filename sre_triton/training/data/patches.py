"""Patches: a small, real classification set without a preferred orientation, cut from photographs of scikit-image.

Eight photographs that ship inside scikit-image's wheel, one class each: what is asked is which photograph a patch is
of, not whether a texture is known again elsewhere. A patch is 42x42, and networks see its middle of 28x28: what is
around it is turned into view, so that no corner of a turned patch is filled with grey. Grey values are replaced by
their ranks, as any class could otherwise be told by its brightness and contrast: a network has to see structure.

Training, validation and test patches come from bands of each photograph that share no pixel, context included; which
bands, and the grid, depend on the seed. The views of one split do not overlap, their contexts do.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sre_triton.training.data.checksum import checksums
from sre_triton.training.data.medmnist import ImageSet, Split
from sre_triton.training.data.splits import SPLITS

__all__ = ["PATCHES", "PHOTOGRAPHS", "VIEW", "cut_patches", "read_patches"]

PATCHES = "patches"
PHOTOGRAPHS = ("retina", "immunohistochemistry", "cell", "brick", "grass", "gravel", "moon", "hubble_deep_field")
VIEW = 28
"""Side of what a network sees of a patch."""
_SIDE = 42  # at least sqrt(2) views, so that every turned view is full
_PER_CLASS = {"train": 144, "val": 32, "test": 64}
_BANDS = {"train": (0, 10), "val": (10, 13), "test": (13, 18)}  # eighteenths of the photograph
_LEAST_CONTRAST = 0.004  # below it a view shows nothing, as outside the retina's disc


def read_patches(seed: int = 1) -> ImageSet:
    """The patches as a set; cut anew each time, in less than a second, and written nowhere.

    Args:
        seed: of the bands and of the choice among their patches.

    Raises:
        ImportError: scikit-image is not installed.
    """
    splits = cut_patches(seed)
    items = {
        split: zip(map(np.ndarray.tobytes, content.images), content.labels.tolist(), strict=True)
        for split, content in splits.items()
    }
    sums = checksums(items)
    return ImageSet(PATCHES, len(PHOTOGRAPHS), 1, 2, False, splits, PHOTOGRAPHS, sums, view=VIEW)


def cut_patches(seed: int) -> dict[str, Split]:
    """Cuts the patches: 8 classes, 144 to train, 32 to validate and 64 to test each, grey, 42x42."""
    images: dict[str, list[npt.NDArray[np.uint8]]] = {split: [] for split in SPLITS}
    for number, photograph in enumerate(PHOTOGRAPHS):
        rng = np.random.default_rng([seed, number])
        pixels = _softened(_grey(photograph), rng)
        axis, reversed_order = rng.integers(2, size=2).tolist()
        offset = rng.integers(VIEW, size=2)
        for split in SPLITS:
            low, high = sorted(18 - edge for edge in _BANDS[split]) if reversed_order else _BANDS[split]
            tiles = _tiles(pixels, axis, low / 18, high / 18, offset)
            chosen = np.sort(rng.permutation(len(tiles))[: _PER_CLASS[split]])
            images[split].append(np.stack([_ranks(tiles[index]) for index in chosen]))
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


def _softened(grey: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Without what only tells one file from another: gaps between the few values of dark ones, which noise of one step
    of their 8 bits fills, and pixels that one was enlarged by, which are blurred."""
    from scipy import ndimage

    softened: npt.NDArray[np.float64] = ndimage.gaussian_filter(grey + rng.uniform(0, 1 / 255, grey.shape), 1.0)
    return softened


def _tiles(
    pixels: npt.NDArray[np.float64], axis: int, low: float, high: float, offset: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """The tiles, (N, side, side), that lie inside a band along an axis and show something; a view apart."""
    band = [slice(None), slice(None)]
    band[axis] = slice(round(low * pixels.shape[axis]), round(high * pixels.shape[axis]))
    inside = pixels[tuple(band)]
    first = [min(start, (length - _SIDE) % VIEW) for start, length in zip(offset, inside.shape, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(inside, (_SIDE, _SIDE))
    tiles = windows[first[0] :: VIEW, first[1] :: VIEW].reshape(-1, _SIDE, _SIDE)
    margin = (_SIDE - VIEW) // 2
    views = tiles[:, margin : margin + VIEW, margin : margin + VIEW]
    return tiles[views.std(axis=(1, 2)) >= _LEAST_CONTRAST]


def _ranks(tile: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """A tile whose grey values are evenly spread over 0 to 255 in their order."""
    order = np.empty(tile.size, dtype=np.int64)
    order[np.argsort(tile, axis=None, kind="stable")] = np.arange(tile.size)
    return (order * 256 // tile.size).astype(np.uint8).reshape(tile.shape)
