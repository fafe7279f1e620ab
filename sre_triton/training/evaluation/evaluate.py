"""Evaluation of checkpoints: their rotation and flip tests as a table, files and a picture."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from sre_triton.training.evaluation.final_test import words
from sre_triton.training.evaluation.results import (
    checksum_of,
    home_of,
    result_folder,
    save_results,
)
from sre_triton.training.figures import caption_line, draw_angle_curves
from sre_triton.training.files import require_writable
from sre_triton.training.options import SCORE_OPTIONS, EvaluateOptions, TurningOptions
from sre_triton.training.runs.folder import checkpoint_in
from sre_triton.training.runs.restore import load_task
from sre_triton.training.tasks.task import Task
from sre_triton.training.tasks.turning import flip_test, rotation_test, symmetries

__all__ = [
    "about_evaluation",
    "check_alike",
    "curves_of",
    "evaluate",
    "evaluate_task",
    "rotation_caption",
    "summary_tables",
    "write_results",
]

_PLACES = {
    "rotation": {
        "mean": "mean",
        "std": "std",
        "worst": "worst",
        "at_0": "at 0",
        "mean_right": "right",
        "mean_oblique": "oblique",
        "std_oblique": "its std",
    },
    "flips": {"mean": "mean", "std": "std", "at_none": "at none"},
}
"""Of each test the figures that its table shows, and how they are called there."""

_SPLITS = {"train": "training", "val": "validation", "all": "all images"}


def evaluate_task(
    task: Task,
    turning: TurningOptions,
    *,
    split: str = "test",
    step: float | None = None,
    rotations: bool = True,
    flips: bool = True,
    progress: Progress | None = None,
    name: str = "",
    checkpoint: Path | None = None,
) -> dict[str, Any]:
    """The rotation and flip test of one network, as plain values; scores are shares of one.

    Returns:
        What :func:`about_evaluation` says, and per test ``rows`` (scores at every turn) and ``summary`` (per score
        mean, std and its value at some turns).
    """
    ndim = task.description["ndim"]
    total = rotations * len(symmetries(ndim, step, turning.reference_protocol)) + flips * (ndim + 1)
    bar = progress.add_task(f"turning {name}", total=total) if progress is not None else None

    def advance() -> None:
        if progress is not None and bar is not None:
            progress.advance(bar)

    result = about_evaluation(task, turning, split=split, step=step, checkpoint=checkpoint)
    task.network.eval()
    if rotations:
        result["rotation"] = rotation_test(task, split, turning, step, advance)
    if flips:
        result["flips"] = flip_test(task, split, turning, advance)
    return result


def about_evaluation(
    task: Task, turning: TurningOptions, *, split: str, step: float | None, checkpoint: Path | None
) -> dict[str, Any]:
    """Everything that scores depend on: network, checkpoint, images, how they are turned and answered."""
    return {
        "data": task.description["data"],
        "data_checksum": task.description["data_checksums"].get(split, ""),
        "split": split,
        "n": task.size(split),
        "model": task.options.model_type,
        "seed": task.options.seed,
        "checkpoint": str(checkpoint_in(checkpoint)) if checkpoint is not None else "",
        "checkpoint_checksum": checksum_of(checkpoint) if checkpoint is not None else "",
        **{name: getattr(task.options, name) for name in SCORE_OPTIONS if hasattr(task.options, name)},
        **{name: getattr(turning, name) for name in SCORE_OPTIONS if hasattr(turning, name)},
        "step_degrees": step,
        "main_score": task.main_score,
        "averaged": task.averaged,
    }


def evaluate(checkpoints: Sequence[Path], options: EvaluateOptions, console: Console | None = None) -> None:
    """Evaluates checkpoints, prints their table and writes ``evaluation.json``, ``rotation.csv`` and ``rotation.png``.

    They lie in ``--output``, else in the folder ``evaluation-SPLIT`` of each run and, of several, of the folder that
    they are in. Results of other checkpoints, images or options are never written over: by default a number is added,
    and ``--output`` is refused.

    Raises:
        ValueError: an argument or a checkpoint is not as it should be, the checkpoints are of different tasks or data,
            or ``--output`` holds other results.
        OSError: a file is missing or cannot be written.
    """
    console = console or Console(quiet=options.quiet)
    names = options.names or [_name(path) for path in checkpoints]
    if len(names) != len(checkpoints) or len(set(names)) != len(names):
        raise ValueError(f"--names must name the {len(checkpoints)} checkpoints, each differently, got {names}")
    device = "cuda" if torch.cuda.is_available() and not options.no_cuda else "cpu"
    homes = [(options.output, "")] if options.output else [home_of(path) for path in checkpoints]
    for home, _ in homes:
        require_writable(home, "--output")
    start = time.perf_counter()
    tasks, abouts, turnings = {}, {}, {}
    for name, path in zip(names, checkpoints, strict=True):
        places: dict[str, Any] = {"data_root": options.data_root, "data": options.data, "fov": options.fov}
        task = load_task(path, undivided=options.split == "all", **places)
        task.require(options.split)
        batch = options.test_batch_size or task.options.test_batch_size
        turning = dataclasses.replace(options, test_batch_size=batch)
        about = about_evaluation(task, turning, split=options.split, step=options.step_degrees, checkpoint=path)
        tasks[name], abouts[name], turnings[name] = task, about, turning
    check_alike(abouts)
    symmetries(next(iter(tasks.values())).description["ndim"], options.step_degrees)  # an error of its step comes first
    where = _result_folders(names, checkpoints, options, abouts)
    results: dict[str, dict[str, Any]] = {}
    with Progress(console=console, transient=True) as progress:
        for name, path in zip(names, checkpoints, strict=True):
            task = tasks.pop(name)
            task.network.to(device)
            results[name] = evaluate_task(
                task,
                turnings[name],
                split=options.split,
                step=options.step_degrees,
                flips=not options.no_flips,
                progress=progress,
                name=name,
                checkpoint=path,
            )
            if name in where:
                write_results(where[name], {name: results[name]}, options.figure_format)
    folder = where.get("", where.get(names[0], Path()))
    if "" in where:
        write_results(folder, results, options.figure_format)
    for table in summary_tables(results):
        console.print(table)
    console.print(f"{time.perf_counter() - start:.0f} s on {device}; written to {folder}:")
    drawn = (f"{stem}.{options.figure_format}" for stem in ("rotation", "rotation-polar"))
    for name in ("evaluation.json", "rotation.csv", *drawn):
        console.print(f"  {folder / name}", soft_wrap=True, highlight=False)


def check_alike(abouts: dict[str, dict[str, Any]]) -> None:
    """Makes sure that results can stand in one table.

    Raises:
        ValueError: they are of different tasks or images.
    """
    first, one = next(iter(abouts.items()))
    for name, other in abouts.items():
        if other["main_score"] != one["main_score"]:
            raise ValueError(f"{first} and {name} are of different tasks: evaluate them apart")
        if (other["data"], other["n"], other["data_checksum"]) != (one["data"], one["n"], one["data_checksum"]):
            told = " and ".join(
                f"{key} ({about['data']}, {about['n']} images of {about['split']})"
                for key, about in ((first, one), (name, other))
            )
            raise ValueError(f"{told} are of different images: evaluate them apart, or on the same --data")


def _result_folders(
    names: Sequence[str], checkpoints: Sequence[Path], options: EvaluateOptions, abouts: dict[str, dict[str, Any]]
) -> dict[str, Path]:
    """The folder of each checkpoint's results by name, and that of all of them under "".

    Raises:
        ValueError: ``--output`` holds other results.
    """
    if options.output is not None:
        if result_folder(options.output.parent, options.output.name, abouts) != options.output:
            raise ValueError(f"--output {options.output} holds results of other networks, images or options")
        return {"": options.output}
    where: dict[str, Path] = {}
    for name, path in zip(names, checkpoints, strict=True):
        home, stem = home_of(path)
        title = _title(stem, options, abouts[name])
        where[name] = result_folder(home, title, {name: abouts[name]}, where.values())
    if len(names) > 1:
        home = home_of(checkpoints[0])[0].resolve().parent
        where[""] = result_folder(home, _title("evaluation", options, abouts[names[0]]), abouts, where.values())
    return where


def _title(stem: str, options: EvaluateOptions, about: dict[str, Any]) -> str:
    return f"{stem}-{options.split}" + (f"-{about['data']}" if options.data is not None else "")


def write_results(folder: Path, results: dict[str, dict[str, Any]], figure_format: str = "png") -> None:
    """Writes what was measured as JSON and CSV, in percent, and the curves as figures."""
    save_results(folder, results)
    curves = {name: [*curves_of(result)] for name, result in results.items() if "rotation" in result}
    if curves:
        first = next(iter(results.values()))
        draw_angle_curves(folder / f"rotation.{figure_format}", curves, first["main_score"], rotation_caption(first))


def rotation_caption(result: dict[str, Any]) -> str:
    """What was turned how, for the line under a figure."""
    turned = result["rotation"]["rows"]
    angles = len([row for row in turned if row["axis"] == turned[0]["axis"]])
    things = "volumes" if len(turned) > angles else "images"
    return caption_line(
        f"{result['data']}, {_SPLITS.get(result['split'], result['split'])}",
        f"n = {result['n']:,} {things}",
        f"{angles} angles, {result['interpolation']} interpolation, {result['padding']} outside",
    )


def curves_of(result: dict[str, Any]) -> list[tuple[str, list[float], list[float]]]:
    """A result's curves of its main score: of each axis of rotation, the angles and the scores."""
    rows = result["rotation"]["rows"]
    curves = []
    for axis in dict.fromkeys(row["axis"] for row in rows):
        mine = [row for row in rows if row["axis"] == axis]
        curves.append((axis, [row["angle"] for row in mine], [row[result["main_score"]] for row in mine]))
    return curves


