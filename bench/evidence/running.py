"""Makes the results of a table, file by file; what is there already is kept."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.evidence.averaging import OverSymmetries
from bench.evidence.objects import OBJECT_F1, each_scored_with_objects
from bench.evidence.protocol import Evaluation, Network, Table, at_all, distinct_angles
from bench.evidence.symmetry import symmetry_of
from bench.evidence.turned_back import each_scored_turned_back
from sre_triton.models.profile import COUNTED, count_work
from sre_triton.training.data.warp import Symmetry
from sre_triton.training.evaluation.footprint import interleaved_ms, parameter_count, peak_training_memory
from sre_triton.training.files import read_json, write_json
from sre_triton.training.options import RunOptions
from sre_triton.training.runs.fitting import fit, prepare_machine
from sre_triton.training.runs.folder import RunFolder, versions
from sre_triton.training.runs.progress import Speech
from sre_triton.training.runs.restore import load_task
from sre_triton.training.schema import result_options
from sre_triton.training.tasks.registry import task_type
from sre_triton.training.tasks.task import Task

__all__ = ["Runner"]

_DIGITS = 6
_STEPS_TIMED = 5


class Runner:
    """Makes the results of one table.

    Args:
        table: what to make.
        data: folder of the data as they were published.
        results: folder of the results; a table has a folder in it.
        work: folder of the trainings and of prepared data, which nothing is read from later.
        say: is told what is done.

    Raises:
        OSError: data are missing.
    """

    def __init__(
        self, table: Table, data: Path, results: Path, work: Path, say: Callable[[str], None] = lambda line: None
    ) -> None:
        self.table, self.data, self.say = table, data, say
        self.results, self.work = results / table.name, work / table.name
        self.results.mkdir(parents=True, exist_ok=True)
        self.work.mkdir(parents=True, exist_ok=True)
        table.register()
        table.prepare(data, self.work)
        prepare_machine(threads=table.options.threads)

    def everything(self, networks: Collection[str] = (), seeds: Collection[int] = ()) -> None:
        """Rates, results and, where they were not measured, costs, in this order.

        Args:
            networks: those to make, by name; none for all. Costs are measured of all together, not if some are named.
            seeds: those to make, of the table's; none for all.

        Raises:
            Interrupted: the user stopped it; run again, it goes on.
            ValueError: a file is there that was made with other options, or the table has not what is named.
        """
        wanted = [network for network in self.table.networks if not networks or network.name in networks]
        numbers = [seed for seed in self.table.seeds if not seeds or seed in seeds]
        unknown = {*networks} - {network.name for network in wanted} | {*seeds} - {*numbers}
        if unknown:
            raise ValueError(f"table {self.table.name} has not {', '.join(sorted(map(str, unknown)))}")
        self.rates(wanted)
        for seed in numbers:
            for network in wanted:
                self.result(network, seed)
        self.references()
        self.symmetry()
        if len(wanted) == len(self.table.networks) and not (self.results / "costs.json").is_file():
            self.costs()

    def rates(self, networks: Iterable[Network]) -> None:
        """Tries every rate of these networks."""
        for network in networks:
            for rate in network.rates if len(network.rates) > 1 and not network.like else ():
                self._tried(network, rate)

    def _tried(self, network: Network, rate: float) -> float:
        table = self.table
        options = table.trained(network, self.work, seed=table.rate_seed, lr=rate, **table.rate_options)
        name = f"{network.name}-{rate:g}"
        path = self.results / "rates" / f"{name}.json"
        if not self._is_there(path, options):
            task, seconds = self._fitted(options, self._tried_in(network, rate))
            score = float(_best(seconds["rows"], task.monitor)[task.monitor])
            _write(path, network, options, self.work, rate=rate, score=score, seconds=seconds["seconds"])
            self.say(f"{name}: {task.monitor} {100 * score:.2f}")
        return float(read_json(path)["score"])

    def _tried_in(self, network: Network, rate: float) -> Path:
        return self.work / "rates" / f"{network.name}-{rate:g}"

    def _folder(self, network: Network, seed: int) -> Path:
        """Where a network is trained with a seed: where its rate was tried, if that was the same training."""
        if network.trained_as:
            return self._folder(self.table.network(network.trained_as), seed)
        tried = len(network.rates) > 1 and not network.rate_as
        if seed == self.table.rate_seed and not self.table.rate_options and tried:
            return self._tried_in(network, self.rate(network))
        return self.work / f"{network.name}-seed{seed}"

    def rate(self, network: Network) -> float:
        """The best of a network's rates on validation."""
        if network.like:
            return self.rate(self.table.network(network.like))
        if len(network.rates) == 1:
            return network.rates[0]
        return max(network.rates, key=lambda rate: self._tried(network, rate))

    def result(self, network: Network, seed: int) -> None:
        """Trains a network with a seed and tests it."""
        options = self.table.trained(network, self.work, seed=seed, lr=self.rate(network))
        name = f"{network.name}-seed{seed}"
        path = self.results / f"{name}.json"
        if self._is_there(path, options):
            return
        folder = self._folder(network, seed)
        task, fitted = self._fitted(options, folder)
        begun = time.perf_counter()
        best = RunFolder(folder).best
        evaluations = {
            evaluation.name: self._tested(options, evaluation, network, best) for evaluation in self.table.evaluations
        }
        _write(
            path,
            network,
            options,
            self.work,
            rate=options.lr,
            seconds=fitted["seconds"],
            seconds_tested=round(time.perf_counter() - begun, 1),
            validation={task.monitor: _best(fitted["rows"], task.monitor)[task.monitor]},
            threshold=load_task(best, options).description.get("threshold"),
            evaluations=evaluations,
        )
        for title, evaluation in evaluations.items():
            self.say(f"{name}, {title}: {[row[self.table.score] for row in evaluation['rows']]}")

    def _fitted(self, options: RunOptions, path: Path) -> tuple[Task, dict[str, Any]]:
        task = task_type(options).from_options(options)
        recorder = fit(task, RunFolder(path), Speech(quiet=options.quiet, label=path.name, bars=False))
        seconds = read_json(path / "versions.json").get("seconds_per_epoch", [])
        return task, {"rows": recorder.rows, "seconds": round(sum(seconds), 1)}

    def _tested(self, options: RunOptions, evaluation: Evaluation, network: Network, best: Path) -> dict[str, Any]:
        asked = self.table.tested(options, evaluation, self.work)
        task = load_task(best, asked, undivided=evaluation.split == "all")
        task.options = dataclasses.replace(task.options, test_batch_size=asked.test_batch_size)
        if network.is_averaged:
            task.network = OverSymmetries(task.network)
        angles = distinct_angles(evaluation.angles, network.equivariant)
        rows, images = [], []
        scored = each_scored_with_objects if evaluation.objects else type(task).each_scored
        if evaluation.disc is not None:
            scored = partial(each_scored_turned_back, diameter=evaluation.disc)
        with _precision(options):
            for angle in angles:
                scores, each = scored(task, evaluation.split, Symmetry(angle, evaluation.axis), asked)
                rows.append({"angle": angle, **_rounded(scores)})
                images.append(each)
        return {
            "n": task.size(evaluation.split),
            "angles": list(evaluation.angles),
            "rows": rows,
            "images": {
                score: _of_images(at_all(evaluation.angles, angles, images), score)
                for score in (self.table.score, *self.table.scores, OBJECT_F1)
                if score in images[0][0]
            },
        }

    def references(self) -> None:
        """What others reach on the same images."""
        path = self.results / "references.json"
        if not path.is_file():
            write_json(path, {name: dict(row) for name, row in self.table.references(self.data, self.work).items()})

    def symmetry(self) -> None:
        """How exactly the trained networks turn with a photograph, of those whose trainings are still there."""
        path = self.results / "symmetry.json"
        if self.table.photograph is None:
            return
        known = read_json(path) if path.is_file() else {}
        picture = self.table.photograph()
        for network in self.table.networks:
            for seed in self.table.seeds:
                name = f"{network.name}-seed{seed}"
                if name in known or not (self.results / f"{name}.json").is_file():
                    continue
                folder = self._folder(network, seed)
                if folder.is_dir():
                    known[name] = symmetry_of(folder, picture)
                    write_json(path, known)

    def costs(self) -> None:
        """What each network costs; they take turns, so that a slow spell of the machine slows all of them."""
        path = self.results / "costs.json"
        builders: dict[str, Callable[[], nn.Module]] = {}
        for network in (one for one in self.table.networks if self.table.built_as(one) == one.name):
            options = self.table.trained(network, self.work)
            kind = task_type(options)
            about = kind.describe(options, kind.read_data(options))
            builders[network.name] = partial(_in_its_precision, options, about, self.table.register)
        shape = kind.input_shape(options, about)
        batch = (options.batch_size, *shape)
        networks = {name: build() for name, build in builders.items()}
        steps = _interleaved_step_ms(networks, batch)
        times = interleaved_ms({name: network.eval() for name, network in networks.items()}, batch)
        costs = {}
        for name, built in networks.items():
            work = count_work(built, torch.zeros(1, *shape))
            parameters = parameter_count(built)
            counted = sum(parameter_count(module) for module in built.modules() if isinstance(module, COUNTED))
            known = counted >= parameters // 2  # else most of the work is of layers that the count does not know
            costs[name] = {
                "parameters": parameters,
                "gmac": work.ringwise / 1e9 if known else None,
                "gadd": work.additions / 1e9 if known else None,
                "ms_per_step": round(steps[name], 1),
                "ms_per_image": round(times[name], 2),
                "training_mib": peak_training_memory(builders[name], batch, "cpu"),
            }
        write_json(path, {"shape": list(batch), "networks": costs, "versions": _machine()})

    def _is_there(self, path: Path, options: RunOptions) -> bool:
        if not path.is_file():
            return False
        then, now = read_json(path)["options"], _told(options, self.work)
        was = {**_told(type(options)(), self.work), **then}  # an option that was added later had its default
        differ = [f"{name} {was[name]!r}, not {value!r}" for name, value in now.items() if was[name] != value]
        if differ:
            raise ValueError(f"{path} was made with {' and '.join(differ)}: remove it to make it anew")
        return True


