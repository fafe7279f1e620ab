"""Classification of pictures in folders, one per class, or in a CSV; read when they are needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from sre_triton.training.data.checksum import checksums
from sre_triton.training.data.medmnist import ImageSet, Split
from sre_triton.training.data.photographs import KeptArrays, LazyList, cache_limit
from sre_triton.training.data.pictures import left_out, picture_files, read_header, read_picture
from sre_triton.training.data.splits import SPLITS, Splittable, assign_splits, read_table
from sre_triton.training.data.warp import centred_square
from sre_triton.training.options import DEFAULT_SIDE, TrainOptions

__all__ = ["PictureStack", "read_image_folder"]


@dataclass(frozen=True)
class Labelled(Splittable):
    """A picture's file and the names of its classes; one name, or any number where there are several labels."""

    labels: tuple[str, ...] = ()


class PictureStack:
    """Pictures as a network is fed with them: the middle square of each, at one size, (N, C, side, side).

    Args:
        paths: files.
        side: of the square.
        channels: 1 for grey, 3 for RGB.
        deep: keep more than 8 bits: float32 in 0 to 1 instead of uint8.
        max_value: the stored value of white, as for :func:`.pictures.read_picture`.
        kept: keeps pictures that were read.
    """

    def __init__(
        self, paths: Sequence[Path], side: int, channels: int, *, deep: bool, max_value: float | None, kept: KeptArrays
    ) -> None:
        read = partial(_read, side=side, channels=channels, deep=deep, max_value=max_value)
        self._pictures = LazyList(paths, read, attrgetter("nbytes"), kept)

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, indices: list[int]) -> npt.NDArray[np.generic]:
        return np.stack([self._pictures[index] for index in indices])


def _read(path: Path, side: int, channels: int, deep: bool, max_value: float | None) -> npt.NDArray[np.generic]:
    pixels = torch.from_numpy(read_picture(path, max_value))[None]
    square = centred_square(pixels, side, channels)[0].numpy()
    return square if deep else (255 * square).round().astype(np.uint8)


def read_image_folder(options: TrainOptions) -> ImageSet:
    """The pictures of ``--data``: a folder per class, these in ``train``, ``val`` and ``test`` or not, or a CSV.

    A CSV has the columns ``image``, ``label`` (or ``labels``, several per picture, with ``;`` between them) and
    optionally ``split`` and ``group``.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: there are fewer than two classes, a class has no training picture, or a file is damaged.
    """
    assert options.data is not None
    root = options.data.expanduser()
    if not root.exists():
        raise FileNotFoundError(f"--data {root} is missing")
    entries, several, notes = _read_csv(root) if root.is_file() else _read_folders(root)
    names = sorted({name for entry in entries for name in entry.labels})
    if all(name.isdigit() for name in names):
        names.sort(key=int)
        if names and int(names[0]) > 0:
            notes.append(f"labels begin at {names[0]}: output 0 of the network is label {names[0]}")
    if len(names) < 2:
        raise ValueError(f"--data {root} has {len(names)} class ({', '.join(names)}): at least 2 are needed")
    indices = assign_splits(entries, options, kind=lambda index: entries[index].labels)
    _check_classes(root, names, entries, indices, notes)
    headers = [read_header(entry.image) for entry in entries]
    channels = 1 if all(header.grey for header in headers) else 3
    deep = any(header.deep for header in headers)
    number = {name: index for index, name in enumerate(names)}
    splits, kept = {}, KeptArrays(cache_limit(options), len(entries))
    for split, members in indices.items():
        chosen = [entries[index] for index in members]
        if several:
            labels = np.zeros((len(chosen), len(names)), np.int64)
            for row, entry in enumerate(chosen):
                labels[row, [number[name] for name in entry.labels]] = 1
        else:
            labels = np.array([number[entry.labels[0]] for entry in chosen], np.int64)
        stack = PictureStack(
            [entry.image for entry in chosen],
            options.image_size or DEFAULT_SIDE,
            channels,
            deep=deep,
            max_value=options.max_value,
            kept=kept,
        )
        splits[split] = Split(stack, labels)
    name = root.stem if root.is_file() else root.resolve().name
    sums = checksums(
        {
            split: [(entries[index].image, *entries[index].labels) for index in members]
            for split, members in indices.items()
        }
    )
    return ImageSet(name, len(names), channels, 2, several, splits, tuple(names), sums, notes)


def _check_classes(
    root: Path, names: list[str], entries: list[Labelled], indices: dict[str, list[int]], notes: list[str]
) -> None:
    counts = {split: Counter(name for i in members for name in entries[i].labels) for split, members in indices.items()}
    untrained = [name for name in names if not counts["train"][name]]
    if untrained:
        raise ValueError(f"--data {root}: class {untrained[0]!r} has no training picture")
    single = [name for name in names if sum(count[name] for count in counts.values()) == 1]
    if single:
        notes.append(f"classes of one picture, which trains and is never tested: {', '.join(single)}")
    held = {split: count for split, count in counts.items() if indices[split]}
    lines = [f"{name} ({', '.join(f'{count[name]} {split}' for split, count in held.items())})" for name in names]
    notes.insert(0, f"{len(entries)} pictures of {len(names)} classes: {', '.join(lines)}")


def _read_folders(root: Path) -> tuple[list[Labelled], bool, list[str]]:
    entries: list[Labelled] = []
    notes: list[str] = []
    homes = {split: root / split for split in SPLITS if (root / split).is_dir()} or {"": root}
    for split, home in homes.items():
        folders = [path for path in sorted(home.iterdir()) if path.is_dir() and not path.name.startswith(".")]
        loose, _ = picture_files(home)
        if loose:
            notes.append(f"{home}: {len(loose)} pictures in no class folder are left out ({loose[0].name})")
        for folder in folders:
            pictures, others = picture_files(folder)
            if not pictures:
                raise ValueError(f"{folder} is a class without pictures: remove it, or put pictures in it")
            notes += left_out(others)
            entries += [Labelled(path, split, labels=(folder.name,)) for path in pictures]
    if not entries:
        raise ValueError(f"--data {root} has no folders of classes: expected one per class, with pictures in it")
    return entries, False, notes


def _read_csv(path: Path) -> tuple[list[Labelled], bool, list[str]]:
    rows = read_table(path, ("image",))
    several = "labels" in rows[0][1]
    if several == ("label" in rows[0][1]):
        raise ValueError(f"{path} must have a column 'label', or 'labels' for several per picture, and not both")
    entries: list[Labelled] = []
    line_of: dict[Path, int] = {}
    for number, row in rows:
        image, split = path.parent / row["image"], row.get("split", "")
        if not row["image"] or not image.is_file():
            raise FileNotFoundError(f"{path}, line {number}: image {row['image']!r} is missing")
        if line_of.setdefault(image, number) != number:
            raise ValueError(f"{path}, line {number}: {row['image']} is in line {line_of[image]} already")
        if split not in ("", *SPLITS):
            raise ValueError(f"{path}, line {number}: split must be train, val or test, got {split!r}")
        if several:
            labels = tuple(sorted({name.strip() for name in row["labels"].split(";")} - {""}))
        elif row["label"]:
            labels = (row["label"],)
        else:
            raise ValueError(f"{path}, line {number}: {row['image']} has no label")
        entries.append(Labelled(image, split, row.get("group", ""), labels))
    return entries, several, []
