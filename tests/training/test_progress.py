"""What a training says while it runs and when it ends, and what a start that fails leaves behind."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from sre_triton.training.evaluation.final_test import report_tables
from sre_triton.training.runs.progress import duration, epoch_line
from sre_triton.training.tasks.report import Report, confusion, rows_of_classes, rows_of_labels
from tests.training.conftest import TINY, TINY_UNET, Command, MakeSet

TESTED = [option for option in TINY if option != "--no-test"]
ROW: dict[str, Any] = {"epoch": 3, "train_loss": 0.25, "val_loss": 0.5, "val_dice": 0.8125, "lr": 0.001}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (60, "1:00"), (187.4, "3:07"), (7509, "2:05:09")]
)
def test_durations_are_read_at_a_glance(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_line_of_an_epoch_has_losses_score_best_rate_and_seconds() -> None:
    first = epoch_line(ROW | {"epoch": 1}, [], "val_dice", 12, 4.2)
    assert first == "epoch  1/12  loss 0.2500, val 0.5000  dice 81.25 (best)  lr 0.001  4.2 s"
    before = [{"val_dice": 0.5}, {"val_dice": 0.9}]
    assert "dice 81.25 (best 90.00)" in epoch_line(ROW, before, "val_dice", 12, 4.2)
    assert "dice 81.25 (best)" in epoch_line(ROW, before[:1], "val_dice", 12, 4.2)
    undefined = [{"val_dice": float("nan")}]
    assert "dice 81.25 (best)" in epoch_line(ROW, undefined, "val_dice", 12, 4.2)
    assert len(epoch_line(ROW | {"val_accuracy": 1.0}, before, "val_accuracy", 100, 59.9)) <= 80


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes standard output a terminal when it is called, and gives the lines that were written to it since then."""
    monkeypatch.setattr("sre_triton.training.runs.progress._REFRESH", 0)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    screens = [Terminal()]

    def written() -> list[str]:
        text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screens[-1].getvalue())
        screens.append(Terminal())
        monkeypatch.setattr("sys.stdout", screens[-1])
        return [line.rstrip() for line in re.split(r"[\r\n]+", text)]

    return written


def counts(lines: list[str], bar: str, total: int) -> list[int]:
    """How far a bar was, each time that it was drawn; after the first step it says what time is left."""
    drawn = [line for line in lines if line.startswith(bar)]
    assert all(re.search(r" \d+(:\d\d)*( s)? left$", line) for line in drawn[2:])
    found = [int(re.search(rf" (\d+)/{total} ", f"{line} ")[1]) for line in drawn]  # type: ignore[index]
    assert found == sorted(found)
    return found


def test_on_a_terminal_lines_stay_above_bars_with_the_time_left(
    make_set: MakeSet, sre: Command, terminal: Any, tmp_path: Path
) -> None:
    make_set("tiny")  # 3 batches to train on and 1 to validate
    options = [option for option in TINY if option != "--cos"]
    terminal()
    assert sre("train", *options, "--med-mnist", "tiny", "--epochs", "2") == 0
    said = terminal()
    for epoch in (1, 2):
        assert sum(bool(re.fullmatch(rf"epoch {epoch}/2  loss .* s", line)) for line in said) == 1
        assert set(counts(said, f"epoch {epoch} ", 4)) == set(range(5))
    assert set(counts(said, "all 2 epochs ", 8)) == set(range(9))
    assert sre("train", "--resume", tmp_path / "logs" / "task" / "tiny-sre_resnet18-seed1", "--epochs", "3") == 0
    said = terminal()
    assert set(counts(said, "all 3 epochs ", 12)) == set(range(8, 13))
    assert set(counts(said, "epoch 3 ", 4)) == set(range(5))


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Any:
    return lambda: capsys.readouterr().out.splitlines()


def test_a_training_ends_with_test_scores_and_where_they_are(
    make_set: MakeSet, sre: Command, tmp_path: Path, lines: Any
) -> None:
    make_set("tiny")
    assert sre("train", *TESTED, "--med-mnist", "tiny", "--epochs", "2") == 0
    run = tmp_path / "logs" / "task" / "tiny-sre_resnet18-seed1"
    said = lines()
    assert said[0] == "tiny: 3 classes, 12 images to train on, 6 to validate, 6 to test"
    assert [line.startswith(f"epoch {n}/2  loss") for n, line in enumerate(said[2:4], start=1)] == [True, True]
    content = json.loads((run / "test" / "test.json").read_text())
    assert {"accuracy", "auc", "balanced_accuracy", "f1"} <= set(content["scores"])
    assert (content["unit"], content["n"], content["epoch"]) == ("percent", 6, torch_epoch(run / "best.ckpt"))
    text = "\n".join(said)
    assert re.search(rf"│ accuracy +│ +{content['scores']['accuracy']:.2f} │", text)
    with (run / "test" / "confusion.csv").open() as file:
        counts = [[int(row[str(name)]) for name in range(3)] for row in csv.DictReader(file)]
    assert [sum(row) for row in counts] == [2, 2, 2]
    assert sum(counts[c][c] for c in range(3)) / 6 * 100 == pytest.approx(content["scores"]["accuracy"])
    for name in ("best.ckpt", "metrics.csv", "test/test.json", "test/confusion.csv", "test/confusion.png"):
        assert any(line.endswith(f" {run / name}") for line in said)
        assert (run / name).is_file()


def torch_epoch(checkpoint: Path) -> int:
    return int(torch.load(checkpoint, weights_only=True)["epoch"]) + 1


