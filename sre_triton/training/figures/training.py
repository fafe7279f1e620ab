"""Curves of a training, and its first batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sre_triton.training.figures.style import (
    BAND,
    DOUBLE,
    axes_at,
    caption_line,
    curve_style,
    drawing,
    legend_above,
    mean_and_deviation,
    robust_limits,
    score_name,
    shortened,
)

__all__ = ["draw_curves", "draw_images", "draw_learning_curves"]

_PARTS = {"train": "training", "val": "validation"}


def draw_curves(path: Path, rows: Sequence[Mapping[str, Any]], monitor: str = "", caption: str = "") -> None:
    """Loss, scores in percent and learning rate against the epoch.

    Single values far out, as the loss of a first epoch that went astray, do not set the limits; they are marked at the
    edge and named.

    Args:
        path: of the figure; its suffix is the format.
        rows: one per epoch, with the columns of ``metrics.csv``; scores between 0 and 1.
        monitor: the column whose largest value is the best epoch, which is marked.
        caption: what was trained on what.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    scores = [name for name in names if name.endswith(("_accuracy", "_dice", "_auc")) and _is_main(name, names)]
    best = _best_epoch(rows, monitor)
    caption = caption_line(caption, f"best epoch: that of the highest {_named(monitor)}" if best is not None else "")
    with drawing(path, DOUBLE, 2.2, caption) as figure:
        loss, score, rate = figure.subplots(1, 3, width_ratios=(1, 1, 0.8))
        _draw_lines(loss, rows, [name for name in ("train_loss", "val_loss") if name in names])
        loss.set_ylabel("Loss")
        _draw_lines(score, rows, scores, 100)
        score.set_ylabel("Score (%)")
        _draw_lines(rate, rows, ["lr"])
        rates = [row["lr"] for row in rows if row.get("lr")]
        if rates and max(rates) > 100 * min(rates):
            rate.set_yscale("log")
        else:
            rate.set_ylim(bottom=0)
        rate.set_ylabel("Learning rate")
        for axis in (loss, score, rate):
            _count_epochs(axis)
            axis.set_xlim(rows[0]["epoch"] - 0.5, rows[-1]["epoch"] + 0.5)
            if best is not None:
                label = f"best epoch: {best}" if axis is score else None
                axis.axvline(best, color="#606060", linestyle=(0, (1, 2)), linewidth=0.9, label=label)
        for axis in (loss, score):
            legend_above(axis, 1)


