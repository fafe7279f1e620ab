"""The DRIVE set of fundus photographs, as it is distributed (TIFF and GIF) or converted to NIfTI.

J. Staal et al., *Ridge-based vessel segmentation in color images of the retina*, IEEE TMI 23(4), 2004. Either way the
folders are ``training`` and ``test``, each with ``images`` and ``1st_manual``; an image and its vessels begin with the
same number (``21_training.tif``, ``21_manual1.gif``; ``21.nii.gz`` in both folders).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sre_triton.training.data.vessels import Photograph

__all__ = ["read_drive", "read_photograph"]

_VALIDATION = 4  # the last images of the training folder
_PICTURES = (".tif", ".tiff", ".gif", ".png", ".jpg", ".jpeg", ".ppm")
_NIFTI = (".nii", ".nii.gz")


def read_drive(root: Path) -> dict[str, list[Photograph]]:
    """Reads the set: 16 photographs to train, the last 4 of the training folder to validate, 20 to test.

    Raises:
        FileNotFoundError: a folder is missing; names it and what is expected in it.
        ValueError: a photograph has no vessels beside it, or a file is damaged, or two differ in size.
        ImportError: the reader of a file's format is not installed.
    """
    root = root.expanduser()
    training, test = (_read_folder(root / folder) for folder in ("training", "test"))
    if len(training) <= _VALIDATION:
        raise ValueError(f"{root / 'training'} has {len(training)} photographs: more than {_VALIDATION} are needed")
    return {"train": training[:-_VALIDATION], "val": training[-_VALIDATION:], "test": test}


def _read_folder(folder: Path) -> list[Photograph]:
    images, manuals = folder / "images", folder / "1st_manual"
    for wanted in (images, manuals):
        if not wanted.is_dir():
            raise FileNotFoundError(
                f"{wanted} is missing: DRIVE has images and 1st_manual in training and in test; "
                "register at https://drive.grand-challenge.org to get it"
            )
    photographs = []
    labels = {_number(path): path for path in _files(manuals)}
    for path in _files(images):
        label = labels.get(_number(path))
        if label is None:
            raise ValueError(f"{path} has no vessels: no file in {manuals} begins with {_number(path)!r}")
        image, vessels = read_photograph(path), _read(label)
        mask = _as_mask(label, vessels)
        if mask.shape[1:] != image.shape[1:]:
            raise ValueError(f"{label} is {mask.shape[1:]} pixels, {path} is {image.shape[1:]}")
        photographs.append(Photograph(image, mask, path.name))
    if not photographs:
        raise FileNotFoundError(f"{images} holds no {', '.join(_PICTURES + _NIFTI)} file")
    return photographs


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.lower().endswith(_PICTURES + _NIFTI))


def _number(path: Path) -> str:
    found = re.match(r"\d+", path.name)
    return found.group() if found else path.name.split(".")[0]


def read_photograph(path: Path) -> npt.NDArray[np.float32]:
    """Reads a picture as float32 in 0 to 1, (3, H, W); grey is repeated, transparency dropped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a picture, or damaged.
    """
    pixels = _read(path)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3, 4):
        raise ValueError(f"{path} must be a grey or RGB picture, got an array of shape {pixels.shape}")
    pixels = np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels[..., :3]
    whole = np.iinfo(pixels.dtype).max if np.issubdtype(pixels.dtype, np.integer) else 1.0
    if whole == 1.0 and pixels.max() > 1:
        whole = 255.0  # NIfTI files often hold 8-bit values as floats
    return np.ascontiguousarray(np.moveaxis(pixels.astype(np.float32) / np.float32(whole), -1, 0))


def _as_mask(path: Path, pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    if pixels.ndim == 3:
        pixels = pixels[..., 0]
    if pixels.ndim != 2:
        raise ValueError(f"{path} must be a picture of one channel, got an array of shape {pixels.shape}")
    if pixels.dtype == bool:
        return pixels[None].astype(np.uint8)
    return (pixels > pixels.max() / 2)[None].astype(np.uint8)


def _read(path: Path) -> npt.NDArray[Any]:
    """The pixels of a file, (H, W) or (H, W, C)."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    if path.name.lower().endswith(_NIFTI):
        import nibabel

        try:
            volume = np.asarray(nibabel.load(path).dataobj)  # type: ignore[attr-defined]
        except Exception as error:  # nibabel raises many kinds on a damaged file
            raise ValueError(f"{path} is not a whole NIfTI file: {error}") from error
        if volume.dtype.names:  # RGB is a structured type there
            volume = np.stack([volume[name] for name in volume.dtype.names], axis=-1)
        return np.swapaxes(volume.reshape([n for n in volume.shape if n != 1]), 0, 1)  # NIfTI counts x first
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB") if picture.mode == "P" else picture)
    except Exception as error:  # Pillow raises many kinds on a damaged file
        raise ValueError(f"{path} is not a whole picture: {error}") from error
