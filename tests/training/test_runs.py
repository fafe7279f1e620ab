"""A run that is killed, stopped or resumed ends as if nothing had happened; nothing half-written is left."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sre_triton.training.files import replacing, write_json
from tests.training.conftest import TINY, TINY_UNET, Command, MakeSet


def weights(run: Path, name: str = "last.ckpt") -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run / name, weights_only=True)["state_dict"]
    return state


def assert_same_run(one: Path, other: Path) -> None:
    """Bit for bit: the table of epochs, the logs, the weights and the best weights."""
    for name in ("metrics.csv", "logs.json"):
        assert (one / name).read_text() == (other / name).read_text()
    for name in ("last.ckpt", "best.ckpt"):
        first, second = weights(one, name), weights(other, name)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)


class StopAt:
    """Sends this process a signal, or dies of one, when a training step begins."""

    def __init__(self, epoch: int, batch: int, number: int) -> None:
        self.epoch, self.batch, self.number = epoch, batch, number

    def __call__(self, task: Any, batch: Any, batch_idx: int) -> None:
        if (task.current_epoch, batch_idx) == (self.epoch, self.batch):
            os.kill(os.getpid(), self.number)


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Any:
    from sre_triton.training.tasks.task import Task

    original = Task.on_train_batch_start

    def arm(epoch: int, batch: int, number: int = signal.SIGINT) -> None:
        stop = StopAt(epoch, batch, number)

        def hook(self: Task, batch: Any, batch_idx: int) -> None:
            stop(self, batch, batch_idx)
            original(self, batch, batch_idx)

        monkeypatch.setattr(Task, "on_train_batch_start", hook)

    arm.disarm = lambda: monkeypatch.setattr(Task, "on_train_batch_start", original)  # type: ignore[attr-defined]
    return arm


CLASSIFIER = [*TINY, "--med-mnist", "tiny", "--epochs", "3", "--dropout-p", "0.5", "--moco-aug"]


@pytest.mark.parametrize(("epoch", "batch"), [(0, 0), (1, 1), (1, 2), (2, 0)])
def test_ctrl_c_saves_and_resumes_to_the_same_bits(
    epoch: int, batch: int, stop_at: Any, make_set: MakeSet, sre: Command, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    make_set("tiny")
    assert sre("train", *CLASSIFIER, "--exp", "whole") == 0
    stop_at(epoch, batch)
    assert sre("train", *CLASSIFIER, "--exp", "stopped") == 130
    stopped = tmp_path / "logs" / "stopped" / "tiny-sre_resnet18-seed1"
    assert f"--resume {stopped}" in capsys.readouterr().err
    stop_at.disarm()
    assert sre("train", *CLASSIFIER, "--exp", "stopped", "--resume") == 0
    assert_same_run(tmp_path / "logs" / "whole" / stopped.name, stopped)


@pytest.mark.slow
def test_sigterm_while_a_network_is_compiled_is_quiet(
    stop_at: Any, sre: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stop_at(0, 0, signal.SIGTERM)  # the first step compiles
    assert sre("segment", *TINY_UNET, "--epochs", "1", "--compile") == 130
    error = capfd.readouterr().err
    run = tmp_path / "logs" / "task" / "vessels-sre_unet-seed1"
    assert error.count("\n") == 1
    assert f"go on with: sre-triton segment --resume {run}" in error


def test_workers_change_nothing(make_set: MakeSet, sre: Command, stop_at: Any, tmp_path: Path) -> None:
    make_set("tiny")
    assert sre("train", *CLASSIFIER, "--exp", "whole") == 0
    stop_at(1, 1)
    assert sre("train", *CLASSIFIER, "--exp", "workers", "--num-workers", "1") == 130
    stop_at.disarm()
    assert sre("train", *CLASSIFIER, "--exp", "workers", "--num-workers", "1", "--resume") == 0
    name = "tiny-sre_resnet18-seed1"
    assert_same_run(tmp_path / "logs" / "whole" / name, tmp_path / "logs" / "workers" / name)


@pytest.mark.parametrize(
    "extra",
    [
        [],
        ["--balance-rings", "--affine-prob", "0.5"],
        [*("--one-cycle", "--ema", "0.5"), *("--normalise", "field", "--gain", "0.3", "--offset", "0.5")],
    ],
    ids=["plain", "balanced", "averaged"],
)
def test_segmentation_resumes_to_the_same_bits(extra: list[str], stop_at: Any, sre: Command, tmp_path: Path) -> None:
    arguments = ["segment", *TINY_UNET, "--epochs", "2", *extra]
    assert sre(*arguments, "--exp", "whole") == 0
    stop_at(1, 0)
    assert sre(*arguments, "--exp", "stopped") == 130
    stop_at.disarm()
    assert sre(*arguments, "--exp", "stopped", "--resume") == 0
    name = "vessels-sre_unet-seed1"
    assert_same_run(tmp_path / "logs" / "whole" / name, tmp_path / "logs" / "stopped" / name)


_KILLED = """
import os, signal, sys
from sre_triton.cli import main
from sre_triton.training.tasks.task import Task
import torch
torch.set_num_threads(1)
begin = Task.on_train_batch_start
def hook(self, batch, batch_idx):
    if (self.current_epoch, batch_idx) == (1, 1):
        os.kill(os.getpid(), signal.SIGKILL)
    begin(self, batch, batch_idx)
