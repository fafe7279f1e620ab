"""A score against the angle of rotation, over a straight axis and around the circle."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sre_triton.training.figures.style import (
    BAND,
    DOUBLE,
    SINGLE,
    caption_line,
    curve_style,
    drawing,
    mean_and_deviation,
    score_name,
)

__all__ = ["Curve", "draw_angle_curves"]

_MOST_BANDS = 8
_ENTRY, _LETTER = 0.6, 0.05  # inches of a legend's entry without its name, and of a letter

Curve = tuple[str, Sequence[float], Sequence[float]]
"""Of one run: axis of rotation, angles in degrees, scores between 0 and 1."""


def draw_angle_curves(
    path: Path, curves: Mapping[str, Sequence[Curve]], score: str, caption: str = ""
) -> tuple[Path, Path]:
    """Draws a score in percent against the angle of rotation, and the same around the circle beside it.

    Of several seeds, lines are means, and bands reach one sample standard deviation to either side, where there are few
    enough curves to tell them apart.

    Args:
        path: of the figure; its suffix is the format. The circle is ``STEM-polar`` beside it.
        curves: of each network, its curves of one run or of several seeds.
        score: what is drawn.
        caption: what the data were.

    Returns:
        Both paths.
    """
    seeds = max(len(entries) for entries in curves.values()) // max(1, len(_axes(curves)))
    means = BAND.format(seeds) if _has_bands(curves) else f"means of {seeds} seeds"
    caption = caption_line(caption, means if seeds > 1 else "")
    polar = path.with_stem(f"{path.stem}-polar")
    _draw(path, curves, score, caption, is_polar=False)
    _draw(polar, curves, score, caption, is_polar=True)
    return path, polar


def _has_bands(curves: Mapping[str, Sequence[Curve]]) -> bool:
    """Whether there are few enough curves to tell bands around them apart."""
    return len(curves) <= _MOST_BANDS


def _axes(curves: Mapping[str, Sequence[Curve]]) -> list[str]:
    return list(dict.fromkeys(axis for entries in curves.values() for axis, _, _ in entries))


def _draw(path: Path, curves: Mapping[str, Sequence[Curve]], score: str, caption: str, *, is_polar: bool) -> None:
    axes_of_rotation = _axes(curves)
    low, high = _limits(curves)
    width = SINGLE if len(axes_of_rotation) == 1 and (is_polar or _has_bands(curves)) else DOUBLE
    columns = max(1, int(width / (_ENTRY + _LETTER * max(map(len, curves)))))
    height = (min(3.0, width / len(axes_of_rotation) + 0.5) if is_polar else 2.1) + 0.14 * math.ceil(
        len(curves) / columns
    )
    if is_polar:
        caption = caption_line(caption, f"radius: {score_name(score, begins=False)} (%), from {low:g} at the centre")
    from matplotlib.ticker import MaxNLocator

    with drawing(path, width, height, caption) as figure:
        projection = {"projection": "polar"} if is_polar else {}
        panels = figure.subplots(1, len(axes_of_rotation), squeeze=False, sharey=True, subplot_kw=projection)[0]
        for panel, axis in zip(panels, axes_of_rotation, strict=True):
            for number, (name, entries) in enumerate(curves.items()):
                mine = [(angles, scores) for entry, angles, scores in entries if entry == axis]
                if mine:
                    _draw_curve(panel, mine, number, name, has_band=_has_bands(curves), is_polar=is_polar)
            panel.set_ylim(low, high)
            if len(axes_of_rotation) > 1:
                panel.set_title(f"about axis {axis}", pad=10 if is_polar else 4)
            if is_polar:
                panel.set_thetagrids(range(0, 360, 45), [f"{angle}°" for angle in range(0, 360, 45)])
                panel.set_rlabel_position(22.5)
                panel.yaxis.set_major_locator(MaxNLocator(4, integer=True, prune="lower"))
                panel.tick_params(pad=1)
                for label in panel.get_yticklabels():
                    label.set(
                        ha="center", va="center", bbox={"boxstyle": "square,pad=0.1", "color": "white", "alpha": 0.75}
                    )
                    label.set_zorder(5)
            else:
                panel.set_xticks(range(0, 361, 45 if width == SINGLE else 90))
                panel.set_xlim(0, 360)
                panel.set_xlabel("Angle of rotation (°)")
        if not is_polar:
            panels[0].set_ylabel(f"{score_name(score)} (%)")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=columns)


def _draw_curve(
    panel: Any,
    runs: Sequence[tuple[Sequence[float], Sequence[float]]],
    number: int,
    name: str,
    *,
    has_band: bool,
    is_polar: bool,
) -> None:
    angles = np.asarray(runs[0][0], dtype=float)
    mean, deviation = mean_and_deviation([scores for _, scores in runs], 100)
    if len(angles) > 1 and math.isclose(angles[-1] + (angles[1] - angles[0]), 360):
        angles = np.append(angles, 360.0)  # the circle is closed: 360 degrees are 0
        mean, deviation = (np.append(values, values[0]) for values in (mean, deviation))
    if is_polar:
        angles = np.deg2rad(angles)
    style = curve_style(number)
    panel.plot(angles, mean, label=name, markevery=max(1, len(angles) // 36), **style)
    if has_band and len(runs) > 1:
        panel.fill_between(angles, mean - deviation, mean + deviation, color=style["color"], alpha=0.2, linewidth=0)


def _limits(curves: Mapping[str, Sequence[Curve]]) -> tuple[float, float]:
    """Whole percents around all lines and bands; at least five apart, so that noise does not look like an effect."""
    edges = [
        edge
        for entries in curves.values()
        for axis in _axes(curves)
        if (runs := [scores for entry, _, scores in entries if entry == axis])
        for mean, deviation in [mean_and_deviation(runs, 100)]
        for edge in ((mean - deviation, mean + deviation) if _has_bands(curves) else (mean,))
    ]
    values = np.concatenate(edges) if edges else np.zeros(0)
    values = values[np.isfinite(values)] if np.isfinite(values).any() else np.array([0.0, 100.0])
    low, high = float(values.min()), float(values.max())
    margin = max(0.05 * (high - low), (5 - (high - low)) / 2, 0.5)
    return max(0.0, float(math.floor(low - margin))), min(100.0, float(math.ceil(high + margin)))
