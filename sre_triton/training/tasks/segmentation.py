"""Segmentation of vessels: crops to train on, a sliding window to test with."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics import functional as metrics

from sre_triton.training.data.augment import Share, derived_seed
from sre_triton.training.data.loading import EvaluationBatches, TrainingBatches, loader
from sre_triton.training.data.photographs import read_drive
from sre_triton.training.data.vessels import Photograph, draw_vessels
from sre_triton.training.data.warp import PADDING_MODES, Symmetry
from sre_triton.training.figures import draw_images
from sre_triton.training.options import SegmentOptions, TurningOptions
from sre_triton.training.tasks.networks import segmenter
from sre_triton.training.tasks.task import Task, centred_square

__all__ = ["CropSet", "SegmentationTask", "segmentation_scores", "slide"]

Photographs = dict[str, list[Photograph]]


@lru_cache(maxsize=2)
def _draw(size: int, seed: int, train: int, val: int, test: int) -> Photographs:
    drawn = [draw_vessels(size, seed, index) for index in range(train + val + test)]
    return {"train": drawn[:train], "val": drawn[train : train + val], "test": drawn[train + val :]}


class CropSet(Dataset[tuple[Tensor, Tensor]]):
    """Crops at random places of photographs, which ``--affine-prob`` scales and shears at random first.

    A crop depends on the seed, the epoch and its own number alone.
    """

    def __init__(self, photographs: list[Photograph], options: SegmentOptions) -> None:
        from monai.transforms import Compose, EnsureTyped, RandAffined, RandSpatialCropd, SpatialPadd

        self.photographs, self.options, self.epoch = photographs, options, 0
        size, keys = (options.crop_size,) * 2, ("image", "vessels")
        affine = RandAffined(
            keys,
            prob=options.affine_prob,
            shear_range=(options.shear_ratio,) * 2,
            scale_range=(options.scale_ratio,) * 2,
            mode=(options.interpolation, "nearest"),
            padding_mode=PADDING_MODES[options.padding],
        )
        self.transform = Compose(
            [
                SpatialPadd(keys, size),
                *([affine] if options.affine_prob > 0 else []),
                RandSpatialCropd(keys, size, random_size=False),
                EnsureTyped(keys, track_meta=False),
            ]
        )

    def __len__(self) -> int:
        return len(self.photographs) * self.options.crops_per_image

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        crops = []
        for index in indices:
            photograph = self.photographs[index % len(self.photographs)]
            seed = derived_seed(self.options.seed, self.epoch, index) % 2**32
            self.transform.set_random_state(seed)
            crops.append(self.transform({"image": photograph.image, "vessels": photograph.vessels}))
        images, vessels = (torch.stack([crop[key] for crop in crops]) for key in ("image", "vessels"))
        return images, vessels.long()


class _Whole(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, photographs: list[Photograph]) -> None:
        self.photographs = photographs

    def __len__(self) -> int:
        return len(self.photographs)

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        (index,) = indices
        photograph = self.photographs[index]
        return torch.from_numpy(photograph.image)[None], torch.from_numpy(photograph.vessels)[None]


class _CropBatches(TrainingBatches):
    """Passes the epoch on to the crops, which are drawn anew in each."""

    def __init__(self, crops: CropSet, options: SegmentOptions, share: Share) -> None:
        super().__init__(len(crops), options.batch_size, options.seed, share)
        self.crops = crops

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.crops.epoch = epoch


class SegmentationTask(Task):
    """Vessels against ground."""

    monitor = "val_dice"
    main_score = "dice"
    options_type = SegmentOptions
    options: SegmentOptions

    def __init__(self, network: nn.Module, options: SegmentOptions, photographs: Photographs) -> None:
        super().__init__(network, options, photographs)
        self.photographs = photographs
        self.loss = _loss(options)
        self._validated: list[dict[str, float]] = []

    @classmethod
    def read_data(cls, options: SegmentOptions) -> Photographs:
        """DRIVE, or the embedded vessels."""
        if options.drive is not None:
            return read_drive(options.drive)
        counts = options.vessels_count
        if len(counts) != 3 or min(counts) < 1:
            raise ValueError(f"--vessels-count must be three positive numbers (train, val, test), got {counts}")
        return _draw(options.vessels_size, options.vessels_seed, *counts)

    @classmethod
    def describe(cls, options: SegmentOptions, photographs: Photographs) -> dict[str, Any]:
        return {
            "data": "drive" if options.drive is not None else "vessels",
            "classes": 2,
            "channels": 3,
            "ndim": 2,
        }

    @classmethod
    def build_network(cls, options: SegmentOptions, about: Mapping[str, Any]) -> nn.Module:
        return segmenter(options)

    @classmethod
    def input_shape(cls, options: SegmentOptions, about: Mapping[str, Any]) -> tuple[int, ...]:
        return (about["channels"], options.crop_size, options.crop_size)

    @classmethod
    def prepare_picture(
        cls, options: SegmentOptions, about: Mapping[str, Any], pixels: Tensor, side: int = 0
    ) -> Tensor:
        side = min(side or options.test_crop or min(pixels.shape[2:]), 512)
        return centred_square(pixels, side, about["channels"])

    def train_dataloader(self) -> DataLoader[Any]:
        batches = self.training_batches()
        return self.resumable(loader(batches.crops, batches, self.options.num_workers))

    def training_batches(self) -> _CropBatches:
        return _CropBatches(CropSet(self.photographs["train"], self.options), self.options, self.share)

    @torch.no_grad()
    def turned_scores(self, split: str, symmetry: Symmetry, turning: TurningOptions) -> dict[str, float]:
        device = next(self.network.parameters()).device
        on_mask = dataclasses.replace(turning, interpolation="nearest")
        windows = dataclasses.replace(self.options, test_batch_size=turning.test_batch_size)
        table = []
        for photograph in self.photographs[split]:
            image, vessels = (
                _centre(torch.from_numpy(pixels)[None].float().to(device), self.options.test_crop)
                for pixels in (photograph.image, photograph.vessels)
            )
            logits = slide(self.network, symmetry(image, turning), windows).float()
            table.append(segmentation_scores(logits.softmax(dim=1)[0, 1], symmetry(vessels, on_mask)[0, 0]))
        return {name: statistics.fmean(scores[name] for scores in table) for name in table[0]}

    def draw_batch(self, path: Path) -> None:
        crops = CropSet(self.photographs["train"], self.options)
        draw_images(path, crops[list(range(min(32, len(crops))))][0])

    def val_dataloader(self) -> DataLoader[Any]:
        photographs = self.photographs["val"]
        return loader(_Whole(photographs), EvaluationBatches(len(photographs), 1, self.share), 0)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, vessels = batch
        logits = self(images)
        loss: Tensor = self.loss(logits, vessels)
        self.account(loss, (logits.detach().argmax(dim=1, keepdim=True) == vessels).float().mean(), len(images))
        return loss

    def on_validation_epoch_start(self) -> None:
        self._validated = []

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        image, vessels = batch
        logits = slide(self.network, image, self.options).float()
        scores = {"loss": float(self.loss(logits, vessels.long()))}
        scores |= segmentation_scores(logits.softmax(dim=1)[0, 1], vessels[0, 0])
        self._validated.append(scores)

    def on_validation_epoch_end(self) -> None:
        names = ("loss", "dice", "iou", "auc", "accuracy", "sensitivity", "specificity")
        table = torch.tensor([[scores[name] for name in names] for scores in self._validated], device=self.device)
        table = table.reshape(-1, len(names))
        if self.trainer.world_size > 1:
            from sre_triton.training.tasks.classification import gathered

            table = gathered(table)
        self.log_dict(
            {f"val_{name}": float(value) for name, value in zip(names, table.mean(dim=0), strict=True)}, logger=False
        )


def _centre(x: Tensor, side: int) -> Tensor:
    """The middle of a batch, at most ``side`` pixels wide and high; 0 for all of it."""
    for dim in (2, 3):
        length = x.shape[dim]
        if 0 < side < length:
            x = x.narrow(dim, (length - side) // 2, side)
    return x


def slide(network: nn.Module, images: Tensor, options: SegmentOptions) -> Tensor:
    """Logits of whole images, (N, 2, H, W), window by window where they are larger than one."""
    from monai.inferers import sliding_window_inference

    side = options.window_size or options.crop_size
    window = [min(side, length) for length in images.shape[2:]]
    logits = sliding_window_inference(
        images, window, options.test_batch_size, network, overlap=options.overlap, mode="gaussian"
    )
    assert isinstance(logits, Tensor)
    return logits


def segmentation_scores(probability: Tensor, vessels: Tensor) -> dict[str, float]:
    """Dice, IoU, AUC, accuracy, sensitivity and specificity of one image, as shares of one.

    Args:
        probability: (H, W), of a vessel.
        vessels: (H, W), 1 on vessels.
    """
    found, truth = probability > 0.5, vessels.bool()
    hit, miss = float((found & truth).sum()), float((~found & truth).sum())
    alarm, clear = float((found & ~truth).sum()), float((~found & ~truth).sum())
    return {
        "dice": _ratio(2 * hit, 2 * hit + miss + alarm),
        "iou": _ratio(hit, hit + miss + alarm),
        "auc": float(torch.as_tensor(metrics.auroc(probability.flatten(), truth.flatten().long(), task="binary"))),
        "accuracy": (hit + clear) / truth.numel(),
        "sensitivity": _ratio(hit, hit + miss),
        "specificity": _ratio(clear, clear + alarm),
    }


def _ratio(part: float, whole: float) -> float:
    """``part / whole``, and 1 where ``whole`` is 0: there was nothing to find, and nothing was missed."""
    return part / whole if whole else 1.0


def _loss(options: SegmentOptions) -> nn.Module:
    if options.loss == "dice-ce":
        from monai.losses import DiceCELoss

        return DiceCELoss(softmax=True, to_onehot_y=True)
    return _CrossEntropy()


class _CrossEntropy(nn.CrossEntropyLoss):
    """Takes labels with a channel, as MONAI's losses do."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return super().forward(logits, labels[:, 0])
