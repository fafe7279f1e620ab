"""Rows of pictures with one scale each, and masks laid over pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sre_triton.training.figures.style import DOUBLE, HEAT, SPREAD, axes_at, drawing

__all__ = ["OUTSIDE", "PictureRow", "draw_rows", "heat", "overlay"]

Floats = npt.NDArray[np.floating[Any]]
Colours = npt.NDArray[np.uint8]

OUTSIDE = (200, 200, 200)
"""Colour of what was outside the frame."""

# Bright ones of Okabe and Ito's: they show on dark tissue, and differ for the colour-blind too.
_OVER = np.array([(86, 180, 233), (240, 228, 66), (204, 121, 167), (0, 158, 115), (230, 159, 0), (213, 94, 0)])
_RIGHT, _MISSED, _FALSE = _OVER[0], _OVER[5], _OVER[1]

# Inches of a row's label (two lines), of a colour bar with its numbers and name, of a line above, between pictures.
_LABEL, _BAR, _TITLE, _GAP = 0.36, 0.62, 0.17, 0.05


@dataclass(frozen=True)
class PictureRow:
    """A row: pictures on one scale, and how far they differ.

    Attributes:
        label: what it shows.
        pictures: (columns, H, W) of numbers, or (columns, H, W, 3) of colours, 0 to 255. NaN is drawn as outside.
        titles: over each picture.
        limits: of the scale.
        unit: of the scale; empty draws no colour bar.
        colours: matplotlib's name of the colour map.
        spread: standard deviation over all angles, (H, W), drawn in a further column.
        largest: of the scale of the deviations.
    """

    label: str
    pictures: Floats | Colours
    titles: Sequence[str] = ()
    limits: tuple[float, float] = (0.0, 1.0)
    unit: str = ""
    colours: str = "gray"
    spread: Floats | None = None
    largest: float = 1.0


def draw_rows(path: Path, rows: Sequence[PictureRow], headings: Sequence[str], caption: str = "") -> None:
    """Rows of pictures under common headings.

    Args:
        path: of the figure; its suffix is the format.
        rows: from top to bottom.
        headings: of the columns, the column of deviations included.
        caption: what is shown.
    """
    columns = len(headings)
    side = (DOUBLE - _LABEL - 2 * _BAR - _GAP * columns) / columns
    tops, top = [], _TITLE
    for row in rows:
        top += _TITLE * bool(row.titles)
        tops.append(top)
        top += side * row.pictures.shape[1] / row.pictures.shape[2] + _GAP
    with drawing(path, DOUBLE, top + _GAP, caption, layout=None) as figure:
        for row, place in zip(rows, tops, strict=True):
            _draw_row(figure, row, place, side, columns)
        for column, heading in enumerate(headings):
            left = _left(column, columns, side) + side / 2
            across, down = figure.get_size_inches()
            figure.text(left / across, 1 - 0.04 / down, heading, ha="center", va="top")


def _left(column: int, columns: int, side: float) -> float:
    """Where a column begins: the last, of deviations, after the colour bars of the others."""
    return _LABEL + column * (side + _GAP) + (_BAR if column == columns - 1 else 0)


def _draw_row(figure: Any, row: PictureRow, top: float, side: float, columns: int) -> None:
    height = side * row.pictures.shape[1] / row.pictures.shape[2]
    for number, picture in enumerate(row.pictures):
        axis = _panel(figure, _left(number, columns, side), top, side, height)
        image = _show(axis, picture, row.colours, *row.limits)
        if row.titles:
            axis.set_title(row.titles[number], pad=2)
        if number == 0:
            axis.set_ylabel(row.label)
    if row.unit:
        _bar(figure, image, _left(len(row.pictures), columns + 1, side), top, height, row.unit)
    if row.spread is not None:
        left = _left(columns - 1, columns, side)
        image = _show(_panel(figure, left, top, side, height), row.spread, SPREAD, 0, row.largest or 1.0)
        _bar(figure, image, left + side + _GAP, top, height, "sd")


def _panel(figure: Any, left: float, top: float, width: float, height: float) -> Any:
    axis = axes_at(figure, left, top, width, height)
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)
    return axis


def _show(axis: Any, picture: Floats | Colours, colours: str, low: float, high: float) -> Any:
    import matplotlib

    if picture.ndim == 3:
        return axis.imshow(picture)
    scale = matplotlib.colormaps[colours].with_extremes(bad=[value / 255 for value in OUTSIDE])
    return axis.imshow(np.ma.masked_invalid(picture), cmap=scale, vmin=low, vmax=high)


def _bar(figure: Any, image: Any, left: float, top: float, height: float, label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    bar = figure.colorbar(image, cax=axes_at(figure, left, top + 0.06, 0.08, height - 0.12), ticks=MaxNLocator(3))
    bar.set_label(label, labelpad=1)
    bar.ax.tick_params(pad=1, length=2)


def overlay(picture: Floats, found: npt.NDArray[Any], truth: npt.NDArray[Any] | None = None) -> Colours:
    """A picture with its classes but the ground in colours, half transparent.

    Args:
        picture: (H, W, 3), 0 to 1.
        found: class of each pixel, (H, W), 0 for the ground.
        truth: of two classes, what is right. The picture is then grey, what was found and right blue, what was missed
            orange, and what was found wrongly yellow.

    Returns:
        (H, W, 3), 0 to 255.
    """
    if truth is None:
        marked, colours = found > 0, _OVER[(found.astype(np.int64) - 1) % len(_OVER)]
    else:
        marked = (found > 0) | (truth > 0)
        picture = np.broadcast_to(picture.mean(axis=-1, keepdims=True), picture.shape)
        wrong = np.where((truth > 0)[..., None], _MISSED, _FALSE)
        colours = np.where(((found > 0) & (truth > 0))[..., None], _RIGHT, wrong)
    blended = np.where(marked[..., None], 0.2 * 255 * picture + 0.8 * colours, 255 * picture)
    return blended.round().clip(0, 255).astype(np.uint8)


def heat(picture: Floats, warm: Floats) -> Colours:
    """A grey picture (H, W, 3), 0 to 1, under a map (H, W), 0 to 1, in colours, as (H, W, 3), 0 to 255."""
    import matplotlib

    grey = picture.mean(axis=-1, keepdims=True)
    over = matplotlib.colormaps[HEAT](np.nan_to_num(warm))[..., :3]
    strength = 0.75 * np.nan_to_num(warm)[..., None]
    return (255 * (grey * (1 - strength) + over * strength)).round().clip(0, 255).astype(np.uint8)
