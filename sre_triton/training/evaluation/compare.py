"""A fair comparison: several networks, several seeds, one data set, one table."""

from __future__ import annotations

import dataclasses
import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from sre_triton.models.profile import count_work
from sre_triton.training.evaluation.evaluate import curves_of, evaluate_task, rotation_caption
from sre_triton.training.evaluation.footprint import interleaved_ms, parameter_count, peak_training_memory
from sre_triton.training.figures import draw_angle_curves
from sre_triton.training.files import read_json, replacing, write_csv, write_json
from sre_triton.training.options import CompareOptions, RunOptions
from sre_triton.training.runs.fitting import fit, prepare_machine
from sre_triton.training.runs.folder import RunFolder
from sre_triton.training.runs.interruption import Interrupted
from sre_triton.training.runs.restore import load_network, load_task
from sre_triton.training.tasks.networks import PLAIN_TWINS
from sre_triton.training.tasks.registry import task_type

__all__ = ["compare"]

_EVALUATION = "evaluation.json"
_TIMED_BATCH = 16


def compare(options: RunOptions, comparison: CompareOptions, console: Console | None = None) -> list[dict[str, Any]]:
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
    if comparison.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {comparison.jobs}")
    models = comparison.models or [options.model_type, PLAIN_TWINS.get(options.model_type, options.model_type)]
    models = list(dict.fromkeys(models))
    seeds = list(dict.fromkeys(comparison.seeds))
    # All networks with one seed, then with the next: what is finished early compares all networks.
    pairs = [(seed, model) for seed in seeds for model in models]
    runs = [
        _Run(
            dataclasses.replace(options, model_type=model, seed=seed),
            _home(comparison.output, model) / f"seed-{seed}",
            (seed, model) == pairs[0],
        )
        for seed, model in pairs
    ]
    results: dict[str, list[dict[str, Any]]] = {model: [] for model in models}
    for run, result in zip(runs, _all_finished(runs, comparison.jobs), strict=True):
        results[run.options.model_type].append(result)
    rows = [_row(model, results[model]) for model in models]
    _add_costs(rows, {model: dataclasses.replace(options, model_type=model) for model in models}, comparison.output)
    _write(comparison.output, rows, results, options.figure_format)
    console.print(_table(rows, results))
    console.print(
        f"{comparison.output}/comparison.csv, comparison.md, comparison.json, rotation.{options.figure_format}"
    )
    return rows


@dataclass(frozen=True)
class _Run:
    """One network trained with one seed."""

    options: RunOptions
    path: Path
    first: bool = False

    def finished(self) -> dict[str, Any]:
        """The evaluation of the run: read if it is there, else after training from the start or the last checkpoint."""
        options, folder = self.options, RunFolder(self.path)
        task = task_type(options).from_options(options)
        if (self.path / _EVALUATION).is_file():
            folder.check(options)
            return dict(read_json(self.path / _EVALUATION))
        print(f"{options.model_type}, seed {options.seed}: {self.path}", flush=True)
        if self.first:
            print(*(f"  {note}\n" for note in task.notes), sep="", end="", flush=True)
        task.require("test")
        alone = multiprocessing.parent_process() is None
        fit(task, folder, bar=alone)
        best = load_task(folder.best)
        best.network.to(_device(options))
        with Progress(console=Console(stderr=True), transient=True, disable=not alone) as progress:
            result = evaluate_task(best, options, progress=progress, name=options.model_type)
        write_json(self.path / _EVALUATION, result)
        figures = result["rotation"]["summary"][result["main_score"]]
        print(
            f"{options.model_type}, seed {options.seed}: {result['main_score']} {100 * figures['mean']:.2f} "
            f"± {100 * figures['std']:.2f} over angles",
            flush=True,
        )
        return result