def test_scores_of_the_whole_image_stand_beside_those_of_the_field(lines: Any) -> None:
    from rich.console import Console

    scores = {"dice": 0.5, "auc": float("nan"), "undefined_auc": 2.0, "whole_dice": 0.25, "whole_auc": 0.75}
    counts = torch.tensor([[8, 2], [1, 9]])
    report = Report(scores, rows_of_classes(counts, ["0", "255"], "pixels"), ["0", "255"], counts, "pixels")
    for part in report_tables(report):
        Console(width=80).print(part)
    text = "\n".join(lines())
    assert re.search(r"score ┃ field of view ┃ whole image", text)
    assert re.search(r"Dice  │ +50.00 │ +25.00", text)
    assert re.search(r"AUC   │ +│ +75.00", text)
    assert "AUC is undefined for 2, left out" in text
    assert re.search(r"255   │     10 │ +90.00 │ +80.00 │ +81.82 │ +85.71", text)


def test_rows_of_classes_are_those_of_a_count_by_hand() -> None:
    labels, found = torch.tensor([0, 0, 1, 1, 1, 3]), torch.tensor([0, 1, 1, 1, 0, 3])
    counts = confusion(found, labels, 4)
    assert counts.tolist() == [[1, 1, 0, 0], [1, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    one, missing = rows_of_classes(counts, "abcd", "images")[1:3]
    expected = {"class": "b", "images": 3, "sensitivity": 2 / 3, "specificity": 2 / 3, "precision": 2 / 3, "f1": 2 / 3}
    assert one == pytest.approx(expected)
    assert missing["images"] == 0
    assert all(missing[name] != missing[name] for name in ("sensitivity", "precision", "f1"))
    several = torch.tensor([[True, False], [True, True], [False, False]])
    (row, _) = rows_of_labels(several, ~several | several, "ab", "images")
    assert (row["hits"], row["misses"], row["false_alarms"], row["correct_rejections"]) == (2, 1, 0, 0)


def test_several_labels_are_reported_each(make_set: MakeSet, sre: Command, tmp_path: Path, lines: Any) -> None:
    make_set("several", labels=3)
    assert sre("train", *TESTED, "--med-mnist", "several", "--epochs", "1") == 0
    test = tmp_path / "logs" / "task" / "several-sre_resnet18-seed1" / "test"
    with (test / "classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["0", "1", "2"]
    assert all(sum(int(row[name]) for name in ("hits", "misses")) == int(row["images"]) for row in rows)
    assert not (test / "confusion.csv").exists()


def test_quiet_prints_errors_alone(
    make_set: MakeSet, sre: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_set("tiny")
    monkeypatch.setattr("sre_triton.backends.native.advice", lambda: "build the kernel")
    assert sre("train", *TESTED, "--med-mnist", "tiny", "--epochs", "1", "--quiet") == 0
    run = tmp_path / "logs" / "task" / "tiny-sre_resnet18-seed1"
    assert sre("evaluate", run, "--step-degrees", "180", "--quiet") == 0
    assert sre("train", "--resume", run, "--quiet") == 0
    assert capsys.readouterr() == ("", "")
    assert sre("train", "--resume", run, "--quiet", "--lr", "1") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_resuming_says_where_it_goes_on(sre: Command, tmp_path: Path, lines: Any) -> None:
    assert sre("segment", *TINY_UNET, "--epochs", "1") == 0
    run = tmp_path / "logs" / "task" / "vessels-sre_unet-seed1"
    lines()
    assert sre("segment", "--resume", run, "--epochs", "2") == 0
    said = lines()
    assert "going on after epoch 1 of 2" in said
    assert sum(line.startswith("epoch ") for line in said) == 1
    assert sre("segment", "--resume", run) == 0
    assert "nothing is left to train: 2 epochs are done" in lines()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--sgd", "--adam"],
        ["--model-args", '{"nothing": 1}'],
        ["--data", "nowhere"],
        ["--ddp", "--dist-url", "here"],
        ["--load-model", "nowhere"],
        ["--one-cycle", "--warm-up", "2"],
    ],
)
def test_a_start_that_is_refused_creates_nothing(arguments: list[str], sre: Command, tmp_path: Path) -> None:
    assert sre("segment", *TINY_UNET, "--epochs", "1", *arguments) == 2
    assert not (tmp_path / "logs").exists()


def test_a_start_that_fails_is_not_gone_on_with(
    sre: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sre_triton.training.tasks.segmentation import SegmentationTask

    def fail(self: Any, batch: Any, batch_idx: int) -> None:
        raise ValueError("sizes do not fit")

    with monkeypatch.context() as patched:
        patched.setattr(SegmentationTask, "training_step", fail)
        assert sre("segment", *TINY_UNET, "--epochs", "1", "--log-img") == 2
    assert "sizes do not fit" in capsys.readouterr().err
    assert not (tmp_path / "logs").exists()
    assert sre("segment", *TINY_UNET, "--epochs", "1", "--resume") == 2
    assert "there is no run" in capsys.readouterr().err
    assert sre("segment", *TINY_UNET, "--epochs", "1") == 0
    run = tmp_path / "logs" / "task" / "vessels-sre_unet-seed1"
    monkeypatch.setattr(SegmentationTask, "training_step", fail)
    assert sre("segment", "--resume", run, "--epochs", "2") == 2
    assert (run / "last.ckpt").is_file()  # one that was trained stays
    assert (run / "config.json").is_file()
