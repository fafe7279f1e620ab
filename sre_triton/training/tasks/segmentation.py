"""Segmentation of photographs: crops to train on, a sliding window to test with."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from sre_triton.training.data.augment import Share
from sre_triton.training.data.crops import CropSet
from sre_triton.training.data.loading import EvaluationBatches, TrainingBatches, loader
from sre_triton.training.data.photographs import Photograph
from sre_triton.training.data.segmentation_set import SegmentationSet, read_segmentation_set
from sre_triton.training.data.splits import parts_of
from sre_triton.training.data.standardise import standardise
from sre_triton.training.data.warp import Symmetry, middle
from sre_triton.training.figures import draw_images
from sre_triton.training.options import SegmentOptions, TurningOptions
from sre_triton.training.tasks.class_weights import class_weights
from sre_triton.training.tasks.networks import network_arguments, segmenter
from sre_triton.training.tasks.report import Report, confusion, rows_of_classes
from sre_triton.training.tasks.segmentation_scores import SCORES, answers, scores_by_threshold
from sre_triton.training.tasks.task import Task
from sre_triton.training.tasks.undefined import counted, means_of_known

__all__ = ["SegmentationTask", "slide"]

_LARGEST_PICTURED = 512  # longer side of a picture that is looked into, unless another is asked for
_DRAWN = 32
_THRESHOLDS = tuple(number / 50 for number in range(1, 50))


class _Whole(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Whole photographs, one per batch: image, labels and field of view."""

    def __init__(self, photographs: Sequence[Photograph]) -> None:
        self.photographs = photographs

    def __len__(self) -> int:
        return len(self.photographs)

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        (index,) = indices
        photograph = self.photographs[index]
        field = photograph.field if photograph.field is not None else np.ones_like(photograph.labels)
        image, labels, inside = (torch.from_numpy(part)[None] for part in (photograph.image, photograph.labels, field))
        return image, labels, inside


class _CropBatches(TrainingBatches):
    """Numbers of crops, which are others in each epoch."""

    def __init__(self, crops: CropSet, options: SegmentOptions, share: Share) -> None:
        super().__init__(len(crops), options.batch_size, options.seed, share)
        self.crops = crops

    def __iter__(self) -> Iterator[list[int]]:
        first = self.epoch * len(self.crops)
        return ([first + index for index in indices] for indices in super().__iter__())


