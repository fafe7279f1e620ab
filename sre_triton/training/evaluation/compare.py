"""A fair comparison: several networks, several seeds, one data set, one table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import Progress

from sre_triton.models.profile import count_work
from sre_triton.training.evaluation.comparison import Entry, comparison_rows, comparison_table, write_comparison
from sre_triton.training.evaluation.contestants import Contestant, contestants
from sre_triton.training.evaluation.evaluate import about_evaluation, check_alike, evaluate_task, write_results
from sre_triton.training.evaluation.final_test import best_epoch
from sre_triton.training.evaluation.footprint import interleaved_ms, parameter_count, peak_training_memory
from sre_triton.training.evaluation.fresh import in_fresh_process
from sre_triton.training.evaluation.paired import paired_differences
from sre_triton.training.evaluation.results import result_folder, results_in
from sre_triton.training.files import require_writable, write_json
from sre_triton.training.options import CompareOptions, RunOptions
from sre_triton.training.runs.fitting import fit, is_finished, prepare_machine
from sre_triton.training.runs.folder import RunFolder, command_line
from sre_triton.training.runs.interruption import Interrupted
from sre_triton.training.runs.progress import Speech
from sre_triton.training.runs.restore import load_network, load_task
from sre_triton.training.schema import check_ranges, to_dict
from sre_triton.training.tasks.registry import task_type
from sre_triton.training.tasks.task import Task

__all__ = ["compare"]

_EVALUATION = "evaluation-test"
_TIMED_BATCH = 16


def compare(options: RunOptions, comparison: CompareOptions, console: Console | None = None) -> list[dict[str, Any]]:
    """Trains every network with every seed, tests the best checkpoint of each, and writes and prints the comparison.

    With ``comparison.tune`` every network first tries every learning rate with the first seed, and goes on with the one
    that is best on validation; no test image is looked at for it.

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
    check_ranges(comparison)
    require_writable(comparison.output, "--output")
    entered = contestants(options, comparison)
    seeds = list(dict.fromkeys(comparison.seeds))
    comparison.output.mkdir(parents=True, exist_ok=True)
    about = {"command": command_line(), "task": options.task, "options": to_dict(options)}
    write_json(comparison.output / "config.json", {**about, "comparison": to_dict(comparison)})
    tuning: dict[str, dict[str, Any]] = {}
    if comparison.tune:
        tuning = _tuned(entered, options, comparison, seeds[0], console)
        entered = [
            dataclasses.replace(one, options=dataclasses.replace(one.options, lr=tuning[one.name]["chosen"]))
            for one in entered
        ]
    # All networks with one seed, then with the next: what is finished early compares all networks.
    pairs = [(seed, one) for seed in seeds for one in entered]
    runs = [
        _Run.of(one, options, comparison, seed, f"{number} of {len(pairs)}")
        for number, (seed, one) in enumerate(pairs, start=1)
    ]
    found: dict[str, list[dict[str, Any]]] = {one.name: [] for one in entered}
    for run, result in zip(runs, _all_done(runs, comparison.jobs, _Run.finished), strict=True):
        found[run.name].append(result)
        check_alike({runs[0].name: found[runs[0].name][0], run.name: result})
    entries = [
        Entry(
            one.name,
            one.options.lr,
            one.own,
            found[one.name],
            [run.path for run in runs if run.name == one.name],
            tuning.get(one.name),
        )
        for one in entered
    ]
    rows = comparison_rows(entries)
    _add_costs(rows, entries, {one.name: one.options for one in entered})
    differences = paired_differences(found)
    written = write_comparison(comparison.output, rows, entries, differences, options.figure_format)
    for part in comparison_table(rows, entries, differences):
        console.print(part)
    console.print(f"written to {comparison.output}:", soft_wrap=True, highlight=False)
    for path in written:
        console.print(f"  {path}", soft_wrap=True, highlight=False)
    return rows


