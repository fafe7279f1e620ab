"""What a run's folder says of it, and that it stays true: options, versions, time, and who may write there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sre_triton.training.options import TrainOptions
from sre_triton.training.runs.folder import RunFolder
from sre_triton.training.schema import from_dict, to_dict
from tests.training.conftest import TINY, Command, MakeSet

STEADY = [option for option in TINY if option != "--cos"]
"""TINY with a rate that does not depend on the number of epochs."""


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_run_says_what_it_was_and_what_it_took(make_set: MakeSet, sre: Command, tmp_path: Path) -> None:
    make_set("tiny", counts=(12, 6, 5))
    assert sre("train", *TINY, "--med-mnist", "tiny", "--epochs", "2") == 0
    run = tmp_path / "logs" / "task" / "tiny-sre_resnet18-seed1"
    config, versions = read(run / "config.json"), read(run / "versions.json")
    assert config["command"]
    assert config["date"][:2] == "20"
    assert config["sizes"] == {"train": 12, "val": 6, "test": 5}
    assert config["data_checksums"].keys() == {"train", "val", "test", "all"}
    state = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    assert 0 < config["parameters"] <= sum(value.numel() for value in state.values())
    assert versions["torch"] == torch.__version__
    assert versions["processor"]
    assert versions["commit"]
    assert len(versions["seconds_per_epoch"]) == 2
    assert all(seconds > 0 for seconds in versions["seconds_per_epoch"])


def test_what_was_written_at_the_start_stays(make_set: MakeSet, sre: Command, tmp_path: Path) -> None:
    make_set("tiny")
    assert sre("train", *STEADY, "--med-mnist", "tiny", "--epochs", "1", "--log-interval", "7") == 0
    run = tmp_path / "logs" / "task" / "tiny-sre_resnet18-seed1"
    config = read(run / "config.json")
    for path in (run / "config.json", run / "versions.json"):
        path.write_text(json.dumps({**read(path), "sre_triton": "of then"}))
    assert sre("train", *STEADY, "--med-mnist", "tiny", "--epochs", "2", "--resume", run) == 0
    now = read(run / "config.json")
    assert now == {**config, "sre_triton": "of then", "options": {**config["options"], "epochs": 2}}
    versions = read(run / "versions.json")
    assert versions["sre_triton"] == "of then"
    assert len(versions["seconds_per_epoch"]) == 2
    (resumed,) = read(run / "resumed.json")
    assert resumed["epochs"] == 2
    assert resumed["torch"] == torch.__version__


def test_checksums_tell_data_apart(tmp_path: Path, make_set: MakeSet) -> None:
    from sre_triton.training.tasks.classification import ClassificationTask

    def checksums(counts: tuple[int, int, int]) -> dict[str, str]:
        path = make_set("tiny", counts=counts)
        return ClassificationTask.read_data(TrainOptions(med_mnist="tiny", data_root=path.parent)).checksums

    first, other = checksums((6, 3, 3)), checksums((6, 3, 4))
    assert checksums((6, 3, 3)) == first
    assert first["train"] == other["train"]  # as the first six are drawn alike
    assert first["test"] != other["test"]
    assert first["all"] != other["all"]


_HOLDS = """
import sys
from pathlib import Path
from sre_triton.training.runs.folder import RunFolder
with RunFolder(Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_process_trains_in_a_folder(
    make_set: MakeSet, sre: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_set("tiny")
    arguments = ["train", *STEADY, "--med-mnist", "tiny"]
    assert sre(*arguments, "--epochs", "1") == 0
    run = tmp_path / "logs" / "task" / "tiny-sre_resnet18-seed1"
    other = subprocess.Popen([sys.executable, "-c", _HOLDS, run], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    before = (run / "last.ckpt").read_bytes()
    assert sre(*arguments, "--epochs", "2", "--resume", run) == 2
    assert f"{run} is being trained by another process" in capsys.readouterr().err
    assert (run / "last.ckpt").read_bytes() == before
    other.kill()  # as kill -9 does: nothing is left that keeps others out
    other.communicate()
    assert sre(*arguments, "--epochs", "2", "--resume", run) == 0


def test_an_option_that_is_gone_is_left_out_and_named(tmp_path: Path) -> None:
    values = {**to_dict(TrainOptions(lr=0.5)), "sharpen": 3}
    with pytest.warns(UserWarning, match="options that are left out here: --sharpen 3"):
        assert from_dict(TrainOptions, values) == TrainOptions(lr=0.5)
    folder = RunFolder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"options": values}))
    with pytest.warns(UserWarning, match="--sharpen 3"):
        folder.check(TrainOptions(lr=0.5))


def test_checksums_of_folders_know_images_not_their_order(tmp_path: Path) -> None:
    from sre_triton.training.data.checksum import checksums

    files = [tmp_path / f"{number}.png" for number in range(4)]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]) * (2**21 + number))
    first = checksums({"train": [(file,) for file in files[:3]], "val": [(files[3],)]})
    moved = checksums({"train": [(file,) for file in files[1:]], "val": [(files[0],)]})
    assert first["all"] == moved["all"]
    assert first["train"] != moved["train"]
    assert checksums({"train": [(file,) for file in reversed(files[:3])]})["train"] == first["train"]
    for place in (0, 2**21 + 1):  # the first and the last byte
        content = bytearray(files[2].read_bytes())
        content[place] ^= 1
        files[2].write_bytes(content)
        assert checksums({"train": [(file,) for file in files[:3]]})["train"] != first["train"]
        content[place] ^= 1
        files[2].write_bytes(content)
