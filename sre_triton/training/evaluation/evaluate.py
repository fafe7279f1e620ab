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

from sre_triton.training.figures import caption_line, draw_angle_curves
from sre_triton.training.files import write_csv, write_json
from sre_triton.training.options import EvaluateOptions, TurningOptions
from sre_triton.training.runs.folder import folder_of
from sre_triton.training.runs.restore import load_task
from sre_triton.training.tasks.task import Task
from sre_triton.training.tasks.turning import flip_test, rotation_test, symmetries

__all__ = ["curves_of", "evaluate", "evaluate_task", "rotation_caption", "summary_tables", "write_results"]


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
) -> dict[str, Any]:
    """The rotation and flip test of one network, as plain values.

    Returns:
        ``data``, ``model``, ``split``, how images were turned, and per test ``rows`` (scores at every turn) and
        ``summary`` (per score mean, std and its value at some turns).
    """
    ndim = task.description["ndim"]
    total = rotations * len(symmetries(ndim, step, turning.reference_protocol)) + flips * (ndim + 1)
    bar = progress.add_task(f"turning {name}", total=total) if progress is not None else None

    def advance() -> None:
        if progress is not None and bar is not None:
            progress.advance(bar)

    result: dict[str, Any] = {
        "data": task.description["data"],
        "model": task.options.model_type,
        "seed": task.options.seed,
        "split": split,
        "n": task.size(split),
        "interpolation": turning.interpolation,
        "padding": turning.padding,
        "main_score": task.main_score,
    }
    task.network.eval()
    if rotations:
        result["rotation"] = rotation_test(task, split, turning, step, advance)
    if flips:
        result["flips"] = flip_test(task, split, turning, advance)
    return result


def evaluate(checkpoints: Sequence[Path], options: EvaluateOptions, console: Console | None = None) -> None:
    """Evaluates checkpoints, prints their table and writes ``evaluation.json``, ``rotation.csv`` and ``rotation.png``.

    Raises:
        ValueError: an argument or a checkpoint is not as it should be, or the checkpoints are of different tasks.
        OSError: a file is missing or cannot be written.
    """
    console = console or Console()
    names = options.names or [_name(path) for path in checkpoints]
    if len(names) != len(checkpoints) or len(set(names)) != len(names):
        raise ValueError(f"--names must name the {len(checkpoints)} checkpoints, each differently, got {names}")
    device = "cuda" if torch.cuda.is_available() and not options.no_cuda else "cpu"
    results: dict[str, dict[str, Any]] = {}
    start = time.perf_counter()
    with Progress(console=console, transient=True) as progress:
        for name, path in zip(names, checkpoints, strict=True):
            places = {"data_root": options.data_root, "data": options.data, "fov": options.fov}
            task = load_task(path, undivided=options.split == "all", **places)
            task.network.to(device)
            turning = options
            if options.test_batch_size == 0:
                turning = dataclasses.replace(options, test_batch_size=task.options.test_batch_size)
            results[name] = evaluate_task(
                task,
                turning,
                split=options.split,
                step=options.step_degrees,
                flips=not options.no_flips,
                progress=progress,
                name=name,
            )
            if results[name]["main_score"] != results[names[0]]["main_score"]:
                raise ValueError(f"{names[0]} and {name} are of different tasks: evaluate them apart")
    folder = options.output or folder_of(checkpoints[0])
    write_results(folder, results, options.figure_format)
    for table in summary_tables(results):
        console.print(table)
    console.print(
        f"{time.perf_counter() - start:.0f} s on {device}; {folder}/rotation.{options.figure_format}, "
        f"rotation-polar.{options.figure_format}, rotation.csv, evaluation.json"
    )


def write_results(folder: Path, results: dict[str, dict[str, Any]], figure_format: str = "png") -> None:
    """Writes what was measured as JSON and CSV, and the curves as figures."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "evaluation.json", results)
    rows = [
        {"name": name, "test": test, **row}
        for name, result in results.items()
        for test in ("rotation", "flips")
        if test in result
        for row in result[test]["rows"]
    ]
    write_csv(folder / "rotation.csv", rows)
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
        f"{result['data']}, {result['split']}",
        f"n = {result['n']:,} {things}" if "n" in result else "",  # results of earlier versions do not say it
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


def summary_tables(results: dict[str, dict[str, Any]]) -> list[Table]:
    """Of each test, one row per network and score."""
    tables = []
    for test, places in (("rotation", ("mean", "std", "at_0", "at_90")), ("flips", ("mean", "std", "at_none"))):
        mine = {name: result[test] for name, result in results.items() if test in result}
        if not mine:
            continue
        one = next(iter(mine.values()))
        first = next(iter(results.values()))
        title = f"{test} test: {len(one['rows'])} turns of {first['data']} ({first['split']}), in percent"
        table = Table(title=title)
        for header in ("network", "score", *(place.replace("at_", "at ") for place in places)):
            table.add_column(header, justify="left" if header in ("network", "score") else "right")
        for name, content in mine.items():
            for score, values in content["summary"].items():
                cells = (f"{100 * values[place]:.2f}" if place in values else "" for place in places)
                table.add_row(name, score.replace("_", " "), *cells)
            table.add_section()
        tables.append(table)
    return tables


def _name(path: Path) -> str:
    return path.name if path.is_dir() or path.parent == Path() else f"{path.parent.name}/{path.stem}"
