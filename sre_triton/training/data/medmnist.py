"""Image sets in MedMNIST's format: one ``.npz`` with images and labels of three splits.

``medmnist.json`` lists the tasks, classes and checksums that the MedMNIST v2 release publishes for its sets
(J. Yang et al., *MedMNIST v2*, Scientific Data 10, 2023; CC BY 4.0, DermaMNIST CC BY-NC 4.0). For a file of any other
name, classes and channels are found in the file itself.
"""

from __future__ import annotations

import hashlib
import json
import sys
import zipfile
import zlib
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import numpy.typing as npt

from sre_triton.cache import cache_directory
from sre_triton.training.data.archive import Archive
from sre_triton.training.data.checksum import checksums
from sre_triton.training.data.splits import SPLITS
from sre_triton.training.files import replacing

__all__ = ["KNOWN_SETS", "ImageSet", "KnownSet", "Split", "read_image_set"]


_RELEASE = "https://zenodo.org/records/10519652/files"


@dataclass(frozen=True)
class KnownSet:
    """What the release says of one set: its task, classes, channels, and the MD5 sum of the file of each size."""

    task: str
    classes: int
    channels: int
    md5: dict[int, str]

    @property
    def multi_label(self) -> bool:
        return self.task.startswith("multi-label")


@dataclass(frozen=True)
class Split:
    """Images and labels of one split.

    Attributes:
        images: (N, C, *space), uint8 or float32 in 0 to 1, in any order of memory; taken by lists of indices.
        labels: int64, (N,) classes, or (N, labels) of zeros and ones.
    """

    images: Any
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class ImageSet:
    """The splits of a set, and what a network has to know of it.

    Attributes:
        view: side of the middle of each image that a network sees; what is around it comes into view where images are
            turned. None for all of it.
    """

    name: str
    classes: int
    channels: int
    ndim: int
    multi_label: bool
    splits: dict[str, Split]
    class_names: tuple[str, ...] = ()
    checksums: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    view: int | None = None

    def __deepcopy__(self, memo: Any) -> ImageSet:
        return self  # averaged weights begin with a copy of the task, which needs no pictures of its own


def _known_sets() -> dict[str, KnownSet]:
    table = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return {
        name: KnownSet(**{**entry, "md5": {int(size): md5 for size, md5 in entry["md5"].items()}})
        for name, entry in table.items()
    }


KNOWN_SETS = _known_sets()
"""The sets of the release by name."""


def file_name(name: str, size: int) -> str:
    """The file of a set: its name, and the size if that is not 28."""
    return f"{name}.npz" if size == 28 else f"{name}_{size}.npz"


def read_image_set(root: Path, name: str, size: int = 28, *, download: bool = False) -> ImageSet:
    """Reads a set.

    Args:
        root: folder of the files.
        name: a known set, or the stem of another file in ``root``.
        size: 28, 64, 128 or 224.
        download: fetch the file of a known set if it is missing.

    Raises:
        FileNotFoundError: the file is missing; says where it was expected and how to get it.
        ValueError: the set is unknown, or the file is damaged, or is not the release's or disagrees with itself.
        OSError: the download failed, or there is no space to unpack a large file in.
    """
    root = root.expanduser()
    known = KNOWN_SETS.get(name)
    path = root / file_name(name, size)
    if known is not None and size not in known.md5:
        raise ValueError(f"{name} is not released at size {size}: choose from {', '.join(map(str, known.md5))}")
    if not path.is_file():
        if known is None:
            raise ValueError(
                f"unknown set {name!r}: neither one of {', '.join(KNOWN_SETS)} nor a file {path} in MedMNIST's format"
            )
        if not download:
            raise FileNotFoundError(
                f"{path} is missing: fetch it with --download, or put {_RELEASE}/{path.name} there, "
                "or say with --data-root where it is"
            )
        _download(path, f"{_RELEASE}/{path.name}?download=1", known.md5[size])
    if known is not None:
        _require_release(path, name, known.md5[size])
    arrays, sums = _read_arrays(path)
    return replace(_check(path, name, known, arrays), checksums=sums)


def _read_arrays(path: Path) -> tuple[dict[str, npt.NDArray[np.generic]], dict[str, str]]:
    names = {split: (f"{split}_images", f"{split}_labels") for split in SPLITS}
    wanted = [name for pair in names.values() for name in pair]
    try:
        with Archive(path) as archive:
            missing = [name for name in wanted if name not in archive.names]
            if missing:
                raise ValueError(f"it has no array {missing[0]!r}")
            sums = checksums({split: [tuple(map(archive.checksum, pair))] for split, pair in names.items()})
            return {name: archive.read(name) for name in wanted}, sums
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError, NotImplementedError) as error:
        raise ValueError(
            f"{path} is not a whole file of MedMNIST's format: {error}; remove it and fetch it again"
        ) from error