def summary_tables(results: dict[str, dict[str, Any]]) -> list[Text | Table]:
    """Of each test its title and a table: one row per score, and per network if there are several."""
    parts: list[Text | Table] = []
    for test, places in _PLACES.items():
        mine = {name: result[test] for name, result in results.items() if test in result}
        if not mine:
            continue
        first, turned = next(iter(results.values())), next(iter(mine.values()))
        of = f"{first['data']} ({first['split']}, n = {first['n']:,})"
        names = "" if len(mine) > 1 else f" by {next(iter(mine))}"
        parts.append(Text(f"{test} test: {len(turned['rows'])} turns of {of}{names}, in percent"))
        table = Table()
        for header in (*(["network"] if len(mine) > 1 else []), "score"):
            table.add_column(header, overflow="fold")
        for heading in places.values():
            table.add_column(heading, justify="right", no_wrap=True)
        left_out = []
        for name, content in mine.items():
            for score, values in content["summary"].items():
                cells = (f"{100 * values[place]:.2f}" if place in values else "" for place in places)
                table.add_row(*([name] if len(mine) > 1 else []), words(score), *cells)
                if "undefined" in values:
                    count, unit = f"{values['undefined']:.0f}", results[name]["averaged"]
                    left_out.append(Text(f"{words(score)} of {name} is undefined for {count} {unit}, left out"))
            table.add_section()
        parts += [table, *left_out]
    return parts


def _name(path: Path) -> str:
    return path.name if path.is_dir() or path.parent == Path() else f"{path.parent.name}/{path.stem}"
