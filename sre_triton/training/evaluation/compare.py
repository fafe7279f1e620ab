"""A fair comparison: several networks, several seeds, one data set, one table."""

from __future__ import annotations

import dataclasses
import statistics
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from sre_triton.models.profile import count_work
from sre_triton.training.evaluation.evaluate import (
    about_evaluation,
    curves_of,
    evaluate_task,
    rotation_caption,
    write_results,
)
from sre_triton.training.evaluation.footprint import interleaved_ms, parameter_count, peak_training_memory
from sre_triton.training.evaluation.fresh import in_fresh_process
from sre_triton.training.evaluation.results import result_folder, results_in, written
from sre_triton.training.figures import draw_angle_curves, draw_learning_curves
from sre_triton.training.files import (
    as_shares,
    in_percent,
    read_json,
    replacing,
    require_writable,
    write_csv,
    write_json,
)
from sre_triton.training.options import CompareOptions, RunOptions
from sre_triton.training.runs.fitting import fit, is_finished, prepare_machine
from sre_triton.training.runs.folder import RunFolder
from sre_triton.training.runs.interruption import Interrupted
from sre_triton.training.runs.progress import Speech
from sre_triton.training.runs.restore import load_network, load_task
from sre_triton.training.tasks.networks import PLAIN_TWINS
from sre_triton.training.tasks.registry import task_type
from sre_triton.training.tasks.undefined import mean_of_known

__all__ = ["compare"]

_EVALUATION = "evaluation-test"
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
    console = console or Console(quiet=options.quiet)
    if options.ddp:
        raise ValueError("--ddp: compare trains in one process; train the networks one by one instead")
    if options.resume is not None:
        raise ValueError("--resume: compare goes on by itself when it is run again with the same --output")
    require_writable(comparison.output, "--output")
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
            number,
            len(pairs),
        )
        for number, (seed, model) in enumerate(pairs, start=1)
    ]
    results: dict[str, list[dict[str, Any]]] = {model: [] for model in models}
    for run, result in zip(runs, _all_finished(runs, comparison.jobs), strict=True):
        results[run.options.model_type].append(result)
    rows = [_row(model, results[model]) for model in models]
    _add_costs(rows, {model: dataclasses.replace(options, model_type=model) for model in models}, comparison.output)
    _write(comparison.output, rows, results, options.figure_format)
    console.print(_table(rows, results))
    console.print(f"written to {comparison.output}:", soft_wrap=True, highlight=False)
    drawn = (f"{stem}.{options.figure_format}" for stem in ("rotation", "curves"))
    for name in ("comparison.csv", "comparison.md", "comparison.json", *drawn):
        console.print(f"  {comparison.output / name}", soft_wrap=True, highlight=False)
    return rows


@dataclass(frozen=True)
class _Run:
    """One network trained with one seed."""

    options: RunOptions
    path: Path
    number: int
    total: int

    def finished(self, *, alone: bool) -> dict[str, Any]:
        """The evaluation of the run: read if it is there, else after training from the start or the last checkpoint.

        Args:
            alone: nothing else is trained at the same time, so that a bar may show how far it is.
        """
        options, folder = self.options, RunFolder(self.path)
        task = task_type(options).from_options(options)
        kept = self._kept()
        if kept is not None:
            return kept
        name = f"{options.model_type}, seed {options.seed}"
        speech = Speech(quiet=options.quiet, label="" if alone else name, bars=alone)
        speech.say(f"training {self.number} of {self.total}: {name + ', ' if alone else ''}{self.path}")
        for note in task.notes if self.number == 1 else ():
            speech.say(f"  {note}")
        task.require("test")
        fit(task, folder, speech)
        best = load_task(folder.best, options)
        best.network.to(_device(options))
        with Progress(console=speech.console, transient=True, disable=not speech.has_bars) as progress:
            result = evaluate_task(best, options, progress=progress, name=options.model_type, checkpoint=folder.best)
        results = {options.model_type: result}
        write_results(result_folder(self.path, _EVALUATION, results), results, options.figure_format)
        figures = result["rotation"]["summary"][result["main_score"]]
        speech.say(
            f"{name + ', ' if alone else ''}{result['main_score']} over angles: "
            f"mean {100 * figures['mean']:.2f}, std {100 * figures['std']:.2f}"
        )
        return result

    def _kept(self) -> dict[str, Any] | None:
        """What was measured before of this network, as it would be measured now; None where that is still to be done.

        Raises:
            ValueError: the run was begun with other options.
        """
        options, folder = self.options, RunFolder(self.path)
        if not folder.best.is_file():
            return None
        folder.check(options)
        if not is_finished(folder, options):
            return None
        about = about_evaluation(
            load_task(folder.best, options), options, split="test", step=None, checkpoint=folder.best
        )
        kept = results_in(self.path, _EVALUATION, {options.model_type: about})
        return kept[options.model_type] if kept is not None else None


