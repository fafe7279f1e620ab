"""A fair comparison: several networks, several seeds, one data set, one table."""

from __future__ import annotations

import dataclasses
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn

from sre_triton.training.classification import classification_task, read_set
from sre_triton.training.evaluate import curves_of, evaluate_task, load_network, load_task
from sre_triton.training.figures import draw_angle_curves
from sre_triton.training.files import read_json, replacing, write_csv, write_json
from sre_triton.training.fitting import fit
from sre_triton.training.footprint import interleaved_ms, multiplications, parameter_count, peak_training_memory
from sre_triton.training.networks import PLAIN_TWINS, classifier, segmenter
from sre_triton.training.options import CompareOptions, SegmentOptions, TrainOptions
from sre_triton.training.runs import RunFolder
from sre_triton.training.segmentation import read_photographs, segmentation_task
from sre_triton.training.task import Task

__all__ = ["compare"]

_EVALUATION = "evaluation.json"
_TIMED_BATCH = 16


def compare(
    options: TrainOptions | SegmentOptions, comparison: CompareOptions, console: Console | None = None
) -> list[dict[str, Any]]:
    """Trains every network with every seed, tests the best checkpoint of each, and writes and prints the comparison.

    What is finished is kept: run again with the same options, it goes on where it stopped.

    Returns:
        One row per network, as in ``comparison.csv``.

    Raises:
        Interrupted: the user stopped it.
        ValueError: an option is wrong, or differs from those that the folder was begun with.
        OSError: data are missing, or the folder cannot be written to.
    """
    console = console or Console()
    if options.ddp:
        raise ValueError("--ddp: compare trains in one process; train the networks one by one instead")
    models = comparison.models or [options.model_type, PLAIN_TWINS.get(options.model_type, options.model_type)]
    models = list(dict.fromkeys(models))
    seeds = list(dict.fromkeys(comparison.seeds))
    results: dict[str, list[dict[str, Any]]] = {model: [] for model in models}
    for seed in seeds:  # seed by seed, so that an unfinished comparison is already a fair one
        for model in models:
            chosen = dataclasses.replace(options, model_type=model, seed=seed)
            folder = RunFolder(comparison.output / model.replace(":", "-") / f"seed-{seed}")
            results[model].append(_finished(chosen, folder, console))
    rows = [_row(model, results[model]) for model in models]
    _add_costs(rows, {model: dataclasses.replace(options, model_type=model) for model in models}, comparison.output)
    _write(comparison.output, rows, results)
    console.print(_table(rows, results))
    console.print(f"{comparison.output}/comparison.csv, comparison.md, comparison.json, rotation.png")
    return rows


def _finished(options: TrainOptions | SegmentOptions, folder: RunFolder, console: Console) -> dict[str, Any]:
    """The evaluation of one run, which is begun, gone on with or only read."""
    task = _task(options)
    if (folder.path / _EVALUATION).is_file():
        folder.begin(options, task.description)  # an error if it was begun otherwise
        return dict(read_json(folder.path / _EVALUATION))
    console.print(f"[bold]{options.model_type}, seed {options.seed}[/bold]: {folder.path}")
    fit(task, folder)
    best = load_task(folder.best)
    best.network.to(_device(options))
    with Progress(console=console, transient=True) as progress:
        result = evaluate_task(best, options, progress=progress, name=options.model_type)
    write_json(folder.path / _EVALUATION, result)
    return result


def _task(options: TrainOptions | SegmentOptions) -> Task:
    if isinstance(options, TrainOptions):
        return classification_task(options, read_set(options))
    return segmentation_task(options, read_photographs(options))


def _device(options: TrainOptions | SegmentOptions) -> str:
    return "cuda" if torch.cuda.is_available() and not options.no_cuda else "cpu"


