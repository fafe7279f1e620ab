"""Image sets, patches, vessels and DRIVE: what is read is what is there, and what is damaged is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sre_triton.training.data import medmnist, patches
from sre_triton.training.data.crops import CropSet
from sre_triton.training.data.medmnist import KNOWN_SETS, read_image_set
from sre_triton.training.data.patches import PHOTOGRAPHS, read_patches
from sre_triton.training.data.photographs import Kept, KeptArrays, LazyList, Photograph
from sre_triton.training.data.segmentation_set import read_segmentation_set
from sre_triton.training.data.vessels import draw_vessels
from sre_triton.training.options import SegmentOptions
from tests.training.conftest import TINY, Command, MakeSet


def test_known_sets_are_those_of_the_release() -> None:
    assert len(KNOWN_SETS) == 18
    assert sum(name.endswith("3d") for name in KNOWN_SETS) == 6
    assert [name for name, known in KNOWN_SETS.items() if known.multi_label] == ["chestmnist"]
    for name, known in KNOWN_SETS.items():
        assert set(known.md5) == ({28, 64} if name.endswith("3d") else {28, 64, 128, 224})
        assert all(len(md5) == 32 for md5 in known.md5.values())


def test_other_files_are_read_by_what_they_hold(make_set: MakeSet) -> None:
    folder = make_set("grey", classes=5).parent
    make_set("colour", channels=3)
    make_set("several", labels=4)
    make_set("deep3d", ndim=3, side=8)
    grey, colour, several, deep = (read_image_set(folder, name) for name in ("grey", "colour", "several", "deep3d"))
    assert (grey.classes, grey.channels, grey.ndim, grey.multi_label) == (5, 1, 2, False)
    assert colour.splits["train"].images.shape == (12, 3, 28, 28)
    assert (several.classes, several.multi_label) == (4, True)
    assert several.splits["val"].labels.shape == (6, 4)
    assert (deep.ndim, deep.splits["test"].images.shape) == (3, (6, 1, 8, 8, 8))


def change(path: Path, **arrays: Any) -> None:
    with np.load(path) as file:
        held = dict(file)
    held.update(arrays)
    np.savez(path, **{name: array for name, array in held.items() if array is not None})


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"val_images": None}, "it has no array 'val_images'"),
        ({"train_labels": np.full((12, 1), 9, np.uint8)}, "labels of octmnist must be 0 to 3, found 0 to 9"),
        ({"train_labels": np.full((12, 1), -1, np.int8)}, "labels of octmnist must be 0 to 3, found -1 to 2"),
        ({"train_labels": np.zeros((12, 2), np.uint8)}, "the splits differ in shape"),
        ({"train_labels": np.zeros((11, 1), np.uint8)}, "train has 12 images and labels of shape (11, 1)"),
        ({"train_labels": np.zeros((12, 1))}, "train_labels must be integers, got float64"),
        ({"test_images": np.zeros((6, 28, 28))}, "test_images must be uint8, got float64"),
        ({"test_images": np.zeros((6, 14, 14), np.uint8)}, "the splits differ in shape"),
        ({"test_images": np.zeros((6, 28, 28, 2, 2), np.uint8)}, "test_images must be (N, H, W)"),
    ],
)
def test_a_wrong_file_is_named(
    arrays: dict[str, Any], message: str, make_set: MakeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(medmnist, "_require_release", lambda *_: None)
    path = make_set("octmnist")
    change(path, **arrays)
    with pytest.raises(ValueError) as error:  # noqa: PT011 - matched below, as text
        read_image_set(path.parent, "octmnist")
    assert message in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("length", [0, 10, 2000])
def test_a_truncated_file_is_named(length: int, make_set: MakeSet) -> None:
    path = make_set("own")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match="is not a whole file of MedMNIST's format"):
        read_image_set(path.parent, "own")


def test_flipped_bytes_are_found(make_set: MakeSet) -> None:
    path = make_set("octmnist")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"octmnist.npz is not the file of the release"):
        read_image_set(path.parent, "octmnist")
    path.rename(path.with_name("own.npz"))
    with pytest.raises(ValueError, match="is not a whole file of MedMNIST's format"):
        read_image_set(path.parent, "own")


def test_a_set_of_other_channels_is_refused(make_set: MakeSet) -> None:
    path = make_set("octmnist", channels=3)
    with pytest.raises(ValueError, match="octmnist has 1 channels, this file 3"):
        read_image_set(path.parent, "octmnist")


def test_download_is_checked_and_leaves_nothing_damaged(
    tmp_path: Path, make_set: MakeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_set("source")

    def fetch(url: str, path: str, progress: bool) -> None:
        assert url == "https://zenodo.org/records/10519652/files/octmnist.npz?download=1"
        Path(path).write_bytes(source.read_bytes())

    monkeypatch.setattr("torch.hub.download_url_to_file", fetch)
    with pytest.raises(ValueError, match="arrived damaged"):
        read_image_set(tmp_path / "new", "octmnist", download=True)
    assert not list((tmp_path / "new").iterdir())
    import hashlib

    monkeypatch.setitem(KNOWN_SETS["octmnist"].md5, 28, hashlib.md5(source.read_bytes()).hexdigest())
    assert read_image_set(tmp_path / "new", "octmnist", download=True).classes == 4


def test_a_file_put_there_by_hand_is_checked_once(make_set: MakeSet, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_set("octmnist", classes=4)
    counted: list[Path] = []
    md5 = medmnist._md5
    monkeypatch.setattr(medmnist, "_md5", lambda path: counted.append(path) or md5(path))
    for _ in range(3):
        assert read_image_set(path.parent, "octmnist").classes == 4
    assert counted == [path]
    monkeypatch.setitem(KNOWN_SETS["octmnist"].md5, 28, "0" * 32)
    with pytest.raises(ValueError, match=r"octmnist.npz is not the file of the release: MD5 .*, expected 0000"):
        read_image_set(path.parent, "octmnist")
    path.rename(path.with_name("own.npz"))
    assert read_image_set(path.parent, "own").classes == 4


def test_patches_are_cut_anew_for_each_seed_and_written_nowhere(sre: Command, tmp_path: Path) -> None:
    images = read_patches()
    assert (images.classes, images.channels, images.view) == (len(PHOTOGRAPHS), 1, 28)
    counts = {split: np.bincount(content.labels).tolist() for split, content in images.splits.items()}
    assert counts == {"train": [144] * 8, "val": [32] * 8, "test": [64] * 8}
    assert read_patches().checksums == images.checksums != read_patches(seed=2).checksums
    for image in images.splits["test"].images[::40]:  # grey values are evenly spread: they tell no class
        assert np.ptp(np.bincount(image.ravel(), minlength=256)) <= 1
    assert sre("train", *TINY, "--epochs", "1", "--dry-run") == 0
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("seed", [1, 2])
def test_no_pixel_is_in_two_splits_of_the_patches(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (520, 550)
    numbers = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    monkeypatch.setattr(patches, "_grey", lambda name: numbers)
    monkeypatch.setattr(patches, "_softened", lambda grey, rng: grey)
    monkeypatch.setattr(patches, "_ranks", lambda tile: tile)
    splits = patches.cut_patches(seed)
    for label in range(8):
        held = {split: set(some.images[some.labels == label].ravel()) for split, some in splits.items()}
        assert not held["train"] & held["val"]
        assert not held["train"] & held["test"]
        assert not held["val"] & held["test"]


def test_vessels_are_seeded_and_their_masks_exact() -> None:
    one, same, other = draw_vessels(96, 0, 3), draw_vessels(96, 0, 3), draw_vessels(96, 0, 4)
    assert np.array_equal(one.image, same.image)
    assert not np.array_equal(one.labels, other.labels)
    assert (one.image.shape, one.labels.shape) == ((3, 96, 96), (1, 96, 96))
    assert one.image.min() >= 0
    assert one.image.max() <= 1
    assert set(np.unique(one.labels)) == {0, 1}
    inside = one.image.max(axis=0) > 0
    drawn = [draw_vessels(128, 0, index).labels.mean() / inside.mean() for index in range(4)]
    assert 0.09 < sum(drawn) / len(drawn) < 0.18  # about an eighth of the field, as in photographs
    green = one.image[1]
    assert green[(one.labels[0] == 1) & inside].mean() < 0.92 * green[(one.labels[0] == 0) & inside].mean()
    with pytest.raises(ValueError, match="at least 64"):
        draw_vessels(32, 0, 0)


def make_drive(root: Path, layout: str) -> None:
    rng = np.random.default_rng(0)
    for folder, first, count in (("training", 21, 6), ("test", 1, 2)):
        images, manuals = root / folder / "images", root / folder / "1st_manual"
        images.mkdir(parents=True)
        manuals.mkdir()
        for number in range(first, first + count):
            pixels = rng.integers(0, 256, (40, 30, 3)).astype(np.uint8)
            vessels = ((pixels[..., 0] > 200) * 255).astype(np.uint8)
            if layout == "distributed":
                Image.fromarray(pixels).save(images / f"{number:02d}_{folder}.tif")
                Image.fromarray(vessels).save(manuals / f"{number:02d}_manual1.gif")
            else:
                import nibabel

                for where, array in ((images, pixels.astype(np.float32)), (manuals, vessels)):
                    volume = nibabel.Nifti1Image(np.swapaxes(array, 0, 1), np.eye(4))
                    nibabel.save(volume, where / f"{number:02d}.nii.gz")


@pytest.mark.parametrize("layout", ["distributed", "nifti"])
def test_drive_in_both_layouts(layout: str, tmp_path: Path) -> None:
    make_drive(tmp_path, layout)
    white = 255.0 if layout == "nifti" else None  # the floats of a NIfTI have no white of their own
    splits = read_segmentation_set(SegmentOptions(data=tmp_path, max_value=white)).splits
    assert {split: len(found) for split, found in splits.items()} == {"train": 2, "val": 4, "test": 2}
    one = splits["train"][0]
    assert (one.image.shape, one.labels.shape) == ((3, 40, 30), (1, 40, 30))
    assert np.array_equal(one.labels[0], (np.round(255 * one.image[0]) > 200).astype(np.uint8))


def test_drive_names_what_is_missing_or_damaged(tmp_path: Path) -> None:
    make_drive(tmp_path, "distributed")
    options = SegmentOptions(data=tmp_path)
    (tmp_path / "training" / "images" / "22_training.tif").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"22_training.tif is not a whole picture"):
        read_segmentation_set(options)
    (tmp_path / "training" / "1st_manual" / "21_manual1.gif").unlink()
    with pytest.raises(ValueError, match=r"21_training.tif has no vessels"):
        read_segmentation_set(options)
    for path in (tmp_path / "training" / "1st_manual").iterdir():
        path.unlink()
    (tmp_path / "training" / "1st_manual").rmdir()
    with pytest.raises(FileNotFoundError, match="1st_manual is missing"):
        read_segmentation_set(options)


def test_lists_read_what_is_asked_for_and_keep_no_more_than_their_limit() -> None:
    read: list[int] = []

    def double(entry: int) -> int:
        read.append(entry)
        return 2 * entry

    found = LazyList([1, 2, 3, 4], double, lambda _: 10, Kept(25))
    assert (len(found), found[0], found[-1], found[1:3]) == (4, 2, 8, [4, 6])
    assert read == [1, 4, 2, 3]
    assert list(found) == [2, 4, 6, 8]
    assert read == [1, 4, 2, 3, 1, 2, 3, 4]  # two are kept, and by the time they are met the others replaced them
    assert found[3] == 8
    assert len(read) == 8
    with pytest.raises(IndexError):
        found[4]
    kept, read[:] = Kept(20), []
    first, second = (LazyList([n], double, lambda _: 10, kept) for n in (1, 2))
    assert [first[0], second[0], first[0], second[0]] == [2, 4, 2, 4]
    assert read == [1, 2]  # the lists share what may be kept, and do not take each other's
    assert LazyList([3], double, lambda _: 10, kept)[0] == 6
    assert (first[0], read) == (2, [1, 2, 3, 1])
    too_large = LazyList([4], double, lambda _: 21, kept)
    assert (too_large[0], too_large[0], second[0], read[4:]) == (8, 8, 4, [4, 4, 2])


@pytest.mark.parametrize(("limit", "reads"), [(0, 8), (15, 7), (16, 5), (24, 4), (99, 4)])
def test_arrays_are_kept_in_one_block_and_handed_out_as_copies(limit: int, reads: int) -> None:
    read: list[int] = []

    def two(entry: int) -> np.ndarray:
        read.append(entry)
        return np.full(2, entry, np.float32)

    found = LazyList([1, 2, 3, 4], two, lambda array: array.nbytes, KeptArrays(limit, 4))
    taken = [found[index] for index in (0, 1, 2, 1, 0, 3, 3, 0)]
    assert len(read) == reads
    assert [array.tolist() for array in taken] == [[n, n] for n in (1, 2, 3, 2, 1, 4, 4, 1)]
    for array in taken:
        array[:] = -1
    assert found[3].tolist() == [4, 4]
    assert found[0].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("first", "message"), [(1, "labels are 1 to 4: they must begin at 0"), (0, "label 2 has no training image")]
)
def test_labels_that_nothing_is_trained_on(first: int, message: str, make_set: MakeSet) -> None:
    path = make_set("own", classes=4)
    with np.load(path) as file:
        labels = {f"{split}_labels": file[f"{split}_labels"] + first for split in ("train", "val", "test")}
    if first == 0:
        labels["train_labels"] = np.where(labels["train_labels"] == 2, 0, labels["train_labels"])
    change(path, **labels)
    with pytest.raises(ValueError, match=message):
        read_image_set(path.parent, "own")


def crop_set(**options: Any) -> CropSet:
    vessels = (np.random.default_rng(0).random((1, 96, 96)) < 0.3).astype(np.uint8)
    photograph = Photograph(vessels.repeat(3, axis=0).astype(np.float32), vessels, "noise")
    return CropSet([photograph], SegmentOptions(crop_size=32, crops_per_image=6, **options))


def test_masks_are_mapped_with_their_images() -> None:
    crops = crop_set(affine_prob=1.0, scale_ratio=0.3, shear_ratio=0.3)
    images, vessels = crops[list(range(6))]
    assert torch.equal(images[:, :1], vessels.float())
    plain, _ = crop_set()[list(range(6))]
    assert not torch.equal(images, plain)


def test_crops_depend_on_seed_epoch_and_number_alone() -> None:
    first, second = crop_set(affine_prob=0.5), crop_set(affine_prob=0.5)
    whole, _ = first[list(range(6))]
    assert torch.equal(second[[4]][0], whole[[4]])
    assert not torch.equal(second[[4 + len(second)]][0], whole[[4]])  # of the next epoch
    other = crop_set(affine_prob=0.5, seed=2)
    assert not torch.equal(other[[4]][0], whole[[4]])
