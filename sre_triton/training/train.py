"""The commands ``train`` and ``segment``: read, train, test."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from rich.console import Console

from sre_triton.training.evaluation.evaluate import evaluate_task, summary_tables, write_results
from sre_triton.training.evaluation.final_test import best_epoch, final_test
from sre_triton.training.evaluation.results import result_folder
from sre_triton.training.files import require_writable
from sre_triton.training.options import RunOptions
from sre_triton.training.runs.fitting import fit, load_weights, prepare_machine
from sre_triton.training.runs.folder import RunFolder
from sre_triton.training.runs.progress import Speech
from sre_triton.training.runs.restore import restore_weights
from sre_triton.training.tasks.registry import task_type
from sre_triton.training.tasks.task import Task

__all__ = ["train"]


def train(options: RunOptions, console: Console | None = None) -> RunFolder:
    """Trains, or only tests with ``eval_only``, and returns the run's folder.

    Raises:
        Interrupted: the user stopped it.
        ValueError: an option, the data or a checkpoint is not as it should be.
        OSError: a file is missing or cannot be written.
    """
    speech = Speech(quiet=options.quiet)
    console = console or speech.console
    prepare_machine(threads=options.threads, deterministic=options.deterministic, cudnn=options.cudnn)
    task = task_type(options).from_options(options)
    folder = RunFolder.choose(options, task.description["data"])
    if options.eval_only:
        return _only_test(task, folder, console)
    if options.eval_rot or options.eval_flip:
        task.require("test")
    is_first = int(os.environ.get("LOCAL_RANK", "0")) == 0
    if is_first:
        _introduce(task, folder, speech)
    recorder = fit(task, folder, speech)
    if not is_first:
        return folder
    checkpoint = folder.best if folder.best.is_file() else folder.last
    restore_weights(task, checkpoint)
    best = best_epoch(recorder.rows, task.monitor)
    if best is not None:
        score = f"{task.monitor.removeprefix('val_').replace('_', ' ')} {100 * best[task.monitor]:.2f}"
        speech.say(f"best epoch on validation: {best['epoch']}, {score}")
    if task.size("test") == 0:
        speech.say("there are no test images, so there are no test scores")
    elif not options.no_test and not options.dry_run:
        _to_device(task)
        for table in final_test(task, options, folder.path / "test", best["epoch"] if best else None):
            console.print(table)
    if options.eval_rot or options.eval_flip:
        results = _test(task, folder, checkpoint, console, rotations=options.eval_rot, flips=options.eval_flip)
        recorder.write(**results)
    recorder.pictures({path.stem: path for path in folder.path.rglob("*.png")})
    _say_where(folder.path, options.figure_format, speech)
    return folder


def _introduce(task: Task, folder: RunFolder, speech: Speech) -> None:
    """Says what is trained on what, and where it goes."""
    options = task.options
    train, val, test = (f"{task.size(split):,}" for split in ("train", "val", "test"))
    classes = task.description["classes"]
    speech.say(
        f"{task.description['data']}: {classes} classes, {train} images to train on, {val} to validate, {test} to test"
    )
    for note in task.notes:
        speech.say(f"  {note}")
    parameters = sum(p.numel() for p in task.network.parameters() if p.requires_grad)
    speech.say(f"{options.model_type}, {parameters:,} parameters, seed {options.seed}: {folder.path}")


def _say_where(folder: Path, figure_format: str, speech: Speech) -> None:
    """Says where what a user looks for lies."""
    names = {
        "best.ckpt": "best epoch",
        "last.ckpt": "last epoch, to go on",
        "metrics.csv": "table of epochs",
        f"curves.{figure_format}": "drawn",
        "test/test.json": "test scores",
        "test/classes.csv": "scores of each class",
        "test/confusion.csv": "confusion matrix",
        f"test/confusion.{figure_format}": "drawn",
        "evaluation-test/rotation.csv": "rotation and flip test",
        f"evaluation-test/rotation.{figure_format}": "drawn",
    }
    there = {folder / name: what for name, what in names.items() if (folder / name).is_file()}
    speech.say(f"written to {folder}:")
    for path, what in there.items():
        speech.say(f"  {what:<24} {path}")


def _to_device(task: Task) -> None:
    task.network.to("cuda" if torch.cuda.is_available() and not task.options.no_cuda else "cpu")


def _only_test(task: Task, folder: RunFolder, console: Console) -> RunFolder:
    """Tests the weights of ``--load-model``."""
    options = task.options
    if options.load_model is None:
        raise ValueError("--eval-only needs --load-model: a checkpoint to evaluate")
    require_writable(folder.path, "--base-log-dir")
    task.require("test")
    load_weights(task, options.load_model)
    folder.begin(options, task.description, task.network)
    _to_device(task)
    for table in final_test(task, options, folder.path / "test", None):
        console.print(table)
    _test(task, folder, options.load_model, console, rotations=True, flips=options.eval_flip)
    return folder


def _test(
    task: Task, folder: RunFolder, checkpoint: Path, console: Console, *, rotations: bool, flips: bool
) -> dict[str, list[float]]:
    """Runs the tests, prints and writes them, and returns their main scores by the reference script's names."""
    from rich.progress import Progress

    options = task.options
    _to_device(task)
    with Progress(console=console, transient=True) as progress:
        result = evaluate_task(
            task, options, rotations=rotations, flips=flips, progress=progress, checkpoint=checkpoint
        )
    results = {options.model_type: result}
    write_results(result_folder(folder.path, "evaluation-test", results), results, options.figure_format)
    for table in summary_tables(results):
        console.print(table)
    names = {"rotation": "eval_rot_acc", "flips": "eval_flip_acc"}
    return {
        name: [row[task.main_score] for row in result[test]["rows"]] for test, name in names.items() if test in result
    }
