"""Trained networks answer for pictures, in Python and on the command line."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import sre_triton
from tests.training.conftest import TINY, Command
from tests.training.photographs import TINY as TINY_SEGMENTATION
from tests.training.photographs import write_image, write_mask, write_pairs
from tests.training.test_image_folder import CLASSES, write_classes


@pytest.fixture
def classifier(sre: Command, tmp_path: Path) -> Path:
    write_classes(tmp_path / "zoo")
    assert sre("train", "--data", tmp_path / "zoo", "--image-size", "16", *TINY, "--epochs", "1") == 0
    return tmp_path / "logs" / "task" / "zoo-sre_resnet18-seed1"


@pytest.fixture
def segmenter(sre: Command, tmp_path: Path) -> Path:
    write_pairs(tmp_path / "set", [str(n) for n in range(5)])
    assert sre("segment", "--data", tmp_path / "set", *TINY_SEGMENTATION) == 0
    return tmp_path / "logs" / "task" / "set-sre_unet-seed1"


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_classifier_answers_by_name(classifier: Path, tmp_path: Path) -> None:
    from sre_triton.training.runs.restore import load_task

    model = sre_triton.load(classifier)
    assert (model.classes, model.task, model.threshold) == (CLASSES, "classification", None)
    pixels = np.array(Image.open(tmp_path / "zoo" / "owl" / "0.png"))
    probabilities = model.probabilities(pixels)
    assert probabilities.shape == (3,)
    assert probabilities.sum() == pytest.approx(1, abs=1e-6)
    assert model.predict(pixels) == CLASSES[probabilities.argmax()]
    # The same picture in every form, and prepared as in training.
    for same in (
        Image.fromarray(pixels),
        pixels / np.float32(255),
        pixels.astype(np.uint16) * 257,
        torch.from_numpy(pixels).movedim(-1, 0),
        torch.from_numpy(pixels).movedim(-1, 0) / 255,
    ):
        assert np.allclose(model.probabilities(same), probabilities, atol=1e-6)
    task: Any = load_task(classifier)
    images = task.images.splits["test"].images
    (entry,) = (path for path in images._pictures.entries[:1])
    with torch.no_grad():
        expected = task.network(task.preparation.evaluated(torch.from_numpy(images[[0]]), [0])).softmax(dim=1)[0]
    # The set keeps 8 bits of the resized picture.
    assert np.allclose(model.probabilities(Image.open(entry)), expected, atol=5e-3)
    grey = pixels[..., 0]
    assert np.allclose(model.probabilities(grey), model.probabilities(grey[..., None].repeat(3, -1)), atol=1e-6)


def test_a_segmentation_answers_in_the_values_of_its_masks(segmenter: Path, tmp_path: Path) -> None:
    model = sre_triton.load(segmenter / "best.ckpt")
    assert (model.classes, model.task) == ((0, 255), "segmentation")
    pixels = np.asarray(Image.open(tmp_path / "set" / "images" / "0.png"))
    probabilities, mask = model.probabilities(pixels), model.predict(pixels)
    assert (probabilities.shape, mask.shape, mask.dtype) == ((2, 48, 48), (48, 48), np.uint8)
    assert np.array_equal(mask, np.where(probabilities.argmax(axis=0) == 1, 255, 0))
    with torch.no_grad():
        expected = model.network(torch.from_numpy(pixels / np.float32(255)).movedim(-1, 0)[None]).softmax(dim=1)[0]
    assert np.allclose(probabilities, expected, atol=1e-6)
    # The window is larger than the picture, so that a ring network is symmetric: averaging changes nothing.
    assert np.allclose(model.probabilities(pixels, tta=True), probabilities, atol=1e-4)
    turned = model.probabilities(np.rot90(pixels).copy(), tta=True)
    assert np.allclose(turned, np.rot90(model.probabilities(pixels, tta=True), axes=(1, 2)), atol=1e-5)


def test_averaging_makes_an_ordinary_network_symmetric(sre: Command, tmp_path: Path) -> None:
    write_pairs(tmp_path / "set", [str(n) for n in range(5)])
    network = ["--model-type", "monai:UNet", "--model-args", '{"channels": [4, 8], "strides": [2]}']
    assert sre("segment", "--data", tmp_path / "set", *TINY_SEGMENTATION[:-2], *network) == 0
    model = sre_triton.load(tmp_path / "logs" / "task" / "set-monai-UNet-seed1")
    pixels = np.asarray(Image.open(tmp_path / "set" / "images" / "0.png"))
    for move in (lambda x: np.rot90(x, axes=(-3, -2)), lambda x: x[:, ::-1]):
        moved = move(pixels).copy()
        back = np.moveaxis(move(np.moveaxis(model.probabilities(pixels, tta=True), 0, -1)), -1, 0)
        assert np.allclose(model.probabilities(moved, tta=True), back, atol=1e-5)
    assert not np.allclose(
        model.probabilities(np.rot90(pixels).copy()), np.rot90(model.probabilities(pixels), axes=(1, 2)), atol=1e-4
    )


@pytest.mark.parametrize(
    ("image", "kind", "message"),
    [
        ("a.png", TypeError, "image must be an array, a PIL image or a tensor, got str"),
        (np.zeros((4, 4, 5), np.uint8), ValueError, r"image must be \(H, W\) or \(H, W, 3\), got \(4, 4, 5\)"),
        (torch.zeros(2, 4, 4), ValueError, r"image must be \(1, H, W\) or \(3, H, W\), got \(2, 4, 4\)"),
        (np.full((4, 4), 3.0), ValueError, "image must lie in 0 to 1, got 3 to 3"),
        (np.full((4, 4), np.nan), ValueError, "image must lie in 0 to 1, got nan"),
        (
            np.zeros((4, 4), np.int32),
            ValueError,
            "image must be uint8, uint16, bool or floats in 0 to 1, got torch.int32",
        ),
    ],
)
def test_what_is_no_picture_is_refused(image: Any, kind: type[Exception], message: str) -> None:
    from sre_triton.training.runs.predictor import as_picture

    with pytest.raises(kind, match=message):
        as_picture(image)


def test_black_and_white_is_a_picture() -> None:
    from sre_triton.training.runs.predictor import as_picture

    pixels = np.arange(12).reshape(3, 4) % 2 == 0
    expected = torch.from_numpy(pixels).float().expand(1, 3, 3, 4)
    for image in (pixels, torch.from_numpy(pixels), Image.fromarray(pixels)):
        torch.testing.assert_close(as_picture(image), expected)


def test_a_plain_state_dict_needs_no_training_code(segmenter: Path) -> None:
    model = sre_triton.load(segmenter)
    plain = sre_triton.SREUNet(in_channels=3, out_channels=2, features=[4, 4], sre_conv_size=3)
    plain.load_state_dict(model.network.state_dict())
    x = torch.rand(1, 3, 24, 24)
    assert torch.equal(plain.eval()(x), model.network(x))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_a_device_that_is_not_there_is_named(segmenter: Path) -> None:
    with pytest.raises(ValueError, match="device='cuda' is not there: "):
        sre_triton.load(segmenter, device="cuda")


def test_files_of_the_two_scripts_are_told_apart(segmenter: Path, tmp_path: Path) -> None:
    from sre_triton.models import load_reference_checkpoint

    with pytest.raises(ValueError, match=r"best.ckpt was written by `sre-triton`, .*: sre_triton.load reads it"):
        load_reference_checkpoint(segmenter / "best.ckpt")
    state = sre_triton.load(segmenter).network.state_dict()
    torch.save({"state_dict": state, "optimizer": None, "cur_ep": 1}, tmp_path / "reference.pth")
    assert load_reference_checkpoint(tmp_path / "reference.pth")["state_dict"].keys() == state.keys()
    with pytest.raises(ValueError, match=r"reference.pth was not written by .*load_reference_checkpoint reads"):
        sre_triton.load(tmp_path / "reference.pth")


def test_predict_writes_maps_in_the_format_of_the_picture(segmenter: Path, sre: Command, tmp_path: Path) -> None:
    inputs = tmp_path / "new"
    write_image(inputs / "a.jpg", 7)
    tifffile.imwrite(inputs / "b.tif", np.asarray(Image.open(inputs / "a.jpg")), photometric="rgb")
    affine = np.diag([0.5, 0.5, 1, 1])
    grey = np.asarray(Image.open(inputs / "a.jpg"))[..., 0]
    nibabel.save(nibabel.Nifti1Image(grey.T.copy(), affine), inputs / "c.nii.gz")
    output = tmp_path / "answers"
    assert sre("predict", segmenter, inputs, "--output", output) == 0
    model = sre_triton.load(segmenter)
    for name, pixels in (("a", np.asarray(Image.open(inputs / "a.jpg"))), ("c", grey)):
        expected = model.probabilities(pixels)
        if name == "a":
            mask = np.asarray(Image.open(output / "a_mask.png"))
            probability = np.asarray(Image.open(output / "a_probability.png")) / 65535
        else:
            image = nibabel.load(output / "c_mask.nii")
            assert np.array_equal(image.affine, affine)
            mask = np.asarray(image.dataobj).T
            probability = np.asarray(nibabel.load(output / "c_probability.nii").dataobj).T
        assert np.array_equal(mask, np.where(expected.argmax(axis=0) == 1, 255, 0))
        assert np.allclose(probability, expected[1], atol=1e-5)
    assert np.array_equal(tifffile.imread(output / "b_mask.tif"), np.asarray(Image.open(output / "a_mask.png")))
    assert tifffile.imread(output / "b_probability.tif").dtype == np.float32
    assert np.asarray(Image.open(output / "a_overlay.png")).shape == (48, 48, 3)
    overlay = np.asarray(Image.open(output / "a_overlay.png"))
    assert np.array_equal(tifffile.imread(output / "b_overlay.tif"), overlay)
    coloured = np.asarray(nibabel.load(output / "c_overlay.nii").dataobj)
    assert coloured.dtype.names == ("R", "G", "B")
    assert coloured.shape == (48, 48)
    rows = table(output)
    assert [row["image"] for row in rows] == ["a.jpg", "b.tif", "c.nii.gz"]
    assert sum(float(rows[0][f"share_{value}"]) for value in (0, 255)) == pytest.approx(1)


def test_predict_scores_and_goes_on_where_it_stopped(
    segmenter: Path, sre: Command, tmp_path: Path, capsys: Any
) -> None:
    images, output = tmp_path / "set" / "images", tmp_path / "answers"
    field = np.hypot(*np.mgrid[-24:24, -24:24]) < 18
    for number in range(5):
        write_mask(tmp_path / "fov" / f"{number}.png", field)
    arguments = [
        segmenter,
        images,
        "--output",
        output,
        "--masks",
        tmp_path / "set" / "masks",
        "--fov",
        tmp_path / "fov",
    ]
    damaged = images / "3.png"
    whole = damaged.read_bytes()
    damaged.write_bytes(b"no picture")
    assert sre("predict", *arguments) == 2
    assert "3.png is not a whole picture" in capsys.readouterr().err
    assert [row["image"] for row in table(output)] == ["0.png", "1.png", "2.png"]
    damaged.write_bytes(whole)
    kept = (output / "1_mask.png").stat().st_mtime_ns
    assert sre("predict", *arguments) == 0
    said = capsys.readouterr().out
    assert "3 of 5 pictures were answered before" in said
    assert "means over 5 pictures, in percent: dice " in said
    assert (output / "1_mask.png").stat().st_mtime_ns == kept
    rows = table(output)
    assert len(rows) == 5
    answer = np.asarray(Image.open(output / "1_mask.png")) > 0
    truth = np.asarray(Image.open(tmp_path / "set" / "masks" / "1.png")) > 0
    dice = 2 * (answer & truth & field).sum() / ((answer & field).sum() + (truth & field).sum())
    assert float(rows[1]["dice"]) == pytest.approx(100 * dice)
    assert float(rows[1]["whole_accuracy"]) == pytest.approx(100 * (answer == truth).mean())
    assert sre("predict", *arguments, "--tta") == 2
    assert "was begun with another tta: choose another --output" in capsys.readouterr().err


def test_predict_writes_classes_and_probabilities(classifier: Path, sre: Command, tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "answers"
    pictures = [tmp_path / "zoo" / "cat" / "0.png", tmp_path / "zoo" / "owl" / "1.png"]
    assert sre("predict", classifier, *pictures, "--output", output) == 0
    model = sre_triton.load(classifier)
    for row, path in zip(table(output), pictures, strict=True):
        probabilities = model.probabilities(Image.open(path))
        assert row["class"] == CLASSES[probabilities.argmax()]
        assert [float(row[f"p_{name}"]) for name in CLASSES] == pytest.approx(probabilities.tolist(), abs=1e-6)
    assert sre("predict", classifier, *pictures, "--output", tmp_path / "other", "--masks", tmp_path) == 2
    assert "--masks is for segmentation: the model classifies" in capsys.readouterr().err
    assert sre("predict", classifier, tmp_path / "zoo" / "cat", pictures[0], "--output", tmp_path / "third") == 0
    assert sre("predict", classifier, tmp_path / "zoo" / "cat", tmp_path / "zoo" / "owl", "--output", output) == 2
    assert "have one name: predict them into different folders" in capsys.readouterr().err
    assert sre("predict", tmp_path / "nowhere", pictures[0]) == 2
    assert sre("predict", classifier, tmp_path / "nowhere.png", "--output", output) == 2


def test_a_stack_is_answered_picture_by_picture(segmenter: Path, sre: Command, tmp_path: Path, capsys: Any) -> None:
    slices = np.random.default_rng(0).integers(0, 256, (5, 40, 48), dtype=np.uint8)
    inputs = tmp_path / "new"
    inputs.mkdir()
    tifffile.imwrite(inputs / "bytes.tif", slices, photometric="minisblack")
    tifffile.imwrite(inputs / "deep.tif", slices.astype(np.uint16) * 257, photometric="minisblack")
    affine = np.diag([0.5, 0.5, 2, 1])
    nibabel.save(nibabel.Nifti1Image(np.moveaxis(slices, (0, 1, 2), (2, 1, 0)), affine), inputs / "scan.nii.gz")
    frames = [Image.fromarray(one) for one in slices]
    frames[0].save(inputs / "film.gif", save_all=True, append_images=frames[1:])
    output = tmp_path / "answers"
    arguments = [segmenter, inputs, "--output", output, "--batch", "2"]
    assert sre("predict", *arguments) == 0
    rows = table(output)
    names = ["bytes.tif", "deep.tif", "film.gif", "scan.nii.gz"]
    assert [row["image"] for row in rows] == [f"{name}[{page}]" for name in names for page in range(5)]
    model = sre_triton.load(segmenter)
    expected = np.stack([model.probabilities(one) for one in slices])
    scan = nibabel.load(output / "scan_probability.nii")
    assert np.array_equal(scan.affine, affine)
    for found in (
        tifffile.imread(output / "bytes_probability.tif"),
        tifffile.imread(output / "deep_probability.tif"),
        np.moveaxis(np.asarray(scan.dataobj), (2, 1, 0), (0, 1, 2)),
    ):
        assert np.allclose(found, expected[:, 1], atol=1e-5)
    mask = np.where(expected.argmax(axis=1) == 1, 255, 0)
    assert (tifffile.imread(output / "bytes_mask.tif") == mask).mean() > 0.999  # a tie may fall either way
    assert tifffile.imread(output / "bytes_overlay.tif").shape == (5, 40, 48, 3)
    assert nibabel.load(output / "scan_overlay.nii").shape == (48, 40, 5)
    assert tifffile.imread(output / "film_mask.tif").shape == (5, 40, 48)
    kept = (output / "bytes_mask.tif").stat().st_mtime_ns
    assert sre("predict", *arguments) == 0
    assert "4 of 4 pictures were answered before" in capsys.readouterr().out
    assert (output / "bytes_mask.tif").stat().st_mtime_ns == kept
    masks = tmp_path / "masks"
    write_mask(masks / "bytes.png", slices[0] > 127)
    assert sre("predict", segmenter, inputs / "bytes.tif", "--output", tmp_path / "other", "--masks", masks) == 2
    assert "bytes.tif is a stack of 5: --masks are for single pictures" in capsys.readouterr().err
    assert sre("predict", *arguments[:-1], "0") == 2
    assert "--batch must be at least 1, got 0" in capsys.readouterr().err
    with tifffile.TiffWriter(inputs / "mixed.tif") as file:
        for side in (40, 48):
            file.write(np.zeros((side, side), np.uint8), photometric="minisblack")
    assert sre("predict", segmenter, inputs / "mixed.tif", "--output", tmp_path / "third") == 2
    assert "mixed.tif holds 2 pictures of several sizes: expected one size" in capsys.readouterr().err


def test_pictures_of_one_size_are_answered_together(classifier: Path, tmp_path: Path) -> None:
    model = sre_triton.load(classifier)
    pixels = np.random.default_rng(0).random((3, 20, 24, 3), dtype=np.float32)
    together = model.probabilities_of(pixels, tta=True)
    for one, probabilities in zip(pixels, together, strict=True):
        assert np.allclose(model.probabilities(one, tta=True), probabilities, atol=1e-5)
    with pytest.raises(ValueError, match=r"images must be pictures of one size, got \[\(4, 4\), \(4, 5\)\]"):
        model.probabilities_of([np.zeros((4, 5)), np.zeros((4, 4))])
    with pytest.raises(ValueError, match="images must be pictures of one size, got none"):
        model.probabilities_of([])
