"""Which mask belongs to which image, by their names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from sre_triton.training.data.pictures import picture_name

__all__ = ["pair_by_name"]

Words = tuple[str, ...]


def pair_by_name(images: Sequence[Path], masks: Sequence[Path], what: str = "mask") -> list[Path]:
    """The mask of each image: the one whose name has the longest part in common with it.

    Names are compared word by word, a word being a run of letters or of digits; words that all names of a side share
    (as ``mask`` in ``07_mask.png``) do not count. Two names fit if the common part holds a number wherever both
    have one, and if at most one of them has further words: ``01_h`` and ``01_dr`` do not fit.

    Args:
        images, masks: files; the masks may be more than the images.
        what: what the masks are called in errors.

    Raises:
        ValueError: an image has no mask or several that fit alike, or two images have one; names them.
    """
    image_words, mask_words = _telling_words(images), _telling_words(masks)
    chosen: list[Path] = []
    owner: dict[Path, Path] = {}
    for image, words in zip(images, image_words, strict=True):
        fits = [_fit(words, other, len(images) > 1) for other in mask_words]
        best = max(fits, default=(0, 0))
        candidates = [mask for mask, fit in zip(masks, fits, strict=True) if fit == best]
        exact = [mask for mask in candidates if picture_name(mask).lower() == picture_name(image).lower()]
        candidates = exact or candidates
        if best[0] == 0:
            folders = sorted({str(mask.parent) for mask in masks})
            raise ValueError(f"{image} has no {what}: no name in {', '.join(folders) or 'an empty folder'} fits it")
        if len(candidates) > 1:
            names = " and ".join(mask.name for mask in candidates[:3])
            raise ValueError(f"{image} has {len(candidates)} {what}s that fit alike: {names}")
        (mask,) = candidates
        if mask in owner:
            raise ValueError(f"{mask} is the {what} of two images: {owner[mask].name} and {image.name}")
        owner[mask] = image
        chosen.append(mask)
    return chosen


def _telling_words(paths: Sequence[Path]) -> list[Words]:
    """The words of each name but those that all names have; all of them where none is left."""
    split = [tuple(re.findall(r"\d+|[^\W\d_]+", picture_name(path).lower())) for path in paths]
    common = set.intersection(*map(set, split)) if len(split) > 1 else set()
    return [tuple(word for word in words if word not in common) or words for words in split]


def _fit(image: Words, mask: Words, strict: bool) -> tuple[int, int]:
    """How well two names fit, larger is better: letters in common, then few words beside; (0, 0) if they do not."""
    length, start, at = 0, 0, 0
    for i in range(len(image)):
        for j in range(len(mask)):
            n = 0
            while i + n < len(image) and j + n < len(mask) and image[i + n] == mask[j + n]:
                n += 1
            if sum(map(len, image[i : i + n])) > sum(map(len, image[start : start + length])):
                length, start, at = n, i, j
    common = image[start : start + length]
    beside_image = image[:start] + image[start + length :]
    beside_mask = mask[:at] + mask[at + length :]
    numbers = any(word.isdigit() for word in image) and any(word.isdigit() for word in mask)
    if not common or (numbers and not any(word.isdigit() for word in common)):
        return 0, 0
    if strict and beside_image and beside_mask:
        return 0, 0
    return sum(map(len, common)), -len(beside_image) - len(beside_mask)
