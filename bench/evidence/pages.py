"""The page of evidence and its figures, from the files of results alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.evidence.objects import OBJECT_F1
from bench.evidence.protocol import Evaluation, Table, at_all
from sre_triton.training.evaluation.paired import bootstrap
from sre_triton.training.figures import draw_angle_curves
from sre_triton.training.files import read_json, replacing

__all__ = ["Angles", "write_page"]

PAGE = "README.md"
_NAMES = {"dice": "F1", "auc": "AUC", "accuracy": "accuracy", "error": "error", OBJECT_F1: "object F1"}
_HEAD = """# On real images

Made by `python -m bench.evidence tables` from the JSON files beside it, which `make evidence-TABLE` makes. Scores in
percent, mean ± sample standard deviation over seeds. Right angles are 0, 90, 180 and 270 degrees; *mean* is over the
36 angles in steps of 10 degrees, of which 4 are right and 32 oblique, for volumes over 12 in steps of 30; *sd* over the
angles that were computed; *drop* from 0 degrees to the worst of them.
"""


def write_page(tables: Iterable[Table], results: Path) -> Path:
    """Writes the page and its figures; tables without results are left out.

    Returns:
        The path of the page.
    """
    parts = [_HEAD]
    for table in tables:
        found = _Results.read(table, results / table.name)
        if found.runs:
            parts += [f"## {table.title}\n", table.protocol.strip() + "\n", *_sections(found)]
    page = results / PAGE
    results.mkdir(parents=True, exist_ok=True)
    with replacing(page) as partial:
        partial.write_text("\n".join(parts), encoding="utf-8")
    return page


@dataclass(frozen=True)
class _Results:
    """What there is of a table: results of each network by seed, tried rates, references and costs."""

    table: Table
    folder: Path
    runs: dict[str, list[dict[str, Any]]]
    rates: list[dict[str, Any]]
    references: dict[str, dict[str, float]]
    costs: dict[str, Any]
    symmetry: dict[str, dict[str, dict[str, float]]]

    @classmethod
    def read(cls, table: Table, folder: Path) -> _Results:
        runs = {}
        for network in table.networks:
            paths = (folder / f"{network.name}-seed{seed}.json" for seed in table.seeds)
            some = [read_json(path) for path in paths if path.is_file()]
            if some:
                runs[network.name] = some
        rates = [read_json(path) for path in sorted((folder / "rates").glob("*.json"))]
        others = {name: folder / f"{name}.json" for name in ("references", "costs", "symmetry")}
        known = {name: read_json(path) if path.is_file() else {} for name, path in others.items()}
        return cls(table, folder, runs, rates, **known)

    def angles(self, run: Mapping[str, Any], evaluation: Evaluation, score: str) -> Angles:
        """The scores of a run at all angles of an evaluation."""
        rows = run["evaluations"][evaluation.name]["rows"]
        return Angles(
            evaluation.angles,
            at_all(evaluation.angles, [row["angle"] for row in rows], [row[score] for row in rows]),
            evaluation.step,
        )


@dataclass(frozen=True)
class Angles:
    """Scores at angles, of which the first is upright; they stand for all angles in steps of ``step`` degrees."""

    angles: Sequence[float]
    scores: Sequence[float]
    step: float = 10.0

    @property
    def upright(self) -> float:
        return self.scores[0]

    @property
    def right(self) -> float:
        """Mean over the right angles."""
        return statistics.fmean(self._some(lambda angle: angle % 90 == 0))

    @property
    def oblique(self) -> float:
        """Mean over the others."""
        return statistics.fmean(self._some(lambda angle: angle % 90 != 0))

    @property
    def mean(self) -> float:
        """Mean over all angles, of which those here are a sample by kind: 4 are right ones."""
        count = 360 / self.step
        return (4 * self.right + (count - 4) * self.oblique) / count

    @property
    def sd(self) -> float:
        return statistics.pstdev(self.scores)

    @property
    def drop(self) -> float:
        return self.upright - min(self.scores)

    def _some(self, wanted: Any) -> list[float]:
        return [score for angle, score in zip(self.angles, self.scores, strict=True) if wanted(angle)]


_OVER_ANGLES = ("upright", "mean", "right", "oblique", "sd", "drop")


def _sections(found: _Results) -> Iterable[str]:
    table = found.table
    for evaluation in table.evaluations:
        yield f"### {evaluation.title[0].upper()}{evaluation.title[1:]}\n"
        yield _scores_table(found, evaluation, (table.score, *table.scores))
        if len(evaluation.angles) > 3:
            yield _drawn(found, evaluation)
        if evaluation.objects and any(_has(run, evaluation, OBJECT_F1) for runs in found.runs.values() for run in runs):
            yield f"### Objects: {evaluation.title}\n"
            yield _scores_table(found, evaluation, (OBJECT_F1,))
            yield "Of the trainings whose objects were counted.\n"
    if not table.evaluations:
        yield _validation_table(found)
    if (differences := _differences(found)) is not None:
        yield differences
    if found.symmetry:
        yield _symmetry_table(found)
    yield _costs_table(found)
    yield _rates_table(found)


def _has(run: Mapping[str, Any], evaluation: Evaluation, score: str) -> bool:
    return score in run["evaluations"][evaluation.name]["rows"][0]


def _scores_table(found: _Results, evaluation: Evaluation, scores: Sequence[str]) -> str:
    """Scores of the trainings that have the first of them; over angles that one alone."""
    main = scores[0]
    name = _NAMES.get(main, main)
    turns = len(evaluation.angles) > 1
    readings = {run["reading"] for runs in found.runs.values() for run in runs}
    header = ["network", *(["reading"] if len(readings) > 1 else []), "seeds"]
    about = len(header)
    if turns:
        header += [f"{name} at 0°", "mean", "right", "oblique", "sd", "drop"]
    else:
        header += [_NAMES.get(score, score) for score in scores]
    lines = []
    for network, every in found.runs.items():
        runs = [run for run in every if _has(run, evaluation, main)]
        if not runs:
            continue
        cells = [f"`{network}`", *([runs[0]["reading"]] if len(readings) > 1 else []), str(len(runs))]
        if turns:
            some = [found.angles(run, evaluation, main) for run in runs]
            cells += [_spread([getattr(one, part) for one in some]) for part in _OVER_ANGLES]
        else:
            for score in scores:
                cells.append(_spread([found.angles(run, evaluation, score).upright for run in runs]))
        lines.append(cells)
    if evaluation.name in found.references:
        other = found.references[evaluation.name]
        shown = [main] if turns else scores
        cells = [f"{100 * other[score]:.2f}" if score in other else "" for score in shown]
        lines.append(["second observer", *[""] * (about - 1), *cells, *[""] * (len(header) - about - len(cells))])
    return _markdown(header, lines)


def _validation_table(found: _Results) -> str:
    lines = []
    for network, runs in found.runs.items():
        ((name, _),) = runs[0]["validation"].items()
        lines.append([f"`{network}`", str(len(runs)), _spread([run["validation"][name] for run in runs])])
    return _markdown(["network", "seeds", f"{name.replace('_', ' ')}"], lines)


def _symmetry_table(found: _Results) -> str:
    """Errors of the trained networks, mean over seeds, and those of each over those of the first network."""
    names = [name for name in found.runs if any(run.startswith(f"{name}-seed") for run in found.symmetry)]
    means: dict[str, dict[str, dict[str, float]]] = {}
    for name in names:
        some = [errors for run, errors in found.symmetry.items() if run.rpartition("-seed")[0] == name]
        means[name] = {
            kind: {turn: statistics.fmean(errors[kind][turn] for errors in some) for turn in some[0][kind]}
            for kind in some[0]
        }
    kinds = list(means[names[0]])
    turns = [turn for turn in means[names[0]][kinds[0]] if turn.endswith("degrees")]
    header = ["network", "largest error of a quarter turn", *(f"{kind}, {turn}" for kind in kinds for turn in turns)]
    lines = []
    for name in names:
        exact = max(error for turn, error in means[name]["logits"].items() if not turn.endswith("degrees"))
        cells = []
        for kind in kinds:
            for turn in turns:
                error, first = means[name][kind][turn], means[names[0]][kind][turn]
                cells.append(f"{error:.3f} ({error / first:.2f})")
        lines.append([f"`{name}`", f"{exact:.1e}", *cells])
    return (
        "### How exactly the trained networks turn\n\n"
        + _markdown(header, lines)
        + "\nRelative errors on the middle of scikit-image's fundus photograph in float32, mean over "
        "seeds; in brackets over those of the first network. Cubic splines turn it.\n"
    )


def _spread(values: Sequence[float]) -> str:
    mean = f"{100 * statistics.fmean(values):.2f}"
    return f"{mean} ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else mean


def _drawn(found: _Results, evaluation: Evaluation) -> str:
    """A figure of the main score over the angles."""
    name = f"{evaluation.name}.svg"
    order = np.argsort(evaluation.angles)
    curves = {}
    for network, runs in found.runs.items():
        some = [found.angles(run, evaluation, found.table.score).scores for run in runs]
        curves[network] = [("x", [evaluation.angles[i] for i in order], [one[i] for i in order]) for one in some]
    line, polar = draw_angle_curves(
        found.folder / name, curves, found.table.score, f"{found.table.title}: {evaluation.title}"
    )
    polar.unlink()
    return f"![{evaluation.title}]({found.table.name}/{line.name})\n"


def _differences(found: _Results) -> str | None:
    table = found.table
    lines = []
    for better, other in table.comparisons:
        if better not in found.runs or other not in found.runs:
            continue
        for evaluation in table.evaluations:
            for score in (table.score, OBJECT_F1):
                runs = [found.runs[name] for name in (better, other)]
                if not all(_has(run, evaluation, score) for some in runs for run in some):
                    continue
                for at in ("first", "mean") if len(evaluation.angles) > 1 else ("first",):
                    one, two = (_of_images(some, evaluation, score, at) for some in runs)
                    differences = [100 * (a - b) for a, b in zip(one, two, strict=True)]
                    low, high = bootstrap(differences)
                    where = {"first": "0°", "mean": "mean of the angles"}[at]
                    test = f"{evaluation.name}, {_NAMES[score]}" if score == OBJECT_F1 else evaluation.name
                    mean = statistics.fmean(differences)
                    lines.append([f"`{better}` - `{other}`", test, where, f"{mean:+.2f}", f"{low:+.2f} to {high:+.2f}"])
    if not lines:
        return None
    name = _NAMES.get(table.score, table.score)
    return (
        "### Differences\n\n"
        + _markdown(["difference", "test", "at", "points", "95% over images"], lines)
        + f"\nPoints of {name} where nothing else is said. Paired bootstrap over images of the mean over seeds, every "
        "computed angle counted once; it knows nothing of the spread over seeds.\n"
    )


def _of_images(runs: Sequence[Mapping[str, Any]], evaluation: Evaluation, score: str, at: str) -> list[float]:
    """Each image's score, mean over seeds."""
    tables = [run["evaluations"][evaluation.name]["images"][score][at] for run in runs]
    return [statistics.fmean(map(float, values)) for values in zip(*tables, strict=True)]


