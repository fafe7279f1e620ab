"""A set of photographs with masks, split and read when it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from operator import attrgetter
from typing import Any

from sre_triton.training.data.checksum import checksums
from sre_triton.training.data.layouts import Traced, find_photographs
from sre_triton.training.data.masks import MaskClasses, count_classes, read_field
from sre_triton.training.data.photographs import Kept, LazyList, Photograph, cache_limit
from sre_triton.training.data.pictures import read_header, read_picture
from sre_triton.training.data.splits import assign_splits, check_own_data
from sre_triton.training.data.vessels import draw_vessels
from sre_triton.training.options import SegmentOptions

__all__ = ["SegmentationSet", "read_segmentation_set"]


@dataclass(frozen=True)
class SegmentationSet:
    """Photographs by split, and what a network has to know of them.

    Attributes:
        name: of the set.
        classes: their number, the ground included.
        values: the stored value of each class.
        splits: photographs to train, validate and test on; "test" may be empty.
        has_fields: whether there are masks of the field of view.
        checksums: of each split; see :mod:`.checksum`.
        notes: what the user should know of how the set was read.
    """

    name: str
    classes: int
    values: tuple[int, ...]
    splits: dict[str, Sequence[Photograph]]
    has_fields: bool = False
    checksums: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __deepcopy__(self, memo: Any) -> SegmentationSet:
        return self  # averaged weights begin with a copy of the task, which needs no pictures of its own


def read_segmentation_set(options: SegmentOptions) -> SegmentationSet:
    """The photographs of ``--data``, or the embedded vessels.

    All masks and the headers of all images are read here, so that what is wrong is said before a training; pixels of
    images are read when they are needed, and kept up to ``--cache`` MB.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: files do not pair, differ in size, are damaged, or masks hold no classes; names the file.
    """
    if options.data is None:
        check_own_data(options, "fov", "mask_threshold")
        counts = options.vessels_count
        if len(counts) != 3 or min(counts) < 1:
            raise ValueError(f"--vessels-count must be three positive numbers (train, val, test), got {counts}")
        drawn, sums = _draw(options.vessels_size, options.vessels_seed, *counts)
        return SegmentationSet("vessels", 2, (0, 1), drawn, checksums=sums)
    source = find_photographs(options)
    indices = assign_splits(source.entries, options, source.usual)
    for entry in source.entries:
        shape = read_header(entry.image).shape
        for path in filter(None, (entry.mask, entry.field)):
            other = read_header(path).shape
            if other != shape:
                raise ValueError(f"{path} has {_size(other)} pixels, {entry.image} has {_size(shape)}")
    classes = count_classes([entry.mask for entry in source.entries], options.mask_threshold)
    read = partial(_read, classes=classes, max_value=options.max_value)
    kept = Kept(cache_limit(options))
    splits = {
        split: LazyList([source.entries[index] for index in members], read, attrgetter("nbytes"), kept)
        for split, members in indices.items()
    }
    counted = ", ".join(f"{len(members)} {split}" for split, members in indices.items())
    fields = sum(entry.field is not None for entry in source.entries)
    within = f"inside the field of view (of {fields}) and on whole images" if fields else "on whole images"
    notes = [f"{len(source.entries)} photographs: {counted}; scores {within}", classes.summary(), *source.notes]
    sums = checksums(
        {split: [source.entries[index].files() for index in members] for split, members in indices.items()}
    )
    return SegmentationSet(source.name, len(classes.values), classes.values, dict(splits), fields > 0, sums, notes)


def _read(entry: Traced, classes: MaskClasses, max_value: float | None) -> Photograph:
    inside = read_field(entry.field) if entry.field is not None else None
    return Photograph(read_picture(entry.image, max_value), classes.read(entry.mask), entry.image.name, inside)


def _size(shape: tuple[int, int]) -> str:
    return f"{shape[1]}x{shape[0]}"


@lru_cache(maxsize=2)
def _draw(
    size: int, seed: int, train: int, val: int, test: int
) -> tuple[dict[str, Sequence[Photograph]], dict[str, str]]:
    """Drawn photographs by split, and their checksums."""
    drawn = [draw_vessels(size, seed, index) for index in range(train + val + test)]
    splits = {"train": drawn[:train], "val": drawn[train : train + val], "test": drawn[train + val :]}
    arrays = {split: [(one.image.tobytes(), one.labels.tobytes()) for one in some] for split, some in splits.items()}
    return dict(splits), checksums(arrays)
