"""Classification of single- and multi-label image sets."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchmetrics import functional as metrics

from sre_triton.training.data.augment import Preparation, Share, normalise
from sre_triton.training.data.image_folder import read_image_folder
from sre_triton.training.data.loading import EvaluationBatches, TrainingBatches, loader
from sre_triton.training.data.medmnist import ImageSet, Split, read_image_set
from sre_triton.training.data.patches import PATCHES, read_patches
from sre_triton.training.data.splits import check_own_data, parts_of
from sre_triton.training.data.warp import Symmetry, centred_square
from sre_triton.training.figures import draw_images
from sre_triton.training.options import DEFAULT_SIDE, TrainOptions, TurningOptions
from sre_triton.training.tasks.class_weights import balanced_weights, class_weights
from sre_triton.training.tasks.networks import classifier
from sre_triton.training.tasks.report import (
    Report,
    area_under_curve,
    confusion,
    rows_of_classes,
    rows_of_labels,
)
from sre_triton.training.tasks.task import Task
from sre_triton.training.tasks.undefined import counted

__all__ = ["ClassificationTask", "Labelled", "classification_scores"]

_DRAWN = 32


class Labelled(Dataset[tuple[Tensor, Tensor]]):
    """A split, asked for whole batches by lists of indices."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        images = np.ascontiguousarray(self.split.images[indices])  # a set may store its channels last
        return torch.from_numpy(images), torch.from_numpy(self.split.labels[indices])


