"""Pixels of picture files, read as what they mean: Pillow, tifffile and nibabel decode, this module decides.

Pictures become float32 RGB in 0 to 1, masks integers as they were stored. What has no one meaning (a float range
without bounds, several pages, half-transparent masks) is an error that names the file.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sre_triton.training.files import require_file

__all__ = [
    "SUFFIXES",
    "Header",
    "is_nifti",
    "is_tiff",
    "left_out",
    "page_count",
    "picture_files",
    "picture_name",
    "pillow_pixels",
    "read_header",
    "read_mask",
    "read_picture",
]


class _NamedError(ValueError):
    """Says which picture is meant, unlike what libraries raise."""


_NIFTI = (".nii", ".nii.gz")
_TIFF = (".tif", ".tiff")
SUFFIXES = (*_TIFF, *_NIFTI, ".gif", ".png", ".jpg", ".jpeg", ".ppm", ".pgm", ".pbm", ".ppm.gz", ".bmp", ".webp")
"""Endings of the files that are taken for pictures, in lower case."""

_ORIENTATION = 0x0112  # the EXIF tag; 5 to 8 swap height and width
_LITTER = ("thumbs.db", "desktop.ini")


def is_nifti(path: Path) -> bool:
    return path.name.lower().endswith(_NIFTI)


def is_tiff(path: Path) -> bool:
    return path.name.lower().endswith(_TIFF)


def picture_name(path: Path) -> str:
    """A file's name without the ending of its format: ``im0001.ah`` of ``im0001.ah.ppm.gz``."""
    ending = max((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), key=len, default="")
    return path.name[: len(path.name) - len(ending)]


def picture_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The pictures of a folder by name, and the files and folders within it, which are none. What is hidden and
    ``Thumbs.db`` is neither.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: two pictures differ in their format alone, as ``1.png`` and ``1.tif``.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing or not a folder")
    pictures: dict[str, Path] = {}
    others = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name.lower() in _LITTER:
            continue
        if path.is_dir() or not path.name.lower().endswith(SUFFIXES):
            others.append(path)
            continue
        twin = pictures.setdefault(picture_name(path), path)
        if twin is not path:
            raise ValueError(f"{twin} and {path.name} differ in their format alone: keep one")
    return list(pictures.values()), others


def left_out(others: Sequence[Path]) -> list[str]:
    """A note on what :func:`picture_files` found beside the pictures of a folder, empty if that is nothing."""
    if not others:
        return []
    names = [path.name + "/" * path.is_dir() for path in others[:3]] + ["..."] * (len(others) > 3)
    what = "1 is no picture" if len(others) == 1 else f"{len(others)} are no pictures"
    return [f"{others[0].parent}: {what} and left out ({', '.join(names)})"]


def page_count(path: Path) -> int:
    """How many pictures a file holds: pages of a TIFF, frames, slices of a grey NIfTI volume along its last dimension.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a picture, or is damaged.
    """
    require_file(path)
    if is_nifti(path):
        import nibabel

        with _damage_named(path):
            image: Any = nibabel.load(path)  # type: ignore[attr-defined]
            shape = [length for length in image.shape if length != 1]
        return 1 if len(shape) != 3 or shape[-1] == 3 else int(shape[-1])
    if is_tiff(path):
        import tifffile

        with _damage_named(path), tifffile.TiffFile(path) as file:
            return len(file.pages)
    with _opened(path, page=0) as picture:
        return getattr(picture, "n_frames", 1)


def read_picture(path: Path, max_value: float | None = None, page: int | None = None) -> npt.NDArray[np.float32]:
    """Reads a picture as float32 RGB in 0 to 1, (3, H, W), upright as its EXIF tag says.

    Grey is repeated; palettes, CMYK, YCbCr and LAB become RGB; transparent parts are laid on black.

    Args:
        path: of the file.
        max_value: the stored value that is white; None for the largest of an unsigned 8- or 16-bit type, a TIFF's
            own ``MaxSampleValue`` or a NIfTI's ``cal_max``, and 1 for floats.
        page: which of several pictures, from 0; None where there must be one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a picture, is damaged, or has values whose range must be stated.
    """
    pixels, white = _decode(path, page=page)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3):
        raise ValueError(f"{path} must be a grey or RGB picture, got an array of shape {pixels.shape}")
    scaled = _scaled(path, pixels, max_value if max_value is not None else white)
    return np.ascontiguousarray(np.moveaxis(np.broadcast_to(scaled, (*scaled.shape[:2], 3)), -1, 0))


