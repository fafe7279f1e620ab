"""What a network looks at while its input turns: Grad-CAM and feature maps turned back, and its kernels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from sre_triton.functional import expand_kernel
from sre_triton.layers import RingConvNd
from sre_triton.training.data.pictures import read_picture
from sre_triton.training.data.warp import turn
from sre_triton.training.figures import draw_kernels, draw_profiles, drawing
from sre_triton.training.files import replacing, write_json
from sre_triton.training.options import VisualizeOptions
from sre_triton.training.runs.restore import load_network
from sre_triton.training.tasks.registry import task_type

__all__ = ["Visualization", "visualize_image", "visualized_turns"]

_PICTURED = (0, 30, 45, 90, 160)


@dataclass(frozen=True)
class Visualization:
    """What a network makes of an image at each angle; every map is turned back to the upright image.

    Attributes:
        angles: in degrees, (A,).
        inputs: (A, C, H, W).
        cams: Grad-CAM, (A, H, W), 0 to 1.
        maps: feature maps of the chosen channels, (A, channels, H, W).
        outputs: class probabilities (A, classes); of a segmentation the share of each class of all pixels.
    """

    angles: tuple[float, ...]
    inputs: Tensor
    cams: Tensor
    maps: Tensor
    outputs: Tensor

    def deviation(self, what: Tensor) -> Tensor:
        """How much maps change with the angle, relative to how much the upright map varies over its pixels.

        Both are standard deviations; only the disc that stays in the frame at every angle counts.
        """
        side = what.shape[-1]
        steps = torch.arange(side) - (side - 1) / 2
        inside = (steps[:, None] ** 2 + steps**2).sqrt() < 0.8 * side / 2
        spread = what.std(dim=0, correction=0)[..., inside].square().mean(dim=-1).sqrt()
        return spread / what[0][..., inside].std(dim=-1).clamp(min=1e-12)


def visualize_image(path: Path, options: VisualizeOptions, console: Console | None = None) -> None:
    """Turns a picture, and writes what the network of a checkpoint makes of it.

    Writes ``turning.gif``, ``turning.png``, ``kernels.png``, ``profiles.png`` and ``visualization.json``.

    Raises:
        ValueError: an option, the picture or the checkpoint is not as it should be.
        OSError: a file is missing or cannot be written.
    """
    console = console or Console()
    network, about, trained = load_network(options.checkpoint)
    if about["ndim"] != 2:
        raise ValueError(f"{options.checkpoint} is of a network for volumes: visualize takes pictures")
    device = "cuda" if torch.cuda.is_available() and not options.no_cuda else "cpu"
    pixels = torch.from_numpy(read_picture(path))[None]
    image = task_type(trained).prepare_picture(trained, about, pixels, options.size).to(device)
    found = visualized_turns(network.to(device), image, options)
    options.output.mkdir(parents=True, exist_ok=True)
    _draw_turning(options.output / "turning.png", found)
    _animate(options.output / "turning.gif", found)
    _draw_weights(options.output, network, trained.model_type, "png")
    cam, maps = float(found.deviation(found.cams)), found.deviation(found.maps)
    summary = {
        "image": str(path),
        "checkpoint": str(options.checkpoint),
        "angles": found.angles,
        "grad_cam_deviation": cam,
        "feature_map_deviation": [float(value) for value in maps],
        "output_deviation": [float(value) for value in found.outputs.std(dim=0, correction=0)],
    }
    write_json(options.output / "visualization.json", summary)
    console.print(
        f"Standard deviation over {len(found.angles)} angles, relative to that over the image: "
        f"Grad-CAM {cam:.3f}, feature maps {float(maps.mean()):.3f}; "
        f"outputs {float(found.outputs.std(dim=0, correction=0).max()):.4f}"
    )
    console.print(f"{options.output}/turning.gif, turning.png, kernels.png, profiles.png, visualization.json")


def visualized_turns(network: nn.Module, image: Tensor, options: VisualizeOptions) -> Visualization:
    """Turns an image (1, C, H, W) through the full circle and looks at a network's layer.

    Raises:
        ValueError: there is no such layer or class, or the step does not divide the circle.
    """
    from monai.visualize import GradCAM

    count = round(360 / options.step_degrees) if options.step_degrees > 0 else 0
    if count < 1 or abs(count * options.step_degrees - 360) > 1e-9:
        raise ValueError(f"--step-degrees must divide 360, got {options.step_degrees:g}")
    pooled = _Pooled(network).eval()
    name = options.layer or _last_spatial(pooled, image)
    if name not in dict(network.named_modules()):
        raise ValueError(f"--layer {name!r}: the network has no such layer")
    with torch.no_grad():
        upright = pooled(image)
    target = options.target_class
    if target is None:
        target = 1 if pooled.segments else int(upright.argmax())  # vessels; the predicted class
    if not 0 <= target < upright.shape[1]:
        raise ValueError(f"--target-class must be 0 to {upright.shape[1] - 1}, got {target}")
    seen: list[Tensor] = []
    hook = network.get_submodule(name).register_forward_hook(lambda _, __, output: seen.append(output.detach()))
    cam = GradCAM(nn_module=pooled, target_layers=f"network.{name}", register_backward=True)
    angles = tuple(index * options.step_degrees for index in range(count))
    inputs, cams, maps, outputs = [], [], [], []
    channels: Tensor | None = None
    try:
        for angle in track(angles, "turning", transient=True):
            turned = turn(image, angle, interpolation=options.interpolation)
            seen.clear()
            heat = torch.as_tensor(cam(turned, class_idx=target)).detach()
            features = F.interpolate(seen[-1], image.shape[2:], mode="bilinear", align_corners=False)
            if channels is None:
                channels = features[0].flatten(1).std(dim=1).argsort(descending=True)[: options.channels]
            back = turn(torch.cat([heat, features[:, channels]], dim=1), -angle, interpolation="bilinear")
            inputs.append(turned[0].cpu())
            cams.append(back[0, 0].cpu())
            maps.append(back[0, 1:].cpu())
            outputs.append(pooled.probabilities(turned)[0].cpu())
    finally:
        hook.remove()
    return Visualization(angles, torch.stack(inputs), torch.stack(cams), torch.stack(maps), torch.stack(outputs))


class _Pooled(nn.Module):
    """A network with one logit per class; those of a segmentation are averaged over the image."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.segments = False

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        self.segments = logits.dim() == 4
        return logits.mean(dim=(2, 3)) if self.segments else logits

    @torch.no_grad()
    def probabilities(self, x: Tensor) -> Tensor:
        logits = self.network(x).softmax(dim=1)
        return logits.mean(dim=(2, 3)) if logits.dim() == 4 else logits


