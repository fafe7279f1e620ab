"""Segmentation of photographs: crops to train on, a sliding window to test with."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics import functional as metrics

from sre_triton.training.data.augment import Share, derived_seed
from sre_triton.training.data.loading import EvaluationBatches, TrainingBatches, loader
from sre_triton.training.data.photographs import Photograph
from sre_triton.training.data.segmentation_set import SegmentationSet, read_segmentation_set
from sre_triton.training.data.splits import parts_of
from sre_triton.training.data.standardise import mean_and_deviation, standardise
from sre_triton.training.data.warp import PADDING_MODES, Symmetry, centred_square
from sre_triton.training.figures import draw_images
from sre_triton.training.options import SegmentOptions, TurningOptions
from sre_triton.training.tasks.networks import segmenter
from sre_triton.training.tasks.task import Task

__all__ = ["CropSet", "SegmentationTask", "segmentation_scores", "slide"]


class CropSet(Dataset[tuple[Tensor, Tensor]]):
    """Crops at random places of photographs, which ``--affine-prob`` scales and shears at random first.

    A crop is standardised by the mean and deviation of its whole photograph, then flipped and given another contrast.

    A crop depends on the seed, the epoch and its own number alone.
    """

    def __init__(self, photographs: Sequence[Photograph], options: SegmentOptions) -> None:
        from monai.transforms import (
            Compose,
            EnsureTyped,
            RandAffined,
            RandFlipd,
            RandScaleIntensityd,
            RandShiftIntensityd,
            RandSpatialCropd,
            SpatialPadd,
        )

        self.photographs, self.options, self.epoch = photographs, options, 0
        size, keys = (options.crop_size,) * 2, ("image", "labels")
        affine = RandAffined(
            keys,
            prob=options.affine_prob,
            shear_range=(options.shear_ratio,) * 2,
            scale_range=(options.scale_ratio,) * 2,
            mode=(options.interpolation, "nearest"),
            padding_mode=PADDING_MODES[options.padding],
        )
        flips = [RandFlipd(keys, prob=options.train_flip_p, spatial_axis=axis) for axis in (0, 1)]
        gain = RandScaleIntensityd(keys[:1], factors=options.gain, prob=1.0, channel_wise=True)
        offset = RandShiftIntensityd(keys[:1], offsets=options.offset, prob=1.0, channel_wise=True)
        plain = EnsureTyped(keys, track_meta=False)  # else MONAI's own kind of tensor goes through the network
        self.geometry = Compose(
            [
                SpatialPadd(keys, size),
                *([affine] if options.affine_prob > 0 else []),
                RandSpatialCropd(keys, size, random_size=False),
                *(flips if options.train_flip_p > 0 else []),
                plain,
            ]
        )
        self.contrast = Compose(
            [*([gain] if options.gain > 0 else []), *([offset] if options.offset > 0 else []), plain]
        )
        self._scales: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.photographs) * self.options.crops_per_image

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        crops = []
        for index in indices:
            number = index % len(self.photographs)
            photograph = self.photographs[number]
            if number not in self._scales:
                self._scales[number] = mean_and_deviation(torch.from_numpy(photograph.image), self.options.normalise)
            mean, deviation = self._scales[number]
            seed = derived_seed(self.options.seed, self.epoch, index) % 2**32
            self.geometry.set_random_state(seed)
            self.contrast.set_random_state(seed)
            crop = self.geometry({"image": photograph.image, "labels": photograph.labels})
            crops.append(self.contrast(crop | {"image": (crop["image"] - mean) / deviation}))
        images, labels = (torch.stack([crop[key] for crop in crops]) for key in ("image", "labels"))
        return images, labels.long()


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
    """Passes the epoch on to the crops, which are drawn anew in each."""

    def __init__(self, crops: CropSet, options: SegmentOptions, share: Share) -> None:
        super().__init__(len(crops), options.batch_size, options.seed, share)
        self.crops = crops

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.crops.epoch = epoch


class SegmentationTask(Task):
    """A class for every pixel; class 0 is the ground, and scores are means over the others."""

    options_type = SegmentOptions
    monitor = "val_dice"
    main_score = "dice"
    options: SegmentOptions

    def __init__(self, network: nn.Module, options: SegmentOptions, photographs: SegmentationSet) -> None:
        super().__init__(network, options, photographs)
        self.photographs = photographs
        self.loss = _loss(options)
        self._validated: list[dict[str, float]] = []

    @classmethod
    def read_data(cls, options: SegmentOptions) -> SegmentationSet:
        return read_segmentation_set(options)

    @classmethod
    def describe(cls, options: SegmentOptions, photographs: SegmentationSet) -> dict[str, Any]:
        return {
            "data": photographs.name,
            "classes": photographs.classes,
            "mask_values": list(photographs.values),
            "channels": 3,
            "ndim": 2,
        }

    @classmethod
    def build_network(cls, options: SegmentOptions, about: Mapping[str, Any]) -> nn.Module:
        return segmenter(options, about["classes"])

    @classmethod
    def input_shape(cls, options: SegmentOptions, about: Mapping[str, Any]) -> tuple[int, ...]:
        return (about["channels"], options.crop_size, options.crop_size)

    @classmethod
    def prepare_picture(
        cls, options: SegmentOptions, about: Mapping[str, Any], pixels: Tensor, side: int = 0
    ) -> Tensor:
        side = min(side or options.test_crop or min(pixels.shape[2:]), 512)
        return standardise(centred_square(pixels, side, about["channels"]), options.normalise)

    @classmethod
    def picture_logits(
        cls, network: nn.Module, options: SegmentOptions, about: Mapping[str, Any], pixels: Tensor
    ) -> Tensor:
        return slide(network, pixels, options).float()

    def train_dataloader(self) -> DataLoader[Any]:
        batches = self.training_batches()
        return self.resumable(loader(batches.crops, batches, self.options.num_workers))

    def training_batches(self) -> _CropBatches:
        return _CropBatches(CropSet(self.photographs.splits["train"], self.options), self.options, self.share)

    def size(self, split: str) -> int:
        return sum(len(self.photographs.splits[part]) for part in parts_of(split))

    @torch.no_grad()
    def turned_scores(self, split: str, symmetry: Symmetry, turning: TurningOptions) -> dict[str, float]:
        device = next(self.network.parameters()).device
        on_mask = dataclasses.replace(turning, interpolation="nearest")
        windows = dataclasses.replace(self.options, test_batch_size=turning.test_batch_size)
        table = []
        for whole in (_Whole(self.photographs.splits[part]) for part in parts_of(split)):
            for index in range(len(whole)):
                image, labels, field = (
                    _centre(part.float().to(device), self.options.test_crop) for part in whole[[index]]
                )
                logits = slide(self.network, symmetry(image, turning), windows).float()
                labels, field = (symmetry(part, on_mask)[0, 0] for part in (labels, field))
                table.append(self._scores(logits, labels, field))
        return {name: _mean([scores[name] for scores in table]) for name in table[0]}

    def _scores(self, logits: Tensor, labels: Tensor, field: Tensor) -> dict[str, float]:
        """Scores of one image inside the field of view, and of all of it if the set has fields."""
        probabilities = logits.softmax(dim=1)[0]
        inside = field.bool() if self.photographs.has_fields else torch.ones_like(field, dtype=torch.bool)
        scores = segmentation_scores(probabilities[:, inside], labels[inside])
        if self.photographs.has_fields:
            whole = segmentation_scores(probabilities.flatten(1), labels.flatten())
            scores |= {f"whole_{name}": value for name, value in whole.items()}
        return scores

    def draw_batch(self, path: Path) -> None:
        crops = CropSet(self.photographs.splits["train"], self.options)
        draw_images(path, crops[list(range(min(32, len(crops))))][0])

    def val_dataloader(self) -> DataLoader[Any]:
        photographs = self.photographs.splits["val"]
        return loader(_Whole(photographs), EvaluationBatches(len(photographs), 1, self.share), 0)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self(images)
        loss: Tensor = self.loss(logits, labels)
        self.account(loss, (logits.detach().argmax(dim=1, keepdim=True) == labels).float().mean(), len(images))
        return loss

    def on_validation_epoch_start(self) -> None:
        self._validated = []

    def validation_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> None:
        image, labels, field = batch
        logits = slide(self.network, image, self.options).float()
        scores = {"loss": float(self.loss(logits, labels.long()))}
        self._validated.append(scores | self._scores(logits, labels[0, 0], field[0, 0]))

    def on_validation_epoch_end(self) -> None:
        kinds = ("", "whole_") if self.photographs.has_fields else ("",)
        names = ("loss", *(kind + name for kind in kinds for name in SCORES))
        table = torch.tensor([[scores[name] for name in names] for scores in self._validated], device=self.device)
        table = table.reshape(-1, len(names))
        if self.trainer.world_size > 1:
            from sre_triton.training.tasks.classification import gathered

            table = gathered(table)
        self.log_dict(
            {f"val_{name}": float(value) for name, value in zip(names, table.nanmean(dim=0), strict=True)}, logger=False
        )


def _centre(x: Tensor, side: int) -> Tensor:
    """The middle of a batch, at most ``side`` pixels wide and high; 0 for all of it."""
    for dim in (2, 3):
        length = x.shape[dim]
        if 0 < side < length:
            x = x.narrow(dim, (length - side) // 2, side)
    return x


def slide(network: nn.Module, images: Tensor, options: SegmentOptions) -> Tensor:
    """Logits of whole images in 0 to 1, (N, classes, H, W), window by window where they are larger than one.

    They are standardised here, as the training's were.
    """
    from monai.inferers import sliding_window_inference

    side = options.window_size or options.crop_size
    window = [min(side, length) for length in images.shape[2:]]
    logits = sliding_window_inference(
        standardise(images, options.normalise),
        window,
        options.test_batch_size,
        network,
        overlap=options.overlap,
        mode="gaussian",
    )
    assert isinstance(logits, Tensor)
    return logits


SCORES = ("dice", "iou", "auc", "accuracy", "sensitivity", "specificity")


def segmentation_scores(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Dice, IoU, AUC, accuracy, sensitivity and specificity of one image, between 0 and 1.

    All but accuracy are means over the classes from 1 on, each against all others; AUC over those that occur, and NaN
    if none does.

    Args:
        probabilities: (classes, pixels).
        labels: (pixels,); classes.
    """
    labels = labels.long()
    found = probabilities.argmax(dim=0)
    table = [
        _scores_of_class(probabilities[label], found == label, labels == label)
        for label in range(1, len(probabilities))
    ]
    scores = {name: _mean([row[name] for row in table]) for name in table[0]}
    scores["accuracy"] = float((found == labels).float().mean())
    return {name: scores[name] for name in SCORES}


