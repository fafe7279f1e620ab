"""The demonstration: a network that the package brings along finds the vessels of a photograph however it is turned;
a ring U-Net and an ordinary one learn drawn vessels and are shown them turned."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sre_triton.training.data.warp import turn
from sre_triton.training.evaluation.compare import compare
from sre_triton.training.figures.film import Act, write_film
from sre_triton.training.figures.maps import PictureRow, draw_rows, overlay
from sre_triton.training.options import CompareOptions, SegmentOptions
from sre_triton.training.runs.fitting import prepare_machine
from sre_triton.training.runs.predictor import Predictor, load

__all__ = ["run_demo"]

_NETWORKS = {"sre_unet": "ring U-Net", "plain_unet": "ordinary U-Net"}
# Of 1e-3, 3e-3 and 1e-2 the best on the validation images of another seed of drawn vessels, each.
_RATE, _OWN = 1e-2, ["plain_unet --lr 1e-3"]
_SHOWN = (0, 30, 90, 160)
_STEP = 10
_ANGLES = range(0, 360, _STEP)
_DRAWN_SIDE = 256
_PHOTOGRAPH_SIDE = 640


def run_demo(output: Path, seed: int = 1, console: Console | None = None, *, figure_format: str = "png") -> None:
    """About two minutes on two cores; nothing is downloaded.

    Trains a ring U-Net and an ordinary one on drawn vessels and writes their comparison over 36 angles (see
    :mod:`.compare`). Then shows scikit-image's fundus photograph at 36 angles: to the pretrained network `vessels`
    (``fundus.png``), and smaller to the two of the comparison (``drawn.png``), both as films too (``fundus.gif``,
    ``drawn.gif``). What is found is turned back. That it is the same at every angle does not say that it is right; the
    card of `vessels` has scores against masks. Run again, it shows what was trained before.

    Args:
        output: folder of it all.
        seed: of the training.
        figure_format: of the figures; films are GIF.

    Raises:
        Interrupted: the user stopped it; run again, it goes on.
        OSError: the folder cannot be written to.
        ImportError: the extra ``sre-triton[train]`` is not installed.
    """
    console = console or Console()
    cores = os.cpu_count() or 1
    jobs = min(2, cores)
    options = SegmentOptions(
        epochs=8, cos=True, lr=_RATE, balance_rings=True, invariants=True, loss="dice-ce", crop_size=128,
        window_size=_DRAWN_SIDE, crops_per_image=6, vessels_size=_DRAWN_SIDE, vessels_count=[8, 2, 6],
        vessels_seed=12, interpolation="bilinear", normalise="field", gain=0.3, offset=0.3,
        threads=1 if jobs > 1 else 0, no_cuda=jobs > 1, figure_format=figure_format,
    )  # fmt: skip
    prepare_machine(threads=cores)
    compared = CompareOptions(models=list(_NETWORKS), model_options=_OWN, seeds=[seed], jobs=jobs, output=output)
    compare(options, compared, console)
    trained = {title: load(output / name / f"seed-{seed}") for name, title in _NETWORKS.items()}
    found = {title: _at_every_angle(network, _photograph(_DRAWN_SIDE)) for title, network in trained.items()}
    _draw(output / f"drawn.{figure_format}", _photograph(_DRAWN_SIDE), found)
    vessels = load("vessels")
    pretrained = _at_every_angle(vessels, _photograph(_PHOTOGRAPH_SIDE))
    _draw(output / f"fundus.{figure_format}", _photograph(_PHOTOGRAPH_SIDE), {"vessels, pretrained": pretrained})
    named = {f"{title}, trained on drawn vessels": answers for title, answers in found.items()}
    console.print(_table({"vessels, pretrained on photographs": pretrained, **named}))
    console.print(
        f"{output}/fundus.{figure_format}, fundus.gif (pretrained), drawn.{figure_format}, drawn.gif (new)",
        soft_wrap=True,
    )


def _photograph(side: int) -> Tensor:
    from skimage.data import retina
    from skimage.transform import resize

    pixels = resize(retina(), (side, side), anti_aliasing=True)
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float().contiguous()


class _Answers(NamedTuple):
    """The probability of a vessel at each angle, turned back, (angles, H, W), and from where on it is one."""

    probabilities: Tensor
    threshold: float

    def agreements(self) -> Tensor:
        """Dice of the vessels at each angle with those of the photograph upright, inside the circle that turns within
        the frame, (angles,)."""
        side = self.probabilities.shape[-1]
        place = torch.arange(side) - (side - 1) / 2
        circle = place[:, None].hypot(place[None]) < 0.48 * side
        masks = self.probabilities[:, circle] >= self.threshold
        both = (masks & masks[:1]).sum(dim=1)
        return 2 * both / (masks.sum(dim=1) + masks[:1].sum(dim=1)).clamp(min=1)

    def share(self) -> float:
        """Vessels among all pixels, upright."""
        return float((self.probabilities[0] >= self.threshold).float().mean())


def _at_every_angle(network: Predictor, photograph: Tensor) -> _Answers:
    answers = []
    for angle in _ANGLES:
        turned = turn(photograph, angle, interpolation="bilinear").clamp(0, 1)
        vessel = torch.from_numpy(network.probabilities(turned[0])[1])
        answers.append(turn(vessel[None, None], -angle, interpolation="bilinear")[0, 0])
    return _Answers(torch.stack(answers), network.threshold or 0.5)


def _table(found: dict[str, _Answers]) -> Table:
    table = Table(title=f"Vessels found at {360 // _STEP} angles and upright: Dice of the two, in percent")
    for title in ("network", "mean", "least", "share of pixels"):
        table.add_column(title, justify="left" if title == "network" else "right")
    for title, answers in found.items():
        agreement = 100 * answers.agreements()[1:]
        table.add_row(title, f"{agreement.mean():.1f}", f"{agreement.min():.1f}", f"{100 * answers.share():.1f}")
    return table


def _draw(path: Path, photograph: Tensor, found: dict[str, _Answers]) -> None:
    """The turned photograph, what each network finds, turned back, and where its answers differ over all angles; and
    the same as a film."""
    upright = photograph[0].movedim(0, -1).numpy()
    turned = [_colours(turn(photograph, angle, interpolation="bilinear")) for angle in _ANGLES]
    rows = [PictureRow("photograph", np.stack([turned[angle // _STEP] for angle in _SHOWN]))]
    acts = []
    for title, answers in found.items():
        agreements = [100 * float(value) for value in answers.agreements()]
        spread = answers.probabilities.std(dim=0, correction=0).numpy()
        rows.append(
            PictureRow(
                title,
                answers.probabilities[[angle // _STEP for angle in _SHOWN]].numpy(),
                [f"{agreements[angle // _STEP]:.1f} %" for angle in _SHOWN],
                unit="probability",
                spread=spread,
                largest=0.5,
            )
        )
        masks = (answers.probabilities >= answers.threshold).numpy()
        acts.append(Act(title, np.stack([overlay(upright, mask) for mask in masks]), agreements))
    headings = [*(f"{angle}°" for angle in _SHOWN), f"sd, {len(_ANGLES)} angles"]
    side = photograph.shape[-1]
    caption = (
        f"Photograph of scikit-image at {side} x {side} pixels, turned; probability of a vessel, turned back; "
        "above: Dice with upright, within the circle that stays in the frame"
    )
    draw_rows(path, rows, headings, caption)
    write_film(path.with_suffix(".gif"), _ANGLES, np.stack(turned), acts, "Dice with upright")


def _colours(photograph: Tensor) -> Any:
    return (255 * photograph[0].clamp(0, 1).movedim(0, -1)).round().to(torch.uint8).numpy()
