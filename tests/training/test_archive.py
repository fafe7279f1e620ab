"""Arrays of archives are what NumPy reads, wherever they lie."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from sre_triton.training.data import archive
from sre_triton.training.data.archive import Archive
from sre_triton.training.data.medmnist import read_image_set
from tests.training.conftest import MakeSet

ARRAYS = {
    "bytes": np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8),
    "columns": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "one": np.array(7, np.int16),
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is small enough to be held."""
    monkeypatch.setattr(archive, "HELD", 0)
    monkeypatch.setenv("SRE_TRITON_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "arrays"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_mapped_as_they_are(save: object, cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    save(path, **ARRAYS)  # type: ignore[operator]
    with Archive(path) as file:
        assert file.names == set(ARRAYS)
        found = {name: file.read(name) for name in ARRAYS}
    for name, expected in ARRAYS.items():
        assert isinstance(found[name], np.memmap)
        assert found[name].dtype == expected.dtype
        assert np.array_equal(found[name], expected)
    found["bytes"][:] = 0  # stays in this process
    with np.load(path) as file, Archive(path) as again:
        assert np.array_equal(file["bytes"], ARRAYS["bytes"])
        assert np.array_equal(again.read("bytes"), ARRAYS["bytes"])
    assert cache.is_dir() == (save is np.savez_compressed)  # what is stored as it is takes no second place on the disk


def test_an_archive_is_unpacked_once_and_anew_when_it_changes(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    np.savez_compressed(path, x=np.zeros(50))
    with Archive(path) as file:
        file.read("x")
    (first,) = cache.iterdir()
    written = first.stat().st_mtime_ns
    with Archive(path) as file:
        file.read("x")
    assert [(entry, entry.stat().st_mtime_ns) for entry in cache.iterdir()] == [(first, written)]
    first.write_bytes(b"")  # as a full disk may leave it
    with Archive(path) as file:
        assert np.array_equal(file.read("x"), np.zeros(50))
    np.savez_compressed(path, x=np.ones(50))
    with Archive(path) as file:
        assert np.array_equal(file.read("x"), np.ones(50))
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("compressed", [True, False])
def test_damage_is_named_and_leaves_nothing(compressed: bool, cache: Path, tmp_path: Path, make_set: MakeSet) -> None:
    path = make_set("own")
    with np.load(path) as file:
        arrays = dict(file)
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    with zipfile.ZipFile(path) as members:
        start = members.getinfo("train_images.npy").header_offset
    content = bytearray(path.read_bytes())
    content[start + 600] ^= 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"own.npz is not a whole file of MedMNIST's format: .*fetch it again"):
        read_image_set(path.parent, "own")
    assert not cache.is_dir() or list(cache.iterdir()) == []


def test_objects_are_refused(cache: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", x=np.array([{}, 1], dtype=object))
    with Archive(tmp_path / "own.npz") as file, pytest.raises(ValueError, match="it holds Python objects"):
        file.read("x")


def test_a_full_disk_is_not_taken_for_damage(cache: Path, make_set: MakeSet) -> None:
    cache.parent.write_bytes(b"no folder")
    with pytest.raises(OSError, match="cache"):
        read_image_set(make_set("own").parent, "own")


def test_a_mapped_set_is_the_set_that_is_held(
    make_set: MakeSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from sre_triton.training.tasks.classification import Labelled

    folder = make_set("own", channels=3).parent
    held = read_image_set(folder, "own")
    monkeypatch.setattr(archive, "HELD", 0)
    monkeypatch.setenv("SRE_TRITON_CACHE_DIR", str(tmp_path / "cache"))
    mapped = read_image_set(folder, "own")
    for split, content in held.splits.items():
        (images, labels), (same, same_labels) = (Labelled(one)[[1, 0, 3]] for one in (content, mapped.splits[split]))
        assert images.is_contiguous()
        assert same.is_contiguous()
        assert images.equal(same)
        assert labels.equal(same_labels)
