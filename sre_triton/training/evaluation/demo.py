"""The demonstration: a ring U-Net and an ordinary one learn vessels, and are then shown them turned."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from sre_triton.training.data.warp import turn
from sre_triton.training.evaluation.compare import compare
from sre_triton.training.figures import pyplot, save_figure
from sre_triton.training.options import CompareOptions, SegmentOptions
from sre_triton.training.runs.fitting import prepare_machine
from sre_triton.training.runs.restore import load_network

__all__ = ["run_demo"]

_NETWORKS = {"sre_unet": "ring U-Net", "unet": "ordinary U-Net"}
_ANGLES = (0, 30, 90, 160)
_SIDE = 256


def run_demo(output: Path, seed: int = 1, console: Console | None = None) -> None:
    """Trains both networks on the embedded vessels for about two minutes on two cores, and turns what they see.

    Writes the comparison over 36 angles (see :mod:`.compare`) and ``fundus.png``: the vessels that both find in a real
    fundus photograph at four angles, turned back. Run again, it shows what was trained before.

    Args:
        output: folder of it all.
        seed: of the training.

    Raises:
        Interrupted: the user stopped it; run again, it goes on.
        OSError: the folder cannot be written to.
        ImportError: the extra ``sre-triton[train]`` is not installed.
    """
    console = console or Console()
    jobs = min(2, os.cpu_count() or 1)
    options = SegmentOptions(
        epochs=8, cos=True, lr=5e-3, balance_rings=True, crop_size=128, window_size=_SIDE, crops_per_image=6,
        vessels_size=_SIDE, vessels_count=[8, 2, 3], threads=1 if jobs > 1 else 0, no_cuda=jobs > 1,
    )  # fmt: skip
    prepare_machine(threads=options.threads)
    compare(options, CompareOptions(models=list(_NETWORKS), seeds=[seed], jobs=jobs, output=output), console)
    networks = {title: load_network(output / name / f"seed-{seed}")[0] for name, title in _NETWORKS.items()}
    _draw_fundus(output / "fundus.png", networks)
    console.print(f"A real fundus photograph, and the vessels found in it: {output / 'fundus.png'}", soft_wrap=True)


def _fundus() -> Tensor:
    from skimage.data import retina
    from skimage.transform import resize

    pixels = resize(retina(), (_SIDE, _SIDE), anti_aliasing=True)
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float().contiguous()


@torch.no_grad()
def _draw_fundus(path: Path, networks: dict[str, nn.Module]) -> None:
    image = _fundus()
    rows = 1 + len(networks)
    figure, axes = pyplot().subplots(
        rows, len(_ANGLES) + 1, figsize=(2.4 * (len(_ANGLES) + 1), 2.4 * rows), layout="compressed"
    )
    for axis in axes.flat:
        axis.set_axis_off()
    found: dict[str, list[Tensor]] = {title: [] for title in networks}
    for column, angle in enumerate(_ANGLES):
        turned = turn(image, angle, interpolation="bilinear")
        _show(axes[0, column], turned[0].permute(1, 2, 0), f"turned by {angle}°")
        for row, (title, network) in enumerate(networks.items(), start=1):
            probability = F.softmax(network(turned), dim=1)[:, 1:]
            back = turn(probability, -angle, interpolation="bilinear")[0, 0]
            found[title].append(back)
            _show(axes[row, column], back, f"{title}, turned back")
    for row, maps in enumerate(found.values(), start=1):
        spread = torch.stack(maps).std(dim=0, correction=0)
        _show(axes[row, -1], spread, "deviation over the angles", colours="magma", high=0.3)
    save_figure(figure, path)


def _show(axis: Any, pixels: Tensor, title: str, colours: str = "gray", high: float = 1.0) -> None:
    axis.imshow(pixels.clamp(0, 1).numpy(), cmap=colours, vmin=0, vmax=high)
    axis.set_title(title, fontsize=8)