def _scaled(path: Path, pixels: npt.NDArray[Any], white: float | None) -> npt.NDArray[np.float32]:
    """Values over the one that is white."""
    if pixels.dtype == bool:
        return pixels.astype(np.float32)
    if white is None and pixels.dtype in (np.uint8, np.uint16):
        white = float(np.iinfo(pixels.dtype).max)
    low, high = float(pixels.min()), float(pixels.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{path} holds values that are not finite")
    if low < 0:
        raise ValueError(f"{path} holds negative values (down to {low:g}): pixels must be at least 0")
    if white is None:
        if not np.issubdtype(pixels.dtype, np.floating):
            raise ValueError(
                f"{path} is of type {pixels.dtype}, values up to {high:g}: state the value of white with --max-value"
            )
        white = 1.0
    if high > white:
        raise ValueError(
            f"{path} holds values up to {high:g}, above white ({white:g}): state the value of white with --max-value"
        )
    return pixels.astype(np.float32) / np.float32(white)


def read_mask(path: Path) -> npt.NDArray[np.int64]:
    """Reads a mask as the values it stores, (H, W); a colour counts as 65536 red + 256 green + blue.

    Grey palettes count by their grey, others by their index.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a picture, is damaged or half-transparent, or holds fractions.
    """
    pixels, _ = _decode(path, mask=True)
    if pixels.ndim == 3 and pixels.shape[-1] == 3:
        if (pixels == pixels[..., :1]).all():
            pixels = pixels[..., 0]
        elif pixels.dtype == np.uint8:
            pixels = pixels.astype(np.int64) @ np.array([65536, 256, 1])
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim != 2:
        raise ValueError(f"{path} must be a mask of one channel or of 8-bit colours, got an array of {pixels.shape}")
    if np.issubdtype(pixels.dtype, np.floating) and not (
        np.isfinite(pixels).all() and (pixels == pixels.round()).all()
    ):
        raise ValueError(f"{path} holds fractions: a mask must hold one whole number per class")
    return pixels.astype(np.int64)


class Header(NamedTuple):
    """What a picture is, without its pixels."""

    shape: tuple[int, int]  # height and width, upright
    grey: bool
    deep: bool  # more than 8 bits


def read_header(path: Path) -> Header:
    """Size and kind of a picture; its pixels are not decoded.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a picture, or of a kind that :func:`read_picture` refuses.
    """
    require_file(path)
    if is_nifti(path):
        pixels, _ = _decode_nifti(path)
        return Header((pixels.shape[0], pixels.shape[1]), pixels.ndim == 2, pixels.dtype != np.uint8)
    if is_tiff(path):
        import tifffile

        with _damage_named(path), tifffile.TiffFile(path) as file:
            page: Any = file.pages[0]
            shape = (page.imagelength, page.imagewidth)
            grey = page.photometric.name in ("MINISBLACK", "MINISWHITE")
            orientation = page.tags.get("Orientation")
            turned = orientation is not None and int(orientation.value) >= 5
            return Header(shape[::-1] if turned else shape, grey, page.bitspersample > 8)
    with _opened(path) as picture:
        shape = (picture.height, picture.width)
        turned = picture.getexif().get(_ORIENTATION, 1) >= 5
        deep = picture.mode.startswith(("I", "F"))
        return Header(shape[::-1] if turned else shape, deep or picture.mode in ("1", "L", "LA", "La"), deep)


def _decode(path: Path, mask: bool = False, page: int | None = None) -> tuple[npt.NDArray[Any], float | None]:
    """The stored pixels, (H, W) or (H, W, C), and the value of white where the file says it."""
    require_file(path)
    if is_nifti(path):
        pixels, white = _decode_nifti(path)
        return pixels if page is None else pixels[..., page], white
    if is_tiff(path):
        decoded = _decode_tiff(path, mask, page)
        if decoded is not None:
            return decoded
    from PIL import ImageOps

    with _opened(path, page) as picture:
        pixels = pillow_pixels(path, ImageOps.exif_transpose(picture), mask)
        # Pillow 10 reads 16 bits of a PNG, which has no more, into 32.
        return pixels.astype(np.uint16) if (picture.format, picture.mode) == ("PNG", "I") else pixels, None


@contextmanager
def _opened(path: Path, page: int | None = None) -> Iterator[Any]:
    """A picture opened by Pillow at a page, None where there must be one; whatever is wrong with it is a ValueError
    that names the file."""
    from PIL import Image

    with _damage_named(path), ExitStack() as opened:
        source: Any = opened.enter_context(gzip.open(path)) if path.name.lower().endswith(".gz") else path
        picture = opened.enter_context(Image.open(source))
        pages = getattr(picture, "n_frames", 1)
        if page is not None:
            picture.seek(page)
        elif pages > 1:
            raise _NamedError(f"{path} holds {pages} pictures: expected one")
        yield picture


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except _NamedError:
        raise
    except Exception as error:  # libraries raise many kinds on a damaged file
        raise ValueError(f"{path} is not a whole picture: {error}") from error


def pillow_pixels(path: Path, picture: Any, mask: bool = False) -> npt.NDArray[Any]:
    """The pixels of a PIL image, (H, W) or (H, W, 3): colours as RGB, transparent parts on black.

    Args:
        path: names it in errors.
        picture: the image, upright.
        mask: keep the indices of a coloured palette, and refuse transparent parts.
    """
    mode = picture.mode
    if mode == "P" and mask:
        indices = np.asarray(picture)
        colours = np.array(picture.getpalette("RGB")).reshape(-1, 3)[: int(indices.max()) + 1]
        used = colours[np.unique(indices)]
        return colours[indices, 0] if (used == used[:, :1]).all() else indices
    if mode in ("P", "PA"):
        picture = picture.convert("RGBA" if mode == "PA" or "transparency" in picture.info else "RGB")
    elif mode in ("LAB", "CMYK", "YCbCr", "HSV"):
        picture = _in_rgb(picture)
    elif mode in ("RGBa", "La"):
        picture = picture.convert("RGBA" if mode == "RGBa" else "LA")
    pixels = np.asarray(picture)
    if pixels.dtype.kind == "u":
        pixels = pixels.astype(f"u{pixels.dtype.itemsize}", copy=False)  # in this machine's order of bytes
    return _without_alpha(path, pixels, mask)


def _in_rgb(picture: Any) -> Any:
    """A picture of another colour space in RGB, by its own colour profile if it has one."""
    import io

    from PIL import ImageCms

    profile = picture.info.get("icc_profile")
    if picture.mode == "LAB":
        source: Any = ImageCms.createProfile("LAB")
    elif picture.mode == "CMYK" and profile:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    else:
        return picture.convert("RGB")
    return ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")


def _without_alpha(path: Path, pixels: npt.NDArray[Any], mask: bool) -> npt.NDArray[Any]:
    """Pixels (H, W, C) whose second or fourth channel is opacity, laid on black."""
    if pixels.ndim != 3 or pixels.shape[-1] not in (2, 4):
        return pixels
    colours, alpha = pixels[..., :-1], pixels[..., -1:]
    opaque = np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else 1
    if (alpha == opaque).all():
        return colours
    if mask:
        raise _NamedError(f"{path} is a mask with transparent parts: store one value per class, without transparency")
    laid = colours.astype(np.float64) * alpha / opaque
    return laid.round().astype(pixels.dtype) if pixels.dtype.kind == "u" else laid.astype(pixels.dtype)


_UPRIGHT: dict[int, Callable[[npt.NDArray[Any]], npt.NDArray[Any]]] = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}
"""What each value of the tag Orientation asks for."""