class ClassificationTask(Task):
    """Cross-entropy over classes, or binary cross-entropy over labels."""

    options_type = TrainOptions
    averaged = "classes"
    options: TrainOptions

    def __init__(self, network: nn.Module, options: TrainOptions, images: ImageSet) -> None:
        super().__init__(network, options, images)
        self.images = images
        self.preparation = Preparation(options, images.ndim, images.view)
        self.monitor = "val_auc" if images.multi_label else "val_accuracy"
        self._validated: list[tuple[Tensor, Tensor]] = []
        if options.class_weights and images.multi_label:
            raise ValueError(f"--class-weights: an image of {images.name} can have several labels")
        self.class_weights = class_weights(
            options, images.classes, lambda: np.bincount(images.splits["train"].labels, minlength=images.classes)
        )

    @classmethod
    def read_data(cls, options: TrainOptions) -> ImageSet:
        """The images of ``--data``, or the MedMNIST set that the options name; patches if they name neither."""
        if options.data is not None:
            if options.med_mnist:
                raise ValueError(f"--data and --med-mnist {options.med_mnist} name two sets: choose one")
            images = read_image_folder(options)
        else:
            check_own_data(options, "image_size")
            images = cls._read_packed(options)
        if options.multi_label and not images.multi_label:
            raise ValueError(f"--multi-label: {images.name} has one label per image, of {images.classes} classes")
        return images

    @classmethod
    def _read_packed(cls, options: TrainOptions) -> ImageSet:
        name = options.med_mnist or PATCHES
        if name == PATCHES and options.medmnist_size == 28:
            return read_patches(options.patches_seed)
        return read_image_set(options.data_root, name, options.medmnist_size, download=options.download)

    @classmethod
    def describe(cls, options: TrainOptions, images: ImageSet) -> dict[str, Any]:
        return {
            "data": images.name,
            "data_checksums": images.checksums,
            "sizes": {name: len(split) for name, split in images.splits.items()},
            "classes": images.classes,
            "class_names": list(images.class_names),
            "channels": images.channels,
            "ndim": images.ndim,
            "multi_label": images.multi_label,
        }

    @classmethod
    def build_network(cls, options: TrainOptions, about: Mapping[str, Any]) -> nn.Module:
        return classifier(options, about["classes"], about["channels"], about["ndim"])

    @classmethod
    def as_restored(cls, options: TrainOptions) -> TrainOptions:
        restored: TrainOptions = super().as_restored(options)
        own = options.data is not None  # whose images have a side of their own
        return dataclasses.replace(restored, image_size=options.image_size or DEFAULT_SIDE) if own else restored

    @classmethod
    def input_shape(cls, options: TrainOptions, about: Mapping[str, Any]) -> tuple[int, ...]:
        return (about["channels"], *[Preparation(options, about["ndim"]).side] * about["ndim"])

    @classmethod
    def prepare_picture(cls, options: TrainOptions, about: Mapping[str, Any], pixels: Tensor, side: int = 0) -> Tensor:
        side = side or Preparation(options, 2).side
        return normalise(centred_square(pixels, side, about["channels"]))

    @classmethod
    def finish_picture(cls, options: TrainOptions, turned: Tensor) -> Tensor:
        return Preparation(options, 2).pad(turned)

    @classmethod
    def as_colours(cls, prepared: Tensor) -> Tensor:
        return prepared / 2 + 0.5

    @classmethod
    def preprocess(cls, options: TrainOptions, images: Tensor) -> Tensor:
        return normalise(images)

    @classmethod
    def picture_logits(
        cls, network: nn.Module, options: TrainOptions, about: Mapping[str, Any], pixels: Tensor
    ) -> Tensor:
        return network(cls.finish_picture(options, cls.prepare_picture(options, about, pixels))).float()

    def train_dataloader(self) -> DataLoader[Any]:
        labelled = Labelled(self.images.splits["train"])
        return self.resumable(loader(labelled, self.training_batches(self.share), self.options.num_workers))

    def training_batches(self, share: Share) -> TrainingBatches:
        split, weights = self.images.splits["train"], None
        if self.options.balanced_sampler:
            if self.images.multi_label:
                raise ValueError(f"--balanced-sampler: an image of {self.images.name} can have several labels")
            labels = torch.from_numpy(split.labels)
            weights = balanced_weights(labels.bincount(minlength=self.images.classes))[labels]
        return TrainingBatches(len(split), self.options.batch_size, self.options.seed, share, weights)

    def size(self, split: str) -> int:
        return sum(len(self.images.splits[part]) for part in parts_of(split))

    @torch.no_grad()
    def _answered(self, split: str, symmetry: Symmetry, turning: TurningOptions) -> tuple[Tensor, Tensor]:
        """Logits and labels of a split whose images are turned."""
        device = next(self.network.parameters()).device
        logits, labels = [], []
        for labelled in (Labelled(self.images.splits[part]) for part in parts_of(split)):
            for indices in EvaluationBatches(len(labelled), turning.test_batch_size, Share()):
                images, targets = (part.to(device) for part in labelled[indices])
                logits.append(self.network(self.preparation.turned(images, indices, symmetry, turning)).float())
                labels.append(targets)
        return torch.cat(logits), torch.cat(labels)

    def each_scored(
        self, split: str, symmetry: Symmetry, turning: TurningOptions
    ) -> tuple[dict[str, float], list[dict[str, float]]]:
        logits, labels = self._answered(split, symmetry, turning)
        scores = classification_scores(logits, labels, self.images.multi_label)
        return scores, [{"accuracy": share} for share in self._right(logits, labels).tolist()]

    def report(self, split: str, turning: TurningOptions) -> Report:
        logits, labels = self._answered(split, Symmetry(), turning)
        scores = classification_scores(logits, labels, self.images.multi_label)
        names = list(map(str, self.images.class_names or range(self.images.classes)))
        unit, counts = "volumes" if self.images.ndim == 3 else "images", None
        if self.images.multi_label:
            truth, chances = labels.bool(), logits.sigmoid()
            rows = rows_of_labels(logits > 0, truth, names, unit)
        else:
            truth, chances = F.one_hot(labels, self.images.classes).bool(), logits.softmax(dim=1)
            counts = confusion(logits.argmax(dim=1), labels, self.images.classes)
            rows = rows_of_classes(counts, names, unit)
        for number, row in enumerate(rows):
            row["auc"] = area_under_curve(chances[:, number], truth[:, number])
        return Report(scores, rows, names, counts, unit)

    def draw_batch(self, path: Path, share: Share) -> None:
        images, labels = Labelled(self.images.splits["train"])[next(iter(self.training_batches(share)))]
        shown = self.preparation.trained(images, self.step_seed(0), share)[:_DRAWN] / 2 + 0.5
        names = self.images.class_names or range(self.images.classes)
        titles = [] if self.images.multi_label else [str(names[label]) for label in labels[:_DRAWN]]
        draw_images(path, shown, titles, self.batch_caption(len(shown), len(images)))

    def val_dataloader(self) -> DataLoader[Any]:
        split = self.images.splits["val"]
        batches = EvaluationBatches(len(split), self.options.test_batch_size, self.share)
        return loader(Labelled(split), batches, 0)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self(self.preparation.trained(images, self.step_seed(batch_idx), self.share))
        loss = self.loss(logits, labels)
        self.account(loss, self._right(logits.detach(), labels).mean())
        return loss

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        smoothing = self.options.label_smoothing
        if self.images.multi_label:
            targets = labels.to(logits.dtype) * (1 - smoothing) + smoothing / 2
            return F.binary_cross_entropy_with_logits(logits, targets)
        weight = self.class_weights.to(logits) if self.class_weights is not None else None
        return F.cross_entropy(logits, labels, weight, label_smoothing=smoothing)

    def _right(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of each image, (N,), whether its answer is right; of several labels, the share that is."""
        if self.images.multi_label:
            return ((logits > 0) == labels.bool()).double().mean(dim=1)
        return (logits.argmax(dim=1) == labels).double()

    def on_validation_epoch_start(self) -> None:
        self._validated = []

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        first = batch_idx * self.options.test_batch_size
        numbers = [self.share.rank + self.share.world * number for number in range(first, first + len(images))]
        self._validated.append((self(self.preparation.evaluated(images, numbers)).float(), labels))

    def on_validation_epoch_end(self) -> None:
        logits, labels = (torch.cat(parts) for parts in zip(*self._validated, strict=True))
        logits, labels = self.of_all_processes(logits), self.of_all_processes(labels)
        scores = {"loss": float(self.loss(logits, labels))}
        scores |= classification_scores(logits, labels, self.images.multi_label)
        self.log_dict({f"val_{name}": value for name, value in scores.items()}, logger=False)


def classification_scores(logits: Tensor, labels: Tensor, multi_label: bool) -> dict[str, float]:
    """Accuracy, top-5 accuracy (of more than five classes), AUC, balanced accuracy and macro-F1, as shares of one.

    For several labels per image, accuracy counts labels, the decision is at a probability of one half, and balanced
    accuracy is the mean over labels of the mean of sensitivity and specificity. Classes (labels) that do not occur
    have no part in balanced accuracy and AUC; ``undefined_auc`` and ``undefined_balanced_accuracy`` count them, if
    there are any.

    Args:
        logits: (N, classes).
        labels: (N,), or (N, classes) of zeros and ones.
    """
    classes = logits.shape[1]
    if multi_label:
        found, labels = logits > 0, labels.bool()
        both = labels.any(dim=0) & ~labels.all(dim=0)
        auc = [area_under_curve(logits[:, label], labels[:, label]) for label in both.nonzero()[:, 0].tolist()]
        how: dict[str, Any] = {"task": "multilabel", "num_labels": classes}
        # Each label by itself: the means of torchmetrics take in those that do not occur as 0.
        sensitivity = metrics.recall(found, labels.long(), average=None, **how)
        specificity = metrics.specificity(found, labels.long(), average=None, **how)
        f1 = metrics.f1_score(found, labels.long(), average="macro", **how)
        return {
            "accuracy": float(metrics.accuracy(found, labels.long(), average="micro", **how)),
            "auc": statistics.fmean(auc) if auc else float("nan"),
            "balanced_accuracy": float(((sensitivity + specificity) / 2)[both].mean()),
            "f1": float(f1),
            **counted(dict.fromkeys(("auc", "balanced_accuracy"), classes - int(both.sum()))),
        }
    found, probability = logits.argmax(dim=1), logits.softmax(dim=1)
    counts = labels.bincount(minlength=classes)
    one_against_rest = [
        area_under_curve(probability[:, c], labels == c) for c in range(classes) if 0 < counts[c] < len(labels)
    ]
    how = {"task": "multiclass", "num_classes": classes}
    # Each class by itself: the means of torchmetrics take in a class that does not occur but is answered as 0.
    recall = metrics.recall(found, labels, average=None, **how)
    accuracy = {"accuracy": float(metrics.accuracy(found, labels, average="micro", **how))}
    if classes > 5:
        accuracy["top5"] = float(metrics.accuracy(logits, labels, average="micro", top_k=5, **how))
    return accuracy | {
        "auc": statistics.fmean(one_against_rest) if one_against_rest else float("nan"),
        "balanced_accuracy": float(recall[counts > 0].mean()),
        "f1": float(metrics.f1_score(found, labels, average="macro", **how)),
        **counted({"auc": classes - len(one_against_rest), "balanced_accuracy": int((counts == 0).sum())}),
    }
