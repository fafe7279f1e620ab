"""The one style of all figures: sizes, type, colours, names of scores, and how a figure is written.

Figures have the width at which a journal prints them, so that the type is as large on paper as it says here.
Nothing here changes the process's own matplotlib settings.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sre_triton.training.files import FIGURE_FORMATS, replacing

__all__ = [
    "BAND",
    "COLOURS",
    "DOUBLE",
    "HEAT",
    "LINES",
    "MARKERS",
    "SINGLE",
    "SPREAD",
    "axes_at",
    "caption_line",
    "curve_style",
    "drawing",
    "house_style",
    "legend_above",
    "mean_and_deviation",
    "robust_limits",
    "score_name",
    "shortened",
    "text_width",
]

Floats = npt.NDArray[np.float64]

SINGLE, DOUBLE = 3.5, 7.2
"""Width of a figure over one column and over two, in inches."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
"""Okabe and Ito's: they differ for the colour-blind too."""

LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

BAND = "lines: means of {} seeds, bands: ± 1 sd over seeds"
"""What a caption says of a figure over several seeds."""

HEAT, SPREAD = "magma", "cividis"
"""Colour maps whose lightness grows evenly: of what a network looks at, and of deviations and shares."""

_TYPE = 7.0
_STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # matplotlib brings it along: every machine draws the same
    "font.size": _TYPE,
    "axes.labelsize": _TYPE,
    "axes.titlesize": _TYPE,
    "figure.titlesize": _TYPE + 1,
    "figure.labelsize": _TYPE,
    "legend.fontsize": _TYPE,
    "xtick.labelsize": _TYPE,
    "ytick.labelsize": _TYPE,
    "lines.linewidth": 1.1,
    "lines.markersize": 2.2,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#d9d9d9",
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "legend.borderaxespad": 0.2,
    "legend.columnspacing": 1.2,
    "legend.handlelength": 2.4,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "image.interpolation": "antialiased",  # nearest where pixels are shown enlarged
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # whole fonts, as publishers ask for
    "svg.hashsalt": "sre_triton",  # the same figure is the same file
}

_SCORES = {"auc": "AUC", "dice": "Dice", "f1": "macro F1", "iou": "IoU", "top5": "top-5 accuracy"}


def score_name(name: str, *, begins: bool = True) -> str:
    """What a score is called in a figure: ``balanced_accuracy`` is "Balanced accuracy".

    Args:
        name: of the score.
        begins: whether it begins a line, else it stands within one.
    """
    if name.startswith("whole_"):
        return f"{score_name(name.removeprefix('whole_'), begins=begins)}, whole image"
    words = _SCORES.get(name, name.replace("_", " "))
    return words[0].upper() + words[1:] if begins else words


def curve_style(number: int) -> dict[str, str]:
    """Colour, line and marker of the ``number``-th curve of a figure, from 0.

    From the ninth on colours come again, with other lines and open markers, so that no two of 16 curves are alike.
    """
    colour, again = COLOURS[number % 8], number // 8
    return {
        "color": colour,
        "linestyle": LINES[(number + again) % 4],
        "marker": MARKERS[number % 8],
        "markerfacecolor": "white" if again % 2 else colour,
    }


def caption_line(*parts: str) -> str:
    """Parts of a caption, without those that are empty, as one sentence."""
    return "; ".join(part for part in parts if part)


@contextmanager
def house_style() -> Iterator[None]:
    """What is drawn within is drawn in this style."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        yield


@contextmanager
def drawing(
    path: Path,
    width: float,
    height: float,
    caption: str = "",
    layout: Literal["constrained", "compressed"] | None = "constrained",
) -> Iterator[Any]:
    """A matplotlib figure in the house style, written where the block ends.

    Args:
        path: its suffix, one of :data:`.files.FIGURE_FORMATS`, is the format.
        width, height: in inches.
        caption: a line under the figure, which is broken to its width and adds to its height.
        layout: matplotlib's engine; None for axes that :func:`axes_at` places.

    Raises:
        ValueError: no such format.
        OSError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    kind = path.suffix.removeprefix(".")
    if kind not in FIGURE_FORMATS:
        raise ValueError(f"a figure's format must be one of {', '.join(FIGURE_FORMATS)}, got {path.name!r}")
    lines = textwrap.wrap(caption, int(width / text_width("n")))
    with house_style():
        # Not of pyplot, whose backend belongs to the process: a notebook goes on showing its own figures.
        figure = Figure(figsize=(width, height + 0.13 * len(lines)), layout=layout)
        yield figure
        if lines:
            figure.supxlabel("\n".join(lines), x=0.01, ha="left", color="#404040")
        unstamped = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind)
        with replacing(path) as partial:
            figure.savefig(partial, format=kind, metadata=unstamped)


def text_width(text: str) -> float:
    """Inches that a line takes at most, as good as one can say without drawing it."""
    return len(text) * 0.56 * _TYPE / 72


def shortened(text: str, width: float) -> str:
    """A line, cut to a width in inches."""
    letters = int(width / text_width("n"))
    return text if len(text) <= letters else f"{text[: letters - 1]}…"


def axes_at(figure: Any, left: float, top: float, width: float, height: float) -> Any:
    """Axes at a place in inches from a figure's upper left corner."""
    across, down = figure.get_size_inches()
    return figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def legend_above(axis: Any, columns: int = 2, **settings: Any) -> None:
    """A legend over the axes, off the data."""
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, **settings)


def mean_and_deviation(runs: Sequence[Sequence[float]], scale: float) -> tuple[Floats, Floats]:
    """Mean and sample standard deviation over runs at each place, times ``scale``; the deviation of one run is 0."""
    values = scale * np.array(runs, dtype=float)
    return values.mean(axis=0), values.std(axis=0, ddof=1) if len(runs) > 1 else np.zeros(values.shape[1])


def robust_limits(values: Sequence[float], factor: float = 10.0) -> tuple[float, float] | None:
    """Limits of an axis that few values far out do not stretch.

    Args:
        values: finite.
        factor: how much larger than the range of all but a twentieth of the values at either end, at least one, the
            whole range must be.

    Returns:
        Least and largest value to show, with a margin; None if all can be shown.
    """
    if len(values) < 4:
        return None
    ordered = sorted(values)
    cut = max(1, len(ordered) // 20)
    low, high = ordered[0], ordered[-1]
    inner = ordered[cut:-cut]
    spread = inner[-1] - inner[0]
    if not high - low > factor * spread > 0:
        return None
    far = factor / 2 * spread
    shown = [value for value in ordered if inner[0] - far <= value <= inner[-1] + far]
    margin = 0.08 * (shown[-1] - shown[0])
    return shown[0] - margin, shown[-1] + margin