class _Trial(NamedTuple):
    """What a training with one learning rate reached on validation; None where its loss was no longer finite."""

    monitor: str
    score: float | None
    epoch: int | None


@dataclass(frozen=True)
class _Run:
    """One network trained with one seed."""

    name: str
    options: RunOptions
    turning: RunOptions  # how every network's test images are turned, whatever it was trained with
    path: Path
    place: str

    @classmethod
    def of(cls, one: Contestant, options: RunOptions, comparison: CompareOptions, seed: int, place: str) -> _Run:
        path = comparison.output / one.folder
        if comparison.tune:  # the trial of the rate that is taken is the run of the first seed
            path /= f"lr-{one.options.lr:g}"
        return cls(one.name, dataclasses.replace(one.options, seed=seed), options, path / f"seed-{seed}", place)

    def tried(self, *, alone: bool) -> _Trial:
        """What the training reaches on validation; see :meth:`finished`."""
        try:
            task, rows, speech = self._trained(alone)
        except FloatingPointError as error:
            Speech(quiet=self.options.quiet, label="" if alone else self._title, bars=False).say(f"given up: {error}")
            return _Trial("", None, None)
        best = best_epoch(rows, task.monitor)
        if best is None:
            return _Trial(task.monitor, None, None)
        speech.say(f"{'' if alone else self._title + ', '}validation: {100 * best[task.monitor]:.2f}")
        return _Trial(task.monitor, float(best[task.monitor]), int(best["epoch"]))

    def finished(self, *, alone: bool) -> dict[str, Any]:
        """The evaluation of the run: read if it is there, else after training from the start or the last checkpoint.

        Args:
            alone: nothing else is trained at the same time, so that a bar may show how far it is.
        """
        options, folder = self.options, RunFolder(self.path)
        kept = self._kept()
        if kept is not None:
            return kept
        _, _, speech = self._trained(alone)
        best = load_task(folder.best, options)
        best.network.to(_device(options))
        turning = self._turning
        with Progress(console=speech.console, transient=True, disable=not speech.has_bars) as progress:
            result = evaluate_task(best, turning, progress=progress, name=self.name, checkpoint=folder.best)
        results = {self.name: result}
        write_results(result_folder(self.path, _EVALUATION, results), results, options.figure_format)
        figures = result["rotation"]["summary"][result["main_score"]]
        speech.say(
            f"{'' if alone else self._title + ', '}{result['main_score']} over angles: "
            f"mean {100 * figures['mean']:.2f}, std {100 * figures['std']:.2f}"
        )
        return result

    @property
    def _title(self) -> str:
        return f"{self.name}, lr {self.options.lr:g}, seed {self.options.seed}"

    @property
    def _turning(self) -> RunOptions:
        return dataclasses.replace(self.turning, test_batch_size=self.options.test_batch_size)

    def _trained(self, alone: bool) -> tuple[Task, Sequence[Any], Speech]:
        """The task, its table of epochs and where its lines go; trained from the start or the last checkpoint."""
        options, folder = self.options, RunFolder(self.path)
        task = task_type(options).from_options(options)
        speech = Speech(quiet=options.quiet, label="" if alone else self._title, bars=alone)
        speech.say(f"training {self.place}: {self._title + ', ' if alone else ''}{self.path}")
        for note in task.notes if self.place.startswith("1 ") else ():
            speech.say(f"  {note}")
        task.require("test")
        return task, fit(task, folder, speech).rows, speech

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
            load_task(folder.best, options), self._turning, split="test", step=None, checkpoint=folder.best
        )
        kept = results_in(self.path, _EVALUATION, {self.name: about})
        if kept is None or "images" not in kept[self.name]["rotation"]:  # written by an older version
            return None
        return kept[self.name]


