"""A network, or a whole task with its data, from a checkpoint or a run folder."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sre_triton.training.files import read_json
from sre_triton.training.options import SCORE_OPTIONS, RunOptions
from sre_triton.training.runs.folder import checkpoint_in, first_line, folder_of, network_state, read_checkpoint
from sre_triton.training.runs.pretrained import pretrained_path
from sre_triton.training.schema import from_dict
from sre_triton.training.tasks.registry import TASKS
from sre_triton.training.tasks.task import Task

__all__ = ["load_network", "load_task", "restore_weights"]


def load_network(path: Path) -> tuple[torch.nn.Module, dict[str, Any], RunOptions]:
    """The network of a checkpoint or run folder in evaluation mode, its description, and its options.

    A checkpoint may be somebody else's: its options say how the network is built and how images are prepared, and name
    no files.

    Raises:
        ValueError: the checkpoint is damaged, or not of this package.
        OSError: it is missing.
    """
    path = checkpoint_in(path)
    content = read_checkpoint(path)
    about = content["sre_triton"]
    if about.get("task") not in TASKS:
        raise ValueError(f"{path} is of the task {about.get('task')!r}: expected one of {', '.join(TASKS)}")
    task = TASKS[about["task"]]
    with _named(path):
        options = task.as_restored(from_dict(task.options_type, about["options"]))
        network = task.build_network(options, about)
    try:
        network.load_state_dict(network_state(content))
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the network that it names: {_detail(error)}") from error
    return network.eval(), about, options


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Says of which checkpoint it is that something is wrong with, and warns so."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: {first_line(error)}") from error
    for warning in told:
        warnings.warn(f"{path}: {warning.message}", stacklevel=3)


def load_task(path: Path, asked: RunOptions | None = None, *, undivided: bool = False, **places: Path | None) -> Task:
    """The task of a checkpoint or run folder, with its data, in evaluation mode.

    Args:
        path: of the checkpoint. Where its run's data are is said by the folder's config.json, by nothing in the
            checkpoint.
        asked: options of the same training, from which those are taken that change scores, and where data are.
        undivided: every image is asked for, so that data of one's own need not be divided as in training.
        places: options that say where the data are now; None for where they were.

    Raises:
        ValueError: the checkpoint or the data are damaged, or do not fit each other or the places.
        OSError: one of them is missing.
    """
    network, about, options = load_network(path)
    given: dict[str, Any] = {name: place for name, place in places.items() if place is not None}
    for name in given:
        if not hasattr(options, name):
            raise ValueError(f"--{name.replace('_', '-')} is no option of the {about['task']} in {path}")
    if asked is not None:
        named = (*SCORE_OPTIONS, *_PLACES, "cache", "test_batch_size")
        known = {name: getattr(asked, name) for name in named if hasattr(options, name)}
    else:
        known = _places_of_run(path, options)
    own_images = about["options"].get("data") is not None or "pretrained" in about
    if own_images and given.get("data", known.get("data")) is None:
        raise ValueError(f"--data is needed: {path} comes without the images that it was trained on")
    if "data" in given and hasattr(options, "layout"):
        # Other data need not lie as those of the training.
        given = {"layout": "auto", "fov": None, **given}
    if undivided:
        given |= {"split": None, "group": "", "val_fraction": None, "test_fraction": None}
    options = dataclasses.replace(options, **{**known, **given})
    task = TASKS[about["task"]]
    task_now = task(network, options, task.read_data(options))
    for name in ("classes", "class_names", "channels", "ndim"):
        if (task_now.description.get(name) or None) != (about.get(name) or None):
            raise ValueError(
                f"{path} was trained on data with {name} {about.get(name)}; "
                f"{task_now.description['data']} now has {name} {task_now.description.get(name)}"
            )
    task_now.description["threshold"] = about.get("threshold")
    return task_now.eval()


_PLACES = ("data", "data_root", "split", "fov")


def _places_of_run(path: Path, options: RunOptions) -> dict[str, Path | None]:
    """Where the data of a run are, as the config.json of its folder says."""
    config = folder_of(path) / "config.json"
    if not config.is_file() or pretrained_path(path) is not None:
        return {}
    begun = from_dict(type(options), read_json(config)["options"])
    return {name: getattr(begun, name) for name in _PLACES if hasattr(begun, name)}


def _detail(error: RuntimeError) -> str:
    """What PyTorch says of the first key that does not fit, below its general line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[min(1, len(lines) - 1)] if lines else type(error).__name__


def restore_weights(task: Task, path: Path) -> None:
    """Puts the weights and the threshold of a checkpoint of a task's own training into it; evaluation mode.

    Raises:
        ValueError: the checkpoint is damaged.
    """
    content = read_checkpoint(path)
    task.network.load_state_dict(network_state(content))
    task.description["threshold"] = content["sre_triton"].get("threshold")
    task.eval()
