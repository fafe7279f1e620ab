"""The rotation test and the flip test: a network's scores against how its input is turned."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from sre_triton.training.data.augment import Share
from sre_triton.training.data.warp import AXES, FLIPS, Symmetry
from sre_triton.training.options import TurningOptions
from sre_triton.training.tasks.task import Task
from sre_triton.training.tasks.undefined import UNDEFINED, mean_of_known

__all__ = ["flip_test", "rotation_test", "symmetries", "turning_tests"]

Row = dict[str, Any]


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
    """Scores at every angle, and per score the mean and standard deviation over the angles and its value at 0 and 90.

    The standard deviation is that of the population, as the angles are all there are. At 90 degrees, a volume's
    score is the mean over its axes. ``undefined`` of a score is on how many images, or classes, it was not defined and
    has left them out, at the angle with most of them; it is there only if there were any.

    Args:
        share: this process among those that call it together and divide the turns; None for one alone.
    """
    turns = symmetries(_ndim(task), step, turning.reference_protocol)
    rows = _scores(task, split, turning, turns, lambda turn: {"angle": turn.angle, "axis": turn.axis}, advance, share)
    return {"rows": rows, "summary": _summary(rows, ("angle", 0), ("angle", 90))}


def flip_test(
    task: Task,
    split: str,
    turning: TurningOptions,
    advance: Callable[[], None] = lambda: None,
    share: Share | None = None,
) -> dict[str, Any]:
    """Scores of the input as it is and flipped along each of its dimensions."""
    flips = [Symmetry(flips=flips) for flips in list(FLIPS)[: _ndim(task) + 1]]
    rows = _scores(task, split, turning, flips, lambda turn: {"flip": FLIPS[turn.flips]}, advance, share)
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
    place: Callable[[Symmetry], Row],
    advance: Callable[[], None],
    share: Share | None,
) -> list[Row]:
    share = share or Share()
    task.require(split)
    same = {turn: turn if turn.angle % 360 else Symmetry(flips=turn.flips) for turn in turns}
    known: dict[Symmetry, dict[str, float]] = {}
    mine = list(dict.fromkeys(same.values()))[share.rank :: share.world]
    for one in same.values():
        if one in mine and one not in known:
            known[one] = task.turned_scores(split, one, turning)
        advance()
    if share.world > 1:
        parts: list[dict[Symmetry, dict[str, float]]] = [{} for _ in range(share.world)]
        torch.distributed.all_gather_object(parts, known)
        known = {turn: scores for part in parts for turn, scores in part.items()}
    return [place(turn) | known[one] for turn, one in same.items()]


def _summary(rows: Sequence[Row], *places: tuple[str, Any]) -> dict[str, dict[str, float]]:
    summary = {}
    for score in (name for name in rows[0] if name not in ("angle", "axis", "flip") and not name.startswith(UNDEFINED)):
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
