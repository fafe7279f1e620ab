"""The kernels of a layer: as pictures, and as weight against distance from the centre."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sre_triton.training.figures.style import COLOURS, LINES, MARKERS, SINGLE, axes_at, caption_line, drawing

__all__ = ["draw_kernels", "draw_profiles"]

_KERNELS = 16
_PROFILES = 6

Floats = npt.NDArray[np.floating[Any]]


def draw_kernels(path: Path, kernels: Floats, layer: str, caption: str = "") -> None:
    """The first kernels of a layer on one scale.

    Args:
        path: of the figure; its suffix is the format.
        kernels: of the first input channel, (out channels, k, k).
        layer: its name.
        caption: whose kernels they are.
    """
    shown = kernels[:_KERNELS]
    columns = min(8, len(shown))
    lines = math.ceil(len(shown) / columns)
    reach = float(np.abs(shown).max()) or 1.0
    size = kernels.shape[-1]
    caption = caption_line(
        caption,
        f"layer {layer}, {size} x {size}; output channels 0 to {len(shown) - 1} of {len(kernels)}, input channel 0",
    )
    side, gap, title = 0.74, 0.06, 0.17
    left = columns * (side + gap) + gap
    height = lines * (side + title)
    with drawing(path, left + 0.65, height + gap, caption, layout=None) as figure:
        for channel, kernel in enumerate(shown):
            line, column = divmod(channel, columns)
            axis = axes_at(figure, gap + column * (side + gap), title + line * (side + title), side, side)
            axis.set_axis_off()
            axis.set_title(f"channel {channel}", pad=2)
            image = axis.imshow(kernel, cmap="RdBu_r", vmin=-reach, vmax=reach)
        bar = figure.colorbar(image, cax=axes_at(figure, left, title, 0.1, height - title))
        bar.set_label("Weight", labelpad=1)


def draw_profiles(
    path: Path, weights: Floats, places: Floats, layer: str, caption: str = "", *, is_steps: bool
) -> None:
    """Weight against distance from the centre.

    Args:
        path: of the figure; its suffix is the format.
        weights: of a ring layer one per ring, which are drawn as the steps that they are, else one per tap, drawn as
            points, (out channels, rings or taps).
        places: radii at which the rings begin and end, (rings + 1,), or distances of the taps, (taps,), in pixels.
        layer: its name.
        caption: whose kernels they are.
        is_steps: whether it is a ring layer.
    """
    shown = weights[:_PROFILES]
    caption = caption_line(
        caption,
        f"layer {layer}, output channels 0 to {len(shown) - 1} of {len(weights)}, input channel 0",
        "a step is a ring" if is_steps else "a point is a tap",
    )
    with drawing(path, SINGLE, 2.4, caption) as figure:
        axis = figure.subplots()
        axis.axhline(0, color="#808080", linewidth=0.6)
        for channel, values in enumerate(shown):
            style = {"color": COLOURS[channel], "label": f"channel {channel}"}
            if is_steps:
                axis.stairs(values, places, baseline=None, linewidth=1.2, linestyle=LINES[channel % 4], **style)
            else:
                axis.plot(places, values, linestyle="none", marker=MARKERS[channel], alpha=0.8, **style)
        axis.set(xlabel="Distance from the centre (pixels)", ylabel="Weight", xlim=(0 if is_steps else -0.1, None))
        figure.legend(*axis.get_legend_handles_labels(), loc="outside upper left", ncols=3)
