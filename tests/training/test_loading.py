"""What reaches a network: of the first batch, of test images, and in processes that load."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sre_triton.training.data import archive
from sre_triton.training.data.augment import Preparation, Share
from sre_triton.training.data.crops import CropSet
from sre_triton.training.data.image_folder import read_image_folder
from sre_triton.training.data.loading import TrainingBatches, loader
from sre_triton.training.data.medmnist import read_image_set
from sre_triton.training.data.segmentation_set import read_segmentation_set
from sre_triton.training.data.warp import Symmetry
from sre_triton.training.options import SegmentOptions, TrainOptions, TurningOptions
from tests.training.conftest import TINY, TINY_UNET, Command, MakeSet
from tests.training.photographs import write_pairs


@pytest.mark.parametrize("kind", ["train", "segment"])
def test_the_picture_of_the_first_batch_is_of_the_first_batch(
    kind: str, make_set: MakeSet, sre: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sre_triton.training.tasks import classification, segmentation, task

    drawn: list[torch.Tensor] = []
    seen: list[torch.Tensor] = []
    for module in (classification, segmentation):
        monkeypatch.setattr(module, "draw_images", lambda path, images, *_, **__: drawn.append(images))
    forward = task.Task.forward

    def watched(self: Any, x: torch.Tensor) -> torch.Tensor:
        seen.append(x.detach())
        return forward(self, x)

    monkeypatch.setattr(task.Task, "forward", watched)
    make_set("tiny")
    arguments = [*TINY, "--med-mnist", "tiny", "--moco-aug"] if kind == "train" else TINY_UNET
    assert sre(kind, *arguments, "--epochs", "1", "--log-img", "--train-rotate", "--num-workers", "0") == 0
    expected = seen[0] / 2 + 0.5 if kind == "train" else seen[0]
    assert torch.equal(drawn[0], expected)


CHANGES = [
    {"rotate": True, "degree": 40.0},
    {"rotate": True, "degree": 90.0, "fix_rotate": True},
    {"test_translation": True, "test_translate_ratio": 0.3},
    {"vflip": True},
    {"hflip": True},
]


@pytest.mark.parametrize("change", CHANGES)
def test_options_of_test_images_act_on_validation_and_test_alike(change: dict[str, Any]) -> None:
    preparation, plain = Preparation(TrainOptions(**change), 2), Preparation(TrainOptions(), 2)
    x = torch.randint(1, 256, (6, 1, 28, 28), dtype=torch.uint8)
    validated = preparation.evaluated(x, range(6))
    assert not torch.equal(validated, plain.evaluated(x, range(6)))
    upright = preparation.turned(x, range(6), Symmetry(), TurningOptions())
    assert torch.equal(upright, validated)
    turned = preparation.turned(x, range(6), Symmetry(90), TurningOptions())
    assert torch.equal(turned, torch.rot90(validated, 1, (2, 3)))


def test_what_is_random_of_a_test_image_is_its_own() -> None:
    preparation = Preparation(TrainOptions(rotate=True, test_translation=True), 2)
    x = torch.randint(1, 256, (6, 1, 28, 28), dtype=torch.uint8)
    whole = preparation.evaluated(x, range(6))
    for numbers in ([0, 1, 2, 3], [4, 5], [1, 3, 5]):  # batches, and the share of a process
        assert torch.equal(preparation.evaluated(x[numbers], numbers), whole[numbers])
    same = x[:1].expand(6, -1, -1, -1)
    assert len(preparation.evaluated(same, range(6)).unique(dim=0)) == 6


def test_validation_does_not_depend_on_its_batches(make_set: MakeSet, sre: Command, tmp_path: Path) -> None:
    make_set("tiny")
    arguments = [*TINY, "--med-mnist", "tiny", "--epochs", "1", "--rotate", "--lr", "1e-9"]
    logs = []
    for size in ("1000", "4"):
        assert sre("train", *arguments, "--exp", size, "--test-batch-size", size) == 0
        logs.append((tmp_path / "logs" / size / "tiny-sre_resnet18-seed1" / "logs.json").read_text())
    assert logs[0] == logs[1]


# Processes that load ----------------------------------------------------------------------------------


def test_mapped_arrays_are_passed_on_as_places(make_set: MakeSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "HELD", 0)
    path = make_set("large", channels=3, counts=(200, 3, 3))
    images = read_image_set(path.parent, "large").splits["train"].images
    for view in (images, images[3:7], images[::-2, :1], np.moveaxis(images, 1, 2)):
        content = pickle.dumps(view)
        assert len(content) < 1000 < view.nbytes
        again = pickle.loads(content)
        assert np.array_equal(again, view)
        assert len(pickle.dumps(again)) < 1000
    some = images[[1, 2]]  # a copy
    assert np.array_equal(pickle.loads(pickle.dumps(some)), some)


def test_pictures_that_were_read_are_not_passed_on(tmp_path: Path) -> None:
    write_pairs(tmp_path / "one", [str(number) for number in range(5)])
    options = SegmentOptions(data=tmp_path / "one", crop_size=16)
    crops = CropSet(read_segmentation_set(options).splits["train"], options)
    before = len(pickle.dumps(crops))
    first = crops[[0, 1, 2]]
    assert len(pickle.dumps(crops)) - before < first[0][0].nbytes
    again = pickle.loads(pickle.dumps(crops))[[0, 1, 2]]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))

    for number in range(6):
        write_pairs(tmp_path / "two" / "ab"[number % 2], [str(number)], image="{}.png", mask="../../masks/{}.png")
    stack = read_image_folder(TrainOptions(data=tmp_path / "two", image_size=16)).splits["train"].images
    before, pixels = len(pickle.dumps(stack)), stack[[0, 1]]
    assert len(pickle.dumps(stack)) == before
    assert np.array_equal(pickle.loads(pickle.dumps(stack))[[0, 1]], pixels)


def test_processes_that_load_stay_for_the_whole_training() -> None:
    options = SegmentOptions(vessels_size=64, vessels_count=[2, 1, 1], crop_size=32, crops_per_image=2, batch_size=2)
    from sre_triton.training.tasks.segmentation import _CropBatches

    def epochs(workers: int) -> list[torch.Tensor]:
        crops = CropSet(read_segmentation_set(options).splits["train"], options)
        batches = _CropBatches(crops, options, Share())
        loading = loader(crops, batches, workers)
        found = []
        for epoch in range(3):
            batches.set_epoch(epoch)
            found += [images for images, _ in loading]
        if workers:
            assert loading.persistent_workers
        return found

    here, there = epochs(0), epochs(1)
    assert len(here) == 6
    assert all(torch.equal(one, other) for one, other in zip(here, there, strict=True))
    assert len(torch.cat(here).unique(dim=0)) == 12  # each epoch has crops of its own


def test_a_loader_without_processes_has_none_to_keep() -> None:
    batches = TrainingBatches(4, 2, 0, Share())
    assert not loader([0, 1, 2, 3], batches, 0).persistent_workers  # type: ignore[arg-type]
