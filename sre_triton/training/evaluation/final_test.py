"""The test that ends a training: the best epoch's scores on the test images, in a table and as files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from sre_triton.training.figures import confusion_matrix_figure
from sre_triton.training.files import in_percent, write_csv, write_json
from sre_triton.training.options import RunOptions
from sre_triton.training.tasks.report import Report
from sre_triton.training.tasks.task import Task
from sre_triton.training.tasks.undefined import UNDEFINED

__all__ = ["WHOLE", "best_epoch", "final_test", "report_tables", "words", "write_report"]

WHOLE = "whole_"
"""Begins the name of a score of the whole image, where the others are of the field of view."""

_SHOWN = 20  # classes of a table


def final_test(task: Task, options: RunOptions, folder: Path, epoch: int | None) -> list[Text | Table]:
    """Tests a network on the test images as they are, and writes the results to a folder.

    Args:
        epoch: after which its weights were, if that is known.

    Returns:
        What is found, to be printed.
    """
    task.eval()
    report = task.report("test", options)
    about = {
        "data": task.description["data"],
        "split": "test",
        "n": task.size("test"),
        "model": options.model_type,
        "seed": options.seed,
        "epoch": epoch,
    }
    write_report(folder, report, about, options.figure_format)
    after = f" of epoch {epoch}" if epoch is not None else ""
    title = f"test{after}: {about['n']:,} image{'s' if about['n'] > 1 else ''} of {about['data']}, scores in percent"
    return [Text(title), *report_tables(report)]


def write_report(folder: Path, report: Report, about: Mapping[str, Any], figure_format: str = "png") -> None:
    """Writes ``test.json`` with all scores in percent, ``classes.csv``, and ``confusion.csv`` with its figure."""
    folder.mkdir(parents=True, exist_ok=True)
    classes = [in_percent(row) for row in report.classes]
    write_json(
        folder / "test.json", {**about, "unit": "percent", "scores": in_percent(report.scores), "classes": classes}
    )
    write_csv(folder / "classes.csv", classes)
    if report.counts is not None:
        rows = [
            {"true class": name, **dict(zip(report.names, counts, strict=True))}
            for name, counts in zip(report.names, report.counts.tolist(), strict=True)
        ]
        write_csv(folder / "confusion.csv", rows)
        caption = f"{about['data']}, {about['split']}; {about['model']}, seed {about['seed']}"
        confusion_matrix_figure(
            folder / f"confusion.{figure_format}", report.counts.numpy(), report.names, caption, report.unit
        )


def report_tables(report: Report) -> list[Text | Table]:
    """The scores, in the field of view and of the whole image where there is one, and those of each class."""
    kinds = {"": "", WHOLE: "whole image"}
    if any(name.startswith(WHOLE) for name in report.scores):
        kinds[""] = "field of view"
    names = [name for name in report.scores if not name.startswith((WHOLE, UNDEFINED))]
    scores = Table()
    scores.add_column("score")
    used = [kind for kind in kinds if any(kind + name in report.scores for name in names)]
    for kind in used:
        scores.add_column(kinds[kind] or "mean", justify="right")
    for name in names:
        scores.add_row(words(name), *(_shown(report.scores.get(kind + name, math.nan)) for kind in used))
    left_out = [
        f"{words(name.removeprefix(UNDEFINED))} is undefined for {count:.0f}, left out"
        for name, count in report.scores.items()
        if name.startswith(UNDEFINED)
    ]
    return [scores, *map(Text, left_out), Text("each class against the others"), _table_of_classes(report)]


def _table_of_classes(report: Report) -> Table:
    table = Table()
    columns = [name for name in report.classes[0] if name != "class"]
    table.add_column("class")
    for name in columns:
        table.add_column(words(name), justify="right")
    for row in report.classes[:_SHOWN]:
        table.add_row(
            str(row["class"]),
            *(f"{row[name]:,}" if isinstance(row[name], int) else _shown(row[name]) for name in columns),
        )
    if len(report.classes) > _SHOWN:
        table.caption = f"and {len(report.classes) - _SHOWN} more in classes.csv"
    return table


def words(name: str) -> str:
    """A score's name in a table."""
    upper = {"auc": "AUC", "iou": "IoU", "f1": "F1", "top5": "top-5 accuracy", "dice": "Dice"}
    return upper.get(name, name.replace("_", " "))


def _shown(score: float) -> str:
    return "" if math.isnan(score) else f"{100 * score:.2f}"


def best_epoch(rows: Sequence[Mapping[str, Any]], monitor: str) -> Mapping[str, Any] | None:
    """The row of the epoch whose checkpoint was kept as the best; None where there is no row."""
    known = [row for row in rows if not math.isnan(float(row[monitor]))]
    return max(known, key=lambda row: float(row[monitor]), default=None)
