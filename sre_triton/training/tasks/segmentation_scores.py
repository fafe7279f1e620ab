"""Scores of a segmented image."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sre_triton.training.tasks.report import area_under_curve, confusion
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
    labels, classes = labels.long(), len(probabilities)
    auc = mean_of_known([area_under_curve(probabilities[label], labels == label) for label in range(1, classes)])
    rows = []
    for threshold in thresholds:
        counts = confusion(answers(probabilities, threshold), labels, classes).double()
        table = _scores_of_classes(counts)
        scores = {name: mean_of_known(column[1:].tolist()) for name, column in table.items()}
        scores |= {"auc": auc, "accuracy": float(counts.diagonal().sum() / counts.sum())}
        rows.append({name: scores[name] for name in SCORES})
    return rows


def answers(probabilities: Tensor, threshold: float | None) -> Tensor:
    """Classes (...) of probabilities (classes, ...): the most probable, or of two class 1 from ``threshold`` on."""
    return probabilities.argmax(dim=0) if threshold is None else (probabilities[1] >= threshold).long()


def _scores_of_classes(counts: Tensor) -> dict[str, Tensor]:
    """Each class against all others, of a confusion matrix, (classes,); NaN where it is undefined.

    By hand: torchmetrics gives 0 for each where there is nothing to divide by, and a mean would take that in.
    """
    hit, true, answered = counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
    others = counts.sum() - true
    return {
        "dice": (2 * hit / (true + answered)).nan_to_num(1.0),
        "iou": (hit / (true + answered - hit)).nan_to_num(1.0),
        "sensitivity": hit / true,
        "specificity": (others - answered + hit) / others,
    }
