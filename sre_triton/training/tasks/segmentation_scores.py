"""Scores of a segmented image."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from sre_triton.training.tasks.report import area_under_curve
from sre_triton.training.tasks.undefined import mean_of_known

__all__ = ["SCORES", "answers", "scores_by_threshold", "segmentation_scores"]

SCORES = ("dice", "iou", "auc", "accuracy", "sensitivity", "specificity")


def segmentation_scores(probabilities: Tensor, labels: Tensor, threshold: float | None = None) -> dict[str, float]:
    """Dice, IoU, AUC, accuracy, sensitivity and specificity of one image, between 0 and 1.

    All but accuracy are means over the classes from 1 on, each against all others. Where a class does not occur, its
    AUC and sensitivity are undefined and left out, as is the specificity of one that is everywhere; NaN stands where
    that is so of every class. Dice and IoU are 1 where there was nothing to find and nothing was found.

    Args:
        probabilities: (classes, pixels).
        labels: (pixels,); classes.
        threshold: of two classes, the probability from which a pixel is of class 1; None takes the most probable.
    """
    return scores_by_threshold(probabilities, labels, [threshold])[0]


def scores_by_threshold(
    probabilities: Tensor, labels: Tensor, thresholds: Sequence[float | None]
) -> list[dict[str, float]]:
    """:func:`segmentation_scores` at several thresholds."""
    labels = labels.long()
    classes = range(1, len(probabilities))
    auc = mean_of_known([area_under_curve(probabilities[label], labels == label) for label in classes])
    rows = []
    for threshold in thresholds:
        found = answers(probabilities, threshold)
        table = [_scores_of_class(found == label, labels == label) for label in classes]
        scores = {name: mean_of_known([row[name] for row in table]) for name in table[0]}
        scores |= {"auc": auc, "accuracy": float((found == labels).float().mean())}
        rows.append({name: scores[name] for name in SCORES})
    return rows


def answers(probabilities: Tensor, threshold: float | None) -> Tensor:
    """Classes (...) of probabilities (classes, ...): the most probable, or of two class 1 from ``threshold`` on."""
    return probabilities.argmax(dim=0) if threshold is None else (probabilities[1] >= threshold).long()


def _scores_of_class(found: Tensor, truth: Tensor) -> dict[str, float]:
    hit, miss = float((found & truth).sum()), float((~found & truth).sum())
    alarm, clear = float((found & ~truth).sum()), float((~found & ~truth).sum())
    return {
        "dice": _ratio(2 * hit, 2 * hit + miss + alarm, 1.0),
        "iou": _ratio(hit, hit + miss + alarm, 1.0),
        "sensitivity": _ratio(hit, hit + miss),
        "specificity": _ratio(clear, clear + alarm),
    }


def _ratio(part: float, whole: float, otherwise: float = math.nan) -> float:
    return part / whole if whole else otherwise
