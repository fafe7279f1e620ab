"""A stack of ring convolutions against the same stack of ordinary ones, on a fundus photograph that turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sre_triton.equivariance import equivariance_error, rotation
from sre_triton.layers import SREConv2d

__all__ = ["run_demo"]

_KERNEL = 9
_CHANNELS = (3, 16, 32, 8)
_ANGLES = tuple(range(0, 360, 10))
_PICTURED = (30, 45, 90, 160)
# Beyond the reach of three stacked kernels from the disc outside which the image leaves its frame.
_MARGIN = (_KERNEL // 2) * (len(_CHANNELS) - 1)


def run_demo(output: Path, size: int = 256, seed: int = 0) -> None:
    """Prints a table and writes a picture.

    Args:
        output: where the PNG goes; written under another name first, so that it is whole or absent.
        size: side of the square image in pixels.
        seed: of both networks' weights, which stay random: equivariance needs no training.

    Raises:
        ImportError: the extra ``sre-triton[demo]`` is not installed.
    """
    from rich.console import Console
    from rich.progress import Progress

    image = _fundus(size)
    stacks = {
        "nn.Conv2d": _stack(nn.Conv2d, seed),
        "SREConv2d": _stack(SREConv2d, seed),
        "SREConv2d, anti-aliased": _stack(SREConv2d, seed, antialias=True),
    }
    console = Console()
    console.print(
        f"Fundus photograph (scikit-image), {size} x {size} pixels; {len(_CHANNELS) - 1} random "
        f"{_KERNEL} x {_KERNEL} layers with ReLU, channels {' to '.join(map(str, _CHANNELS))}"
    )
    errors: dict[str, dict[str, float]] = {}
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("turning", total=len(stacks) * (len(_ANGLES) + 2))
        for name, stack in stacks.items():
            row = {}
            for group in ("rotations", "flips"):
                row[group] = equivariance_error(stack, image, group)
                progress.advance(task)
            angles = []
            for angle in _ANGLES:
                angles.append(equivariance_error(stack, image, angle, margin=_MARGIN))
                progress.advance(task)
            row["angles"] = statistics.mean(angles)
            errors[name] = row
    times = _interleaved_times(stacks, image)
    console.print(_table(stacks, errors, times))
    pictured = {name: stacks[name] for name in ("nn.Conv2d", "SREConv2d")}
    _draw(output, image, pictured)
    console.print(f"Feature maps turned back, and what they lost: {output}")


def _fundus(size: int) -> Tensor:
    from skimage.data import retina
    from skimage.transform import resize

    pixels = resize(retina(), (size, size), anti_aliasing=True)
    return torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0).float().contiguous()


def _stack(conv: Callable[..., nn.Module], seed: int, **options: Any) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for i, o in zip(_CHANNELS[:-1], _CHANNELS[1:], strict=True):
        layers += [conv(i, o, _KERNEL, padding=_KERNEL // 2, **options), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def _interleaved_times(stacks: dict[str, nn.Sequential], image: Tensor, rounds: int = 15) -> dict[str, float]:
    """Median seconds per image; one run of each in turn, so that all meet the same moods of the machine."""
    seconds: dict[str, list[float]] = {name: [] for name in stacks}
    with torch.no_grad():
        for turn in range(rounds + 2):
            for name, stack in stacks.items():
                start = time.perf_counter()
                stack(image)
                if turn >= 2:  # the first runs warm up
                    seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _table(stacks: dict[str, nn.Sequential], errors: dict[str, dict[str, float]], times: dict[str, float]) -> Any:
    from rich.table import Table

    table = Table(title="Relative equivariance error (0 is perfect), size and speed")
    for header in ("stack", "90-degree turns", "flips", f"mean of {len(_ANGLES)} angles", "parameters", "ms per image"):
        table.add_column(header, justify="left" if header == "stack" else "right")
    for name, stack in stacks.items():
        row = errors[name]
        table.add_row(
            name,
            f"{row['rotations']:.1e}",
            f"{row['flips']:.1e}",
            f"{row['angles']:.4f}",
            f"{sum(p.numel() for p in stack.parameters()):,}",
            f"{1e3 * times[name]:.1f}",
        )
    return table


def _draw(output: Path, image: Tensor, stacks: dict[str, nn.Sequential]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = 1 + 2 * len(stacks)
    figure, axes = plt.subplots(rows, len(_PICTURED), figsize=(2.6 * len(_PICTURED), 2.6 * rows), layout="compressed")
    for column, angle in enumerate(_PICTURED):
        turned = rotation(angle)(image)
        _show(axes[0, column], turned[0].permute(1, 2, 0).clamp(0, 1), f"input at {angle}°")
        for i, (name, stack) in enumerate(stacks.items()):
            with torch.no_grad():
                upright, back = stack(image)[0], rotation(-angle)(stack(turned))[0]
            channel = int(upright.flatten(1).std(dim=1).argmax())
            scale = (float(upright[channel].min()), float(upright[channel].max()))
            _show(axes[1 + 2 * i, column], back[channel], f"{name}, turned back", scale)
            spread = scale[1] - scale[0]
            loss = (back - upright)[channel].abs()
            _show(axes[2 + 2 * i, column], loss, "difference to upright", (0.0, 0.2 * spread), "magma")
    partial = output.with_name(output.name + ".part")
    figure.savefig(partial, dpi=90, format="png")
    plt.close(figure)
    partial.replace(output)


def _show(
    axis: Any, pixels: Tensor, title: str, scale: Iterable[float] | None = None, colours: str = "viridis"
) -> None:
    low, high = scale or (None, None)
    axis.imshow(pixels.numpy(), vmin=low, vmax=high, cmap=colours)
    axis.set_title(title, fontsize=8)
    axis.set_axis_off()
