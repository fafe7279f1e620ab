"""Image sets in MedMNIST's format: one ``.npz`` with images and labels of three splits.

The known sets' tasks, classes and checksums are those that the MedMNIST v2 release publishes
(J. Yang et al., *MedMNIST v2*, Scientific Data 10, 2023; CC BY 4.0, DermaMNIST CC BY-NC 4.0). A file of another
name is read by what it holds.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sre_triton.training.files import replacing

__all__ = ["KNOWN_SETS", "SPLITS", "ImageSet", "KnownSet", "Split", "read_image_set", "write_image_set"]

SPLITS = ("train", "val", "test")
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
        images: uint8, (N, C, *space).
        labels: int64, (N,) classes, or (N, labels) of zeros and ones.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class ImageSet:
    """The splits of a set, and what a network has to know of it."""

    name: str
    classes: int
    channels: int
    ndim: int
    multi_label: bool
    splits: dict[str, Split]


KNOWN_SETS = {
    "pathmnist": KnownSet(
        "multi-class",
        9,
        3,
        {
            28: "a8b06965200029087d5bd730944a56c1",
            64: "55aa9c1e0525abe5a6b9d8343a507616",
            128: "ac42d08fb904d92c244187169d1fd1d9",
            224: "2c51a510bcdc9cf8ddb2af93af1eadec",
        },
    ),
    "chestmnist": KnownSet(
        "multi-label, binary-class",
        14,
        1,
        {
            28: "02c8a6516a18b556561a56cbdd36c4a8",
            64: "9de6cd0b934ebb5b7426cfba5efbae16",
            128: "db107e5590b27930b62dbaf558aebee3",
            224: "45bd33e6f06c3e8cdb481c74a89152aa",
        },
    ),
    "dermamnist": KnownSet(
        "multi-class",
        7,
        3,
        {
            28: "0744692d530f8e62ec473284d019b0c7",
            64: "b70a2f5635c6199aeaa28c31d7202e1f",
            128: "2defd784463fa5243564e855ed717de1",
            224: "8974907d8e169bef5f5b96bc506ae45d",
        },
    ),
    "octmnist": KnownSet(
        "multi-class",
        4,
        1,
        {
            28: "c68d92d5b585d8d81f7112f81e2d0842",
            64: "e229e9440236b774d9f0dfef9d07bdaf",
            128: "0a97e76651ace45c5d943ee3f65b63ae",
            224: "abc493b6d529d5de7569faaef2773ba3",
        },
    ),
    "pneumoniamnist": KnownSet(
        "binary-class",
        2,
        1,
        {
            28: "28209eda62fecd6e6a2d98b1501bb15f",
            64: "8f4eceb4ccffa70c672198ea285246c6",
            128: "05b46931834c231683c68f40c47b2971",
            224: "d6a3c71de1b945ea11211b03746c1fe1",
        },
    ),
    "retinamnist": KnownSet(
        "ordinal-regression",
        5,
        3,
        {
            28: "bd4c0672f1bba3e3a89f0e4e876791e4",
            64: "afda852cc34dcda56f86ad2b2457dbcc",
            128: "e48e916a24454daf90583d4e6efb1a18",
            224: "eae7e3b6f3fcbda4ae613ebdcbe35348",
        },
    ),
    "breastmnist": KnownSet(
        "binary-class",
        2,
        1,
        {
            28: "750601b1f35ba3300ea97c75c52ff8f6",
            64: "742edef2a1fd1524b2efff4bd7ba9364",
            128: "363e4b3f8d712e9b5de15470a2aaadf1",
            224: "b56378a6eefa9fed602bb16d192d4c8b",
        },
    ),
    "bloodmnist": KnownSet(
        "multi-class",
        8,
        3,
        {
            28: "7053d0359d879ad8a5505303e11de1dc",
            64: "2b94928a2ae4916078ca51e05b6b800b",
            128: "adace1e0ed228fccda1f39692059dd4c",
            224: "b718ff6835fcbdb22ba9eacccd7b2601",
        },
    ),
    "tissuemnist": KnownSet(
        "multi-class",
        8,
        1,
        {
            28: "ebe78ee8b05294063de985d821c1c34b",
            64: "123ece2eba09d0aa5d698fda57103344",
            128: "61b955355d7425a89687b06cca3ce0c2",
            224: "b077128c4a949f0a4eb01517f9037b9c",
        },
    ),
    "organamnist": KnownSet(
        "multi-class",
        11,
        1,
        {
            28: "68e3f8846a6bd62f0c9bf841c0d9eacc",
            64: "2dcccc29b88e6da5a01161ef20cda288",
            128: "eeae80d0a227a8d099027e1b3cfd3b60",
            224: "50747347e05c87dd3aaf92c49f9f3170",
        },
    ),
    "organcmnist": KnownSet(
        "multi-class",
        11,
        1,
        {
            28: "b9ceb9546e10131b32923c5bbeaea2b1",
            64: "3ce34a8724ea6f548e6db4744d03b6a9",
            128: "773c1f009daa3fe5d9a2a201b2a7ed94",
            224: "050f5e875dc056f6768abf94ec9995d1",
        },
    ),
    "organsmnist": KnownSet(
        "multi-class",
        11,
        1,
        {
            28: "9ab87b696fb54e2a387ebe992d6ed5f1",
            64: "53a6d115339d874c25e309a994ff46d3",
            128: "ded0c5fa01a95dc4978b956f613e9b8e",
            224: "b354719e553fbbb2513d5533f52a4cb1",
        },
    ),
    "organmnist3d": KnownSet(
        "multi-class",
        11,
        1,
        {
            28: "a0c5a1ff56af4f155c46d46fbb45a2fe",
            64: "58a2205adf14a9d0a189cb06dc78bf10",
        },
    ),
    "nodulemnist3d": KnownSet(
        "binary-class",
        2,
        1,
        {
            28: "8755a7e9e05a4d9ce80a24c3e7a256f3",
            64: "c47c5b7d457bf6332200d2ea6d64ecd8",
        },
    ),
    "adrenalmnist3d": KnownSet(
        "binary-class",
        2,
        1,
        {
            28: "bbd3c5a5576322bc4cdfea780653b1ce",
            64: "17721accfe9fb005146a47d33bc54b2f",
        },
    ),
    "fracturemnist3d": KnownSet(
        "multi-class",
        3,
        1,
        {
            28: "6aa7b0143a6b42da40027a9dda61302f",
            64: "f01d7e6316aedf4210da0da5b7437b42",
        },
    ),
    "vesselmnist3d": KnownSet(
        "binary-class",
        2,
        1,
        {
            28: "b41fd4f7e7e2feedddb201585ecafa1b",
            64: "6bb274a8846e1097066dcd64e2c4520f",
        },
    ),
    "synapsemnist3d": KnownSet(
        "binary-class",
        2,
        1,
        {
            28: "1235b78a3cd6280881dd7850a78eadb6",
            64: "43bd14ebf3af9d3dd072446fedc14d5e",
        },
    ),
}


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
        ValueError: the set is unknown, or the file is damaged, or disagrees with the release or with itself.
        OSError: the download failed.
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
        _download(path, name, size, known.md5[size])
    return _check(path, name, known, _read_arrays(path))


def write_image_set(path: Path, splits: dict[str, Split], **extra: npt.NDArray[np.generic]) -> None:
    """Writes splits in MedMNIST's format: channels last, labels (N, 1) or (N, labels)."""
    arrays: dict[str, npt.NDArray[np.generic]] = dict(extra)
    for split, content in splits.items():
        images = content.images
        last = images[:, 0] if images.shape[1] == 1 else np.moveaxis(images, 1, -1)
        arrays[f"{split}_images"] = np.ascontiguousarray(last)
        arrays[f"{split}_labels"] = content.labels.reshape(len(images), -1).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _read_arrays(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    wanted = [f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels")]
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in wanted if name not in file.files]
            if missing:
                raise ValueError(f"it has no array {missing[0]!r}")
            return {name: file[name] for name in wanted}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, AttributeError, KeyError) as error:
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
    if not multi_label:
        splits = {split: Split(content.images, content.labels[:, 0]) for split, content in splits.items()}
    return ImageSet(name, classes, shape[0], len(shape) - 1, multi_label, splits)