Task.on_train_batch_start = hook
main(sys.argv[1:])
"""


def test_kill_in_mid_epoch_resumes_to_the_same_bits(make_set: MakeSet, sre: Command, tmp_path: Path) -> None:
    data = make_set("tiny").parent
    assert sre("train", *CLASSIFIER, "--exp", "whole") == 0
    folders = ["--data-root", str(data), "--base-log-dir", str(tmp_path / "logs"), "--exp", "killed"]
    killed = subprocess.run([sys.executable, "-c", _KILLED, "train", *CLASSIFIER, *folders], check=False)
    assert killed.returncode == -signal.SIGKILL
    name = "tiny-sre_resnet18-seed1"
    run = tmp_path / "logs" / "killed" / name
    assert torch.load(run / "last.ckpt", weights_only=True)["epoch"] == 0
    assert sre("train", *CLASSIFIER, "--exp", "killed", "--resume") == 0
    assert_same_run(tmp_path / "logs" / "whole" / name, run)


def test_a_run_is_resumed_only_with_its_own_options(
    make_set: MakeSet, sre: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    make_set("tiny")
    assert sre("train", *CLASSIFIER) == 0
    assert sre("train", *CLASSIFIER, "--lr", "0.5", "--resume") == 2
    assert "was begun with --lr 0.01, not 0.5" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["truncated", "text", "foreign"])
def test_damaged_checkpoint_is_one_clear_line(
    damage: str, make_set: MakeSet, sre: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_set("tiny")
    assert sre("train", *TINY, "--med-mnist", "tiny", "--epochs", "1") == 0
    checkpoint = tmp_path / "logs" / "task" / "tiny-sre_resnet18-seed1" / "last.ckpt"
    if damage == "truncated":
        checkpoint.write_bytes(checkpoint.read_bytes()[:-1000])
    elif damage == "text":
        checkpoint.write_text("no checkpoint")
    else:
        torch.save({"weights": 1}, checkpoint)
    capsys.readouterr()
    message = "was not written by" if damage == "foreign" else "is not a whole checkpoint"
    for command in (["evaluate", checkpoint], ["train", *TINY, "--med-mnist", "tiny", "--epochs", "1", "--resume"]):
        assert sre(*command) == 2
        error = capsys.readouterr().err
        assert f"{checkpoint} {message}" in error
        assert error.count("\n") == 1


def test_weights_are_loaded_and_evaluated_without_training(
    make_set: MakeSet, sre: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_set("tiny")
    assert sre("train", *TINY, "--med-mnist", "tiny", "--epochs", "2") == 0
    run = tmp_path / "logs" / "task" / "tiny-sre_resnet18-seed1"
    again = [*TINY, "--med-mnist", "tiny", "--epochs", "2", "--load-model", run / "last.ckpt"]
    assert sre("train", *again, "--exp", "more", "--cur-ep", "1") == 0
    assert sre("train", *again, "--exp", "only", "--eval-only") == 0
    assert (tmp_path / "logs" / "only" / run.name / "evaluation-test/evaluation.json").is_file()
    assert sre("train", *again, "--res-inplanes", "16") == 2
    assert "is of another network" in capsys.readouterr().err


def test_checkpoints_of_the_reference_script_are_loaded(make_set: MakeSet, sre: Command, tmp_path: Path) -> None:
    make_set("tiny")
    assert sre("train", *TINY, "--med-mnist", "tiny", "--epochs", "1") == 0
    ours = weights(tmp_path / "logs" / "task" / "tiny-sre_resnet18-seed1")
    theirs = {name.replace("network.", "module."): value for name, value in ours.items()}
    torch.save({"state_dict": theirs, "optimizer": {}, "scheduler": {}, "cur_ep": 2}, tmp_path / "reference.ckpt")
    arguments = [*TINY, "--med-mnist", "tiny", "--epochs", "1", "--eval-only", "--exp", "theirs"]
    assert sre("train", *arguments, "--load-model", tmp_path / "reference.ckpt") == 0


def test_full_disk_is_one_clear_line_and_leaves_the_old_checkpoint(
    make_set: MakeSet, sre: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_set("tiny")
    save, calls = torch.save, []

    def full(content: Any, path: Any, *args: Any) -> None:
        calls.append(path)
        if len(calls) > 2:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(content, path, *args)

    monkeypatch.setattr(torch, "save", full)
    assert sre("train", *CLASSIFIER) == 2
    error = capsys.readouterr().err
    assert error.startswith("sre-triton train: no space left on the disk of ")
    assert "last.ckpt" in error or "best.ckpt" in error
    run = tmp_path / "logs" / "task" / "tiny-sre_resnet18-seed1"
    assert not list(run.glob("*.part"))
    assert torch.load(run / "last.ckpt", weights_only=True)["epoch"] == 0


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, 1)

    def fail() -> None:
        with replacing(path) as partial:
            partial.write_text("2, but")
            raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        fail()
    assert path.read_text() == "1\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["value.json"]


def test_a_loss_that_is_not_finite_stops_the_run(
    make_set: MakeSet, sre: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    make_set("tiny")
    assert sre("train", *TINY, "--med-mnist", "tiny", "--epochs", "2", "--lr", "1e30") == 2
    assert "lower --lr" in capsys.readouterr().err
