"""The rotation test and the flip test: a network's scores against how its input is turned."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from sre_triton.training.data.augment import Share
from sre_triton.training.data.warp import AXES, FLIPS, Symmetry
from sre_triton.training.options import TurningOptions
from sre_triton.training.tasks.task import Task
from sre_triton.training.tasks.undefined import UNDEFINED, mean_of_known

__all__ = ["flip_test", "rotation_test", "symmetries", "turning_tests"]

Row = dict[str, Any]


class _Scored(NamedTuple):
    """Scores of turned images, and the main score of each image."""

    scores: dict[str, float]
    images: list[float]


_PARTS: dict[str, Callable[[float], bool]] = {
    "right": lambda angle: angle % 90 == 0,
    "oblique": lambda angle: angle % 90 != 0,
}


def symmetries(ndim: int, step: float | None = None, reference_protocol: bool = False) -> list[Symmetry]:
    """The turns of the rotation test.

    Args:
        ndim: 2 for images, 3 for volumes, which turn about each of their axes.
        step: degrees between two angles; None for 10 in 2-D and 30 in 3-D.
        reference_protocol: count 360 degrees beside 0, as the reference script does.

    Raises:
        ValueError: ``step`` does not divide 360.
    """
    if step is None:
        step = 10 if ndim == 2 else 30
    count = round(360 / step) if step > 0 else 0
    if count < 1 or abs(count * step - 360) > 1e-9:
        raise ValueError(f"--step-degrees must divide 360, got {step:g}")
    axes = AXES if ndim == 3 else AXES[:1]
    return [Symmetry(360 * index / count, axis) for axis in axes for index in range(count + reference_protocol)]


def rotation_test(
    task: Task,
    split: str,
    turning: TurningOptions,
    step: float | None = None,
    advance: Callable[[], None] = lambda: None,
    share: Share | None = None,
) -> dict[str, Any]:
    """Scores at every angle (``rows``), what they come to (``summary``) and the main score of each image (``images``).

    The summary has, per score, mean and standard deviation over the angles, the worst, its value at 0 and 90, and mean
    and deviation over right and over oblique angles: to a network that is exact at quarter turns, angles that differ by
    those are one and the same. The standard deviation is that of the population, as the angles are all there are. At 90
    degrees, a volume's score is the mean over its axes. ``undefined`` of a score is on how many images, or classes, it
    was not defined and has left them out, at the angle with most of them; it is there only if there were any.

    The images' main scores are means over all, the right and the oblique angles, and those at 0.

    Args:
        share: this process among those that call it together and divide the turns; None for one alone.
    """
    turns = symmetries(_ndim(task), step, turning.reference_protocol)
    found = _scores(task, split, turning, turns, advance, share)
    rows: list[Row] = [{"angle": turn.angle, "axis": turn.axis, **known.scores} for turn, known in found]
    summary = _summary(rows, ("angle", 0), ("angle", 90))
    images: dict[str, list[float]] = {}
    for part, chosen in {"mean": lambda _: True, "at_0": lambda angle: angle == 0, **_PARTS}.items():
        some = [known.images for turn, known in found if chosen(turn.angle)]
        if some:
            images[part] = np.mean(some, axis=0).tolist()
        if part in _PARTS:
            values = _summary([row for row in rows if chosen(row["angle"])])
            for score, figures in values.items():
                summary[score] |= {f"{figure}_{part}": figures[figure] for figure in ("mean", "std")}
    for score, figures in summary.items():
        figures["worst"] = min((row[score] for row in rows if not math.isnan(row[score])), default=math.nan)
    return {"rows": rows, "summary": summary, "images": images}


def flip_test(
    task: Task,
    split: str,
    turning: TurningOptions,
    advance: Callable[[], None] = lambda: None,
    share: Share | None = None,
) -> dict[str, Any]:
    """Scores of the input as it is and flipped along each of its dimensions."""
    flips = [Symmetry(flips=flips) for flips in list(FLIPS)[: _ndim(task) + 1]]
    found = _scores(task, split, turning, flips, advance, share)
    rows: list[Row] = [{"flip": FLIPS[turn.flips], **known.scores} for turn, known in found]
    return {"rows": rows, "summary": _summary(rows, ("flip", "none"))}


def turning_tests(task: Task, split: str, turning: TurningOptions, *, rotations: bool, flips: bool) -> dict[str, float]:
    """Means of the main score over both tests, for the log of a training; processes that train together divide the
    turns among themselves, as one that tested alone would keep the others waiting."""
    was_training = task.network.training
    task.network.eval()
    try:
        score = task.main_score
        results = {}
        if rotations:
            results[f"eval_rot_{score}"] = rotation_test(task, split, turning, share=task.share)["summary"][score][
                "mean"
            ]
        if flips:
            results[f"eval_flip_{score}"] = flip_test(task, split, turning, share=task.share)["summary"][score]["mean"]
        return results
    finally:
        task.network.train(was_training)


def _ndim(task: Task) -> int:
    return int(task.description["ndim"])


def _scores(
    task: Task,
    split: str,
    turning: TurningOptions,
    turns: Iterable[Symmetry],
    advance: Callable[[], None],
    share: Share | None,
) -> list[tuple[Symmetry, _Scored]]:
    share = share or Share()
    task.require(split)
    same = {turn: turn if turn.angle % 360 else Symmetry(flips=turn.flips) for turn in turns}
    known: dict[Symmetry, _Scored] = {}
    mine = list(dict.fromkeys(same.values()))[share.rank :: share.world]
    for one in same.values():
        if one in mine and one not in known:
            scores, images = task.each_scored(split, one, turning)
            known[one] = _Scored(scores, [row[task.main_score] for row in images])
        advance()
    if share.world > 1:
        parts: list[dict[Symmetry, _Scored]] = [{} for _ in range(share.world)]
        torch.distributed.all_gather_object(parts, known)
        known = {turn: scores for part in parts for turn, scores in part.items()}
    return [(turn, known[one]) for turn, one in same.items()]


def _summary(rows: Sequence[Row], *places: tuple[str, Any]) -> dict[str, dict[str, float]]:
    summary: dict[str, dict[str, float]] = {}
    for score in (
        name
        for row in rows[:1]
        for name in row
        if name not in ("angle", "axis", "flip") and not name.startswith(UNDEFINED)
    ):
        values = [row[score] for row in rows if not math.isnan(row[score])]
        summary[score] = {"mean": mean_of_known(values), "std": float(np.std(values)) if values else math.nan}
        for field, place in places:
            there = [row[score] for row in rows if row[field] == place]
            if there:
                summary[score][f"at_{place}"] = mean_of_known(there)
        left_out = max(row.get(UNDEFINED + score, 0) for row in rows)
        if left_out:
            summary[score]["undefined"] = left_out
    return summary
