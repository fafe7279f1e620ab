"""Films: a picture turns, and beside it what networks make of it, turned back."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sre_triton.training.figures.maps import OUTSIDE
from sre_triton.training.figures.style import COLOURS, LINES, house_style, shortened
from sre_triton.training.files import replacing

__all__ = ["Act", "check_film_format", "write_film", "write_gif"]

Colours = npt.NDArray[np.uint8]

_DOTS = 130  # per inch
_PANEL, _BELOW = 2.4, 1.5  # inches of a picture, and of the scores under them


@dataclass(frozen=True)
class Act:
    """What a network makes of the picture at each angle.

    Attributes:
        name: of the network.
        frames: its answer, turned back, (angles, H, W, 3), 0 to 255.
        scores: in percent, (angles,).
        shows: what the frames are.
        notes: lines that are said over the frame at each angle in place of the score.
    """

    name: str
    frames: Colours
    scores: Sequence[float]
    shows: str = "answer, turned back"
    notes: Sequence[Sequence[str]] = ()


def check_film_format(kind: str) -> None:
    """Makes sure that films of a format can be written.

    Raises:
        ValueError: MP4 is asked for, and imageio's ffmpeg is not installed.
    """
    if kind == "mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise ValueError("--film mp4 needs imageio's ffmpeg: pip install 'sre-triton[film]', or take --film gif")


def write_film(
    path: Path,
    angles: Sequence[float],
    turning: Colours,
    acts: Sequence[Act],
    score: str,
    caption: str = "",
    seconds: float = 6.0,
) -> None:
    """One frame per angle: the turned picture, each network's answer turned back, and the scores up to there.

    Args:
        path: of the film, ``.gif`` or ``.mp4``.
        angles: in degrees.
        turning: the picture at each angle, (angles, H, W, 3), 0 to 255.
        acts: of the networks.
        score: what is scored; in percent.
        caption: a line under it.
        seconds: that a full turn takes.

    Raises:
        ValueError: no such format, or see :func:`check_film_format`.
        OSError: the file cannot be written.
    """
    kind = path.suffix.removeprefix(".")
    if kind not in ("gif", "mp4"):
        raise ValueError(f"a film's format must be gif or mp4, got {path.name!r}")
    check_film_format(kind)
    frames = list(_frames(angles, turning, acts, score, caption))
    with replacing(path) as partial:
        (write_gif if kind == "gif" else _write_mp4)(partial, frames, seconds / len(frames))


def _frames(
    angles: Sequence[float], turning: Colours, acts: Sequence[Act], score: str, caption: str
) -> Iterator[Colours]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 1 + len(acts)
    tallest = max(pictures.shape[1] / pictures.shape[2] for pictures in (turning, *(act.frames for act in acts)))
    # Codecs take sides in blocks of 16 pixels.
    width, height = (16 * round(_DOTS * inches / 16) for inches in (_PANEL * columns, _PANEL * tallest + 2.6))
    with house_style():
        figure = Figure(figsize=(width / _DOTS, height / _DOTS), dpi=_DOTS, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        grid = figure.add_gridspec(2, columns, height_ratios=(_PANEL * tallest + 0.5, _BELOW))
        panels = [figure.add_subplot(grid[0, column]) for column in range(columns)]
        images = [
            panel.imshow(pictures[0])
            for panel, pictures in zip(panels, (turning, *(act.frames for act in acts)), strict=True)
        ]
        for panel in panels:
            panel.set_axis_off()
        below = figure.add_subplot(grid[1, :])
        lines = [
            below.plot([], [], color=COLOURS[number], linestyle=LINES[number], label=act.name)[0]
            for number, act in enumerate(acts)
        ]
        dots = [below.plot([], [], "o", color=COLOURS[number], markersize=5)[0] for number in range(len(acts))]
        _set_scales(below, acts, score)
        figure.supxlabel(caption, x=0.01, ha="left", color="#404040")
        lines_of_title = 1 + max(_title(act, index, score).count("\n") for act in acts for index in range(len(angles)))
        for index, angle in enumerate(angles):
            for image, pictures in zip(images, (turning, *(act.frames for act in acts)), strict=True):
                image.set_data(pictures[index])
            panels[0].set_title(f"image\nturned by {angle:g}°" + "\n " * (lines_of_title - 2))
            for panel, line, dot, act in zip(panels[1:], lines, dots, acts, strict=True):
                panel.set_title(_title(act, index, score))
                line.set_data(angles[: index + 1], act.scores[: index + 1])
                dot.set_data([angle], [act.scores[index]])
            canvas.draw()
            figure.set_layout_engine("none")  # what stands still in the first frame stands still in all
            yield np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _title(act: Act, index: int, score: str) -> str:
    notes = act.notes[index] if act.notes else [f"{score}: {act.scores[index]:.1f} %"]
    return "\n".join(shortened(line, 0.9 * _PANEL) for line in (act.name, act.shows, *notes))


def _set_scales(axis: Any, acts: Sequence[Act], score: str) -> None:
    values = [value for act in acts for value in act.scores]
    low, high = min(values), max(values)
    margin = max(0.08 * (high - low), (5 - (high - low)) / 2)
    axis.set(xlim=(0, 360), ylim=(max(-1, low - margin), min(101, high + margin)), xticks=range(0, 361, 45))
    axis.set(xlabel="Angle of rotation (°)", ylabel=f"{shortened(score[0].upper() + score[1:], _BELOW)} (%)")
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(acts))


def write_gif(path: Path, frames: Sequence[Colours], seconds: float) -> None:
    from PIL import Image

    pictures = [Image.fromarray(frame) for frame in frames]
    # One palette for all frames, of some of them: with one each, still parts would flicker.
    some = Image.fromarray(np.concatenate(frames[:: max(1, len(frames) // 4)]))
    drawn = np.array([*(_rgb(colour) for colour in COLOURS[:6]), (0, 0, 0), (255, 255, 255), OUTSIDE], np.uint8)
    palette = some.quantize(256 - len(drawn), method=Image.Quantize.MEDIANCUT)
    colours = np.array(palette.getpalette(), np.uint8).reshape(-1, 3)[: 256 - len(drawn)]
    # Lines, ground and type are few pixels: they keep their colours, and none that is nearly one of them.
    distances = np.abs(colours[:, None].astype(int) - drawn).max(axis=2)
    near = distances.min(axis=1) < 12
    colours[near] = drawn[distances.argmin(axis=1)[near]]
    palette.putpalette(np.concatenate([colours, drawn]).tobytes())
    indexed = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    indexed[0].save(
        path, format="GIF", save_all=True, append_images=indexed[1:], duration=round(1000 * seconds), loop=0
    )


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour.removeprefix("#")))


def _write_mp4(path: Path, frames: Sequence[Colours], seconds: float) -> None:
    import imageio_ffmpeg

    height, width = frames[0].shape[:2]
    writer = imageio_ffmpeg.write_frames(
        path, (width, height), fps=1 / seconds, codec="libx264", quality=8, output_params=["-f", "mp4"]
    )
    try:
        writer.send(None)  # starts ffmpeg
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
    finally:
        writer.close()
