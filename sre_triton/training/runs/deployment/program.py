"""A trained network as one program, from images in 0 to 1 to probabilities, at every batch and image size."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sre_triton.conversion.fold import fold
from sre_triton.training.options import RunOptions
from sre_triton.training.runs.folder import first_line
from sre_triton.training.tasks.registry import task_type

__all__ = ["Checked", "Program", "Whole", "check", "program_of"]

Run = Callable[[Tensor], Tensor]

_STEPS = (16, 32)  # of image sizes: ordinary networks may want their strides to divide them
_SIDE = {2: 64, 3: 24}  # of the images that programs are recorded and checked with


class Whole(nn.Module):
    """Images (N, C, *space) in 0 to 1 to probabilities (N, classes), or (N, classes, *space) of a segmentation."""

    def __init__(self, network: nn.Module, options: RunOptions, several: bool) -> None:
        super().__init__()
        self.network, self.options, self.several = network, options, several
        self.train(network.training)

    def forward(self, image: Tensor) -> Tensor:
        logits = self.network(task_type(self.options).preprocess(self.options, image))
        return logits.sigmoid() if self.several else logits.softmax(dim=1)


@dataclass(frozen=True)
class Program:
    """A recorded network.

    Attributes:
        whole: the folded network, from images to probabilities.
        recorded: the same by ``torch.export``, with batch and image size left open.
        examples: a batch that it was recorded with, and one of other batch and image size.
        step: every side of an image must be a multiple of this.
    """

    whole: nn.Module
    recorded: torch.export.ExportedProgram
    examples: tuple[Tensor, Tensor]
    step: int


def program_of(original: Whole, channels: int, ndim: int, side: int, least_step: int = 1) -> Program:
    """Folds a network and records it, for images of every size if it can be, else for multiples of 16 or 32.

    Args:
        original: with the network as it was trained, in evaluation mode.
        channels: of the images.
        ndim: 2 or 3.
        side: of the images of the training.
        least_step: what every side of an image must be a multiple of at least.

    Raises:
        ValueError: it cannot be folded or recorded.
    """
    network = fold(original.network, fuse_batchnorm=True, any_size=True)
    whole = Whole(network, original.options, original.several)
    for step in dict.fromkeys((least_step, *_STEPS)):
        examples = _examples(channels, ndim, min(side, _SIDE[ndim]), step, next(original.parameters()).device)
        try:
            recorded = _recorded(whole, examples[0], step)
            if check(recorded.module(), original, examples).agrees:
                return Program(whole, recorded, examples, step)
            reason = "what was recorded computes something else at other sizes"
        except Exception as error:  # of the network itself at such a size, or of any part of PyTorch
            reason = first_line(error)
    raise ValueError(f"torch.export cannot record {type(original.network).__name__} with open image sizes: {reason}")


def _recorded(whole: nn.Module, example: Tensor, step: int) -> torch.export.ExportedProgram:
    dim = torch.export.Dim
    sizes: dict[int, Any] = {axis: dim.DYNAMIC for axis in range(example.dim()) if axis != 1}
    if step > 1:
        sizes |= {axis: step * dim(f"steps_{axis}") for axis in range(2, example.dim())}
    with torch.no_grad():
        return torch.export.export(whole, (example,), dynamic_shapes=(sizes,))


def _examples(channels: int, ndim: int, side: int, step: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Two batches whose sizes have nothing in common but the step, odd and even along every side."""
    least = -(-side // step)
    generator = torch.Generator().manual_seed(0)
    first, second = (
        torch.rand(count, channels, *(step * (least + more) for more in mores[:ndim]), generator=generator).to(device)
        for count, mores in _BATCHES
    )
    return first, second


_BATCHES = ((2, (0, 1, 0)), (1, (3, 2, 1)))  # images, and steps of each side beyond the least


@dataclass(frozen=True)
class Checked:
    """How far a runtime's probabilities are off, and how far they may be.

    The truth is the network as it was trained, in float64. A runtime may be off by twice what that network is off
    itself in float32, and by 1e-5, which is what rounding in another order may do where that happens to be exact.
    """

    error: float
    allowed: float

    @property
    def agrees(self) -> bool:
        return self.error <= self.allowed


@torch.no_grad()
def check(run: Run, original: Whole, examples: tuple[Tensor, Tensor]) -> Checked:
    """Holds what ``run`` gives for the examples against the network as it was trained."""
    exact = copy.deepcopy(original).double()
    error = own = 0.0
    for image in examples:
        truth, found = exact(image.double()), run(image).to(image.device)
        if found.shape != truth.shape:
            return Checked(float("inf"), 0.0)
        error = max(error, float((found - truth).abs().nan_to_num(float("inf")).max()))
        own = max(own, float((original(image) - truth).abs().max()))
    return Checked(error, 2 * own + 1e-5)