def _last_spatial(pooled: _Pooled, image: Tensor) -> str:
    """Name of the last convolution whose output has spatial extent and more channels than classes."""
    names: list[str] = []
    kinds = (RingConvNd, nn.Conv2d)
    hooks = [
        module.register_forward_hook(
            lambda _, __, output, name=name: names.append(name) if output.shape[-1] > 1 else None
        )
        for name, module in pooled.network.named_modules()
        if isinstance(module, kinds)
    ]
    try:
        with torch.no_grad():
            classes = pooled(image).shape[1]
    finally:
        for hook in hooks:
            hook.remove()
    wide = [name for name in names if pooled.network.get_submodule(name).out_channels > classes]  # type: ignore[operator]
    if not wide:
        raise ValueError("the network has no convolution to look at: name a layer with --layer")
    return wide[-1]


def _first_convolution(network: nn.Module) -> tuple[str, RingConvNd | nn.Conv2d]:
    for name, module in network.named_modules():
        if isinstance(module, (RingConvNd, nn.Conv2d)) and max(module.kernel_size) > 1:
            return name, module
    raise ValueError("the network has no convolution larger than 1x1")


def _draw_weights(folder: Path, network: nn.Module, caption: str, figure_format: str) -> None:
    """The kernels of the network's first convolution, for its first input channel."""
    name, layer = _first_convolution(network)
    if isinstance(layer, RingConvNd):
        geometry = layer.geometry
        weights = layer.ring_weight().detach()
        dense = expand_kernel(weights, layer.kernel_size, geometry.circular, geometry.antialias)
        # A last ring that is the corner taps alone has no width of its own.
        places = [*geometry.edges, geometry.edges[-1] + 0.5][: geometry.num_rings + 1]
        profiles = weights[:, 0].cpu().numpy()
    else:
        dense = layer.weight.detach()
        steps = np.arange(layer.kernel_size[0]) - (layer.kernel_size[0] - 1) / 2
        places = np.hypot(steps[:, None], steps).flatten().tolist()
        profiles = dense[:, 0].flatten(1).cpu().numpy()
    draw_kernels(folder / f"kernels.{figure_format}", dense[:, 0].cpu().numpy(), name, caption)
    draw_profiles(
        folder / f"profiles.{figure_format}", profiles, np.array(places), name, caption,
        is_steps=isinstance(layer, RingConvNd),
    )  # fmt: skip


