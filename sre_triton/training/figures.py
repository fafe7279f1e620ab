"""Pictures of a training and of the rotation test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sre_triton.training.files import replacing

__all__ = ["draw_angle_curves", "draw_curves", "draw_images", "pyplot", "save_figure"]


def pyplot() -> Any:
    """matplotlib's pyplot, drawing without a display."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save_figure(figure: Any, path: Path) -> None:
    """Writes a PNG and frees the figure."""
    with replacing(path) as partial:
        figure.savefig(partial, dpi=110, format="png")
    pyplot().close(figure)


def draw_curves(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Loss, score and learning rate against the epoch."""
    epochs = [row["epoch"] for row in rows]
    score = "dice" if "val_dice" in rows[0] else "accuracy"
    figure, axes = pyplot().subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    for axis, names, title in (
        (axes[0], ("train_loss", "val_loss"), "loss"),
        (axes[1], (f"train_{score}", f"val_{score}", "val_auc"), score),
        (axes[2], ("lr",), "learning rate"),
    ):
        for name in names:
            if name in rows[0]:
                axis.plot(epochs, [row.get(name) for row in rows], marker=".", label=name.replace("_", " "))
        axis.set(xlabel="epoch", title=title)
        axis.legend(frameon=False)
        axis.grid(alpha=0.3)
    save_figure(figure, path)


def draw_images(path: Path, images: Tensor) -> None:
    """A batch (N, C, *space) of values in 0 to 1, side by side; of volumes the middle slice."""
    if images.dim() == 5:
        images = images[:, :, images.shape[2] // 2]
    columns = min(8, len(images))
    rows = -(-len(images) // columns)
    figure, axes = pyplot().subplots(rows, columns, figsize=(1.4 * columns, 1.4 * rows), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, image in zip(axes.flat, images, strict=False):
        pixels = image.clamp(0, 1).permute(1, 2, 0).numpy()
        axis.imshow(pixels if pixels.shape[-1] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=1)
    save_figure(figure, path)


def draw_angle_curves(
    path: Path, curves: Mapping[str, Sequence[tuple[str, Sequence[float], Sequence[float]]]], score: str
) -> None:
    """A score against the angle of rotation.

    Args:
        curves: of each name, its curves of one run or of several seeds: axis, angles in degrees and scores.
        score: what is drawn.
    """
    plt = pyplot()
    axes_of_rotation = list(dict.fromkeys(axis for entries in curves.values() for axis, _, _ in entries))
    figure, panels = plt.subplots(
        1, len(axes_of_rotation), figsize=(1.5 + 6 * len(axes_of_rotation), 4.2), layout="constrained", squeeze=False
    )
    for panel, axis_of_rotation in zip(panels[0], axes_of_rotation, strict=True):
        for number, (name, entries) in enumerate(curves.items()):
            mine = [(angles, scores) for axis, angles, scores in entries if axis == axis_of_rotation]
            for angles, scores in mine if len(mine) > 1 else ():
                panel.plot(angles, scores, color=f"C{number}", alpha=0.3, linewidth=0.8)
            if mine:
                mean = [sum(values) / len(mine) for values in zip(*(scores for _, scores in mine), strict=True)]
                label = name + (f", mean of {len(mine)} seeds" if len(mine) > 1 else "")
                panel.plot(mine[0][0], mean, color=f"C{number}", marker=".", label=label)
        panel.set(xlabel="angle of rotation in degrees", ylabel=score.replace("_", " "))
        panel.set_xticks(range(0, 361, 45))
        if len(axes_of_rotation) > 1:
            panel.set_title(f"about axis {axis_of_rotation}")
        panel.grid(alpha=0.3)
    panels[0, 0].legend(frameon=False)
    save_figure(figure, path)
