"""What a comparison comes to: rows of networks, tables for a terminal and a document, and files."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from sre_triton.training.evaluation.evaluate import curves_of, rotation_caption
from sre_triton.training.evaluation.final_test import words
from sre_triton.training.evaluation.paired import FIGURES
from sre_triton.training.evaluation.results import written
from sre_triton.training.figures import draw_angle_curves, draw_learning_curves
from sre_triton.training.files import as_shares, in_percent, read_json, replacing, write_csv, write_json
from sre_triton.training.tasks.undefined import mean_of_known

__all__ = ["Entry", "comparison_rows", "comparison_table", "write_comparison"]

_SHOWN = {
    "mean": "mean of angles",
    "std": "std over angles",
    "worst": "worst angle",
    "at_0": "at 0°",
    "mean_right": "right angles",
    "mean_oblique": "oblique angles",
    "std_oblique": "std of oblique",
    "flips": "flips",
}


@dataclass(frozen=True)
class Entry:
    """A network that was trained and tested.

    Attributes:
        name: of the network.
        lr: its learning rate.
        own: its own options, as they were given.
        results: the evaluation of each seed.
        folders: the run of each seed.
        tuning: which learning rates were tried and what they reached; None where they were not.
    """

    name: str
    lr: float
    own: str
    results: list[dict[str, Any]]
    folders: list[Path]
    tuning: dict[str, Any] | None

    @property
    def main_score(self) -> str:
        return str(self.results[0]["main_score"])


def comparison_rows(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Of each network the mean over seeds, and their sample standard deviation, of each figure of each score."""
    return [_row(entry) for entry in entries]


def _row(entry: Entry) -> dict[str, Any]:
    row: dict[str, Any] = {"network": entry.name, "lr": entry.lr, "seeds": len(entry.results)}
    summaries = [result["rotation"]["summary"] for result in entry.results]
    for score, known in summaries[0].items():
        figures = {
            f"{score}_{figure}": [summary[score][figure] for summary in summaries]
            for figure in known
            if figure != "undefined"
        }
        figures[f"{score}_flips"] = [result["flips"]["summary"][score]["mean"] for result in entry.results]
        for name, values in figures.items():
            row[name] = mean_of_known(values)
            if len(values) > 1:
                row[f"{name}_sd"] = statistics.stdev(values)
    return row


def write_comparison(
    output: Path,
    rows: Sequence[dict[str, Any]],
    entries: Sequence[Entry],
    differences: Sequence[dict[str, Any]],
    figure_format: str,
) -> list[Path]:
    """Writes ``comparison.csv``, ``.md`` and ``.json``, and curves over angles and epochs; returns what it wrote."""
    networks = [
        {"network": row["network"], **_about(entry.results[0]), **in_percent(row)}
        for row, entry in zip(rows, entries, strict=True)
    ]
    content = {
        "networks": networks,
        "differences": [in_percent(row) for row in differences],
        "own_options": {entry.name: entry.own for entry in entries},
        "tuning": {entry.name: _percent_of_trials(entry.tuning) for entry in entries if entry.tuning is not None},
        "runs": {entry.name: [written(result) for result in entry.results] for entry in entries},
        "unit": "percent",
    }
    write_json(output / "comparison.json", content)
    write_csv(output / "comparison.csv", networks)
    table = _cells(rows, entries)
    lines = [" | ".join(cells) for cells in (table[0], ["---", *["--:"] * (len(table[0]) - 1)], *table[1:])]
    with replacing(output / "comparison.md") as partial:
        text = "".join(f"| {line} |\n" for line in lines) + "".join(f"\n{line}\n" for line in _sentences(differences))
        partial.write_text(text, encoding="utf-8")
    first = entries[0]
    curves = {entry.name: [curve for result in entry.results for curve in curves_of(result)] for entry in entries}
    caption = rotation_caption(first.results[0])
    draw_angle_curves(output / f"rotation.{figure_format}", curves, first.main_score, caption)
    score = f"val_{first.main_score}"
    learned = {entry.name: [_epochs(folder, score) for folder in entry.folders] for entry in entries}
    draw_learning_curves(output / f"curves.{figure_format}", learned, score, first.results[0]["data"])
    drawn = (f"{stem}.{figure_format}" for stem in ("rotation", "curves"))
    return [output / name for name in ("comparison.csv", "comparison.md", "comparison.json", *drawn)]


def _percent_of_trials(tuning: dict[str, Any]) -> dict[str, Any]:
    return {**tuning, "trials": [in_percent(trial) for trial in tuning["trials"]]}


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


def _cells(rows: Sequence[dict[str, Any]], entries: Sequence[Entry]) -> list[list[str]]:
    """The comparison as text: a header and one row per network."""
    score = entries[0].main_score
    tuned = any(entry.tuning is not None for entry in entries) or len({entry.lr for entry in entries}) > 1
    shown = {name: text for name, text in _SHOWN.items() if f"{score}_{name}" in rows[0]}
    costs = ["parameters", "GMAC", "Gadd", "ms per image", "MiB to train"]
    cells = [["network", *(f"{score}, {text}" for text in shown.values()), *(["rate"] if tuned else []), *costs]]
    for row in rows:
        scores = []
        for name in (f"{score}_{name}" for name in shown):
            spread = f" ± {100 * row[f'{name}_sd']:.2f}" if f"{name}_sd" in row else ""
            scores.append(f"{100 * row[name]:.2f}{spread}")
        cells.append(
            [
                row["network"],
                *scores,
                *([f"{row['lr']:g}"] if tuned else []),
                f"{row['parameters']:,}",
                f"{row['gmac']:.3g}",
                f"{row['gadd']:.3g}",
                f"{row['ms_per_image']:.1f}",
                "" if row["training_mib"] is None else f"{row['training_mib']:.0f}",
            ]
        )
    return cells


def _sentences(differences: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each pair of networks."""
    lines = []
    for other in dict.fromkeys(row["against"] for row in differences):
        mine = [row for row in differences if row["against"] == other]
        told = ", ".join(
            f"{FIGURES[row['figure']]} {100 * row['difference']:+.2f} "
            f"[{100 * row['low']:+.2f}, {100 * row['high']:+.2f}]"
            for row in mine
        )
        of = f"95% of a paired bootstrap over {mine[0]['images']:,} images, seeds averaged"
        lines.append(f"{mine[0]['network']} ahead of {other}: {told} ({of})")
    return lines


def comparison_table(
    rows: Sequence[dict[str, Any]], entries: Sequence[Entry], differences: Sequence[dict[str, Any]]
) -> list[Table | Text]:
    """The comparison for a terminal: a column per network, which leaves room for the figures' names."""
    names, *figures = zip(*_cells(rows, entries), strict=True)
    some = entries[0].results
    turns = len(some[0]["rotation"]["rows"])
    seeds = f"{len(some)} seeds (mean ± sd over them)" if len(some) > 1 else f"seed {some[0]['seed']}"
    table = Table(
        caption=f"{some[0]['data']}, test: {turns} turns, {seeds}, {words(entries[0].main_score)} in percent",
        caption_justify="left",
    )
    for number, name in enumerate(names):
        table.add_column(name if number else "", justify="right" if number else "left")
    for cells in figures:
        table.add_row(*cells)
    return [table, *map(Text, _sentences(differences))]