def _row(model: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean over seeds, and their sample standard deviation, of each figure of each score."""
    row: dict[str, Any] = {"network": model, "seeds": len(results)}
    for score in results[0]["rotation"]["summary"]:
        figures = {
            f"{score}_{figure}": [result["rotation"]["summary"][score][figure] for result in results]
            for figure in ("mean", "std", "at_0", "at_90")
            if figure in results[0]["rotation"]["summary"][score]
        }
        figures[f"{score}_flips"] = [result["flips"]["summary"][score]["mean"] for result in results]
        for name, values in figures.items():
            row[name] = statistics.fmean(values)
            row[f"{name}_sd"] = statistics.stdev(values) if len(values) > 1 else 0.0
    return row


def _add_costs(rows: list[dict[str, Any]], options: dict[str, TrainOptions | SegmentOptions], output: Path) -> None:
    networks, builders = {}, {}
    for row in rows:
        model = row["network"]
        run = next((output / model.replace(":", "-")).glob("seed-*"))
        network, about, _ = load_network(run)
        networks[model] = network.to(_device(options[model]))
        builders[model] = partial(_build, options[model], about)
    some = next(iter(options.values()))
    if isinstance(some, TrainOptions):
        side = 32 if some.medmnist_size == 28 else some.medmnist_size
        shape: tuple[int, ...] = (about["channels"], *[side] * about["ndim"])
    else:
        shape = (3, some.crop_size, some.crop_size)
    batch = min(_TIMED_BATCH, some.batch_size)
    times = interleaved_ms(networks, (batch, *shape))
    for row in rows:
        model = row["network"]
        row["parameters"] = parameter_count(networks[model])
        row["gmac"] = multiplications(networks[model], shape) / 1e9
        row["ms_per_image"] = times[model]
        row["training_mib"] = peak_training_memory(
            builders[model], (some.batch_size, *shape), _device(options[model])
        )


def _build(options: TrainOptions | SegmentOptions, about: dict[str, Any]) -> nn.Module:
    if isinstance(options, TrainOptions):
        return classifier(options, about["classes"], about["channels"], about["ndim"])
    return segmenter(options)


def _write(output: Path, rows: list[dict[str, Any]], results: dict[str, list[dict[str, Any]]]) -> None:
    write_json(output / "comparison.json", {"networks": rows, "runs": results})
    write_csv(output / "comparison.csv", rows)
    table = _cells(rows, results)
    lines = [" | ".join(cells) for cells in (table[0], ["---", *["--:"] * (len(table[0]) - 1)], *table[1:])]
    with replacing(output / "comparison.md") as partial:
        partial.write_text("".join(f"| {line} |\n" for line in lines), encoding="utf-8")
    curves = {model: [curve for result in runs for curve in curves_of(result)] for model, runs in results.items()}
    draw_angle_curves(output / "rotation.png", curves, next(iter(results.values()))[0]["main_score"])


def _cells(rows: list[dict[str, Any]], results: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    """The comparison as text: a header and one row per network."""
    score = next(iter(results.values()))[0]["main_score"]
    shown = {"mean": "mean of angles", "std": "std over angles", "at_0": "at 0°", "at_90": "at 90°", "flips": "flips"}
    costs = ["parameters", "GMAC", "ms per image", "MiB to train"]
    header = ["network", *(f"{score}, {text}" for text in shown.values()), *costs]
    cells = [header]
    for row in rows:
        scores = [
            f"{100 * row[f'{score}_{name}']:.2f} ± {100 * row[f'{score}_{name}_sd']:.2f}" for name in shown
        ]
        cells.append(
            [
                row["network"],
                *scores,
                f"{row['parameters']:,}",
                f"{row['gmac']:.2f}",
                f"{row['ms_per_image']:.1f}",
                f"{row['training_mib']:.0f}",
            ]
        )
    return cells


def _table(rows: list[dict[str, Any]], results: dict[str, list[dict[str, Any]]]) -> Table:
    header, *body = _cells(rows, results)
    some = next(iter(results.values()))
    turns = len(some[0]["rotation"]["rows"])
    table = Table(title=f"{some[0]['data']}, test: {turns} turns, {len(some)} seeds (mean ± sd), scores in percent")
    for name in header:
        table.add_column(name, justify="left" if name == "network" else "right")
    for cells in body:
        table.add_row(*cells)
    return table