def _tuned(
    entered: Sequence[Contestant], options: RunOptions, comparison: CompareOptions, seed: int, console: Console
) -> dict[str, dict[str, Any]]:
    """Of each network what every learning rate reaches on validation, and which is best.

    Raises:
        ValueError: none of the rates trains a network.
    """
    rates = sorted(set(comparison.tune or []))
    pairs = [(rate, one) for rate in rates for one in entered]
    runs = [
        _Run.of(
            dataclasses.replace(one, options=dataclasses.replace(one.options, lr=rate)),
            options,
            comparison,
            seed,
            f"{number} of {len(pairs)} for learning rates",
        )
        for number, (rate, one) in enumerate(pairs, start=1)
    ]
    found = zip(runs, _all_done(runs, comparison.jobs, _Run.tried), strict=True)
    trials = {(run.name, run.options.lr): trial for run, trial in found}
    return {
        one.name: _choice(one.name, {rate: trials[one.name, rate] for rate in rates}, seed, console) for one in entered
    }


def _choice(name: str, trials: dict[float, _Trial], seed: int, console: Console) -> dict[str, Any]:
    known = {rate: trial for rate, trial in trials.items() if trial.score is not None}
    if not known:
        raise ValueError(f"{name} can be trained with none of --tune {' '.join(f'{rate:g}' for rate in trials)}")
    best = max(known, key=lambda rate: known[rate].score or 0.0)
    at_edge = len(trials) > 1 and best in (min(trials), max(trials))
    if at_edge:
        console.print(
            f"{name} is best with the {'smallest' if best == min(trials) else 'largest'} rate of --tune, {best:g}: "
            "others beyond it may be better",
            soft_wrap=True,
            highlight=False,
        )
    return {
        "score": known[best].monitor,
        "seed": seed,
        "trials": [{"lr": rate, "score": trial.score, "epoch": trial.epoch} for rate, trial in trials.items()],
        "chosen": best,
        "at_edge": at_edge,
    }


def _all_done(runs: list[_Run], jobs: int, what: Callable[..., Any]) -> list[Any]:
    """What a method of :class:`_Run` returns for each, several at a time."""
    if jobs == 1:
        return [what(run, alone=True) for run in runs]
    first = runs[0].options
    task_type(first).from_options(
        first
    )  # data that have to be written are written once, and what is wrong with them is said once
    machine: dict[str, Any] = {"threads": first.threads, "deterministic": first.deterministic, "cudnn": first.cudnn}
    with ThreadPoolExecutor(jobs) as pool:  # each thread waits for a process
        futures = [pool.submit(in_fresh_process, _done_there, what.__name__, run, machine) for run in runs]
        try:
            return [future.result() for future in futures]
        except BaseException as error:
            pool.shutdown(cancel_futures=True)  # waits: Ctrl-C reaches the processes too, and they save
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted("stopped; run the same command again to go on") from error
            raise


def _done_there(what: str, run: _Run, machine: dict[str, Any]) -> Any:
    prepare_machine(**machine)
    return getattr(run, what)(alone=False)


def _device(options: RunOptions) -> str:
    return "cuda" if torch.cuda.is_available() and not options.no_cuda else "cpu"


def _add_costs(rows: list[dict[str, Any]], entries: Sequence[Entry], options: dict[str, RunOptions]) -> None:
    networks, builders = {}, {}
    for entry in entries:
        own = options[entry.name]
        network, about, _ = load_network(entry.folders[0])
        networks[entry.name] = network.to(_device(own))
        builders[entry.name] = partial(task_type(own).build_network, own, about)
    some = next(iter(options.values()))
    shape = task_type(some).input_shape(some, about)
    batch = min(_TIMED_BATCH, some.batch_size)
    times = interleaved_ms(networks, (batch, *shape))
    for row in rows:
        name = row["network"]
        own = options[name]
        row["parameters"] = parameter_count(networks[name])
        work = count_work(networks[name], torch.zeros(1, *shape, device=_device(own)))
        row["gmac"], row["gadd"], row["gmac_dense"] = (
            1e-9 * count for count in (work.ringwise, work.additions, work.dense)
        )
        row["ms_per_image"] = times[name]
        row["training_mib"] = peak_training_memory(builders[name], (some.batch_size, *shape), _device(own))
