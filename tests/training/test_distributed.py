"""Two processes that share a batch learn what one process with the joined batch learns."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sre_triton.training.data.augment import Share
from sre_triton.training.data.loading import EvaluationBatches, has_no_share
from tests.training.conftest import TINY, Command, MakeSet

ARGUMENTS = [*TINY, "--med-mnist", "tiny", "--epochs", "2", "--norm-layer", "group", "--moco-aug", "--no-cuda"]
NAME = "tiny-sre_resnet18-seed1"


def rows(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open() as file:
        return [{name: float(value or "nan") for name, value in row.items()} for row in csv.DictReader(file)]


def run_both(program: list[str], tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    folders = ["--data-root", str(tmp_path / "data"), "--base-log-dir", str(tmp_path / "logs")]
    return subprocess.run(
        [sys.executable, *program, "train", *ARGUMENTS, *folders, "--ddp", "--world-size", "2", *arguments],
        check=False, capture_output=True, text=True, timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )  # fmt: skip


def assert_alike(one: Path, both: Path) -> None:
    for first, second in zip(rows(one), rows(both), strict=True):
        assert second == pytest.approx(first, rel=1e-5, nan_ok=True)


# With one image to validate on, the second process has none.
@pytest.mark.parametrize("validated", [1, pytest.param(7, marks=pytest.mark.slow)])
def test_two_processes_are_one_with_the_joined_batch(
    validated: int, make_set: MakeSet, sre: Command, tmp_path: Path
) -> None:
    make_set("tiny", counts=(16, validated, 3))
    # At a small rate, as the loss of a single image tells rounding in training apart that a mean over seven does not.
    tests = ["--eval-rot", "--eval-interval", "2", "--log-grad-norm", "--lr", "0.001"]
    assert sre("train", *ARGUMENTS, *tests, "--exp", "one", "-b", "8") == 0
    two = run_both(["-m", "sre_triton"], tmp_path, *tests, "--exp", "two", "-b", "4")
    assert two.returncode == 0, two.stderr
    assert [path.name for path in (tmp_path / "logs" / "two").iterdir()] == [NAME]
    assert_alike(tmp_path / "logs" / "one" / NAME, tmp_path / "logs" / "two" / NAME)
    assert "eval_rot_accuracy" in rows(tmp_path / "logs" / "two" / NAME)[1]


_STOPPED = """
import os, signal, sys
from sre_triton.cli import main
from sre_triton.training.tasks.task import Task
begin = Task.on_train_batch_start
def hook(self, batch, batch_idx):
    if (self.current_epoch, batch_idx, self.global_rank) == (1, 3, 1):  # the second process alone is asked
        os.kill(os.getpid(), signal.SIGINT)
    begin(self, batch, batch_idx)
Task.on_train_batch_start = hook
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_stop_of_one_process_stops_both_and_means_of_both_go_on(
    make_set: MakeSet, sre: Command, tmp_path: Path
) -> None:
    make_set("tiny", counts=(56, 3, 3))
    script = tmp_path / "stopped.py"
    script.write_text(_STOPPED)
    assert run_both(["-m", "sre_triton"], tmp_path, "--exp", "whole", "-b", "2").returncode == 0
    stopped = run_both([str(script)], tmp_path, "--exp", "stopped", "-b", "2")
    assert "stopped in epoch 2 of 2" in stopped.stderr
    run = tmp_path / "logs" / "stopped" / NAME
    state = torch.load(run / "last.ckpt", weights_only=True)
    assert state["global_step"] == 14 + 10
    assert float(state["epoch_means"]["loss"]["weight"]) == 2 * 10  # of both processes
    resumed = run_both(["-m", "sre_triton"], tmp_path, "--exp", "stopped", "-b", "2", "--resume", str(run))
    assert resumed.returncode == 0, resumed.stderr
    assert_alike(tmp_path / "logs" / "whole" / NAME, run)


