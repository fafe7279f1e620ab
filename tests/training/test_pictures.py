"""Pixels of every kind of file are read as what they mean, and what has no one meaning is an error that names it."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from sre_triton.training.data.pictures import (
    left_out,
    picture_files,
    picture_name,
    read_header,
    read_mask,
    read_picture,
)

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 4, 3)).astype(np.uint8)
GREY = RGB[..., 0]


def smooth() -> np.ndarray:
    """Colours that lossy formats keep: muted, as saturated ones are coarse in 8 bits of LAB, and without edges."""
    y, x = np.mgrid[:32, :32] * 4 + 64
    return np.stack([y, x, 255 - y], axis=-1).astype(np.uint8)


def channels_last(path: Path, **arguments: Any) -> np.ndarray:
    return np.moveaxis(read_picture(path, **arguments), 0, -1)


@pytest.mark.parametrize("ending", ["png", "tif", "bmp", "ppm", "webp"])
def test_eight_bits(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    Image.fromarray(RGB).save(path, **({"lossless": True} if ending == "webp" else {}))
    assert np.array_equal(channels_last(path), RGB.astype(np.float32) / 255)
    assert read_header(path) == ((6, 4), False, False)


def test_gzipped(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.ppm")
    (tmp_path / "b.ppm.gz").write_bytes(gzip.compress((tmp_path / "a.ppm").read_bytes()))
    assert np.array_equal(read_picture(tmp_path / "b.ppm.gz"), read_picture(tmp_path / "a.ppm"))
    assert picture_name(tmp_path / "im0001.ah.ppm.gz") == "im0001.ah"


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bits_of_grey(ending: str, tmp_path: Path) -> None:
    deep = GREY.astype(np.uint16) * 257
    path = tmp_path / f"a.{ending}"
    Image.fromarray(deep).save(path)
    assert np.array_equal(channels_last(path)[..., 1], (deep / np.float32(65535)).astype(np.float32))
    assert read_header(path) == ((6, 4), True, True)
    assert np.allclose(channels_last(path, max_value=131070.0)[..., 0], GREY / 510, atol=1e-6)


def test_sixteen_bits_of_colour_and_twelve_in_sixteen(tmp_path: Path) -> None:
    deep = RGB.astype(np.uint16) * 16
    tifffile.imwrite(tmp_path / "deep.tif", deep, photometric="rgb")
    assert np.allclose(channels_last(tmp_path / "deep.tif"), deep / 65535, atol=1e-6)
    assert np.allclose(channels_last(tmp_path / "deep.tif", max_value=4095), deep / 4095, atol=1e-6)
    tifffile.imwrite(tmp_path / "twelve.tif", deep, photometric="rgb", extratags=[(281, "H", 3, (4095,) * 3, True)])
    assert np.allclose(channels_last(tmp_path / "twelve.tif"), deep / 4095, atol=1e-6)
    planes = np.moveaxis(deep, -1, 0)
    tifffile.imwrite(tmp_path / "planes.tif", planes, photometric="rgb", planarconfig="separate")
    assert np.allclose(channels_last(tmp_path / "planes.tif"), deep / 65535, atol=1e-6)


def test_floats_state_their_range(tmp_path: Path) -> None:
    values = RGB.astype(np.float32) / 255
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb")
    assert np.array_equal(channels_last(tmp_path / "a.tif"), values)
    tifffile.imwrite(tmp_path / "b.tif", values * 300, photometric="rgb")
    with pytest.raises(ValueError, match=r"b.tif holds values up to .*, above white \(1\): state .* --max-value"):
        read_picture(tmp_path / "b.tif")
    assert np.allclose(channels_last(tmp_path / "b.tif", max_value=300), values, atol=1e-6)
    tifffile.imwrite(tmp_path / "c.tif", values - 0.5, photometric="rgb")
    with pytest.raises(ValueError, match=r"c.tif holds negative values \(down to -0.5\)"):
        read_picture(tmp_path / "c.tif")
    tifffile.imwrite(tmp_path / "d.tif", np.full((4, 4), np.nan, np.float32))
    with pytest.raises(ValueError, match=r"d.tif holds values that are not finite"):
        read_picture(tmp_path / "d.tif")
    tifffile.imwrite(tmp_path / "e.tif", np.full((4, 4), 7, np.int32))
    with pytest.raises(ValueError, match=r"e.tif is of type int32, values up to 7: state the value of white"):
        read_picture(tmp_path / "e.tif")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_as_zero(dtype: type, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GREY.astype(dtype), photometric="miniswhite")
    white = np.iinfo(dtype).max
    assert np.allclose(channels_last(tmp_path / "a.tif")[..., 0], (white - GREY.astype(float)) / white, atol=1e-6)


def test_transparency_is_laid_on_black(tmp_path: Path) -> None:
    alpha = np.full((6, 4, 1), 255, np.uint8)
    Image.fromarray(np.concatenate([RGB, alpha], -1)).save(tmp_path / "opaque.png")
    assert np.array_equal(channels_last(tmp_path / "opaque.png"), RGB.astype(np.float32) / 255)
    alpha[:3] = 0
    Image.fromarray(np.concatenate([RGB, alpha], -1)).save(tmp_path / "half.png")
    found = channels_last(tmp_path / "half.png")
    assert (found[:3] == 0).all()
    assert np.array_equal(found[3:], RGB[3:].astype(np.float32) / 255)
    Image.fromarray(np.concatenate([GREY[..., None], alpha], -1)).save(tmp_path / "grey.png")
    assert (channels_last(tmp_path / "grey.png")[:3] == 0).all()
    with pytest.raises(ValueError, match=r"half.png is a mask with transparent parts"):
        read_mask(tmp_path / "half.png")


def test_palettes_are_looked_up(tmp_path: Path) -> None:
    picture = Image.fromarray(smooth()).quantize(8)
    picture.save(tmp_path / "a.png")
    assert np.array_equal(
        channels_last(tmp_path / "a.png"), np.asarray(picture.convert("RGB")).astype(np.float32) / 255
    )


@pytest.mark.parametrize(
    ("mode", "ending", "error"),
    # A step of 8-bit LAB is up to 0.05 of RGB; read as RGB it would be wrong by half of the range.
    [("CMYK", "jpg", 0.03), ("CMYK", "tif", 0.005), ("YCbCr", "jpg", 0.03), ("LAB", "tif", 0.06)],
)
def test_other_colour_spaces_become_rgb(mode: str, ending: str, error: float, tmp_path: Path) -> None:
    picture = Image.fromarray(smooth())
    if mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        picture = ImageCms.profileToProfile(picture, srgb, lab, outputMode="LAB")
    else:
        picture = picture.convert(mode)
    picture.save(tmp_path / f"a.{ending}", **({"quality": 95, "subsampling": 0} if ending == "jpg" else {}))
    with Image.open(tmp_path / f"a.{ending}") as stored:
        assert stored.mode == ("RGB" if mode == "YCbCr" else mode)  # a JPEG's YCbCr is its RGB to Pillow
    found = channels_last(tmp_path / f"a.{ending}")
    assert np.abs(found - smooth() / 255).max() < error


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int, tmp_path: Path) -> None:
    from PIL import ImageOps

    picture = Image.fromarray(RGB)
    exif = picture.getexif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as stored:
        upright = np.asarray(ImageOps.exif_transpose(stored))
    assert np.array_equal(channels_last(tmp_path / "a.png"), upright.astype(np.float32) / 255)
    assert read_header(tmp_path / "a.png").shape == upright.shape[:2]
    tifffile.imwrite(
        tmp_path / "a.tif", RGB.astype(np.uint16) * 257, photometric="rgb", extratags=[(274, "H", 1, orientation, True)]
    )
    assert np.allclose(channels_last(tmp_path / "a.tif"), upright / 255, atol=1e-6)
    assert read_header(tmp_path / "a.tif").shape == upright.shape[:2]


def test_nifti(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(GREY.T.copy(), np.eye(4)), tmp_path / "a.nii.gz")
    assert np.array_equal(channels_last(tmp_path / "a.nii.gz")[..., 2], GREY.astype(np.float32) / 255)
    assert read_header(tmp_path / "a.nii.gz") == ((6, 4), True, False)
    image = nibabel.Nifti1Image(GREY.T.astype(np.float32), np.eye(4))
    nibabel.save(image, tmp_path / "b.nii")
    with pytest.raises(ValueError, match=r"b.nii holds values up to .*, above white"):
        read_picture(tmp_path / "b.nii")
    image.header["cal_max"] = 255
    nibabel.save(image, tmp_path / "c.nii")
    assert np.allclose(channels_last(tmp_path / "c.nii")[..., 0], GREY / 255, atol=1e-6)
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 5), np.uint8), np.eye(4)), tmp_path / "volume.nii")
    with pytest.raises(ValueError, match=r"volume.nii must be a grey or RGB picture, got .* \(4, 4, 5\)"):
        read_picture(tmp_path / "volume.nii")


def write_pages(path: Path) -> None:
    tifffile.imwrite(path, np.zeros((3, 8, 8), np.uint8), photometric="minisblack")


def write_truncated(path: Path) -> None:
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(path, format="PNG")
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.tif", write_pages, "a.tif holds 3 pictures: expected one"),
        ("a.png", write_truncated, "a.png is not a whole picture"),
        ("a.tif", lambda path: path.write_bytes(b"no picture"), "a.tif is not a whole picture"),
        ("a.nii", lambda path: path.write_bytes(b"no picture"), "a.nii is not a whole picture"),
        ("a.ppm.gz", lambda path: path.write_bytes(b"no picture"), "a.ppm.gz is not a whole picture"),
        ("a.png", lambda path: None, "a.png is missing"),
    ],
)
def test_what_is_no_picture_is_named(name: str, write: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    write(tmp_path / name)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        read_picture(tmp_path / name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_masks_keep_their_values(tmp_path: Path) -> None:
    values = np.array([[0, 3], [700, 1]], np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert np.array_equal(read_mask(tmp_path / "deep.png"), values)
    Image.fromarray(values > 2).save(tmp_path / "bits.png")
    assert np.array_equal(read_mask(tmp_path / "bits.png"), values > 2)
    colours = np.array([[[255, 0, 0], [0, 0, 0]]], np.uint8)
    Image.fromarray(colours).save(tmp_path / "colours.png")
    assert read_mask(tmp_path / "colours.png").tolist() == [[0xFF0000, 0]]
    grey = Image.fromarray(np.array([[0, 1]], np.uint8), mode=None).convert("P")
    grey.putpalette([255] * 3 + [0] * 3)
    grey.save(tmp_path / "grey.gif")
    assert read_mask(tmp_path / "grey.gif").tolist() == [[255, 0]]  # by grey, not by index
    classes = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
    classes.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    classes.save(tmp_path / "classes.png")
    assert read_mask(tmp_path / "classes.png").tolist() == [[0, 1, 2]]
    tifffile.imwrite(tmp_path / "half.tif", np.full((4, 4), 0.5, np.float32))
    with pytest.raises(ValueError, match=r"half.tif holds fractions"):
        read_mask(tmp_path / "half.tif")


def test_litter_is_passed_over_and_twins_are_named(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "._a.png", "Thumbs.db", ".DS_Store", "notes.txt"):
        (tmp_path / name).touch()
    for name in (".cache", "more.png"):
        (tmp_path / name).mkdir()
    pictures, others = picture_files(tmp_path)
    assert [path.name for path in pictures] == ["a.png", "b.png"]
    assert left_out(others) == [f"{tmp_path}: 2 are no pictures and left out (more.png/, notes.txt)"]
    assert left_out(others[1:]) == [f"{tmp_path}: 1 is no picture and left out (notes.txt)"]
    assert left_out([]) == []
    (tmp_path / "a.tif").touch()
    with pytest.raises(ValueError, match=r"a.png and a.tif differ in their format alone"):
        picture_files(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere is missing"):
        picture_files(tmp_path / "nowhere")


def test_what_a_library_says_is_not_taken_for_our_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "one.png"
    Image.new("L", (4, 4)).save(path)

    def refuse(source: Path) -> None:
        raise ValueError(f"cannot decode {source}")

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} is not a whole picture: cannot decode"):
        read_picture(path)