def _decode_tiff(path: Path, mask: bool, number: int | None) -> tuple[npt.NDArray[Any], float | None] | None:
    """A TIFF of more than 8 bits, which Pillow reads in part only; None for others."""
    import tifffile

    with _damage_named(path), tifffile.TiffFile(path) as file:
        if number is None and len(file.pages) > 1:
            raise _NamedError(f"{path} holds {len(file.pages)} pictures: expected one")
        page: Any = file.pages[number or 0]
        if page.bitspersample <= 8:
            return None
        kind = page.photometric.name
        if kind not in ("MINISBLACK", "MINISWHITE", "RGB"):
            raise _NamedError(f"{path} stores {kind} in {page.bitspersample} bits: only grey and RGB are read so")
        pixels = page.asarray()
        if pixels.ndim == 3 and page.planarconfig == 2:
            pixels = np.moveaxis(pixels, 0, -1)
        stated = page.tags.get("MaxSampleValue")
        white = float(np.max(stated.value)) if stated is not None else None
        if white is None and page.bitspersample < 8 * pixels.dtype.itemsize and pixels.dtype.kind == "u":
            white = 2.0**page.bitspersample - 1
        pixels = _without_alpha(path, pixels, mask)
        if kind == "MINISWHITE" and not mask:
            if pixels.dtype.kind != "u":
                raise _NamedError(f"{path} stores white as 0 in {pixels.dtype}: only unsigned integers are read so")
            pixels = np.array(white or np.iinfo(pixels.dtype).max, pixels.dtype) - pixels
        orientation = page.tags.get("Orientation")
        return _UPRIGHT[int(orientation.value) if orientation is not None else 1](pixels), white


def _decode_nifti(path: Path) -> tuple[npt.NDArray[Any], float | None]:
    import nibabel

    with _damage_named(path):
        image: Any = nibabel.load(path)  # type: ignore[attr-defined]
        pixels = np.asarray(image.dataobj)
    if pixels.dtype.names:  # RGB is a structured type there
        pixels = np.stack([pixels[name] for name in pixels.dtype.names], axis=-1)
    pixels = pixels.reshape([length for length in pixels.shape if length != 1])
    white = float(image.header["cal_max"]) if "cal_max" in image.header else 0.0
    return np.swapaxes(pixels, 0, 1), white or None  # NIfTI counts x first
