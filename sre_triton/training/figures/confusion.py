"""The confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sre_triton.training.figures.style import DOUBLE, SINGLE, caption_line, drawing, shortened, text_width

__all__ = ["confusion_matrix_figure"]

_CELL = 0.37  # inches that a percentage and a count of 7 points need
_NAME = 1.2  # that a class's name may take
_ROW = 0.13  # and a class has
_MARGIN = 1.25  # of axis and colour bar


def confusion_matrix_figure(
    path: Path, counts: npt.ArrayLike, names: Sequence[str | int], caption: str = "", unit: str = "images"
) -> None:
    """Draws how often items of each class were taken for which.

    A cell has the share of its row, that is of the true class, in percent, and the count. Of many classes only colours
    are shown. A class that does not occur is left blank.

    Args:
        path: of the figure; its suffix is the format.
        counts: (classes, classes) of whole numbers; rows are the true classes, columns the answers.
        names: of the classes.
        caption: what the data were.
        unit: what was counted.

    Raises:
        ValueError: ``counts`` is not square, or ``names`` are not as many.
    """
    table = np.asarray(counts)
    classes = len(names)
    if table.shape != (classes, classes):
        raise ValueError(f"counts must be of {classes} x {classes} classes, got shape {table.shape}")
    totals = table.sum(axis=1, keepdims=True)
    shares = np.ma.masked_invalid(100 * table / np.where(totals, totals, np.nan))
    every = 1 + int(classes * _ROW / (DOUBLE - _MARGIN))
    shown = range(0, classes, every)
    labels = [shortened(str(name), _NAME) for name in names]
    rows = [f"{labels[c]} ({_short(int(totals[c, 0]))})" for c in shown]
    columns = [labels[c] for c in shown]
    margin = _MARGIN + max(map(text_width, rows))
    side = min(DOUBLE - margin, max(classes * _CELL, SINGLE - margin, classes * _ROW / every))
    is_upright = max(map(text_width, columns)) > side / len(columns)
    below = max(map(text_width, columns)) if is_upright else 0.15
    has_numbers = classes * _CELL <= side
    said = "share of the row in percent, and count" if has_numbers else ""
    caption = caption_line(caption, f"n = {int(table.sum()):,} {unit}", said)
    with drawing(path, side + margin, side + below + 0.55, caption, "compressed") as figure:
        axis = figure.subplots()
        image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=100)
        bar = figure.colorbar(image, ax=axis, shrink=0.8, pad=0.03)
        bar.set_label("Share of the true class (%)")
        axis.set(xlabel="Answer", ylabel=f"True class ({unit})")
        axis.set_yticks(shown, rows)
        axis.set_xticks(shown, columns, rotation=90 if is_upright else 0)
        axis.grid(visible=False)
        for row, column in np.ndindex(*table.shape) if has_numbers else ():
            if shares[row, column] is np.ma.masked:
                continue
            share = float(shares[row, column])
            text = f"{share:.0f}\n{_short(int(table[row, column]))}" if table[row, column] else "0"
            axis.text(column, row, text, ha="center", va="center", color="white" if share > 55 else "black")


def _short(count: int) -> str:
    """A count in at most five letters."""
    if count < 10_000:
        return str(count)
    power = min(3, (len(str(count)) - 1) // 3)
    return f"{count / 1000**power:.3g}{' kMG'[power]}"
