"""What a network looks at while its input turns: Grad-CAM, feature maps and answers turned back, a film, kernels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from sre_triton.functional import expand_kernel
from sre_triton.layers import RingConvNd
from sre_triton.training.data.masks import MaskClasses
from sre_triton.training.data.pictures import read_picture
from sre_triton.training.evaluation.turned_maps import TurnedMaps, turned_maps
from sre_triton.training.figures import caption_line, draw_kernels, draw_profiles
from sre_triton.training.figures.film import Act, check_film_format, write_film
from sre_triton.training.figures.maps import OUTSIDE, PictureRow, draw_rows, heat, overlay
from sre_triton.training.figures.style import HEAT
from sre_triton.training.files import write_json
from sre_triton.training.options import VisualizeOptions
from sre_triton.training.runs.predictor import Predictor, load

__all__ = ["visualize_image"]

_PICTURED = (0, 30, 45, 90, 160)


def visualize_image(path: Path, options: VisualizeOptions, console: Console | None = None) -> None:
    """Turns a picture, and writes what the network of a checkpoint makes of it, and that of a second one beside it.

    Writes ``turning.png``, ``kernels.png``, ``profiles.png``, for a second network ``turning-against.png`` and so on
    (or PDF, SVG), the film ``turning.gif`` (or MP4) of all, and ``visualization.json``.

    Raises:
        ValueError: an option, the picture or a checkpoint is not as it should be.
        OSError: a file is missing or cannot be written.
    """
    console = console or Console(quiet=options.quiet)
    check_film_format(options.film)
    pixels = torch.from_numpy(read_picture(path))[None]  # first, as it is what one mistypes
    device = "cuda" if torch.cuda.is_available() and not options.no_cuda else "cpu"
    networks = _networks(options, device)
    truth = _truth(next(iter(networks.values())), options.mask, pixels)
    seen = {name: turned_maps(network, pixels, options, truth, name) for name, network in networks.items()}
    options.output.mkdir(parents=True, exist_ok=True)
    written, summary = [], []
    for suffix, (name, network) in zip(("", "-against"), networks.items(), strict=False):
        found = seen[name]
        caption = caption_line(f"{path.name}, {name}", *_manner(found, pixels, options, network.task == "segmentation"))
        files = [f"{stem}{suffix}.{options.figure_format}" for stem in ("turning", "kernels", "profiles")]
        _draw_turning(options.output / files[0], network, found, caption, options)
        _draw_weights(options.output / files[1], options.output / files[2], network.network, name)
        written += files
        summary.append({"network": name, **_summary(network, found, options)})
        console.print(_line(name, network, found), soft_wrap=True)
    if options.film != "none":
        written.append(f"turning.{options.film}")
        _film(options.output / written[-1], networks, seen, options)
    content = {"image": str(path), "angles": next(iter(seen.values())).angles, "networks": summary}
    write_json(options.output / "visualization.json", content)
    console.print(f"{options.output}: {', '.join([*written, 'visualization.json'])}", soft_wrap=True)


def _networks(options: VisualizeOptions, device: str) -> dict[str, Predictor]:
    """The networks by the names of their kinds, or where these are the same, of their folders."""
    paths = [options.checkpoint, *([options.against] if options.against is not None else [])]
    networks = [load(path, device=device) for path in paths]
    names = [network.options.model_type for network in networks]
    if len(set(names)) < len(names):
        names = [f"{name} ({path.name or path.resolve().name})" for name, path in zip(names, paths, strict=True)]
    if len(set(names)) < len(names):
        raise ValueError(f"--against must be of another network than --checkpoint, got {options.against} twice")
    first, last = networks[0], networks[-1]
    if (first.task, first.classes) != (last.task, last.classes):
        raise ValueError(
            f"--against must know the classes of --checkpoint, {', '.join(map(str, first.classes))} of {first.task}, "
            f"got {', '.join(map(str, last.classes))} of {last.task}"
        )
    return dict(zip(names, networks, strict=True))


def _truth(network: Predictor, path: Path | None, pixels: Tensor) -> Tensor | None:
    if path is None:
        return None
    if network.task != "segmentation":
        raise ValueError(f"--mask is for segmentations, and the network is of a {network.task}")
    values = tuple(int(value) for value in network.classes)
    mask = torch.from_numpy(MaskClasses(values, (), getattr(network.options, "mask_threshold", None)).read(path))[0]
    if mask.shape != pixels.shape[2:]:
        raise ValueError(f"--mask must be of the picture's size {tuple(pixels.shape[2:])}, got {tuple(mask.shape)}")
    return mask


def _class_name(network: Predictor, number: int) -> str:
    return f"class {network.classes[number]}"


def _manner(found: TurnedMaps, pixels: Tensor, options: VisualizeOptions, is_segmentation: bool) -> Sequence[str]:
    """How the picture was turned, for the caption."""
    height, width = found.upright.shape[1:]
    whole = f"{pixels.shape[3]} x {pixels.shape[2]} pixels"
    cut = abs(pixels.shape[3] / pixels.shape[2] - width / height) > 0.05
    comes = "the mirrored picture" if options.padding == "reflect" else "black" if is_segmentation else "mid-grey"
    return (
        f"{'the middle of ' if cut else ''}{whole} seen at {width} x {height}",
        f"{len(found.angles)} angles, {options.interpolation} interpolation",
        f"{comes} comes in from outside the frame; {_key(found)}",
    )


def _score_name(network: Predictor, found: TurnedMaps, options: VisualizeOptions) -> str:
    if network.task != "segmentation":
        return f"probability of {_class_name(network, found.target)}"
    return "Dice with the mask" if options.mask is not None else "Dice with upright"


def _summary(network: Predictor, found: TurnedMaps, options: VisualizeOptions) -> dict[str, Any]:
    def known(value: Tensor) -> float | None:
        return float(value) if math.isfinite(value) else None

    return {
        "class": network.classes[found.target],
        "layer": found.layer,
        "channels": found.channels,
        "score": _score_name(network, found, options),
        "scores": [100 * score for score in found.scores],
        "unit": "percent",
        "grad_cam_is_zero": not bool(found.cams.any()),
        "grad_cam_deviation": known(found.deviation(found.cams)),
        "feature_map_deviation": [known(value) for value in found.deviation(found.maps)],
        "outputs": [[float(value) for value in row] for row in found.outputs],
        "output_deviation": [float(value) for value in found.outputs.std(dim=0, correction=0)],
    }


def _line(name: str, network: Predictor, found: TurnedMaps) -> str:
    """What a terminal says of a network."""
    of_class = _class_name(network, found.target)
    zero = [angle for angle, cam in zip(found.angles, found.cams, strict=True) if not cam.any()]
    if len(zero) == len(found.angles):
        cam = f"Grad-CAM of {of_class} is zero everywhere: nothing in layer {found.layer} speaks for it"
    else:
        cam = f"Grad-CAM of {of_class} {_said(found.deviation(found.cams))}"
        cam += f" (zero everywhere at {len(zero)} of the angles)" if zero else ""
    maps = found.deviation(found.maps)
    scores = 100 * np.array(found.scores)
    what = "Dice" if network.task == "segmentation" else f"probability of {of_class}"
    known = _said(maps[maps.isfinite()].mean())
    return (
        f"{name}: {what} {scores.min():.1f} to {scores.max():.1f} % over {len(scores)} angles\n"
        f"  standard deviation over the angles, relative to that over the picture: {cam}; "
        f"feature maps of layer {found.layer} {known}"
    )


def _said(value: Tensor) -> str:
    return f"{float(value):.3f}" if math.isfinite(value) else "without meaning, as the map is the same everywhere"


def _draw_turning(path: Path, network: Predictor, found: TurnedMaps, caption: str, options: VisualizeOptions) -> None:
    """Rows: input, answer, Grad-CAM and maps; columns: some angles, and the standard deviation over all."""
    nearest = [min(range(len(found.angles)), key=lambda i: abs(found.angles[i] - angle)) for angle in _PICTURED]
    chosen = list(dict.fromkeys(nearest))
    of_class = _class_name(network, found.target)
    rows = [PictureRow("input", _colours(found.inputs[chosen]))]
    scores = [f"{100 * found.scores[index]:.1f} %" for index in chosen]
    if found.found is not None and found.probabilities is not None:
        rows.append(PictureRow("answer", _answers(found, options, chosen), scores))
        rows.append(_map_row(found, chosen, of_class, found.probabilities, (0, 1), "probability", "gray"))
    high = float(found.cams.max())
    label = f"Grad-CAM\n{of_class}" if high > 0 else f"Grad-CAM {of_class}:\nzero everywhere"
    cam = _map_row(found, chosen, label, found.cams / (high or 1.0), (0, 1), "of the highest", HEAT)
    rows.append(dataclasses.replace(cam, titles=scores if found.found is None else ()))
    for number, channel in enumerate(found.channels):
        maps = found.maps[:, number]
        rows.append(
            _map_row(found, chosen, f"channel {channel}", maps, _limits(maps[found.inside]), "activation", "viridis")
        )
    headings = [*(f"{found.angles[index]:g}°" for index in chosen), f"sd, {len(found.angles)} angles"]
    score = _score_name(network, found, options)
    above = f"above the {'Grad-CAM' if found.found is None else 'answer'}: {score}; scale of sd: the picture's middle"
    draw_rows(path, rows, headings, caption_line(caption, f"layer {found.layer}", above))


def _map_row(
    found: TurnedMaps,
    chosen: Sequence[int],
    label: str,
    maps: Tensor,
    limits: tuple[float, float],
    unit: str,
    colours: str,
) -> PictureRow:
    """A row of maps (A, H, W) at some angles, and how they differ over all."""
    spread = found.spread(maps)
    return PictureRow(
        label,
        maps[chosen].where(found.inside[chosen], torch.nan).numpy(),
        limits=limits,
        unit=unit,
        colours=colours,
        spread=spread.numpy(),
        largest=float(spread[found.middle()].max()),
    )


def _limits(values: Tensor) -> tuple[float, float]:
    """Hundredth and last hundredth of the values, so that a single pixel does not set the scale."""
    sample = values.flatten()[:: max(1, values.numel() // 100_000)].double()
    low, high = (float(torch.quantile(sample, share)) for share in (0.01, 0.99))
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _colours(pictures: Tensor) -> Any:
    return (255 * pictures.movedim(1, -1)).round().to(torch.uint8).numpy()


def _answers(found: TurnedMaps, options: VisualizeOptions, indices: Sequence[int]) -> Any:
    """The upright picture under what was found, or under the Grad-CAM, at some angles, (angles, H, W, 3)."""
    upright = found.upright.movedim(0, -1).numpy()
    high = float(found.cams.max()) or 1.0
    truth = found.truth if found.outputs.shape[1] == 2 else None
    pictures = []
    for index in indices:
        if found.found is not None:
            picture = overlay(upright, found.found[index].numpy(), None if truth is None else truth.numpy())
        else:
            picture = heat(upright, (found.cams[index] / high).numpy())
        pictures.append(np.where(found.inside[index, ..., None].numpy(), picture, np.array(OUTSIDE, np.uint8)))
    return np.stack(pictures)


def _film(path: Path, networks: dict[str, Predictor], seen: dict[str, TurnedMaps], options: VisualizeOptions) -> None:
    acts = []
    for name, network in networks.items():
        found = seen[name]
        notes = [] if found.found is not None else [_notes(network, row, found.target) for row in found.outputs]
        scores = [100 * score for score in found.scores]
        shows = "answer, turned back" if found.found is not None else "Grad-CAM, turned back"
        acts.append(Act(name, _answers(found, options, range(len(found.angles))), scores, shows, notes))
    first = next(iter(seen.values()))
    score = _score_name(next(iter(networks.values())), first, options)
    write_film(path, first.angles, _colours(first.inputs), acts, score, _key(first))


def _key(found: TurnedMaps) -> str:
    """What the colours of answers mean."""
    is_scored = found.truth is not None and found.outputs.shape[1] == 2
    if found.found is None:
        said = "Grad-CAM: share of its highest"
    else:
        said = "blue: right, orange: missed, yellow: wrong" if is_scored else ""
    return caption_line(said, "light grey: outside the frame")


def _notes(network: Predictor, outputs: Tensor, target: int) -> list[str]:
    said = network.decide(outputs.numpy())
    answer = ", ".join(map(str, said)) if isinstance(said, list) else str(said)
    return [f"answer: {answer or 'none'}", f"{100 * float(outputs[target]):.1f} % for {_class_name(network, target)}"]


def _first_convolution(network: nn.Module) -> tuple[str, RingConvNd | nn.Conv2d]:
    for name, module in network.named_modules():
        if isinstance(module, (RingConvNd, nn.Conv2d)) and max(module.kernel_size) > 1:
            return name, module
    raise ValueError("the network has no convolution larger than 1x1")


def _draw_weights(kernels: Path, profiles: Path, network: nn.Module, caption: str) -> None:
    """The kernels of the network's first convolution, for its first input channel."""
    name, layer = _first_convolution(network)
    if isinstance(layer, RingConvNd):
        geometry = layer.geometry
        weights = layer.ring_weight().detach()
        dense = expand_kernel(weights, layer.kernel_size, geometry.circular, geometry.antialias)
        # A last ring that is the corner taps alone has no width of its own.
        places = [*geometry.edges, geometry.edges[-1] + 0.5][: geometry.num_rings + 1]
        values = weights[:, 0].cpu().numpy()
    else:
        dense = layer.weight.detach()
        steps = np.arange(layer.kernel_size[0]) - (layer.kernel_size[0] - 1) / 2
        places = np.hypot(steps[:, None], steps).flatten().tolist()
        values = dense[:, 0].flatten(1).cpu().numpy()
    draw_kernels(kernels, dense[:, 0].cpu().numpy(), name, caption)
    draw_profiles(profiles, values, np.array(places), name, caption, is_steps=isinstance(layer, RingConvNd))
