"""Small photographs with masks in folders, and a segmentation that trains on them in a second."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sre_triton.training.data.segmentation_set import SegmentationSet, read_segmentation_set
from sre_triton.training.options import SegmentOptions

SIDE = 48
TINY = [
    *("--crop-size", "32", "--crops-per-image", "1", "-b", "2", "--epochs", "1", "--window-size", "64"),
    *("--model-args", '{"features": [4, 4], "sre_conv_size": 3}'),
]


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    """A picture with bright squares on noise; returns where they are."""
    rng = np.random.default_rng(seed)
    truth = np.kron(rng.random((6, 6)) < 0.3, np.ones((8, 8))).astype(bool)[: size[0], : size[1]]
    pixels = rng.integers(0, 100, (*size, 3)) + 120 * truth[..., None]
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(pixels.astype(np.uint8))
    if path.suffix == ".gz":
        picture.save(path.with_suffix(""))
        path.write_bytes(gzip.compress(path.with_suffix("").read_bytes()))
        path.with_suffix("").unlink()
    else:
        picture.save(path)
    return truth


def write_mask(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(values if values.dtype != bool else (255 * values).astype(np.uint8))
    if path.suffix == ".gz":
        picture.save(path.with_suffix(""))
        path.write_bytes(gzip.compress(path.with_suffix("").read_bytes()))
        path.with_suffix("").unlink()
    else:
        picture.save(path)


def write_pairs(root: Path, names: Sequence[str], image: str = "images/{}.png", mask: str = "masks/{}.png") -> None:
    for seed, name in enumerate(names):
        write_mask(root / mask.format(name), write_image(root / image.format(name), seed))


def read(root: Path, **options: Any) -> SegmentationSet:
    return read_segmentation_set(SegmentOptions(data=root, **options))


def names(found: SegmentationSet) -> dict[str, list[str]]:
    return {split: [photograph.name for photograph in photographs] for split, photographs in found.splits.items()}