def _rows(found: Visualization) -> list[tuple[str, Tensor, str]]:
    rows = [("input", found.inputs, "gray"), ("Grad-CAM, turned back", found.cams, "magma")]
    rows += [(f"map {i + 1}, turned back", found.maps[:, i], "viridis") for i in range(found.maps.shape[1])]
    return rows


def _pixels(row: Tensor, index: int) -> Any:
    shown = row[index]
    if shown.dim() == 3:
        low, high = row.min(), row.max()
        shown = ((shown - low) / (high - low).clamp(min=1e-12)).permute(1, 2, 0).squeeze(-1)
    return shown.numpy()


def _draw_turning(path: Path, found: Visualization) -> None:
    """Rows: input, Grad-CAM and maps; columns: some angles, and the standard deviation over all."""
    nearest = [min(range(len(found.angles)), key=lambda i: abs(found.angles[i] - angle)) for angle in _PICTURED]
    chosen = list(dict.fromkeys(nearest))
    rows = _rows(found)
    with drawing(path, 7.2, 7.2 * len(rows) / (len(chosen) + 1), layout="compressed") as figure:
        _draw_rows(figure.subplots(len(rows), len(chosen) + 1, squeeze=False), rows, chosen, found)


def _draw_rows(axes: Any, rows: list[tuple[str, Tensor, str]], chosen: list[int], found: Visualization) -> None:
    for axis in axes.flat:
        axis.set_axis_off()
    for line, (title, row, colours) in zip(axes, rows, strict=True):
        scale = {"vmin": float(row[0].min()), "vmax": float(row[0].max())} if row.dim() == 3 else {}
        for axis, index in zip(line, chosen, strict=False):
            axis.imshow(_pixels(row, index), cmap=colours, **scale)
            axis.set_title(f"{title} {found.angles[index]:g}°", fontsize=7)
        if row.dim() == 3:
            spread = row.std(dim=0, correction=0).numpy()
            line[-1].imshow(spread, cmap="magma", vmin=0, vmax=float(row[0].std()) or 1.0)
            line[-1].set_title("deviation over angles", fontsize=7)


def _animate(path: Path, found: Visualization, scale: int = 160) -> None:
    """One frame per angle: input, Grad-CAM and maps side by side."""
    import matplotlib
    from PIL import Image

    frames = []
    rows = _rows(found)
    for index in range(len(found.angles)):
        tiles = []
        for _, row, colours in rows:
            pixels = _pixels(row, index)
            if pixels.ndim == 2:
                low, high = (float(row[0].min()), float(row[0].max())) if row.dim() == 3 else (0.0, 1.0)
                pixels = matplotlib.colormaps[colours]((pixels - low) / max(high - low, 1e-12))[..., :3]
            tile = Image.fromarray((255 * np.clip(pixels, 0, 1)).astype(np.uint8))
            tiles.append(np.asarray(tile.resize((scale, scale), Image.Resampling.NEAREST)))
        frames.append(Image.fromarray(np.concatenate(tiles, axis=1)))
    with replacing(path) as partial:
        frames[0].save(partial, format="GIF", save_all=True, append_images=frames[1:], duration=120, loop=0)