_POISONED = """
import sys
from sre_triton.cli import main
from sre_triton.training.tasks.classification import ClassificationTask
step = ClassificationTask.training_step
def poisoned(self, batch, batch_idx):
    loss = self.loss
    if (self.current_epoch, batch_idx, self.global_rank) == (1, 5, 1):
        self.loss = lambda *inputs: loss(*inputs) * float("nan")
    try:
        return step(self, batch, batch_idx)
    finally:
        self.loss = loss
ClassificationTask.training_step = poisoned
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_loss_that_is_no_number_in_one_process_ends_both(make_set: MakeSet, tmp_path: Path) -> None:
    make_set("tiny", counts=(56, 3, 3))
    script = tmp_path / "poisoned.py"
    script.write_text(_POISONED)
    poisoned = run_both([str(script)], tmp_path, "--exp", "poisoned", "-b", "2")
    assert poisoned.returncode != 0
    assert "in step 6 of epoch 2: lower --lr" in poisoned.stderr
    state = torch.load(tmp_path / "logs" / "poisoned" / NAME / "last.ckpt", weights_only=True)
    assert state["epoch"] == 0
    assert all(torch.isfinite(value).all() for value in state["state_dict"].values())


def test_a_process_without_images_is_given_one_that_does_not_count() -> None:
    for count in range(1, 6):
        parts = {rank: EvaluationBatches(count, 2, Share(rank, 4)) for rank in range(4)}
        assert all(len(batches) > 0 for batches in parts.values())
        counted = [
            index
            for rank, batches in parts.items()
            for batch in batches
            for index in batch
            if not has_no_share(count, Share(rank, 4))
        ]
        assert sorted(counted) == list(range(count))


def test_turns_are_divided_among_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    from sre_triton.training.options import TurningOptions
    from sre_triton.training.tasks import turning

    class Counting:
        description = {"ndim": 2}
        main_score = "accuracy"

        def __init__(self) -> None:
            self.turned: list[float] = []

        def require(self, split: str) -> None:
            pass

        def each_scored(self, split: str, symmetry: Any, how: Any) -> tuple[dict[str, float], list[dict[str, float]]]:
            self.turned.append(symmetry.angle)
            scores = {"accuracy": symmetry.angle / 360}
            return scores, [scores]

    how = TurningOptions(reference_protocol=True)
    alone: Any = Counting()
    expected = turning.rotation_test(alone, "val", how)
    both: list[Any] = [Counting(), Counting()]
    parts: list[Any] = []
    monkeypatch.setattr(torch.distributed, "all_gather_object", lambda into, mine: parts.append(mine) or into.clear())
    for rank, task in enumerate(both):
        with pytest.raises(KeyError):  # as nothing came from the other
            turning.rotation_test(task, "val", how, share=Share(rank, 2))
    assert abs(len(both[0].turned) - len(both[1].turned)) <= 1
    assert sorted(both[0].turned + both[1].turned) == sorted(alone.turned)

    def gather(into: list[Any], mine: Any) -> None:
        into[:] = parts

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    assert turning.rotation_test(both[0], "val", how, share=Share(0, 2)) == expected


def test_processes_ask_each_other_every_ten_steps(tmp_path: Path) -> None:
    from sre_triton.training.runs.callbacks import Interruption
    from sre_triton.training.runs.folder import RunFolder

    asked: list[float] = []

    class Strategy:
        root_device = torch.device("cpu")

        def reduce(self, value: torch.Tensor, reduce_op: str) -> torch.Tensor:
            asked.append(float(value))
            return value

    class Training:
        world_size, accumulate_grad_batches, is_last_batch, strategy = 2, 2, False, Strategy()

    interruption, training = Interruption(RunFolder(tmp_path)), Training()
    for batch in range(60):  # 30 steps, of two batches each
        interruption.on_train_batch_end(training, None, None, None, batch)  # type: ignore[arg-type]
    assert asked == [0, 0, 0]


def test_losses_of_several_processes_are_looked_at_every_ten_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from sre_triton.training.options import SegmentOptions
    from sre_triton.training.tasks.segmentation import SegmentationTask

    unet = '{"features": [4, 4], "sre_conv_size": 3}'
    task = SegmentationTask.from_options(SegmentOptions(vessels_size=64, vessels_count=[1, 1, 1], model_args=unet))
    loop = SimpleNamespace(batch_idx=0)
    strategy = SimpleNamespace(reduce=lambda value, reduce_op: value)
    trainer = SimpleNamespace(
        world_size=2, fit_loop=loop, strategy=strategy, global_step=1, current_epoch=0, loggers=[]
    )
    monkeypatch.setattr(SegmentationTask, "trainer", trainer)
    monkeypatch.setattr(SegmentationTask, "log", lambda *_, **__: None)
    looked: list[int] = []
    require = task.require_finite
    monkeypatch.setattr(task, "require_finite", lambda: looked.append(loop.batch_idx + 1) or require())

    def train(batches: range) -> None:
        for loop.batch_idx in batches:
            task.account(torch.tensor(float("nan") if loop.batch_idx in (33, 36) else 0.5), torch.tensor(1.0))

    train(range(30))
    assert looked == [10, 20, 30]
    with pytest.raises(FloatingPointError, match=r"the loss is nan in step 34 of epoch 1: lower --lr"):
        train(range(30, 40))
    assert looked[-1] == 40  # nothing is saved before