def _scores_of_class(probability: Tensor, found: Tensor, truth: Tensor) -> dict[str, float]:
    hit, miss = float((found & truth).sum()), float((~found & truth).sum())
    alarm, clear = float((found & ~truth).sum()), float((~found & ~truth).sum())
    auc = math.nan
    if hit + miss > 0 and alarm + clear > 0:
        auc = float(torch.as_tensor(metrics.auroc(probability, truth.long(), task="binary")))
    return {
        "dice": _ratio(2 * hit, 2 * hit + miss + alarm),
        "iou": _ratio(hit, hit + miss + alarm),
        "auc": auc,
        "sensitivity": _ratio(hit, hit + miss),
        "specificity": _ratio(clear, clear + alarm),
    }


def _ratio(part: float, whole: float) -> float:
    """``part / whole``, and 1 where ``whole`` is 0: there was nothing to find, and nothing was missed."""
    return part / whole if whole else 1.0


def _mean(values: list[float]) -> float:
    """The mean of those that are not NaN."""
    known = [value for value in values if not math.isnan(value)]
    return statistics.fmean(known) if known else math.nan


def _loss(options: SegmentOptions) -> nn.Module:
    if options.loss == "dice-ce":
        from monai.losses import DiceCELoss

        return DiceCELoss(softmax=True, to_onehot_y=True)
    return _CrossEntropy()


class _CrossEntropy(nn.CrossEntropyLoss):
    """Takes labels with a channel, as MONAI's losses do."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return super().forward(logits, labels[:, 0])
