"""What a trained network is told to be worth: its scores, the same for each class, and what it takes for what."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import functional as metrics

__all__ = ["Report", "area_under_curve", "confusion", "rows_of_classes", "rows_of_labels"]


@dataclass(frozen=True)
class Report:
    """Scores of a network on one split, as shares of one.

    Attributes:
        scores: means, by name.
        classes: a row for each class (label), with its ``class``.
        names: of the classes.
        counts: (classes, classes); how often a true class, by row, was answered by which, by column. None where an
            image can have several labels, whose hits and misses are in ``classes``.
        unit: what is counted.
    """

    scores: dict[str, float]
    classes: list[dict[str, Any]]
    names: list[str]
    counts: Tensor | None
    unit: str


def confusion(found: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(classes, classes) counts of answers (N,) to labels (N,); rows are the true classes."""
    return metrics.confusion_matrix(found, labels, task="multiclass", num_classes=classes, validate_args=False)


def rows_of_classes(counts: Tensor, names: Sequence[str], unit: str) -> list[dict[str, Any]]:
    """Each class against all others, of a confusion matrix; scores that are undefined are NaN."""
    table = counts.double()
    hit, true, answered = table.diagonal(), table.sum(dim=1), table.sum(dim=0)
    clear = table.sum() - true - answered + hit
    columns = {
        "sensitivity": hit / true,
        "specificity": clear / (table.sum() - true),
        "precision": hit / answered,
        "f1": 2 * hit / (true + answered),
    }
    return [
        {"class": name, unit: int(true[c]), **{score: float(values[c]) for score, values in columns.items()}}
        for c, name in enumerate(names)
    ]


def rows_of_labels(found: Tensor, labels: Tensor, names: Sequence[str], unit: str) -> list[dict[str, Any]]:
    """Each label of several, with its hits and misses.

    Args:
        found: (N, labels) of bool.
        labels: (N, labels) of bool.
    """
    rows = []
    for number, name in enumerate(names):
        counts = confusion(found[:, number].long(), labels[:, number].long(), 2)
        row = rows_of_classes(counts, ("without", name), unit)[1]
        (clear, alarms), (misses, hits) = counts.tolist()
        rows.append({**row, "hits": hits, "misses": misses, "false_alarms": alarms, "correct_rejections": clear})
    return rows


def area_under_curve(scores: Tensor, positive: Tensor) -> float:
    """Area under the curve of a class against all others, NaN where either is missing."""
    if not 0 < int(positive.sum()) < len(positive):
        return math.nan
    return float(torch.as_tensor(metrics.auroc(scores, positive.long(), task="binary")))
