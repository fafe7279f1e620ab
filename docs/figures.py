"""``python -m docs.figures OUT``: every picture and film of the documentation, drawn from the code itself.

``make docs`` draws them into the site. The same code draws the same files; nothing is downloaded, nothing is measured
but what ``bench/results`` holds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import sre_triton
from sre_triton.equivariance import equivariance_errors, rotation
from sre_triton.training.figures.film import write_gif
from sre_triton.training.figures.maps import overlay
from sre_triton.training.figures.style import COLOURS, MARKERS, drawing, house_style

__all__ = ["FIGURES", "draw", "fundus"]

RESULTS = Path(__file__).parent.parent / "bench" / "results"

# Inches. Pages show figures about 1.6 times as large on a desk, and as they are on a phone.
WIDTH = 4.1

Floats = npt.NDArray[np.floating[Any]]


@lru_cache(maxsize=4)
def fundus(side: int) -> Tensor:
    """scikit-image's photograph of the back of an eye, (1, 3, side, side), 0 to 1."""
    from skimage.data import retina
    from skimage.transform import resize

    pixels = resize(retina(), (side, side), anti_aliasing=True)
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float().contiguous()


def _smooth(side: int, pixels: float) -> Tensor:
    """The photograph without detail below so many pixels (the deviation of a Gaussian)."""
    from scipy.ndimage import gaussian_filter

    return torch.from_numpy(gaussian_filter(fundus(side).numpy(), (0, 0, pixels, pixels)))


def draw_vessels(path: Path) -> None:
    """What the pretrained ring U-Net finds in the photograph, turned three ways."""
    network = sre_triton.load("vessels")
    photograph, angles = fundus(384), (0, 40, 90)
    with drawing(path, WIDTH, 2.95) as figure:
        grid = figure.subplots(2, len(angles))
        for (above, below), angle in zip(grid.T, angles, strict=True):
            turned = rotation(angle, interpolation="bilinear")(photograph).clamp(0, 1)
            vessel = torch.from_numpy(network.probabilities(turned[0])[1])
            back = rotation(-angle, interpolation="bilinear")(vessel[None, None])[0, 0]
            above.imshow(turned[0].movedim(0, -1))
            above.set_title(f"turned by {angle}°")
            below.imshow(overlay(photograph[0].movedim(0, -1).numpy(), (back >= (network.threshold or 0.5)).numpy()))
        for axes in grid.flat:
            axes.set_axis_off()
        grid[1, 1].set_title("vessels found, turned back")


def _paint(axes: Any, size: int, colours: Callable[[int, int], str]) -> None:
    """A kernel as a square of taps."""
    from matplotlib.patches import Rectangle

    radius = size // 2
    for row in range(-radius, radius + 1):
        for column in range(-radius, radius + 1):
            place = (column - 0.5, row - 0.5)
            axes.add_patch(Rectangle(place, 1, 1, facecolor=colours(row, column), edgecolor="white", linewidth=0.5))
    axes.set(xlim=(-radius - 0.7, radius + 0.7), ylim=(radius + 0.7, -radius - 0.7), aspect="equal")
    axes.set_axis_off()


