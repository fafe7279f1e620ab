"""Weights that make up for rare classes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sre_triton.training.options import RunOptions

__all__ = ["balanced_weights", "class_weights"]


def balanced_weights(counts: Any) -> Tensor:
    """Weights inverse to how often each class occurs, whose mean over all items is 1.

    Args:
        counts: (classes,); how often each occurs.

    Raises:
        ValueError: one does not occur.
    """
    counts = torch.as_tensor(counts, dtype=torch.float32)
    if not bool((counts > 0).all()):
        missing = ", ".join(str(index) for index in (counts == 0).nonzero()[:, 0].tolist())
        raise ValueError(f"class {missing} does not occur in the training set, so its weight cannot be balanced")
    return counts.sum() / (len(counts) * counts)


def class_weights(options: RunOptions, classes: int, counts: Callable[[], Any]) -> Tensor | None:
    """What ``--class-weights`` says, (classes,), or None.

    Args:
        counts: counts how often each class occurs in the training set, if that is asked for.

    Raises:
        ValueError: it is neither `balanced` nor a positive number for each class.
    """
    given = options.class_weights
    if not given:
        return None
    if given == ["balanced"]:
        return balanced_weights(counts())
    try:
        weights = [float(word) for word in given]
    except ValueError:
        weights = []
    if len(weights) != classes or not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"--class-weights must be balanced or {classes} positive numbers, got {' '.join(given)}")
    return torch.tensor(weights)
