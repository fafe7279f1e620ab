"""What a network sees and says while a picture turns: Grad-CAM, feature maps and answers, turned back."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from sre_triton.layers import RingConvNd
from sre_triton.training.data.warp import pad_to, turn
from sre_triton.training.options import VisualizeOptions
from sre_triton.training.runs.predictor import Predictor
from sre_triton.training.schema import check_ranges
from sre_triton.training.tasks.registry import task_type
from sre_triton.training.tasks.segmentation_scores import segmentation_scores
from sre_triton.training.tasks.turning import symmetries

__all__ = ["TurnedMaps", "turned_maps"]


@dataclass(frozen=True)
class TurnedMaps:
    """What a network makes of a picture at each angle; all but ``inputs`` is turned back to the upright picture.

    Attributes:
        angles: in degrees, (A,).
        inputs: the turned picture in its frame, in 0 to 1, (A, 3, S, S).
        upright: the picture, in 0 to 1, (3, H, W).
        inside: pixels that were in the frame, (A, H, W).
        cams: Grad-CAM, at least 0, (A, H, W).
        maps: feature maps of ``channels``, (A, channels, H, W).
        outputs: class probabilities (A, classes); of a segmentation the share of each class of the pixels inside.
        probabilities: of ``target`` at each pixel of a segmentation, (A, H, W); else None.
        found: class of each pixel of a segmentation, (A, H, W); else None.
        truth: that of the mask, (H, W), if there is one.
        scores: probability of ``target``, or Dice of a segmentation with the mask (without one, with what was found
            upright), 0 to 1, (A,).
        layer: that was looked at.
        channels: their numbers in the layer, those that vary most first.
        target: number of the class of the Grad-CAM.
    """

    angles: tuple[float, ...]
    inputs: Tensor
    upright: Tensor
    inside: Tensor
    cams: Tensor
    maps: Tensor
    outputs: Tensor
    probabilities: Tensor | None
    found: Tensor | None
    truth: Tensor | None
    scores: tuple[float, ...]
    layer: str
    channels: tuple[int, ...]
    target: int

    def middle(self) -> Tensor:
        """Pixels that are in the frame at every angle, four fifths of the way to its rim at most: what comes in from
        outside reaches into maps near the rim, (H, W)."""
        height, width = self.inside.shape[1:]
        down, across = (torch.arange(length) - (length - 1) / 2 for length in (height, width))
        return self.inside.all(dim=0) & (down[:, None].hypot(across) < 0.8 * min(height, width) / 2)

    def deviation(self, what: Tensor) -> Tensor:
        """How much maps change with the angle, relative to how much the upright map varies over its pixels.

        Both are standard deviations, in the middle of the picture.

        Args:
            what: (A, ..., H, W).

        Returns:
            (...,); NaN of a map that is the same everywhere at every angle, which says nothing.
        """
        middle = self.middle()
        spread = what.std(dim=0, correction=0)[..., middle].square().mean(dim=-1).sqrt()
        return spread / what[0][..., middle].std(dim=-1)

    def spread(self, what: Tensor) -> Tensor:
        """Standard deviation over the angles of each pixel, (H, W), NaN where one of them has it outside."""
        return what.std(dim=0, correction=0).where(self.inside.all(dim=0), torch.nan)


def turned_maps(
    predictor: Predictor, pixels: Tensor, options: VisualizeOptions, truth: Tensor | None = None, name: str = ""
) -> TurnedMaps:
    """Turns a picture through the full circle and looks at a network's layer.

    The picture is turned as the rotation test turns it; that of a segmentation in a square frame that holds it, so that
    quarter turns only move pixels.

    Args:
        predictor: the network.
        pixels: the picture, (1, 3, H, W) in 0 to 1.
        options: which layer, class and angles.
        truth: of a segmentation, the class of each pixel, (H, W).
        name: of the network, for messages.

    Raises:
        ValueError: there is no such layer or class, it has no maps, an option is out of its range, or the step does not
            divide the circle.
    """
    from monai.visualize import GradCAM

    check_ranges(options)
    angles = tuple(float(symmetry.angle) for symmetry in symmetries(2, options.step_degrees))
    task = task_type(predictor.options)
    device = next(predictor.network.parameters()).device
    picture = task.prepare_picture(predictor.options, predictor.about, pixels, options.size).to(device)
    size = (int(picture.shape[2]), int(picture.shape[3]))
    is_segmentation = predictor.task == "segmentation"
    frame = _framed(picture) if is_segmentation else picture
    network = _Pooled(predictor.network).eval()
    upright = task.finish_picture(predictor.options, frame)
    layer = options.layer or _last_spatial(network, upright)
    known = [known for known, _ in predictor.network.named_modules() if known]
    if layer not in known:
        like = ", ".join(difflib.get_close_matches(layer, known, cutoff=0.3) or known[-3:])
        whose = name or "the network"
        raise ValueError(f"--layer {layer!r}: {whose} has no such layer; among its {len(known)} are {like}")
    if truth is not None:
        truth = F.interpolate(truth[None, None].float(), size, mode="nearest")[0, 0].long()
    seen: list[Tensor] = []
    hook = predictor.network.get_submodule(layer).register_forward_hook(lambda *call: seen.append(call[-1].detach()))
    # MONAI's own post-processing maps the largest value to 0 and the least to 1, at each angle by itself.
    cam = GradCAM(nn_module=network, target_layers=f"network.{layer}", postprocessing=lambda heat: heat)
    kept: dict[str, list[Tensor]] = {name: [] for name in ("inputs", "inside", "cams", "maps", "outputs", "answers")}
    channels: Tensor | None = None
    try:
        target = _target(network, upright, options.target_class, is_segmentation)
        if not seen or seen[-1].dim() != 4:
            given = tuple(seen[-1].shape) if seen else "nothing"
            raise ValueError(f"--layer {layer!r} must give maps (N, C, H, W), it gives {given}")
        for angle in track(angles, f"turning {name}", transient=True, disable=options.quiet):
            turned = turn(frame, angle, interpolation=options.interpolation, padding=options.padding)
            shown = task.finish_picture(predictor.options, turned).detach().requires_grad_()
            seen.clear()
            heat = torch.as_tensor(cam(shown, class_idx=target)).detach()
            logits = network.logits
            features = F.interpolate(seen[-1], shown.shape[2:], mode="bilinear", align_corners=False)
            answer = logits.sigmoid() if predictor.several else logits.softmax(dim=1)
            if channels is None:
                channels = features[0].flatten(1).std(dim=1).argsort(descending=True)[: options.channels]
            parts = [heat, features[:, channels], *([answer] if answer.dim() == 4 else [])]
            back = _middle(turn(torch.cat(parts, dim=1), -angle, interpolation="bilinear"), size)[0].cpu()
            inside = _inside(frame, size, angle, shown)
            kept["inputs"].append(task.as_colours(turned)[0].expand(3, -1, -1).clamp(0, 1).cpu())
            kept["inside"].append(inside)
            kept["cams"].append(back[0])
            kept["maps"].append(back[1 : 1 + len(channels)])
            if answer.dim() == 4:
                kept["answers"].append(back[1 + len(channels) :])
                kept["outputs"].append(back[1 + len(channels) :][:, inside].mean(dim=1))
            else:
                kept["outputs"].append(answer[0].cpu())
    finally:
        hook.remove()
    assert channels is not None
    stacked = {name: torch.stack(values) for name, values in kept.items() if values}
    answers = stacked.pop("answers", None)
    found, scores = None, tuple(float(value) for value in stacked["outputs"][:, target])
    if answers is not None:
        found = torch.stack([torch.from_numpy(predictor.found(answer.numpy())) for answer in answers])
        scores = _dice(answers, stacked["inside"], found[0] if truth is None else truth, predictor.threshold)
    return TurnedMaps(
        angles=angles,
        upright=task.as_colours(picture)[0].expand(3, -1, -1).clamp(0, 1).cpu(),
        probabilities=None if answers is None else answers[:, target],
        found=found,
        truth=truth,
        scores=scores,
        layer=layer,
        channels=tuple(channels.tolist()),
        target=target,
        **stacked,
    )


class _Pooled(nn.Module):
    """A network with one logit per class; those of a segmentation are averaged over the image.

    Attributes:
        logits: of the last call, before they are averaged.
    """

    logits: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        self.logits = logits.detach().float()
        return logits.mean(dim=(2, 3)) if logits.dim() == 4 else logits


def _framed(picture: Tensor) -> Tensor:
    """In a square frame, whose side networks can halve four times."""
    side = 16 * -(-max(picture.shape[2:]) // 16)
    return pad_to(picture, (side, side))


def _middle(framed: Tensor, size: tuple[int, int]) -> Tensor:
    """The part of a frame in which :func:`pad_to` puts a picture of this size."""
    top, left = ((have - wanted) // 2 for have, wanted in zip(framed.shape[2:], size, strict=True))
    return framed[..., top : top + size[0], left : left + size[1]]


def _inside(frame: Tensor, size: tuple[int, int], angle: float, shown: Tensor) -> Tensor:
    """Pixels of the upright picture that are in the frame when it is turned, (H, W)."""
    picture = pad_to(torch.ones(1, 1, *size), (int(frame.shape[2]), int(frame.shape[3])))
    turned = pad_to(turn(picture, angle, interpolation="bilinear"), (int(shown.shape[2]), int(shown.shape[3])))
    return _middle(turn(turned, -angle, interpolation="bilinear"), size)[0, 0] > 0.99


def _target(network: _Pooled, upright: Tensor, wanted: int | None, is_segmentation: bool) -> int:
    with torch.no_grad():
        logits = network(upright)[0]
    if wanted is None:
        return 1 if is_segmentation and len(logits) > 1 else int(logits.argmax())  # what is not the ground
    if not 0 <= wanted < len(logits):
        raise ValueError(f"--target-class must be 0 to {len(logits) - 1}, got {wanted}")
    return wanted


def _dice(answers: Tensor, inside: Tensor, truth: Tensor, threshold: float | None) -> tuple[float, ...]:
    return tuple(
        segmentation_scores(answer[:, mask], truth[mask], threshold)["dice"]
        for answer, mask in zip(answers, inside, strict=True)
    )


def _last_spatial(pooled: _Pooled, image: Tensor) -> str:
    """Name of the last convolution whose output has spatial extent and more channels than classes."""
    names: list[str] = []
    convolutions: Sequence[tuple[str, nn.Module]] = [
        (name, module) for name, module in pooled.network.named_modules() if isinstance(module, (RingConvNd, nn.Conv2d))
    ]
    hooks = [
        module.register_forward_hook(
            lambda _, __, output, name=name: names.append(name) if output.shape[-1] > 1 else None
        )
        for name, module in convolutions
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
