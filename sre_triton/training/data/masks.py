"""From the values that masks store to classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sre_triton.training.data.pictures import read_mask

__all__ = ["MaskClasses", "count_classes", "read_field"]

_MOST = 16  # distinct values; more are no classes but grey levels
_EDGE_SHARE = 0.9


@dataclass(frozen=True)
class MaskClasses:
    """The classes of a set's masks.

    Attributes:
        values: the stored value of each class, ascending; of a threshold, 0 and it.
        counts: pixels of each class in all masks.
        threshold: values from it on are class 1, lower ones class 0; None where each value is a class.
    """

    values: tuple[int, ...]
    counts: tuple[int, ...]
    threshold: float | None = None

    def read(self, path: Path) -> npt.NDArray[np.uint8]:
        """The classes of a mask, (1, H, W).

        Raises:
            ValueError: the mask is damaged, or holds a value that is no class.
        """
        mask = read_mask(path)
        if self.threshold is not None:
            return (mask >= self.threshold)[None].astype(np.uint8)
        index = np.searchsorted(self.values, mask).clip(max=len(self.values) - 1)
        if (np.asarray(self.values)[index] != mask).any():
            raise ValueError(f"{path} holds values that are none of the classes {', '.join(map(str, self.values))}")
        return index[None].astype(np.uint8)

    def summary(self) -> str:
        total = sum(self.counts)
        if self.threshold is not None:
            names = [f"below {self.threshold:g}", f"{self.threshold:g} and above"]
        else:
            names = [_name(value, max(self.values)) for value in self.values]
        shares = [f"{name} ({100 * count / total:.1f}%)" for name, count in zip(names, self.counts, strict=True)]
        return f"{len(names)} classes by the values of the masks: {', '.join(shares)}"


def count_classes(masks: Sequence[Path], threshold: float | None = None) -> MaskClasses:
    """Reads all masks and counts the values that they hold; each is a class.

    Args:
        masks: files.
        threshold: make two classes of all values, those below it and the others.

    Raises:
        ValueError: a mask has more values than classes can be, or values on edges alone, or masks store the same two
            classes by different values, or all pixels are of one class.
    """
    total: Counter[int] = Counter()
    holder: dict[int, Path] = {}
    most_in_one = 0
    for path in masks:
        mask = read_mask(path)
        values, counts = np.unique(mask, return_counts=True)
        if threshold is None:
            _check_values(path, mask, values)
        else:
            above = values >= threshold
            values, counts = np.array([0, 1]), np.array([counts[~above].sum(), counts[above].sum()])
        most_in_one = max(most_in_one, len(values))
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            total[value] += count
            holder.setdefault(value, path)
    if threshold is not None:
        if not (total[0] and total[1]):
            raise ValueError(f"--mask-threshold {threshold:g} puts every pixel of every mask on one side")
        return MaskClasses((0, 1), (total[0], total[1]), threshold)
    found = tuple(sorted(total))
    if len(found) < 2:
        raise ValueError(f"all {len(masks)} masks hold nothing but {_name(found[0])}: there is nothing to find")
    if len(found) == 3 and most_in_one == 2 and found in ((0, 1, 255), (0, 1, 65535)):
        raise ValueError(
            f"{holder[1]} stores the foreground as 1 and {holder[found[2]]} as {found[2]}: store it alike, "
            "or make two classes with --mask-threshold 1"
        )
    if len(found) > _MOST:
        raise ValueError(f"the masks hold {len(found)} different values: one value per class is expected")
    return MaskClasses(found, tuple(total[value] for value in found))


def _name(value: int, largest: int = 0) -> str:
    """A value, or a colour where the largest value is one."""
    return str(value) if max(value, largest) < 65536 else f"#{value:06x}"


def _check_values(path: Path, mask: npt.NDArray[np.int64], values: npt.NDArray[np.int64]) -> None:
    colour = int(values.max()) > 65535
    what = "colours" if colour else "values"
    span = f"{_name(int(values.min()), int(values.max()))} to {_name(int(values.max()))}"
    remedy = "" if colour else ", or make two classes with --mask-threshold"
    if len(values) > _MOST:
        raise ValueError(
            f"{path} holds {len(values)} {what} ({span}): smoothed edges or JPEG? Store one value per class{remedy}"
        )
    if len(values) > 2 and not colour:
        from scipy import ndimage

        between = (mask > values[0]) & (mask < values[-1])
        below, above = ndimage.minimum_filter(mask, 3) < mask, ndimage.maximum_filter(mask, 3) > mask
        if (between & below & above).sum() > _EDGE_SHARE * between.sum():
            raise ValueError(
                f"{path} holds {len(values)} values ({span}), those between on edges alone: they are smoothed. "
                f"Store one value per class{remedy}"
            )


def read_field(path: Path) -> npt.NDArray[np.uint8]:
    """A field of view, (1, H, W): 1 where the file's values are in the upper half, as JPEG and smoothing blur them.

    Raises:
        ValueError: it is damaged, or empty.
    """
    mask = read_mask(path)
    if mask.max() == 0:
        raise ValueError(f"{path} is empty: a field of view must hold pixels above 0")
    return (mask > mask.max() / 2)[None].astype(np.uint8)
