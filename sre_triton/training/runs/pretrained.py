"""Trained networks that the package brings along, and their files.

Of a network NAME there are NAME.safetensors (its weights; nothing in it is executed), NAME.json (network,
preprocessing, classes, threshold and scores) and NAME.md, its card.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sre_triton.training.files import read_json, replacing, write_json
from sre_triton.training.options import SCORE_OPTIONS, RunOptions
from sre_triton.training.schema import to_dict, without_places

__all__ = ["pretrained_path", "pretrained_table", "read_pretrained", "show_pretrained", "write_pretrained"]

FOLDER = Path(__file__).parents[2] / "pretrained"


def pretrained_path(name: Path) -> Path | None:
    """The weights of the pretrained network of this name, None if there is none.

    Raises:
        ValueError: a run folder here has the same name.
    """
    path = FOLDER / f"{name}.safetensors"
    if len(name.parts) != 1 or not path.is_file():
        return None
    if any((name / file).is_file() for file in ("best.ckpt", "last.ckpt")):
        raise ValueError(f"{name} is a pretrained network and a run folder here: name the folder by its whole path")
    return path


def read_pretrained(path: Path) -> dict[str, Any]:
    """Weights and description, as a checkpoint holds them.

    Raises:
        FileNotFoundError: the description is missing.
        ValueError: a file is damaged.
        ImportError: safetensors is not installed.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    about = read_json(path.with_suffix(".json"))
    if not isinstance(about, dict) or "sre_triton" not in about:
        raise ValueError(f"{path.with_suffix('.json')} does not describe a trained network: it has no key 'sre_triton'")
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    return {
        "sre_triton": {**about["sre_triton"], "pretrained": path.stem},
        "state_dict": {f"network.{name}": value for name, value in state.items()},
    }


def write_pretrained(
    path: Path, network: Any, about: Mapping[str, Any], options: RunOptions, card: Mapping[str, Any]
) -> None:
    """Writes a trained network beside its description.

    Args:
        path: of the weights, NAME.safetensors.
        network, about, options: as :func:`load_network` returns them. Where the data and the run were is left out.
        card: what tables show of it: ``data``, ``licence`` and ``scores``.
    """
    from safetensors.torch import save

    description = {**about, "options": to_dict(without_places(options, (*SCORE_OPTIONS, "test_batch_size")))}
    tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
    with replacing(path) as partial:
        partial.write_bytes(save(tensors))
    write_json(path.with_suffix(".json"), {"sre_triton": description, "card": dict(card)})


def pretrained_table() -> list[dict[str, Any]]:
    """A row per network of the package: name, task, network, parameters, data, licence, scores and the card's path."""
    rows = []
    for path in sorted(FOLDER.glob("*.safetensors")):
        content = read_json(path.with_suffix(".json"))
        about, card = content["sre_triton"], content["card"]
        rows.append(
            {
                "name": path.stem,
                "task": about["task"],
                "network": about["options"]["model_type"],
                "parameters": card["parameters"],
                "data": card["data"],
                "licence": card["licence"],
                "scores": card["scores"],
                "card": str(path.with_suffix(".md")),
            }
        )
    return rows


def show_pretrained(as_json: bool = False) -> None:
    """Prints :func:`pretrained_table`."""
    rows = pretrained_table()
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title='pretrained networks: sre_triton.load("NAME"), sre-triton predict NAME IMAGE...')
    for title in ("name", "task", "network", "parameters", "data", "licence", "scores"):
        table.add_column(title, justify="right" if title == "parameters" else "left")
    for row in rows:
        scores = ", ".join(f"{name} {value:g}" for name, value in row["scores"].items())
        cells = {**row, "parameters": f"{row['parameters']:,}", "scores": scores}
        table.add_row(*(str(cells[str(column.header)]) for column in table.columns))
    console = Console()
    console.print(table)
    for row in rows:
        console.print(f"{row['name']}: what it was trained on and must not be used for: {row['card']}", soft_wrap=True)
