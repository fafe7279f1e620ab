"""How many objects of a mask are found, where each connected component of it is one."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from sre_triton.training.data.warp import Symmetry
from sre_triton.training.options import TurningOptions
from sre_triton.training.tasks.segmentation_scores import answers
from sre_triton.training.tasks.undefined import means_of_known

__all__ = ["OBJECT_F1", "each_scored_with_objects", "found_objects", "object_f1"]

OBJECT_F1 = "object_f1"
_LEAST_IOU = 0.5


def object_f1(found: npt.NDArray[np.bool_], true: npt.NDArray[np.bool_]) -> float:
    """F1 of the objects of two masks (H, W): 8-connected components, matched where their IoU is above one half.

    So large an overlap one component has with at most one other, so that no assignment has to be searched for. 1 where
    there was nothing to find and nothing was found.
    """
    from scipy import ndimage

    (found_labels, n_found), (true_labels, n_true) = (ndimage.label(mask, np.ones((3, 3))) for mask in (found, true))
    if n_found + n_true == 0:
        return 1.0
    both = np.zeros((n_found + 1, n_true + 1), dtype=np.int64)
    np.add.at(both, (found_labels.ravel(), true_labels.ravel()), 1)
    union = both.sum(axis=1, keepdims=True) + both.sum(axis=0, keepdims=True) - both
    matched = int((both > _LEAST_IOU * union)[1:, 1:].sum())
    return 2 * matched / (n_found + n_true)


def each_scored_with_objects(
    task: Any, split: str, symmetry: Symmetry, turning: TurningOptions
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """``task.each_scored`` of a task of two classes, and F1 of objects beside its scores."""
    table = []
    for logits, labels, field in task.answered(split, symmetry, turning):
        inside = field.bool() if task.photographs.has_fields else labels == labels
        objects = found_objects(task, logits, labels, inside)
        table.append(task.scored(logits, labels, field) | {OBJECT_F1: objects})
    return means_of_known(table), table


def found_objects(task: Any, logits: Tensor, labels: Tensor, inside: Tensor) -> float:
    """:func:`object_f1` of what a task of two classes answered, of (1, 2, H, W), inside a region (H, W)."""
    found = answers(logits.softmax(dim=1)[0], task.description["threshold"])
    return object_f1(*((mask.bool() & inside).cpu().numpy() for mask in (found, labels)))
