"""The groups that options stand in: :func:`sre_triton.training.schema.option` with what those of a group share."""

from __future__ import annotations

from functools import partial

from sre_triton.training.schema import option

__all__ = [
    "augment",
    "data",
    "machine",
    "model",
    "optimiser",
    "reference",
    "run",
    "turn",
]

data = partial(option, group="data", common=False)
model = partial(option, group="network", common=False)
optimiser = partial(option, group="optimiser and schedule", common=False)
augment = partial(option, group="augmentation", common=False)
turn = partial(option, group="rotation test", common=False)
machine = partial(option, group="machine", result=False, common=False)
run = partial(option, group="run folder and logs", result=False, common=False)
reference = partial(option, group="reference", result=False, common=False)