def _costs_table(found: _Results) -> str:
    busy = "seconds of trainings are those of a busy machine.\n"
    trained = {
        network: f"{statistics.fmean(run['seconds'] for run in runs):.0f}" for network, runs in found.runs.items()
    }
    if not found.costs:
        lines = [[f"`{network}`", seconds] for network, seconds in trained.items()]
        return f"### Costs\n\n{_markdown(['network', 's to train'], lines)}\nOthers were not measured; {busy}"
    header = ["network", "parameters", "GMAC", "Gadd", "ms per step", "ms per image", "MiB to train", "s to train"]
    lines = []
    shown = [one.name for one in found.table.networks if one.name in trained or one.name in found.costs["networks"]]
    for network, seconds in ((name, trained.get(name, "")) for name in shown):
        cost = found.costs["networks"].get(found.table.built_as(found.table.network(network)))
        if cost is None:
            lines.append([f"`{network}`", *[""] * 6, seconds])
            continue
        memory = cost["training_mib"]
        lines.append(
            [
                f"`{network}`",
                f"{cost['parameters']:,}",
                *("" if cost[name] is None else f"{cost[name]:.3g}" for name in ("gmac", "gadd")),
                f"{cost['ms_per_step']:.0f}",
                f"{cost['ms_per_image']:.1f}",
                "" if memory is None else f"{memory:.0f}",
                seconds,
            ]
        )
    shape = "x".join(map(str, found.costs["shape"]))
    return (
        "### Costs\n\n"
        + _markdown(header, lines)
        + "\nArithmetic per image (GMAC: 1e9 multiply-accumulates, Gadd: 1e9 additions of ring sums and differences) "
        f"and time at {shape}, one thread, networks in turn; {busy}"
    )


def _rates_table(found: _Results) -> str:
    if not found.rates:
        return ""
    rates = sorted({row["rate"] for row in found.rates})
    lines = []
    for network in (one for one in found.table.networks if not one.like):
        mine = {row["rate"]: row["score"] for row in found.rates if row["network"] == network.name}
        best = max(mine.values(), default=0.0)
        shown = (f"{100 * mine[rate]:.2f}" if rate in mine else "" for rate in rates)
        lines.append([f"`{network.name}`", *(f"**{s}**" if s == f"{100 * best:.2f}" else s for s in shown)])
    return (
        "### Rates that were tried\n\n"
        + _markdown(["network", *(f"{rate:g}" for rate in rates)], lines)
        + "\nBest score on validation of a short training; the bold rate was taken.\n"
    )


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["--:"] * (len(header) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, rule, *lines))