def _channels_first(path: Path, split: str, images: npt.NDArray[np.uint8], volumes: bool) -> npt.NDArray[np.uint8]:
    if images.ndim == 3 and not volumes:
        return images[:, None]
    if images.ndim == 4:
        return images[:, None] if volumes or images.shape[-1] != 3 else np.ascontiguousarray(np.moveaxis(images, -1, 1))
    if images.ndim == 5 and images.shape[-1] == 3:
        return np.ascontiguousarray(np.moveaxis(images, -1, 1))
    raise ValueError(
        f"{path}: {split}_images must be (N, H, W), (N, H, W, 3), (N, D, H, W) or (N, D, H, W, 3), got {images.shape}"
    )


def _download(path: Path, name: str, size: int, md5: str) -> None:
    """Fetches a file of the release, by the ``medmnist`` package if there is one; whole and checked, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    url = f"{_RELEASE}/{path.name}?download=1"
    try:
        import medmnist
    except ImportError:
        from torch.hub import download_url_to_file

        with replacing(path) as partial:
            try:
                download_url_to_file(url, str(partial), progress=True)
            except OSError as error:  # URLError is one
                raise OSError(f"cannot fetch {url}: {error}") from error
            _check_sum(partial, url, md5)
        return
    getattr(medmnist, medmnist.INFO[name]["python_class"])(
        split="train", download=True, root=str(path.parent), size=size
    )
    try:
        _check_sum(path, url, md5)
    except ValueError:
        path.unlink()
        raise


def _check_sum(path: Path, url: str, md5: str) -> None:
    found = _md5(path)
    if found != md5:
        raise ValueError(f"{url} arrived damaged: {path.stat().st_size} bytes, MD5 {found}, expected {md5}; try again")


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