class SegmentationTask(Task):
    """A class for every pixel; class 0 is the ground, and scores are means over the others."""

    options_type = SegmentOptions
    monitor = "val_dice"
    main_score = "dice"
    options: SegmentOptions

    def __init__(self, network: nn.Module, options: SegmentOptions, photographs: SegmentationSet) -> None:
        super().__init__(network, options, photographs)
        self.photographs = photographs
        self.loss = _loss(options, class_weights(options, photographs.classes, self._count_classes))
        self._validated: list[list[dict[str, float]]] = []
        if options.tune_threshold and photographs.classes != 2:
            raise ValueError(f"--tune-threshold is for two classes: {photographs.name} has {photographs.classes}")
        self._thresholds: Sequence[float | None] = _THRESHOLDS if options.tune_threshold else (None,)

    def _count_classes(self) -> Tensor:
        counts = torch.zeros(self.photographs.classes)
        for photograph in self.photographs.splits["train"]:
            counts += torch.from_numpy(photograph.labels).flatten().long().bincount(minlength=len(counts))
        return counts

    @classmethod
    def read_data(cls, options: SegmentOptions) -> SegmentationSet:
        return read_segmentation_set(options)

    @classmethod
    def describe(cls, options: SegmentOptions, photographs: SegmentationSet) -> dict[str, Any]:
        return {
            "data": photographs.name,
            "data_checksums": photographs.checksums,
            "sizes": {name: len(split) for name, split in photographs.splits.items()},
            "classes": photographs.classes,
            "mask_values": list(photographs.values),
            "threshold": None,
            "channels": 3,
            "ndim": 2,
        }

    @classmethod
    def build_network(cls, options: SegmentOptions, about: Mapping[str, Any]) -> nn.Module:
        return segmenter(options, about["classes"])

    @classmethod
    def as_restored(cls, options: SegmentOptions) -> SegmentOptions:
        restored: SegmentOptions = super().as_restored(options)
        given = network_arguments(restored)
        if "pretrained" in given:  # MONAI would fetch weights, which are then replaced
            return dataclasses.replace(restored, model_args=json.dumps({**given, "pretrained": False}))
        return restored

    @classmethod
    def input_shape(cls, options: SegmentOptions, about: Mapping[str, Any]) -> tuple[int, ...]:
        return (about["channels"], options.crop_size, options.crop_size)

    @classmethod
    def prepare_picture(
        cls, options: SegmentOptions, about: Mapping[str, Any], pixels: Tensor, side: int = 0
    ) -> Tensor:
        longest = max(pixels.shape[2:])
        side = side or min(longest, _LARGEST_PICTURED)
        size = [max(1, round(length * side / longest)) for length in pixels.shape[2:]]
        return F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True)

    @classmethod
    def finish_picture(cls, options: SegmentOptions, turned: Tensor) -> Tensor:
        return standardise(turned, options.normalise)

    @classmethod
    def as_colours(cls, prepared: Tensor) -> Tensor:
        return prepared

    @classmethod
    def preprocess(cls, options: SegmentOptions, images: Tensor) -> Tensor:
        return standardise(images, options.normalise)

    @classmethod
    def picture_logits(
        cls, network: nn.Module, options: SegmentOptions, about: Mapping[str, Any], pixels: Tensor
    ) -> Tensor:
        return slide(network, pixels, options).float()

    def train_dataloader(self) -> DataLoader[Any]:
        batches = self.training_batches(self.share)
        return self.resumable(loader(batches.crops, batches, self.options.num_workers))

    def training_batches(self, share: Share) -> _CropBatches:
        return _CropBatches(CropSet(self.photographs.splits["train"], self.options), self.options, share)

    def size(self, split: str) -> int:
        return sum(len(self.photographs.splits[part]) for part in parts_of(split))

    @torch.no_grad()
    def answered(
        self, split: str, symmetry: Symmetry, turning: TurningOptions
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Of each turned photograph logits (1, classes, H, W), labels and field of view (H, W)."""
        device = next(self.network.parameters()).device
        on_mask = dataclasses.replace(turning, interpolation="nearest")
        windows = dataclasses.replace(self.options, test_batch_size=turning.test_batch_size)
        side, how_normalised = self.options.test_crop, "none"
        if side:  # measured on all of the photograph, as in training
            windows, how_normalised = dataclasses.replace(windows, normalise="none"), windows.normalise
        around = math.ceil(math.sqrt(2) * side)  # what can be turned into the middle
        around += (around - side) % 2

        def turned(part: Tensor, how: TurningOptions) -> Tensor:
            return middle(symmetry(middle(part, around), how), side)

        for whole in (_Whole(self.photographs.splits[part]) for part in parts_of(split)):
            for index in range(len(whole)):
                image, labels, field = (part.float().to(device) for part in whole[[index]])
                logits = slide(self.network, turned(standardise(image, how_normalised), turning), windows).float()
                labels, field = (turned(part, on_mask)[0, 0] for part in (labels, field))
                yield logits, labels, field

    def each_scored(
        self, split: str, symmetry: Symmetry, turning: TurningOptions
    ) -> tuple[dict[str, float], list[dict[str, float]]]:
        table = [self.scored(*answer) for answer in self.answered(split, symmetry, turning)]
        return means_of_known(table), table

    def scored(self, logits: Tensor, labels: Tensor, field: Tensor) -> dict[str, float]:
        """Scores of one of :meth:`answered` at the threshold that training found."""
        return self._scores(logits, labels, field, [self.description["threshold"]])[0]

    def report(self, split: str, turning: TurningOptions) -> Report:
        threshold, classes = self.description["threshold"], self.photographs.classes
        names = list(map(str, self.photographs.values))
        table: list[dict[str, float]] = []
        counts = torch.zeros(classes, classes, dtype=torch.long)
        for logits, labels, field in self.answered(split, Symmetry(), turning):
            table += self._scores(logits, labels, field, [threshold])
            inside = field.bool() if self.photographs.has_fields else torch.ones_like(field, dtype=torch.bool)
            found = answers(logits.softmax(dim=1)[0], threshold)
            counts += confusion(found[inside], labels[inside].long(), classes).cpu()
        return Report(means_of_known(table), rows_of_classes(counts, names, "pixels"), names, counts, "pixels")

    def _scores(
        self, logits: Tensor, labels: Tensor, field: Tensor, thresholds: Sequence[float | None]
    ) -> list[dict[str, float]]:
        """Scores of one image inside the field of view, and of all of it if the set has fields, by threshold."""
        probabilities = logits.softmax(dim=1)[0]
        inside = field.bool() if self.photographs.has_fields else torch.ones_like(field, dtype=torch.bool)
        rows = scores_by_threshold(probabilities[:, inside], labels[inside], thresholds)
        if self.photographs.has_fields:
            whole = scores_by_threshold(probabilities.flatten(1), labels.flatten(), thresholds)
            rows = [row | {f"whole_{k}": v for k, v in more.items()} for row, more in zip(rows, whole, strict=True)]
        return rows

    def draw_batch(self, path: Path, share: Share) -> None:
        batches = self.training_batches(share)
        first = next(iter(batches))
        images = batches.crops[first[:_DRAWN]][0]
        shown = images if self.options.normalise == "none" else images / 4 + 0.5
        draw_images(path, shown, caption=self.batch_caption(len(shown), len(first)))

    def val_dataloader(self) -> DataLoader[Any]:
        photographs = self.photographs.splits["val"]
        return loader(_Whole(photographs), EvaluationBatches(len(photographs), 1, self.share), 0)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self(_in_fast_format(images))
        loss: Tensor = self.loss(logits, labels)
        self.account(loss, (logits.detach().argmax(dim=1, keepdim=True) == labels).float().mean())
        return loss

    def on_validation_epoch_start(self) -> None:
        self._validated = []

    def validation_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> None:
        image, labels, field = batch
        logits = slide(self.network, image, self.options).float()
        rows = self._scores(logits, labels[0, 0], field[0, 0], self._thresholds)
        self._validated.append([{"loss": float(self.loss(logits, labels.long()))} | row for row in rows])

    def on_validation_epoch_end(self) -> None:
        kinds = ("", "whole_") if self.photographs.has_fields else ("",)
        names = ("loss", *(kind + name for kind in kinds for name in SCORES))
        table = torch.tensor(
            [[row[name] for row in rows for name in names] for rows in self._validated], device=self.device
        )
        table = table.reshape(-1, len(self._thresholds) * len(names))
        table = self.of_all_processes(table)
        means = table.nanmean(dim=0).view(len(self._thresholds), len(names))
        best = int(means[:, names.index("dice")].argmax())
        self.description["threshold"] = self._thresholds[best]
        scores = dict(zip(names, means[best].tolist(), strict=True))
        left_out = table.view(len(table), len(self._thresholds), -1)[:, best].isnan().sum(dim=0)
        scores |= counted(dict(zip(names, left_out.tolist(), strict=True)))
        self.log_dict({f"val_{name}": value for name, value in scores.items()}, logger=False)


def _in_fast_format(images: Tensor) -> Tensor:
    """Images as a CPU's convolutions read them fastest, with the channels of a pixel side by side."""
    return images.contiguous(memory_format=torch.channels_last) if images.device.type == "cpu" else images


def slide(network: nn.Module, images: Tensor, options: SegmentOptions) -> Tensor:
    """Logits of whole images in 0 to 1, (N, classes, H, W), window by window where they are larger than one.

    They are standardised here, as the training's were.
    """
    from monai.inferers import sliding_window_inference

    side = options.window_size or options.crop_size
    window = [min(side, length) for length in images.shape[2:]]
    logits = sliding_window_inference(
        _in_fast_format(standardise(images, options.normalise)),
        window,
        options.test_batch_size,
        network,
        overlap=options.overlap,
        mode="gaussian",
    )
    assert isinstance(logits, Tensor)
    return logits


def _loss(options: SegmentOptions, weight: Tensor | None) -> nn.Module:
    if options.loss == "dice-ce":
        from monai.losses import DiceCELoss

        return DiceCELoss(softmax=True, to_onehot_y=True, weight=weight, label_smoothing=options.label_smoothing)
    return _CrossEntropy(weight, label_smoothing=options.label_smoothing)


class _CrossEntropy(nn.CrossEntropyLoss):
    """Takes labels with a channel, as MONAI's losses do."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return super().forward(logits, labels[:, 0])
