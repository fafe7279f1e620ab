"""Differences between networks, image by image: how sure they are, given these images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["FIGURES", "bootstrap", "paired_differences"]

FIGURES = {"mean": "mean of angles", "at_0": "at 0°", "right": "right angles", "oblique": "oblique angles"}
"""The figures of an image that are compared, and what they are called."""

_AT_A_TIME = 500  # of the draws: those of thousands of images would take all memory together


def bootstrap(differences: Sequence[float], draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """The middle 95% of the mean of paired differences, when images are drawn again with replacement.

    Args:
        differences: of each image, at least one.
    """
    values, rng = np.asarray(differences, dtype=float), np.random.default_rng(seed)
    means = [
        values[rng.integers(len(values), size=(min(_AT_A_TIME, draws - first), len(values)))].mean(axis=1)
        for first in range(0, draws, _AT_A_TIME)
    ]
    low, high = np.percentile(np.concatenate(means), (2.5, 97.5))
    return float(low), float(high)


def paired_differences(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """What the first network is ahead of each other by, in the main score, with an interval of 95%.

    Each image's score is a mean over seeds, and the bootstrap draws images: the interval says how the difference would
    be on other images of the kind, and nothing of other seeds.

    Args:
        results: of each network, its evaluations with several seeds, all on the same images.

    Returns:
        A row per other network and figure: ``network``, ``against``, ``figure``, ``images``, ``difference``, ``low``
        and ``high``, as shares of one. Of a single image there are none.
    """
    (first, ours), *others = results.items()
    rows = []
    for name, theirs in others:
        for figure in ours[0]["rotation"]["images"]:
            apart = _over_seeds(ours, figure) - _over_seeds(theirs, figure)
            if len(apart) < 2:
                continue
            low, high = bootstrap(apart)
            rows.append(
                {
                    "network": first,
                    "against": name,
                    "figure": figure,
                    "images": len(apart),
                    "difference": float(apart.mean()),
                    "low": low,
                    "high": high,
                }
            )
    return rows


def _over_seeds(results: Sequence[Mapping[str, Any]], figure: str) -> Any:
    return np.mean([result["rotation"]["images"][figure] for result in results], axis=0)
