"""Which images train, validate and test: by folders, by a file, or drawn with a seed; people are not divided."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sre_triton.training.data.pictures import picture_name
from sre_triton.training.files import require_file
from sre_triton.training.options import RunOptions

__all__ = ["SPLITS", "Splittable", "assign_splits", "check_own_data", "parts_of", "read_table"]

SPLITS = ("train", "val", "test")
_DEFAULT_FRACTION = 0.2


def check_own_data(options: RunOptions, *more: str) -> None:
    """Refuses options of ``--data`` where it is not given.

    Raises:
        ValueError: one of them, or of ``more``, is; names it.
    """
    for name in ("split", "val_fraction", "test_fraction", "group", "max_value", *more):
        if getattr(options, name) not in (None, ""):
            raise ValueError(f"--{name.replace('_', '-')} is for images of --data, which is not given")


def parts_of(split: str) -> tuple[str, ...]:
    """The splits that a name means: itself, or each of them for "all"."""
    return SPLITS if split == "all" else (split,)


@dataclass(frozen=True)
class Splittable:
    """An image that is to be assigned to a split.

    Attributes:
        image: its file.
        split: where its folder or table puts it; "" for nowhere yet.
        group: images of one group (both eyes of a person) stay together; "" for an image by itself.
    """

    image: Path
    split: str = ""
    group: str = ""


def assign_splits(
    entries: Sequence[Splittable],
    options: RunOptions,
    usual: Callable[[Splittable], str] | None = None,
    kind: Callable[[int], Hashable] = lambda index: "",
) -> dict[str, list[int]]:
    """The indices of each split's entries.

    ``--split`` decides alone. Otherwise entries keep the split of their folder, and what is missing is drawn from
    those without one or in "train": validation by ``--val-fraction``, and test by ``--test-fraction``, 0.2 each by
    default (no test images are drawn by default where folders say which ones train).

    Args:
        entries: images.
        options: of the run.
        usual: the split that is usual for a known set, where no option asks for another.
        kind: of an index; what is drawn has every kind in proportion, as far as groups allow.

    Raises:
        ValueError: an option is wrong, a group would be divided, or nothing is left to train or to validate.
        OSError: the file cannot be read.
    """
    entries = [_grouped(entry, options.group) for entry in entries]
    drawn_by_hand = options.val_fraction is not None or options.test_fraction is not None
    if options.split is not None:
        if drawn_by_hand:
            raise ValueError("--split says where each image belongs: leave out --val-fraction and --test-fraction")
        where = _read_split_file(options.split, entries)
    elif usual is not None and not drawn_by_hand:
        where = [entry.split or usual(entry) for entry in entries]
    else:
        where = _drawn(entries, options, kind)
    splits: dict[str, list[int]] = {split: [] for split in SPLITS}
    for index, split in enumerate(where):
        splits[split].append(index)
    _check_groups(entries, where)
    for split in ("train", "val"):
        if not splits[split]:
            raise ValueError(f"of {len(entries)} images none is left to {'train' if split == 'train' else 'validate'}")
    return splits


def _grouped(entry: Splittable, pattern: str) -> Splittable:
    if not pattern:
        return entry
    try:
        found = re.search(pattern, entry.image.name)
    except re.error as error:
        raise ValueError(f"--group must be a regular expression, got {pattern!r}: {error}") from error
    if found is None:
        raise ValueError(f"--group {pattern!r} does not occur in {entry.image.name}")
    return Splittable(entry.image, entry.split, found.group(1) if found.re.groups else found.group())


def _drawn(entries: Sequence[Splittable], options: RunOptions, kind: Callable[[int], Hashable]) -> list[str]:
    where = [entry.split for entry in entries]
    given = set(where) - {""}
    asked = {"val": options.val_fraction, "test": options.test_fraction}
    for split, fraction in asked.items():
        if split in given and fraction is not None:
            raise ValueError(f"--{split}-fraction: the data say themselves which images are in {split!r}")
    usual = {"val": _DEFAULT_FRACTION, "test": 0.0 if given else _DEFAULT_FRACTION}
    fractions = {split: usual[split] if fraction is None else fraction for split, fraction in asked.items()}
    if sum(fractions.values()) >= 1:
        raise ValueError(
            f"--val-fraction {fractions['val']:g} and --test-fraction {fractions['test']:g} leave nothing to train"
        )
    pool = [index for index, split in enumerate(where) if split in ("", "train")]
    groups: dict[str, list[int]] = {}
    for index in pool:
        groups.setdefault(entries[index].group or f"/{index}", []).append(index)
    strata: dict[Hashable, list[list[int]]] = {}
    for members in groups.values():
        strata.setdefault(kind(members[0]), []).append(members)
    rng = np.random.default_rng(options.split_seed)
    for members_of_kind in strata.values():
        order = rng.permutation(len(members_of_kind))
        first = 0
        for split, fraction in fractions.items():
            if split in given or not fraction:
                continue
            # At least one, and never the last.
            count = min(max(1, round(fraction * len(order))), len(order) - first - 1)
            for number in order[first : first + count]:
                for index in members_of_kind[number]:
                    where[index] = split
            first += count
    return [split or "train" for split in where]


def _check_groups(entries: Sequence[Splittable], where: Sequence[str]) -> None:
    seen: dict[str, tuple[str, Path]] = {}
    for entry, split in zip(entries, where, strict=True):
        if not entry.group:
            continue
        before, image = seen.setdefault(entry.group, (split, entry.image))
        if before != split:
            raise ValueError(
                f"group {entry.group!r} is divided: {image.name} is in {before!r}, {entry.image.name} in {split!r}"
            )


def _read_split_file(path: Path, entries: Sequence[Splittable]) -> list[str]:
    rows = read_table(path, ("image", "split"))
    split_of: dict[str, str] = {}
    for number, row in rows:
        if row["split"] not in SPLITS:
            raise ValueError(f"{path}, line {number}: split must be train, val or test, got {row['split']!r}")
        if split_of.setdefault(row["image"], row["split"]) != row["split"]:
            raise ValueError(f"{path}, line {number}: {row['image']} was put in {split_of[row['image']]!r} before")
    where = []
    for entry in entries:
        split = split_of.get(entry.image.name, split_of.get(picture_name(entry.image)))
        if split is None:
            raise ValueError(f"{path} does not say where {entry.image.name} belongs")
        where.append(split)
    names = {name for entry in entries for name in (entry.image.name, picture_name(entry.image))}
    unknown = [name for name in split_of if name not in names]
    if unknown:
        raise ValueError(f"{path} names {unknown[0]!r}, which is none of the {len(entries)} images")
    return where


def read_table(path: Path, columns: Sequence[str]) -> list[tuple[int, Mapping[str, str]]]:
    """The rows of a CSV file with the numbers of their lines.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a CSV file with a header that has these columns, or a row has other columns than it.
    """
    require_file(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = reader.fieldnames or []
            missing = [name for name in columns if name not in header]
            if missing:
                raise ValueError(f"{path} must have a column {missing[0]!r}: its first line is {','.join(header)!r}")
            rows: list[tuple[int, Mapping[str, str]]] = []
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(f"{path}, line {reader.line_num}: expected {len(header)} values")
                if any("\0" in value for value in row.values()):  # what Python before 3.11 refuses by itself
                    raise ValueError(f"{path} is damaged: line {reader.line_num} holds NUL characters")
                rows.append((reader.line_num, {name: value.strip() for name, value in row.items()}))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a CSV file in UTF-8: {error}") from error
    if not rows:
        raise ValueError(f"{path} has no rows below its first line")
    return rows