def _check(path: Path, name: str, known: KnownSet | None, arrays: dict[str, npt.NDArray[np.generic]]) -> ImageSet:
    volumes = name.endswith("3d")
    splits, widths = {}, set()
    for split in SPLITS:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if images.dtype != np.uint8:
            raise ValueError(f"{path}: {split}_images must be uint8, got {images.dtype}")
        if not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"{path}: {split}_labels must be integers, got {labels.dtype}")
        if len(images) == 0 or labels.ndim not in (1, 2) or len(images) != len(labels):
            raise ValueError(
                f"{path}: {split} has {len(images)} images and labels of shape {labels.shape}: "
                "expected as many rows of labels as images, and at least one"
            )
        labels = labels.reshape(len(labels), -1)
        widths.add(labels.shape[1])
        splits[split] = Split(
            _channels_first(path, split, images.astype(np.uint8, copy=False), volumes), labels.astype(np.int64)
        )
    shapes = {content.images.shape[1:] for content in splits.values()}
    if len(shapes) > 1 or len(widths) > 1:
        raise ValueError(
            f"{path}: the splits differ in shape: images {sorted(shapes)}, labels per image {sorted(widths)}"
        )
    shape, width = shapes.pop(), widths.pop()
    low = min(int(content.labels.min()) for content in splits.values())
    high = max(int(content.labels.max()) for content in splits.values())
    multi_label = known.multi_label if known else width > 1
    if known:
        classes = known.classes
        if shape[0] != known.channels:
            raise ValueError(f"{path}: {name} has {known.channels} channels, this file {shape[0]}")
    else:
        classes = width if multi_label else high + 1
    if width != (classes if multi_label else 1):
        raise ValueError(f"{path}: expected {classes if multi_label else 1} labels per image of {name}, got {width}")
    highest = 1 if multi_label else classes - 1
    if low < 0 or high > highest:
        raise ValueError(f"{path}: labels of {name} must be 0 to {highest}, found {low} to {high}")
    if classes < 2:
        raise ValueError(f"{path}: there must be at least 2 classes, every label is {high}")
    if not known and not multi_label:
        trained = set(splits["train"].labels[:, 0].tolist())
        missing = [label for label in range(classes) if label not in trained]
        if missing == [0] and low == 1:
            raise ValueError(f"{path}: labels are 1 to {high}: they must begin at 0")
        if missing:
            raise ValueError(f"{path}: label {missing[0]} has no training image")
    if not multi_label:
        splits = {split: Split(content.images, content.labels[:, 0]) for split, content in splits.items()}
    return ImageSet(name, classes, shape[0], len(shape) - 1, multi_label, splits)


def _channels_first(path: Path, split: str, images: npt.NDArray[np.uint8], volumes: bool) -> npt.NDArray[np.uint8]:
    if images.ndim == 3 and not volumes:
        return images[:, None]
    if images.ndim == 4 and not volumes and images.shape[-1] not in (1, 3) and images.shape[1] in (1, 3):
        raise ValueError(
            f"{path}: {split}_images has shape {images.shape}: expected channels last, (N, H, W, 3), or (N, H, W) if "
            "grey; volumes of this depth go by a name that ends in 3d"
        )
    if images.ndim == 4:
        return images[:, None] if volumes or images.shape[-1] != 3 else np.moveaxis(images, -1, 1)
    if images.ndim == 5 and images.shape[-1] == 3:
        return np.moveaxis(images, -1, 1)
    raise ValueError(
        f"{path}: {split}_images must be (N, H, W), (N, H, W, 3), (N, D, H, W) or (N, D, H, W, 3), got {images.shape}"
    )


def _download(path: Path, url: str, md5: str) -> None:
    """Fetches a file of the release; whole and checked, or not at all.

    By what PyTorch has for its own weights, which needs no further package; it knows SHA-256 alone, so the MD5 of the
    release is compared here, as it is of files that were put there by hand.
    """
    from torch.hub import download_url_to_file

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        try:
            download_url_to_file(url, str(partial), progress=sys.stderr.isatty())
        except (URLError, ConnectionError, TimeoutError) as error:
            reason = getattr(error, "reason", error)
            told = getattr(reason, "strerror", None) or reason
            raise _NotFetchedError(f"--download: cannot fetch {url}: {told}") from error
        found = _md5(partial)
        if found != md5:
            size = partial.stat().st_size
            raise ValueError(f"{url} arrived damaged: {size} bytes, MD5 {found}, expected {md5}; try again")


class _NotFetchedError(ValueError):
    """No OSError, which would be one of the file that is written."""


def _require_release(path: Path, name: str, md5: str) -> None:
    """Makes sure that a file is the release's; what was found is kept, as large files take half a minute.

    Raises:
        ValueError: it is another.
    """
    about = path.stat()
    seen = f"{path.resolve()} {about.st_size} {about.st_mtime_ns} {about.st_ino} {md5}"
    mark = cache_directory() / "checked" / hashlib.sha256(seen.encode()).hexdigest()
    if mark.is_file():
        return
    found = _md5(path)
    if found != md5:
        raise ValueError(
            f"{path} is not the file of the release: MD5 {found}, expected {md5}; remove it and fetch it again, or, if "
            f"it is a set of your own, give it another name than {name}"
        )
    with suppress(OSError):  # without a place to keep it, it is found out again
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
