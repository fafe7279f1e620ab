"""A network, or a whole task with its data, from a checkpoint or a run folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from sre_triton.training.options import RunOptions
from sre_triton.training.runs.folder import checkpoint_in, network_state, read_checkpoint
from sre_triton.training.schema import from_dict
from sre_triton.training.tasks.registry import TASKS
from sre_triton.training.tasks.task import Task

__all__ = ["load_network", "load_task"]


def load_network(path: Path) -> tuple[torch.nn.Module, dict[str, Any], RunOptions]:
    """The network of a checkpoint or run folder in evaluation mode, its description, and its options.

    Raises:
        ValueError: the checkpoint is damaged, or not of this package.
        OSError: it is missing.
    """
    path = checkpoint_in(path)
    content = read_checkpoint(path)
    about = content["sre_triton"]
    task = TASKS[about["task"]]
    options = from_dict(task.options_type, about["options"])
    network = task.build_network(options, about)
    try:
        network.load_state_dict(network_state(content))
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not fit the network that it names: {str(error).splitlines()[1].strip()}"
        ) from error
    return network.eval(), about, options


def load_task(path: Path, *, undivided: bool = False, **places: Path | None) -> Task:
    """The task of a checkpoint or run folder, with its data, in evaluation mode.

    Args:
        path: of the checkpoint.
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
    if "pretrained" in about and "data" not in given:
        raise ValueError(f"--data is needed: {path} comes without the images that it was trained on")
    if "data" in given and hasattr(options, "layout"):
        # Other data need not lie as those of the training.
        given = {"layout": "auto", "fov": None, **given}
    if undivided:
        given |= {"split": None, "group": "", "val_fraction": None, "test_fraction": None}
    options = dataclasses.replace(options, **given)
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