def draw_learning_curves(
    path: Path, runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], score: str, caption: str = ""
) -> None:
    """Losses and a score on validation against the epoch, of several networks.

    Of several seeds, lines are means, and bands reach one sample standard deviation to either side; they end where the
    first seed does.

    Args:
        path: of the figure; its suffix is the format.
        runs: of each network, the rows of each seed, as :func:`draw_curves` takes them.
        score: a column, between 0 and 1.
        caption: what was trained on what.
    """
    seeds = max(map(len, runs.values()))
    caption = caption_line(caption, BAND.format(seeds) if seeds > 1 else "")
    with drawing(path, DOUBLE, 2.1, caption) as figure:
        panels = figure.subplots(1, 3)
        for axis, column, scale in zip(panels, ("train_loss", "val_loss", score), (1, 1, 100), strict=True):
            points: list[tuple[float, int]] = []
            for number, (name, tables) in enumerate(runs.items()):
                length = min(map(len, tables))
                epochs = [row["epoch"] for row in tables[0][:length]]
                mean, deviation = mean_and_deviation([[row[column] for row in rows[:length]] for rows in tables], scale)
                style = curve_style(number)
                axis.plot(epochs, mean, label=name, markevery=max(1, length // 25), **style)
                if len(tables) > 1:
                    band = (mean - deviation, mean + deviation)
                    axis.fill_between(epochs, *band, color=style["color"], alpha=0.2, linewidth=0)
                points += zip(mean.tolist(), epochs, strict=True)
            _limit(axis, points)
            axis.set(ylabel=_label(column) + (" (%)" if scale == 100 else ""))
            _count_epochs(axis)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=int(DOUBLE))


def _count_epochs(axis: Any) -> None:
    axis.set_xlabel("Epoch")
    axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def _is_main(name: str, names: Mapping[str, None]) -> bool:
    """Whether a score belongs into the curves: not those of whole images beside fields, nor of periodic tests. A
    segmentation's accuracy says little, as the ground is always right."""
    if name.startswith(("val_whole", "eval_")) or name.endswith("balanced_accuracy"):
        return False
    return not ("val_dice" in names and name.endswith("accuracy"))


def _draw_lines(axis: Any, rows: Sequence[Mapping[str, Any]], names: Sequence[str], scale: float = 1.0) -> None:
    epochs = [row["epoch"] for row in rows]
    values: list[tuple[float, int]] = []
    for number, name in enumerate(names):
        column = [scale * row[name] if row.get(name) is not None else math.nan for row in rows]
        axis.plot(epochs, column, label=_named(name), markevery=max(1, len(rows) // 25), **curve_style(number))
        values += zip(column, epochs, strict=True)
    _limit(axis, values)


def _limit(axis: Any, points: Sequence[tuple[float, int]]) -> None:
    """Leaves out of the limits what lies far from other values, and names it at the edge; values and their epochs."""
    values = [point for point in points if math.isfinite(point[0])]
    limits = robust_limits([value for value, _ in values])
    if limits is None:
        return
    axis.set_ylim(*limits)
    for edge, sign, beyond in (
        (1.0, "▲", [point for point in values if point[0] > limits[1]]),
        (0.0, "▼", [point for point in values if point[0] < limits[0]]),
    ):
        if beyond:
            value, epoch = max(beyond, key=lambda point: abs(point[0]))
            more = f" and {len(beyond) - 1} more" if len(beyond) > 1 else ""
            axis.text(
                0.98, abs(edge - 0.02), f"{sign} {value:.3g} in epoch {epoch}{more}",
                transform=axis.transAxes, ha="right", va="top" if edge else "bottom", color="#404040",
            )  # fmt: skip


def _best_epoch(rows: Sequence[Mapping[str, Any]], monitor: str) -> int | None:
    known = [row for row in rows if row.get(monitor) is not None and math.isfinite(row[monitor])]
    return int(max(known, key=lambda row: row[monitor])["epoch"]) if known else None


def _named(column: str) -> str:
    """``val_accuracy`` is "validation accuracy"."""
    kind, _, name = column.partition("_")
    if not name:
        return column
    return f"{_PARTS.get(kind, kind)} {score_name(name, begins=False)}"


def _label(column: str) -> str:
    words = _named(column)
    return words[0].upper() + words[1:]


def draw_images(path: Path, images: Tensor, titles: Sequence[str] = (), caption: str = "") -> None:
    """A batch (N, C, *space) of values in 0 to 1, side by side, with what each is; of volumes the middle slice."""
    if images.dim() == 5:
        images = images[:, :, images.shape[2] // 2]
    columns = min(8, len(images))
    lines = -(-len(images) // columns)
    gap, title = 0.04, 0.17 * bool(titles)
    side = min(1.8, (DOUBLE - gap) / columns - gap)
    height = side * images.shape[2] / images.shape[3]
    with drawing(
        path, columns * (side + gap) + gap, lines * (height + title + gap) + gap, caption, layout=None
    ) as figure:
        for number, image in enumerate(images):
            line, column = divmod(number, columns)
            top = gap + title + line * (height + title + gap)
            axis = axes_at(figure, gap + column * (side + gap), top, side, height)
            axis.set_axis_off()
            pixels = image.clamp(0, 1).permute(1, 2, 0).numpy()
            axis.imshow(pixels if pixels.shape[-1] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=1)
            if titles:
                axis.set_title(shortened(titles[number], side), pad=2)
