"""Two processes that share a batch learn what one process with the joined batch learns."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.conftest import TINY, Command, MakeSet

ARGUMENTS = [*TINY, "--med-mnist", "tiny", "--epochs", "2", "--norm-layer", "group", "--moco-aug", "--no-cuda"]


def rows(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_two_processes_are_one_with_the_joined_batch(make_set: MakeSet, sre: Command, tmp_path: Path) -> None:
    data = make_set("tiny", counts=(16, 7, 3)).parent
    assert sre("train", *ARGUMENTS, "--exp", "one", "-b", "8") == 0
    folders = ["--data-root", str(data), "--base-log-dir", str(tmp_path / "logs"), "--exp", "two"]
    two = subprocess.run(
        [sys.executable, "-m", "sre_triton", "train", *ARGUMENTS, *folders, "-b", "4", "--ddp", "--world-size", "2"],
        check=False, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=600,
    )  # fmt: skip
    assert two.returncode == 0, two.stderr
    name = "tiny-sre_resnet18-seed1"
    assert [path.name for path in (tmp_path / "logs" / "two").iterdir()] == [name]
    for one, both in zip(rows(tmp_path / "logs" / "one" / name), rows(tmp_path / "logs" / "two" / name), strict=True):
        assert both == pytest.approx(one, rel=1e-5)