def _all_finished(runs: list[_Run], jobs: int) -> list[dict[str, Any]]:
    if jobs == 1:
        return [run.finished(alone=True) for run in runs]
    first = runs[0].options
    task_type(first).from_options(
        first
    )  # data that have to be written are written once, and what is wrong with them is said once
    machine: dict[str, Any] = {"threads": first.threads, "deterministic": first.deterministic, "cudnn": first.cudnn}
    with ThreadPoolExecutor(jobs) as pool:  # each thread waits for a process
        futures = [pool.submit(in_fresh_process, _finished_there, run, machine) for run in runs]
        try:
            return [future.result() for future in futures]
        except BaseException as error:
            pool.shutdown(cancel_futures=True)  # waits: Ctrl-C reaches the processes too, and they save
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted("stopped; run the same command again to go on") from error
            raise


def _finished_there(run: _Run, machine: dict[str, Any]) -> dict[str, Any]:
    prepare_machine(**machine)
    return run.finished(alone=False)


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
            row[name] = mean_of_known(values)
            if len(values) > 1:
                row[f"{name}_sd"] = statistics.stdev(values)
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
    networks = [{"network": row["network"], **_about(results[row["network"]][0]), **in_percent(row)} for row in rows]
    runs = {model: [written(result) for result in some] for model, some in results.items()}
    write_json(output / "comparison.json", {"networks": networks, "runs": runs, "unit": "percent"})
    write_csv(output / "comparison.csv", networks)
    table = _cells(rows, results)
    lines = [" | ".join(cells) for cells in (table[0], ["---", *["--:"] * (len(table[0]) - 1)], *table[1:])]
    with replacing(output / "comparison.md") as partial:
        partial.write_text("".join(f"| {line} |\n" for line in lines), encoding="utf-8")
    curves = {model: [curve for result in runs for curve in curves_of(result)] for model, runs in results.items()}
    first = next(iter(results.values()))[0]
    draw_angle_curves(output / f"rotation.{figure_format}", curves, first["main_score"], rotation_caption(first))
    score = f"val_{first['main_score']}"
    learned = {
        model: [_epochs(_home(output, model) / f"seed-{result['seed']}", score) for result in some]
        for model, some in results.items()
    }
    draw_learning_curves(output / f"curves.{figure_format}", learned, score, first["data"])


def _epochs(folder: Path, score: str) -> list[dict[str, Any]]:
    """The table of a run's epochs: losses and a score."""
    columns = {
        name: column
        for name, column in read_json(folder / "logs.json").items()
        if name in ("epoch", "train_loss", "val_loss", score)
    }
    return [as_shares(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]


def _about(result: dict[str, Any]) -> dict[str, Any]:
    return {name: result[name] for name in ("data", "split", "n")}


def _cells(rows: list[dict[str, Any]], results: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    """The comparison as text: a header and one row per network."""
    score = next(iter(results.values()))[0]["main_score"]
    shown = {"mean": "mean of angles", "std": "std over angles", "at_0": "at 0°", "at_90": "at 90°", "flips": "flips"}
    costs = ["parameters", "GMAC", "ms per image", "MiB to train"]
    header = ["network", *(f"{score}, {text}" for text in shown.values()), *costs]
    cells = [header]
    for row in rows:
        scores = []
        for name in (f"{score}_{name}" for name in shown):
            spread = f" ± {100 * row[f'{name}_sd']:.2f}" if f"{name}_sd" in row else ""
            scores.append(f"{100 * row[name]:.2f}{spread}")
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
    seeds = f"{len(some)} seeds (mean ± sd over them)" if len(some) > 1 else f"seed {some[0]['seed']}"
    table = Table(caption=f"{some[0]['data']}, test: {turns} turns, {seeds}, scores in percent", caption_justify="left")
    for number, name in enumerate(names):
        table.add_column(name if number else "", justify="right" if number else "left")
    for cells in figures:
        table.add_row(*cells)
    return table
