"""The commands ``train`` and ``segment``: read, train, test."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from rich.console import Console

from sre_triton.training.evaluation.evaluate import evaluate_task, summary_tables, write_results
from sre_triton.training.evaluation.results import result_folder
from sre_triton.training.options import RunOptions
from sre_triton.training.runs.fitting import fit, load_weights, prepare_machine
from sre_triton.training.runs.folder import RunFolder
from sre_triton.training.runs.restore import load_task
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
    console = console or Console(highlight=False)
    prepare_machine(threads=options.threads, deterministic=options.deterministic, cudnn=options.cudnn)
    task = task_type(options).from_options(options)
    folder = RunFolder.choose(options, task.description["data"])
    if options.eval_only:
        if options.load_model is None:
            raise ValueError("--eval-only needs --load-model: a checkpoint to evaluate")
        load_weights(task, options.load_model)
        folder.begin(options, task.description, task.network)
        _test(task, options, folder, options.load_model, console, rotations=True, flips=options.eval_flip)
        return folder
    first = int(os.environ.get("LOCAL_RANK", "0")) == 0
    if first:
        console.print(
            f"{task.description['data']}, {options.model_type}, seed {options.seed}: {folder.path}", soft_wrap=True
        )
        for note in task.notes:
            console.print(f"  {note}", soft_wrap=True)
    if options.eval_rot or options.eval_flip:
        task.require("test")
    recorder = fit(task, folder)
    if not first:
        return folder
    if options.eval_rot or options.eval_flip:
        checkpoint = folder.best if folder.best.is_file() else folder.last
        best = load_task(checkpoint, options)
        results = _test(best, options, folder, checkpoint, console, rotations=options.eval_rot, flips=options.eval_flip)
        recorder.write(**results)
    console.print(f"done: {folder.path}", soft_wrap=True)
    return folder


def _test(
    task: Task,
    options: RunOptions,
    folder: RunFolder,
    checkpoint: Path,
    console: Console,
    *,
    rotations: bool,
    flips: bool,
) -> dict[str, list[float]]:
    """Runs the tests, prints and writes them, and returns their main scores by the reference script's names."""
    from rich.progress import Progress

    task.network.to("cuda" if torch.cuda.is_available() and not options.no_cuda else "cpu")
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
