"""The command line itself: its help, its mistakes, and options that come from files."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sre_triton.cli import main
from sre_triton.training import options as all_options
from sre_triton.training.parser import finite_number, whole_number
from sre_triton.training.schema import check_ranges, from_dict, to_dict
from tests.training.conftest import TINY, TINY_UNET, Command, MakeSet

COMMANDS: dict[str, list[type[Any]]] = {
    "train": [all_options.TrainOptions],
    "segment": [all_options.SegmentOptions],
    "evaluate": [all_options.EvaluateOptions],
    "compare": [all_options.CompareOptions],
    "compare train": [all_options.CompareOptions, all_options.TrainOptions],
    "compare segment": [all_options.CompareOptions, all_options.SegmentOptions],
    "predict": [all_options.PredictOptions],
    "export": [all_options.ExportOptions],
    "visualize": [all_options.VisualizeOptions],
    "demo": [],
    "models": [],
    "build-native": [],
    "selfcheck": [],
}


@pytest.fixture(autouse=True)
def columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def said(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(command.split())
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_screen_and_begins_with_three_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(f"{command} --help", capsys).splitlines()
    assert len(lines) <= 40
    assert lines[0].startswith(f"usage: sre-triton {command} ")
    examples = lines[lines.index("examples:") + 1 :]
    assert [line.startswith("  sre-triton ") for line in examples[:4]] == [True, True, True, False]
    assert not any("reference" in line for line in lines)


@pytest.mark.parametrize("command", COMMANDS)
def test_full_help_is_complete(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(f"{command} --help-all", capsys)
    for kind in COMMANDS[command]:
        for entry in dataclasses.fields(kind):
            assert f"--{entry.name.replace('_', '-')}" in text
    assert "--help-all" not in text  # nothing is left that it could show


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("compare train", "compare segment")])
def test_examples_of_help_are_command_lines(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from sre_triton import cli

    monkeypatch.chdir(tmp_path)
    lines = said(f"{command} --help", capsys).splitlines()
    start = lines.index("examples:") + 1
    parser, _ = cli._parser()
    for line in lines[start : start + 3]:
        words = line.replace("'", "").split()[1:]
        arguments, unknown = parser.parse_known_args(words)
        assert not unknown
        assert callable(arguments.run)


def test_without_a_command_all_commands_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    assert text.count("  sre-triton ") == 3
    for command in COMMANDS:
        assert f"\n    {command.split()[0]}" in text
    assert len(text.splitlines()) <= 40


def test_compare_shows_its_own_options(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("compare", "compare train"):
        text = said(f"{command} --help", capsys)
        assert all(
            f"  --{entry.name.replace('_', '-')} " in text for entry in dataclasses.fields(all_options.CompareOptions)
        )
        assert "--lr" not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("trian", "there is no command 'trian', did you mean train?"),
        ("train --epoch 3", "unknown option --epoch, did you mean --epochs?"),
        ("train --epochs three", "--epochs: expected a whole number, got 'three'"),
        ("train --epochs 1.5", "--epochs: expected a whole number, got '1.5'"),
        ("train --lr nan", "--lr: expected a finite number, got 'nan'"),
        ("train photos", "unexpected argument 'photos'"),
        ("train --device cuda", "unknown option --device; see"),  # not the option --dev, which is gone
        ("train --padding mirror", "--padding: invalid choice: 'mirror'"),
        ("segment --med-mnist x", "unknown option --med-mnist"),
        ("evaluate", "the following arguments are required: RUN"),
        ("compare", "the following arguments are required: train|segment"),
        ("compare train --seed-list 1", "unknown option --seed-list, did you mean"),
        ("predict vessels", "the following arguments are required: INPUT"),
    ],
)
def test_one_wrong_word_is_one_line(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words.split())
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert error.startswith("sre-triton")


_UNBOUNDED = {"degree", "train_degree", "mask_threshold", "seed", "seeds", "patches_seed"}
_CHECKED_IN_USE = {"sre_conv_size", "sre_conv_size_list", "vessels_count", "step_degrees", "target_class"}
_KINDS = [kind for name, kind in vars(all_options).items() if name.endswith("Options") and name in all_options.__all__]


@pytest.mark.parametrize("kind", _KINDS)
def test_every_number_has_bounds_and_is_held_to_them(kind: type[Any]) -> None:
    for entry in dataclasses.fields(kind):
        hint, bounds = str(entry.type), entry.metadata["bounds"]
        is_number = ("int" in hint or "float" in hint) and entry.metadata["choices"] is None
        assert bool(bounds) == (is_number and entry.name not in _UNBOUNDED | _CHECKED_IN_USE), entry.name
        for words, bound in bounds.items():
            outside = bound - 1 if words == "at least" else bound + 1 if words == "at most" else bound
            flag = "--" + entry.name.replace("_", "-")
            with pytest.raises(ValueError, match=f"^{flag} must be .*{words} .*, got {outside}"):
                check_ranges(kind(**{entry.name: [outside] if "list" in hint else outside}))
    check_ranges(kind())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train --data nowhere --image-size 0", "--image-size must be at least 1, got 0"),
        ("train --affine-prob 1.5", "--affine-prob must be at least 0 and at most 1, got 1.5"),
        ("train --cache -1", "--cache must be at least 0, got -1"),
        ("segment --split-seed -1", "--split-seed must be at least 0, got -1"),
        ("segment --vessels-size 32", "--vessels-size must be at least 64, got 32"),
        ("segment --sgd --momentum 1", "--momentum must be at least 0 and below 1, got 1.0"),
        ("compare segment --tune 1e-3 0", "--tune must be above 0, got 0.0"),
        ("compare segment --jobs 0", "--jobs must be at least 1, got 0"),
        ("predict vessels nowhere --max-value 0", "--max-value must be above 0, got 0.0"),
    ],
)
def test_a_number_out_of_bounds_is_one_line_before_anything_is_read(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert error.endswith(f": {message}\n")
    assert error.count("\n") == 1


def test_numbers_are_read_as_python_reads_them() -> None:
    assert whole_number("-7") == -7
    assert finite_number("2e-2") == 0.02


@pytest.mark.parametrize("kind", [all_options.TrainOptions, all_options.SegmentOptions])
def test_options_survive_the_file(kind: type[Any]) -> None:
    options = kind(epochs=3, cos=True, data=Path("a b"), milestones=[2])
    assert from_dict(kind, json.loads(json.dumps(to_dict(options)))) == options


def config_of(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "config.json").read_text())["options"]
    return content


def test_a_run_is_resumed_by_its_folder_alone(
    make_set: MakeSet, sre: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_set("tiny")
    options = [option for option in TINY if option != "--cos"]
    assert sre("train", *options, "--med-mnist", "tiny", "--epochs", "1", "--gain", "0.25", "--log-grad-norm") == 0
    run = tmp_path / "logs" / "task" / "tiny-sre_resnet18-seed1"
    before = config_of(run)
    assert main(["train", "--resume", str(run), "--epochs", "2"]) == 0
    after = config_of(run)
    assert {name for name in after if after[name] != before[name]} <= {"epochs", "resume"}
    assert after["epochs"] == 2
    assert (run / "metrics.csv").read_text().count("\n") == 3
    assert main(["train", "--resume", str(run / "last.ckpt"), "--lr", "1", "--gain", "0.5"]) == 2
    error = capsys.readouterr().err
    assert "--lr 0.01, not 1.0" in error
    assert "--gain 0.25, not 0.5" in error
    assert main(["segment", "--resume", str(run)]) == 2
    assert "config.json is of `sre-triton train`, not of `sre-triton segment`" in capsys.readouterr().err


def test_options_are_taken_from_a_file(sre: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sre("segment", *TINY_UNET, "--epochs", "1", "--log-img", "--exp", "first") == 0
    run = tmp_path / "logs" / "first" / "vessels-sre_unet-seed1"
    shutil.copy(run / "config.json", tmp_path / "mine.json")
    assert sre("segment", "--config", tmp_path / "mine.json", "--seed", "2", "--exp", "more", "--no-log-img") == 0
    second = tmp_path / "logs" / "more" / "vessels-sre_unet-seed2"
    found, wanted = config_of(second), config_of(run)
    differ = {name for name in wanted if found[name] != wanted[name]}
    assert differ == {"seed", "exp", "config", "log_img"}
    assert not (second / "batch.png").exists()
    for content, message in {
        "[]": 'is no config.json of a run: it has no "options"',
        "{": "is not a JSON file",
        '{"task": "classification", "options": {}}': "is of `sre-triton train`, not of `sre-triton segment`",
    }.items():
        (tmp_path / "mine.json").write_text(content)
        assert sre("segment", "--config", tmp_path / "mine.json") == 2
        assert message in capsys.readouterr().err
    assert sre("segment", "--config", tmp_path / "none.json") == 2
    assert f"--config {tmp_path / 'none.json'} is missing" in capsys.readouterr().err
    assert main(["train", "--config", str(tmp_path)]) == 2
    assert f"--config {tmp_path} is a folder: expected a file" in capsys.readouterr().err
    assert sre("segment", "--config", run / "config.json", "--resume", run) == 2
    assert "leave out --config" in capsys.readouterr().err
