"""A trained network with all that it takes to ask it about a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from sre_triton.training.data.pictures import pillow_pixels
from sre_triton.training.options import RunOptions
from sre_triton.training.runs.folder import first_line
from sre_triton.training.runs.restore import load_network
from sre_triton.training.tasks.registry import task_type

__all__ = ["Predictor", "load"]

_SYMMETRIES: tuple[tuple[int, bool], ...] = tuple((turns, flipped) for turns in range(4) for flipped in (False, True))


def load(run: str | Path, *, device: str | torch.device = "cpu") -> Predictor:
    """The network of a training, with its preprocessing and its classes.

    Args:
        run: a run folder, whose best checkpoint is taken, a checkpoint, or a pretrained network (`sre-triton models
            --pretrained` lists them).
        device: where the network computes.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: it is damaged, not of this package, or of a network for volumes; or the device is not there.
        ImportError: the extra ``sre-triton[train]`` is not installed.
    """
    network, about, options = load_network(Path(run))
    if about["ndim"] != 2:
        raise ValueError(f"{run} is of a network for volumes: prediction takes pictures")
    try:
        network = network.to(device)
    except (AssertionError, RuntimeError) as error:  # PyTorch without CUDA, or no such device
        raise ValueError(f"device={str(device)!r} is not there: {first_line(error)}") from error
    return Predictor(network, about, options)


class Predictor:
    """Answers of a trained network on single pictures.

    A picture is an array (H, W) or (H, W, 3), a PIL image, or a tensor (1, H, W) or (3, H, W); uint8, uint16, bool, or
    floats in 0 to 1. It is prepared as in training: a classifier sees its middle square, a segmentation network all of
    it, window by window.

    Attributes:
        network: the module, in evaluation mode; ``network.state_dict()`` fits the network that
            :mod:`sre_triton.models` builds under the same name and arguments, without the training code.
        classes: their names; of a segmentation the values that its masks stored, the ground first.
        task: "classification" or "segmentation".
        several: whether a picture can have several labels.
        threshold: probability from which a label is given where there are several, or from which a pixel is of the
            second of two classes where that was tuned; else None: the most probable class is the answer.
    """

    def __init__(self, network: nn.Module, about: dict[str, Any], options: RunOptions) -> None:
        self.network, self.about, self.options = network, about, options
        self.task = options.task
        self.several = bool(about.get("multi_label", False))
        self.threshold: float | None = 0.5 if self.several else about.get("threshold")
        names = about.get("mask_values") or about.get("class_names") or list(range(about["classes"]))
        self.classes: tuple[int | str, ...] = tuple(names)

    def probabilities(self, image: Any, *, tta: bool = False) -> npt.NDArray[np.float32]:
        """Probabilities of the classes, (classes,), or (classes, H, W) of a segmentation.

        Args:
            image: see the class.
            tta: average over the 8 turns and flips of the square, for networks that are not equivariant.

        Returns:
            float32 in 0 to 1, which sum to 1 over the classes, but where a picture can have several labels.

        Raises:
            TypeError: the picture is of a kind that is not read.
            ValueError: its shape or range is not as it should be.
        """
        return self.probabilities_of([image], tta=tta)[0]

    @torch.no_grad()
    def probabilities_of(self, images: Sequence[Any], *, tta: bool = False) -> npt.NDArray[np.float32]:
        """Probabilities for several pictures of one size, computed together; see :meth:`probabilities`.

        Args:
            images: see the class.
            tta: average over the 8 turns and flips of the square.

        Returns:
            (N, classes), or (N, classes, H, W) of a segmentation, float32 in 0 to 1.

        Raises:
            TypeError: a picture is of a kind that is not read.
            ValueError: its shape or range is not as it should be, sizes differ, or there is none.
        """
        pictures = [as_picture(image) for image in images]
        if len({tuple(picture.shape) for picture in pictures}) != 1:
            sizes = sorted({tuple(picture.shape[2:]) for picture in pictures})
            raise ValueError(f"images must be pictures of one size, got {sizes or 'none'}")
        pixels = torch.cat(pictures)
        turns = _SYMMETRIES if tta else _SYMMETRIES[:1]
        total: Tensor | float = 0.0
        for quarters, flipped in turns:
            turned = torch.rot90(pixels, quarters, (2, 3))
            answer = self._answer(turned.flip(3) if flipped else turned)
            if answer.dim() == 4:
                answer = torch.rot90(answer.flip(3) if flipped else answer, -quarters, (2, 3))
            total = total + answer
        assert isinstance(total, Tensor)
        return (total / len(turns)).cpu().numpy()

    def _answer(self, pixels: Tensor) -> Tensor:
        device = next(self.network.parameters()).device
        logits = task_type(self.options).picture_logits(self.network, self.options, self.about, pixels.to(device))
        return logits.sigmoid() if self.several else logits.softmax(dim=1)

    def predict(self, image: Any, *, tta: bool = False) -> Any:
        """The answer for a picture.

        Args:
            image: see the class.
            tta: average over the 8 turns and flips of the square.

        Returns:
            A class name, a list of names where there are several labels, or a mask (H, W), which stores the values
            that the masks of the training stored; uint8 where they fit, else int64.

        Raises:
            TypeError: the picture is of a kind that is not read.
            ValueError: its shape or range is not as it should be.
        """
        return self.decide(self.probabilities(image, tta=tta))

    def decide(self, probabilities: npt.NDArray[np.float32]) -> Any:
        """The answer that probabilities give.

        Args:
            probabilities: (classes,), or (classes, H, W) of a segmentation.

        Returns:
            What :meth:`predict` returns.

        Raises:
            IndexError: there are fewer than classes.
            ValueError: there are not as many as labels, of which a picture can have several.
        """
        if self.several:
            return [name for name, p in zip(self.classes, probabilities, strict=True) if p >= self.threshold]
        found = self.found(probabilities)
        if self.task == "classification":
            return self.classes[int(found)]
        values = np.array(self.classes)
        return values[found].astype(np.uint8 if values.max() < 256 else np.int64)

    def found(self, probabilities: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """The number of the class that probabilities give.

        Args:
            probabilities: (classes, ...).

        Returns:
            (...,), numbers from 0.

        Raises:
            IndexError: there are fewer than two classes, and a threshold between them.
        """
        if self.threshold is None:
            return probabilities.argmax(axis=0)
        return (probabilities[1] >= self.threshold).astype(np.int64)


def as_picture(image: Any) -> Tensor:
    """A picture as float32 in 0 to 1, (1, 3, H, W).

    Raises:
        TypeError, ValueError: as :meth:`Predictor.probabilities`.
    """
    if isinstance(image, Tensor):
        pixels = image.detach().cpu()
        channels_first = True
    else:
        if isinstance(image, Image.Image):
            image = pillow_pixels(Path(getattr(image, "filename", "") or "image"), ImageOps.exif_transpose(image))
        if not isinstance(image, np.ndarray):
            raise TypeError(f"image must be an array, a PIL image or a tensor, got {type(image).__name__}")
        white = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}.get(image.dtype)
        array = image / np.float32(white) if white else image
        pixels = torch.from_numpy(np.array(array))  # a copy, as arrays of pictures are often read-only
        channels_first = False
    if pixels.dtype == torch.uint8:
        pixels = pixels.float() / 255
    elif pixels.dtype == torch.bool:
        pixels = pixels.float()
    if not pixels.is_floating_point():
        raise ValueError(f"image must be uint8, uint16, bool or floats in 0 to 1, got {pixels.dtype}")
    if pixels.dim() == 2:
        pixels = pixels[None] if channels_first else pixels[..., None]
    if not channels_first:
        pixels = pixels.movedim(-1, 0) if pixels.dim() == 3 else pixels
    if pixels.dim() != 3 or pixels.shape[0] not in (1, 3) or 0 in pixels.shape:
        expected = "(1, H, W) or (3, H, W)" if channels_first else "(H, W) or (H, W, 3)"
        raise ValueError(f"image must be {expected}, got {tuple(image.shape)}")
    if not bool(((pixels >= 0) & (pixels <= 1)).all()):
        raise ValueError(f"image must lie in 0 to 1, got {float(pixels.min()):g} to {float(pixels.max()):g}")
    return pixels.float().expand(3, -1, -1)[None]
