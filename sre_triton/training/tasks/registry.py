"""Every task by its name."""

from __future__ import annotations

from sre_triton.training.options import RunOptions
from sre_triton.training.tasks.classification import ClassificationTask
from sre_triton.training.tasks.segmentation import SegmentationTask
from sre_triton.training.tasks.task import Task

__all__ = ["TASKS", "task_type"]

TASKS: dict[str, type[Task]] = {task.options_type.task: task for task in (ClassificationTask, SegmentationTask)}
"""Task classes by the name that their options and checkpoints carry."""


def task_type(options: RunOptions) -> type[Task]:
    """The task that options are of."""
    return TASKS[options.task]