def draw_rings(path: Path) -> None:
    """Which tap belongs to which ring, for each kernel size."""
    from matplotlib.patches import Circle, Patch

    sizes = (3, 5, 7, 9, 11)
    with drawing(path, WIDTH, 2.9) as figure:
        grid = figure.subplots(2, 3)
        for axes, size in zip(grid.flat, sizes, strict=False):
            geometry = sre_triton.ring_geometry((size, size))
            ring_of = dict(zip(geometry.offsets, geometry.weights.T, strict=True))

            def colour(row: int, column: int, ring_of: dict[Any, Floats] = ring_of) -> str:
                column_of_table = ring_of[row, column]
                return COLOURS[int(column_of_table.argmax())] if column_of_table.any() else "#eeeeee"

            _paint(axes, size, colour)
            for edge in geometry.edges[1:]:
                axes.add_patch(Circle((0, 0), edge, fill=False, edgecolor="#202020", linewidth=0.5))
            axes.set_title(f"k = {size}: {sum(geometry.tap_counts)} of {size * size} taps")
        labels = [Patch(color=COLOURS[ring], label=f"ring {ring}") for ring in range(sizes[-1] // 2 + 1)]
        grid.flat[-1].legend(handles=[*labels, Patch(color="#eeeeee", label="no weight")], loc="center", ncols=1)
        grid.flat[-1].set_axis_off()


def draw_antialiased(path: Path) -> None:
    """The rings of a 9x9 kernel one by one, hard and anti-aliased."""
    with drawing(path, WIDTH, 1.6) as figure:
        kinds = {"hard": False, "anti-aliased": True}
        grid = figure.subplots(2, 5)
        for row, (name, antialias) in zip(grid, kinds.items(), strict=True):
            geometry = sre_triton.ring_geometry((9, 9), antialias=antialias)
            for ring, axes in enumerate(row):
                shown = axes.imshow(geometry.weights[ring].reshape(9, 9), cmap="cividis", vmin=0, vmax=1)
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
                if not antialias:
                    axes.set_title(f"ring {ring}")
            row[0].set_ylabel(name)
        figure.colorbar(shown, ax=grid, label="share of the tap", fraction=0.025, ticks=[0, 0.5, 1])


def draw_ring_sums(path: Path) -> None:
    """A ring convolution in two steps: ring sums, then a product with the ring weights."""
    from matplotlib.patches import Circle

    image = fundus(384)[:, 1:2, 146:218, 226:298]
    geometry = sre_triton.ring_geometry((9, 9))
    unit = torch.eye(geometry.num_rings)[:, None]  # each output channel sums one ring
    sums = sre_triton.sre_conv2d(image, unit, kernel_size=9)[0]
    weight = torch.tensor([-2.0, -1.0, 0.1, 0.2, 0.2])  # dark lines become bright
    output = torch.einsum("b,bhw->hw", weight, sums)
    with drawing(path, WIDTH, 2.2, layout=None) as figure:
        left, right = (figure.add_axes((corner, 0.14, 0.3, 0.72)) for corner in (0.0, 0.7))
        left.imshow(image[0, 0, 4:-4, 4:-4], cmap="gray")
        for edge in geometry.edges[1:]:
            left.add_patch(Circle((33, 30), edge, fill=False, edgecolor="#F0E442", linewidth=0.7))
        left.set_title("image")
        for ring, one in enumerate(sums):
            axes = figure.add_axes((0.42, 0.815 - 0.2 * ring, 0.12, 0.185))
            axes.imshow(one, cmap="gray")
            axes.set_axis_off()
            height = 0.9075 - 0.2 * ring
            figure.text(0.405, height, f"{geometry.tap_counts[ring]}", ha="right", va="center", color="#404040")
            figure.text(0.555, height, f"× {weight[ring]:g}", ha="left", va="center")
        right.imshow(output, cmap="gray")
        right.set_title("output")
        for axes in (left, right):
            axes.set_axis_off()
        figure.text(0.335, 0.5, "→", ha="center", va="center", fontsize=12)
        figure.text(0.675, 0.5, "→", ha="center", va="center", fontsize=12)
        figure.text(0.15, 0.04, "additions only", ha="center")
        figure.text(0.85, 0.04, "1 multiplication a ring", ha="center")


def _stack(layer: Callable[[int, int], nn.Module], depth: int, width: int, channels: int = 3) -> nn.Sequential:
    """``depth`` layers with ReLU between them."""
    layers: list[nn.Module] = []
    for number in range(depth):
        layers += [layer(channels if number == 0 else width, width), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def draw_receptive_fields(path: Path) -> None:
    """How much each pixel of the input moves one pixel in the middle of the output: mean over random networks."""
    kinds: dict[str, Callable[[int, int], nn.Module]] = {
        "nn.Conv2d, 3x3": lambda i, o: nn.Conv2d(i, o, 3, padding=1),
        "nn.Conv2d, 9x9": lambda i, o: nn.Conv2d(i, o, 9, padding=4),
        "rings, k = 3": lambda i, o: sre_triton.SREConv2d(i, o, 3, padding=1),
        "rings, k = 9": lambda i, o: sre_triton.SREConv2d(i, o, 9, padding=4),
    }
    with drawing(path, WIDTH, 1.45) as figure:
        for axes, (name, layer) in zip(figure.subplots(1, len(kinds)), kinds.items(), strict=True):
            torch.manual_seed(0)
            total = torch.zeros(41, 41)
            for _ in range(4):
                x = torch.randn(1, 3, 41, 41, requires_grad=True)
                network = _stack(layer, 4, 8)
                (gradient,) = torch.autograd.grad(network(x)[0, :, 20, 20].square().sum(), x)
                total += gradient.abs().sum(dim=(0, 1)) / gradient.abs().sum()
            axes.imshow((total / total.max()).sqrt(), cmap="magma")
            axes.set_title(name)
            axes.set(xticks=[0, 20, 40], yticks=[])
            axes.grid(False)


def _one_of_each(width: int) -> dict[str, Callable[[int, int], nn.Module]]:
    return {
        "nn.Conv2d": lambda i, o: nn.Conv2d(i, o, width, padding=width // 2),
        "rings": lambda i, o: sre_triton.SREConv2d(i, o, width, padding=width // 2),
        "anti-aliased rings": lambda i, o: sre_triton.SREConv2d(i, o, width, padding=width // 2, antialias=True),
    }


def draw_errors(path: Path) -> None:
    """Relative error of random 9x9 layers when a smooth image is turned, angle by angle."""
    angles = (5, *range(10, 90, 10), 85, 90)
    x = _smooth(128, 1.5)
    with drawing(path, WIDTH, 2.2) as figure:
        for axes, depth in zip(figure.subplots(1, 2, sharey=True), (1, 4), strict=True):
            for number, (name, layer) in enumerate(_one_of_each(9).items()):
                errors = []
                for seed in range(2):
                    torch.manual_seed(seed)
                    network = _stack(layer, depth, 4)
                    errors.append([*equivariance_errors(network, x, angles, margin=4 * depth + 6).values()])
                axes.semilogy(
                    angles,
                    np.mean(errors, axis=0),
                    color=COLOURS[(1, 0, 2)[number]],
                    marker=MARKERS[number],
                    label=name,
                )
            axes.set_title("one layer" if depth == 1 else f"{depth} layers with ReLU")
            axes.set(xlabel="angle of rotation (°)", xticks=range(0, 91, 30))
        figure.axes[0].set_ylabel("relative error")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3)


def draw_turning(path: Path) -> None:
    """A film: the image turns; the features of two untrained networks, turned back."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    side, angles = 128, range(0, 360, 15)
    x = fundus(side)
    inside = (torch.arange(side) - (side - 1) / 2).square()
    disc = inside[:, None] + inside <= (0.44 * side) ** 2
    kinds = _one_of_each(5)
    features: dict[str, list[Tensor]] = {}
    for name in ("nn.Conv2d", "rings"):
        torch.manual_seed(3)
        network = _stack(kinds[name], 3, 8)
        with torch.no_grad():
            found = [rotation(-a)(network(rotation(a)(x).clamp(0, 1))[:, 2:3])[0, 0] for a in angles]
        features[name] = [torch.where(disc, one, torch.nan) for one in found]
    frames = []
    with house_style():
        figure = Figure(figsize=(WIDTH, 1.75), dpi=140)
        canvas = FigureCanvasAgg(figure)
        panels = [figure.add_axes((0.01 + 0.333 * place, 0.02, 0.315, 0.74)) for place in range(3)]
        for index, angle in enumerate(angles):
            for panel in panels:
                panel.clear()
                panel.set_axis_off()
            panels[0].imshow(rotation(angle)(x)[0].clamp(0, 1).movedim(0, -1))
            panels[0].set_title(f"image\nturned by {angle}°")
            for panel, (name, maps) in zip(panels[1:], features.items(), strict=True):
                first = maps[0][disc]
                panel.imshow(maps[index], cmap="magma", vmin=float(first.min()), vmax=float(first.max()))
                change = (maps[index][disc] - first).norm() / first.norm()
                panel.set_title(f"features of {name},\nturned back: {100 * change:.1f} % off")
            canvas.draw()
            frames.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    write_gif(path, frames, 0.2)


def draw_strides(path: Path) -> None:
    """Where windows of stride 2 lie on an even and an odd number of pixels."""
    from matplotlib.patches import Rectangle

    rows = [
        ("8 pixels, stride 2, k = 3: off centre", 8, 3, 2, 1),
        ("9 pixels, stride 2, k = 3: centred", 9, 3, 2, 1),
        ("8 pixels, centred pooling: centred", 8, 2, 2, 0),
        ("9 pixels, centred pooling: centred", 9, 3, 2, 1),
    ]
    with drawing(path, WIDTH, 2.3) as figure:
        axes = figure.subplots()
        for number, (label, pixels, window, stride, padding) in enumerate(rows):
            top = -2.6 * number
            left = -pixels / 2
            for pixel in range(pixels):
                axes.add_patch(Rectangle((left + pixel, top), 1, 0.8, facecolor="#dddddd", edgecolor="white"))
            starts = range(-padding, pixels + padding - window + 1, stride)
            for n, start in enumerate(starts):
                colour = COLOURS[n % 2]
                middle = left + start + window / 2
                axes.plot(
                    [left + start + 0.12, left + start + window - 0.12],
                    [top - 0.25 - 0.2 * (n % 2)] * 2,
                    color=colour,
                    linewidth=2,
                )
                axes.plot(middle, top + 0.4, MARKERS[0], color=colour, markersize=4)
            axes.text(0, top + 1.05, label, ha="center")
            axes.plot([0, 0], [top - 0.6, top + 0.95], color="#606060", linewidth=0.6, linestyle=":")
        axes.set(xlim=(-6, 6), ylim=(top - 0.8, 2), aspect="auto")
        axes.set_axis_off()


def draw_speed(path: Path) -> None:
    """Times faster than nn.Conv, geometric means over layers, from what bench/results holds."""
    means = {name: json.loads((RESULTS / f"{name}.json").read_text())["means"] for name in ("cpu", "cpu-pure")}
    groups = list(means["cpu"])
    bars: dict[str, Callable[[str, str], float]] = {
        "reference package": lambda group, mode: means["cpu"][group][mode] / means["cpu"][group][f"SRE_Conv {mode}"],
        "without the native kernel": lambda group, mode: means["cpu-pure"][group][mode],
        "with the native kernel": lambda group, mode: means["cpu"][group][mode],
    }
    with drawing(path, WIDTH, 4.2) as figure:
        longest = max(value(group, mode) for value in bars.values() for group in groups for mode in ("infer", "train"))
        for axes, mode, title in zip(
            figure.subplots(2, 1, sharex=True), ("infer", "train"), ("inference", "training step"), strict=True
        ):
            for number, (name, value) in enumerate(bars.items()):
                places = [-place - 0.27 * (number - 1) for place in range(len(groups))]
                widths = [value(group, mode) for group in groups]
                drawn = axes.barh(places, widths, 0.25, color=("#999999", COLOURS[5], COLOURS[0])[number], label=name)
                axes.bar_label(drawn, fmt="%.1f", padding=1, fontsize=6.5)
            axes.axvline(1, color="#202020", linewidth=0.7)
            axes.set(title=title, xlim=(0, 1.08 * longest))
            axes.set_yticks([-place for place in range(len(groups))], [group.removesuffix(" cpu") for group in groups])
            axes.grid(axis="y", visible=False)
        axes.set_xlabel("times as fast as nn.Conv")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(
            handles[::-1], labels[::-1], loc="outside upper center", ncols=3, columnspacing=0.8, handlelength=1
        )


def draw_hard(path: Path) -> None:
    """The layers that are hard to speed up, one by one: where nn.Conv wins shows."""
    found = [
        row for row in json.loads((RESULTS / "cpu.json").read_text())["cases"] if not row["modes"]["infer"]["in_mean"]
    ]
    labels = [f"{row['case']}, k={row['k']}" for row in found]
    with drawing(path, WIDTH, 0.6 + 0.125 * len(found)) as figure:
        axes = figure.subplots()
        for number, (mode, name) in enumerate({"infer": "inference", "train": "training step"}.items()):
            speeds = [row["modes"][mode]["ratio"]["nn.Conv"] for row in found]
            style = {"linestyle": "none", "marker": MARKERS[number], "markersize": 3.5, "color": COLOURS[number]}
            axes.semilogx(speeds, [-place for place in range(len(found))], label=name, **style)
        axes.axvline(1, color="#202020", linewidth=0.7)
        axes.set_yticks([-place for place in range(len(found))], labels)
        axes.set(xlabel="times as fast as nn.Conv; left of the line slower", ylim=(-len(found), 1))
        axes.set_xticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
        axes.minorticks_off()
        figure.legend(loc="outside upper center", ncols=2)


FIGURES: dict[str, Callable[[Path], None]] = {
    "vessels.jpg": draw_vessels,
    "rings.svg": draw_rings,
    "antialiased.svg": draw_antialiased,
    "ring-sums.png": draw_ring_sums,
    "receptive-fields.png": draw_receptive_fields,
    "errors.svg": draw_errors,
    "turning.gif": draw_turning,
    "strides.svg": draw_strides,
    "speed.svg": draw_speed,
    "hard-layers.svg": draw_hard,
}
"""What draws each file."""


def draw(folder: Path, names: Sequence[str] = tuple(FIGURES)) -> None:
    """Draws figures into a folder.

    Raises:
        KeyError: there is no figure of a name.
    """
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = folder / name
        if path.suffix != ".jpg":
            FIGURES[name](path)
            continue
        lossless = path.with_suffix(".png")  # photographs take a fifth of the space as JPEG
        FIGURES[name](lossless)
        with Image.open(lossless) as picture:
            picture.convert("RGB").save(path, quality=85)
        lossless.unlink()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m docs.figures", description=__doc__)
    parser.add_argument("out", type=Path, help="folder to draw into")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"only these of {', '.join(FIGURES)}")
    options = parser.parse_args(arguments)
    draw(options.out, options.names or tuple(FIGURES))
    return 0


if __name__ == "__main__":
    sys.exit(main())
