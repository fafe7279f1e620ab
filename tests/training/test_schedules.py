"""Learning rates of trainings that begin in the midst of another, and losses that are not finite."""

from __future__ import annotations

import csv
import dataclasses
import shutil
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sre_triton.training.options import TrainOptions
from sre_triton.training.tasks.optimisation import optimiser_and_schedules
from tests.training.conftest import TINY, Command, MakeSet

OPTIONS = TrainOptions(epochs=100, lr=0.1, sgd=True)
SCHEDULES: dict[str, dict[str, Any]] = {
    "none": {},
    "cos": {"cos": True},
    "step": {"step": True},
    "multi_step": {"multi_step": True, "milestones": [20, 60, 61]},
}


def rates(options: TrainOptions, epochs: int) -> list[float]:
    optimiser, schedules = optimiser_and_schedules(nn.Linear(1, 1), options, 7)
    found = []
    for _ in range(epochs):
        found.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedules[0][0].step()
    return found


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("first", [1, 59, 60])
def test_a_later_start_has_the_rates_of_those_epochs(name: str, first: int) -> None:
    options = dataclasses.replace(OPTIONS, **SCHEDULES[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        later = rates(dataclasses.replace(options, cur_ep=first), 10)
    assert later == pytest.approx(rates(options, first + 10)[first:])


def test_rates_that_are_known() -> None:
    cosine = rates(dataclasses.replace(OPTIONS, cos=True, cur_ep=60), 1)
    assert cosine == pytest.approx([0.1 * 0.3454915], rel=1e-4)
    steps = rates(dataclasses.replace(OPTIONS, **SCHEDULES["multi_step"]), 62)
    assert [steps[i] for i in (19, 20, 59, 60, 61)] == pytest.approx([0.1, 0.01, 0.01, 1e-3, 1e-4])


def poison(monkeypatch: pytest.MonkeyPatch, epoch: int, batch: int) -> None:
    """The loss of one step is not a number."""
    from sre_triton.training.tasks.classification import ClassificationTask

    original = ClassificationTask.training_step

    def step(self: Any, images: Any, batch_idx: int) -> torch.Tensor:
        loss = self.loss
        if (self.current_epoch, batch_idx) == (epoch, batch):
            self.loss = lambda *inputs: loss(*inputs) * float("nan")
        try:
            return original(self, images, batch_idx)
        finally:
            self.loss = loss

    monkeypatch.setattr(ClassificationTask, "training_step", step)


@pytest.mark.parametrize("batch", [0, 2])
def test_a_loss_that_is_no_number_ends_the_training_at_that_step(
    batch: int, make_set: MakeSet, sre: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    make_set("tiny")
    poison(monkeypatch, 1, batch)
    assert sre("train", *TINY, "--med-mnist", "tiny", "--epochs", "3") == 2
    message = capsys.readouterr().err
    assert f"the loss is nan in step {batch + 1} of epoch 2: lower --lr" in message
    run = tmp_path / "logs" / "task" / "tiny-sre_resnet18-seed1"
    state = torch.load(run / "last.ckpt", weights_only=True)
    assert state["epoch"] == 0
    assert all(torch.isfinite(value).all() for value in state["state_dict"].values())
    with (run / "metrics.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1"]


def test_a_run_that_was_moved_keeps_its_best_epoch(make_set: MakeSet, sre: Command, tmp_path: Path) -> None:
    make_set("tiny")
    arguments = ["train", *(option for option in TINY if option != "--cos"), "--med-mnist", "tiny"]
    assert sre(*arguments, "--epochs", "1") == 0
    run = tmp_path / "logs" / "task" / "tiny-sre_resnet18-seed1"
    states = torch.load(run / "last.ckpt", weights_only=True)
    (key,) = (name for name in states["callbacks"] if "'monitor': 'val_" in name)
    states["callbacks"][key]["best_model_score"] = torch.tensor(2.0)  # no later epoch is better
    states["callbacks"][key]["best_k_models"] = {str(run / "best.ckpt"): torch.tensor(2.0)}
    states["callbacks"][key]["kth_value"] = torch.tensor(2.0)
    torch.save(states, run / "last.ckpt")
    best = torch.load(run / "best.ckpt", weights_only=True)["epoch"]
    moved = shutil.move(run, tmp_path / "elsewhere")
    assert sre(*arguments, "--epochs", "2", "--resume", moved) == 0
    assert torch.load(Path(moved) / "best.ckpt", weights_only=True)["epoch"] == best == 0
    assert torch.load(Path(moved) / "last.ckpt", weights_only=True)["epoch"] == 1


def test_training_in_another_thread(make_set: MakeSet, sre: Command) -> None:
    make_set("tiny")
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(sre("train", *TINY, "--med-mnist", "tiny", "--epochs", "1")))
    thread.start()
    thread.join()
    assert found == [0]


def test_all_that_differs_is_named_at_once(
    make_set: MakeSet, sre: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_set("tiny")
    arguments = ["train", *TINY, "--med-mnist", "tiny"]
    assert sre(*arguments, "--epochs", "1") == 0
    assert sre(*arguments, "--epochs", "2", "--momentum", "0.5", "--resume") == 2
    assert "was begun with --epochs 1, not 2 and --momentum 0.9, not 0.5: resume" in capsys.readouterr().err