def _all_finished(runs: list[_Run], jobs: int) -> list[dict[str, Any]]:
    if jobs == 1:
        return [run.finished() for run in runs]
    first = runs[0].options
    task_type(first).from_options(
        first
    )  # data that have to be written are written once, and what is wrong with them is said once
    machine: dict[str, Any] = {"threads": first.threads, "deterministic": first.deterministic, "cudnn": first.cudnn}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=partial(prepare_machine, **machine)) as pool:
        futures = [pool.submit(_Run.finished, run) for run in runs]
        try:
            return [future.result() for future in futures]
        except BaseException as error:
            pool.shutdown(cancel_futures=True)  # waits: Ctrl-C reaches the processes too, and they save
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted("stopped; run the same command again to go on") from error
            raise


def _home(output: Path, model: str) -> Path:
    return output / model.replace(":", "-")


def _device(options: RunOptions) -> str:
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


def _add_costs(rows: list[dict[str, Any]], options: dict[str, RunOptions], output: Path) -> None:
    networks, builders = {}, {}
    for row in rows:
        model = row["network"]
        network, about, _ = load_network(next(_home(output, model).glob("seed-*")))
        networks[model] = network.to(_device(options[model]))
        builders[model] = partial(task_type(options[model]).build_network, options[model], about)
    some = next(iter(options.values()))
    shape = task_type(some).input_shape(some, about)
    batch = min(_TIMED_BATCH, some.batch_size)
    times = interleaved_ms(networks, (batch, *shape))
    for row in rows:
        model = row["network"]
        row["parameters"] = parameter_count(networks[model])
        work = count_work(networks[model], torch.zeros(1, *shape, device=_device(options[model])))
        row["gmac"], row["gmac_dense"] = work.ringwise / 1e9, work.dense / 1e9
        row["ms_per_image"] = times[model]
        row["training_mib"] = peak_training_memory(builders[model], (some.batch_size, *shape), _device(options[model]))


def _write(
    output: Path, rows: list[dict[str, Any]], results: dict[str, list[dict[str, Any]]], figure_format: str
) -> None:
    write_json(output / "comparison.json", {"networks": rows, "runs": results})
    write_csv(output / "comparison.csv", rows)
    table = _cells(rows, results)
    lines = [" | ".join(cells) for cells in (table[0], ["---", *["--:"] * (len(table[0]) - 1)], *table[1:])]
    with replacing(output / "comparison.md") as partial:
        partial.write_text("".join(f"| {line} |\n" for line in lines), encoding="utf-8")
    curves = {model: [curve for result in runs for curve in curves_of(result)] for model, runs in results.items()}
    first = next(iter(results.values()))[0]
    draw_angle_curves(output / f"rotation.{figure_format}", curves, first["main_score"], rotation_caption(first))


def _cells(rows: list[dict[str, Any]], results: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    """The comparison as text: a header and one row per network."""
    score = next(iter(results.values()))[0]["main_score"]
    shown = {"mean": "mean of angles", "std": "std over angles", "at_0": "at 0°", "at_90": "at 90°", "flips": "flips"}
    costs = ["parameters", "GMAC", "ms per image", "MiB to train"]
    header = ["network", *(f"{score}, {text}" for text in shown.values()), *costs]
    cells = [header]
    for row in rows:
        scores = [f"{100 * row[f'{score}_{name}']:.2f} ± {100 * row[f'{score}_{name}_sd']:.2f}" for name in shown]
        cells.append(
            [
                row["network"],
                *scores,
                f"{row['parameters']:,}",
                f"{row['gmac']:.2f}",
                f"{row['ms_per_image']:.1f}",
                "" if row["training_mib"] is None else f"{row['training_mib']:.0f}",
            ]
        )
    return cells


def _table(rows: list[dict[str, Any]], results: dict[str, list[dict[str, Any]]]) -> Table:
    """The comparison for a terminal: a column per network, which leaves room for the figures' names."""
    names, *figures = zip(*_cells(rows, results), strict=True)
    some = next(iter(results.values()))
    turns = len(some[0]["rotation"]["rows"])
    table = Table(title=f"{some[0]['data']}, test: {turns} turns, {len(some)} seeds (mean ± sd), scores in percent")
    for number, name in enumerate(names):
        table.add_column(name if number else "", justify="right" if number else "left")
    for cells in figures:
        table.add_row(*cells)
    return table
