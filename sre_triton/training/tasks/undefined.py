"""Scores that are not defined, as the AUC of an image without a vessel: they are NaN, left out of means and counted."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

__all__ = ["UNDEFINED", "counted", "mean_of_known", "means_of_known"]

UNDEFINED = "undefined_"
"""Begins the name of the count of what a score has left out; there is none where nothing was."""


def mean_of_known(values: Sequence[float]) -> float:
    """The mean of those that are not NaN, NaN if there are none."""
    known = [value for value in values if not math.isnan(value)]
    return statistics.fmean(known) if known else math.nan


def means_of_known(table: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each score over the rows in which it is defined, and on how many it is not.

    Args:
        table: at least one row; all have the same scores.
    """
    columns = {name: [row[name] for row in table] for name in table[0]}
    means = {name: mean_of_known(values) for name, values in columns.items()}
    return means | counted({name: sum(map(math.isnan, values)) for name, values in columns.items()})


def counted(left_out: Mapping[str, int]) -> dict[str, float]:
    """Counts under the names that tables have for them, those that are not 0."""
    return {UNDEFINED + name: float(count) for name, count in left_out.items() if count}