def _write(path: Path, network: Network, options: RunOptions, work: Path, **found: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"network": network.name, "reading": network.reading, "seed": options.seed}
    write_json(path, {**about, **found, "options": _told(options, work), "versions": _machine()})


def _told(options: RunOptions, work: Path) -> dict[str, Any]:
    """The options that change a result, as JSON has them; no place on this machine."""
    told = result_options(options)
    return {
        name: str(value).replace(f"{work}/", "") if isinstance(value, (str, Path)) else value
        for name, value in told.items()
    }


def _machine() -> dict[str, str]:
    return {name: value for name, value in versions().items() if "/" not in str(value)}


def _best(rows: list[dict[str, Any]], monitor: str) -> dict[str, Any]:
    return max(rows, key=lambda row: float(row[monitor]))


def _rounded(scores: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, _DIGITS) for name, value in scores.items()}


def _of_images(tables: list[list[dict[str, float]]], score: str) -> dict[str, str | list[float]]:
    """Of each image a score at the first angle, and its mean over all of them if there are more."""
    found = {"first": _packed([row[score] for row in tables[0]])}
    if len(tables) > 1:
        found["mean"] = _packed([statistics.fmean(row[score] for row in rows) for rows in zip(*tables, strict=True)])
    return found


def _packed(values: list[float]) -> str | list[float]:
    """Numbers as JSON holds them: a digit each where they are hits and misses of thousands of images."""
    if set(values) <= {0.0, 1.0}:
        return "".join("1" if value else "0" for value in values)
    return [round(value, _DIGITS) for value in values]


def _precision(options: RunOptions) -> Any:
    return torch.autocast("cpu", torch.bfloat16, enabled=options.bf16)


class _InItsPrecision(nn.Module):
    """A network that is called as in training."""

    def __init__(self, network: nn.Module, options: RunOptions) -> None:
        super().__init__()
        self.network, self.options = network, options

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        with _precision(self.options):
            y: Tensor = self.network(x)
        return y


def _in_its_precision(options: RunOptions, about: Mapping[str, Any], register: Callable[[], None]) -> nn.Module:
    register()  # in a process of its own nobody has
    return _InItsPrecision(task_type(options).build_network(options, about), options)


def _interleaved_step_ms(networks: Mapping[str, nn.Module], shape: tuple[int, ...]) -> dict[str, float]:
    """Median milliseconds of a training step of Adam."""
    batch = torch.rand(shape)
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    optimisers = {name: torch.optim.Adam(network.parameters(), 1e-5) for name, network in networks.items()}
    for turn in range(_STEPS_TIMED + 1):
        for name, network in networks.items():
            network.train()
            start = time.perf_counter()
            network(batch).float().square().mean().backward()
            optimisers[name].step()
            optimisers[name].zero_grad()
            if turn:  # the first one warms up
                seconds[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
