"""The seed's command lines as they stand, and what a user meets on the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import sre_triton
from sre_triton.backends import native
from sre_triton.cli import main
from sre_triton.models import registry
from sre_triton.training.options import SegmentOptions
from sre_triton.training.tasks.networks import segmenter
from tests.training.conftest import TINY, TINY_UNET, Command, MakeSet

# What the reference's README gives after `python main.py`, the name of the set left open.
SEED_2D = (
    "--med-mnist {} --epochs 100 --model-type sre_resnet18 --sre-conv-size-list 9 9 5 5 -b 128 --lr 2e-2 --cos --sgd "
    "--eval-rot --eval-flip --train-flip-p 0 --log --cudnn --moco-aug --translate-ratio 0.1 --translation "
    "--save-model  --save-best --res-keep-conv1"
)
SEED_3D = (
    "--med-mnist {} --epochs 100 --model-type sre_r3d_18 --ri-conv-size-list 5 5 5 5 -b 4 --lr 1e-2 --cos --sgd "
    "--eval-rot --res-keep-conv1 --log --cudnn --moco-aug"
)
SETS = {
    "bloodmnist": {"classes": 8, "channels": 3, "counts": (10, 8, 2)},  # RGB
    "octmnist": {"classes": 4, "counts": (8, 4, 2)},  # grey
    "chestmnist": {"labels": 14, "counts": (8, 4, 2)},  # multi-label
    "retinamnist": {"classes": 5, "channels": 3, "counts": (8, 5, 2)},  # ordinal
}


def run_seed(line: str, name: str, tmp_path: Path) -> Path:
    arguments = [*line.format(name).split(), "--epochs", "1"]
    folders = ["--data-root", tmp_path / "data", "--base-log-dir", tmp_path / "logs"]
    assert main(["train", *arguments, *map(str, folders)]) == 0
    (run,) = (tmp_path / "logs" / "task").iterdir()
    return run


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "chestmnist" else pytest.mark.slow) for n in SETS])
def test_seed_command_2d(name: str, make_set: MakeSet, tmp_path: Path) -> None:
    make_set(name, **SETS[name])
    run = run_seed(SEED_2D, name, tmp_path)
    logs = json.loads((run / "logs.json").read_text())
    assert len(logs["eval_rot_acc"]) == 36
    assert len(logs["eval_flip_acc"]) == 3
    config = json.loads((run / "config.json").read_text())
    assert config["multi_label"] == (name == "chestmnist")
    assert config["options"]["sre_conv_size_list"] == [9, 9, 5, 5]
    for file in (
        "best.ckpt",
        "last.ckpt",
        "metrics.csv",
        "curves.png",
        "evaluation-test/rotation.png",
        "versions.json",
    ):
        assert (run / file).stat().st_size > 0


@pytest.mark.slow
def test_seed_command_3d(make_set: MakeSet, tmp_path: Path) -> None:
    make_set("vesselmnist3d", classes=2, ndim=3, counts=(4, 2, 1))
    run = run_seed(SEED_3D, "vesselmnist3d", tmp_path)
    assert len(json.loads((run / "logs.json").read_text())["eval_rot_acc"]) == 3 * 12


def test_volumes_train_and_turn_about_each_axis(make_set: MakeSet, sre: Command, tmp_path: Path) -> None:
    make_set("tinymnist3d", classes=2, ndim=3, counts=(4, 2, 2), side=8)
    arguments = ["--model-type", "sre_r3d_18", "--res-inplanes", "4", "-b", "2", "--sgd", "--epochs", "1", "--moco-aug"]
    assert sre("train", "--med-mnist", "tinymnist3d", *arguments, "--dry-run") == 0
    (run,) = (tmp_path / "logs" / "task").iterdir()
    assert sre("evaluate", run, "--step-degrees", "90") == 0
    rows = json.loads((run / "evaluation-test/evaluation.json").read_text())[run.name]["rotation"]["rows"]
    assert [(row["axis"], row["angle"]) for row in rows] == [(axis, k * 90) for axis in "xyz" for k in range(4)]
    assert len({row["accuracy"] for row in rows}) == 1  # quarter turns about any axis change nothing


def test_pictures_logs_and_columns_agree(make_set: MakeSet, sre: Command, tmp_path: Path) -> None:
    make_set("tiny")
    assert sre("train", "--med-mnist", "tiny", *TINY, "--epochs", "2", "--log-img", "--log-grad-norm", "--save-rec",
               "--save-interval", "1", "--eval-interval", "1", "--eval-rot") == 0  # fmt: skip
    run = tmp_path / "logs" / "task" / "tiny-sre_resnet18-seed1"
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    logs = json.loads((run / "logs.json").read_text())
    assert [float(row["train_loss"]) for row in rows] == logs["train_loss"]
    assert rows[0]["lr"] == "0.01"
    assert float(rows[1]["lr"]) == pytest.approx((0.01 + 1e-6) / 2)
    assert {"grad_norm", "val_auc", "val_balanced_accuracy", "val_f1", "eval_rot_accuracy"} <= set(rows[0])
    assert {"batch.png", "epoch=0000.ckpt", "epoch=0001.ckpt"} <= {path.name for path in run.iterdir()}


def test_dropped_option_says_so(sre: Command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        sre("train", "--sre-shape", "o")
    assert stopped.value.code == 2
    assert "--sre-shape was dropped" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sgd", "--adam"], "--sgd and --adam ask for more than one optimiser"),
        (["--sgd", "--balance-rings"], "--balance-rings is for Adam, AdamW and Adadelta"),
        (["--cos", "--step"], "--cos and --step ask for more than one schedule"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--lr", "0"], "--lr must be above 0, got 0.0"),
        (["--amp", "--no-cuda"], "--amp needs a CUDA device"),
        (["--world-size", "2"], "--world-size 2 needs --ddp"),
        (["--multi-label"], "tiny has one label per image"),
        (["--model-type", "sre_r3d_18"], "is for 3-D images, the set's are 2-D"),
        (["--model-type", "nothing"], "there is no network 'nothing'"),
        (["--eval-only"], "--eval-only needs --load-model"),
        (["--resume"], "there is no run"),
        (["--med-mnist", "nothing"], "unknown set 'nothing'"),
        (["--med-mnist", "pathmnist"], "pathmnist.npz is missing: fetch it with --download"),
        (["--med-mnist", "organmnist3d", "--medmnist-size", "224"], "not released at size 224: choose from 28, 64"),
    ],
)
def test_what_is_wrong_is_one_clear_line(
    arguments: list[str], message: str, make_set: MakeSet, sre: Command, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    make_set("tiny")
    assert sre("train", "--med-mnist", "tiny", "--epochs", "1", "--res-inplanes", "8", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.rglob("*.part"))
    assert not list(tmp_path.rglob("*.ckpt"))


def test_segment_writes_a_run(sre: Command, tmp_path: Path) -> None:
    assert sre("segment", *TINY_UNET, "--epochs", "1", "--loss", "dice-ce", "--eval-rot", "--eval-flip") == 0
    (run,) = (tmp_path / "logs" / "task").iterdir()
    assert run.name == "vessels-sre_unet-seed1"
    with (run / "evaluation-test/rotation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"dice", "iou", "auc", "sensitivity", "specificity", "accuracy"} <= set(rows[0])
    at = {float(row["angle"]): float(row["dice"]) for row in rows if row["test"] == "rotation"}
    assert len(at) == 36
    # The window is larger than the image, so that a quarter turn changes nothing but rounding.
    assert np.ptp([at[angle] for angle in (0, 90, 180, 270)]) < 0.2  # percent


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model-type", "monai:Nothing"], "--model-type monai:Nothing: expected monai: and one of AttentionUnet"),
        (["--model-args", "[1]"], "--model-args must be a JSON object"),
        (["--model-args", '{"nothing": 1}'], "nothing"),
        (["--data", "nowhere"], "--data nowhere is missing"),
        (["--max-value", "4095"], "--max-value is for images of --data, which is not given"),
        (["--vessels-count", "1"], "--vessels-count must be three positive numbers"),
    ],
)
def test_what_is_wrong_with_a_segmentation(
    arguments: list[str], message: str, sre: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sre("segment", "--vessels-size", "64", "--vessels-count", "1", "1", "1", "--epochs", "1", *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_network_of_monai(sre: Command, tmp_path: Path) -> None:
    network = ["--model-type", "monai:UNet", "--model-args", '{"channels": [4, 8], "strides": [2]}']
    assert sre("segment", *TINY_UNET, *network, "--epochs", "1") == 0
    assert (tmp_path / "logs" / "task" / "vessels-monai-UNet-seed1" / "best.ckpt").is_file()


def test_a_registered_u_net_is_trained_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))

    @registry.register_model((3, 64, 64))
    def tiny_unet(*, width: int, norm_layer: object, **channels: int) -> nn.Module:
        return nn.Conv2d(channels["in_channels"], channels["out_channels"], width)

    network = segmenter(SegmentOptions(model_type="tiny_unet", model_args='{"width": 5}'), classes=4)
    assert isinstance(network, nn.Conv2d)
    assert network.weight.shape == (4, 3, 5, 5)
    with pytest.raises(ValueError, match="plain_unet, sre_unet, tiny_unet, unet or monai:NAME, got 'other_unet'"):
        segmenter(SegmentOptions(model_type="other_unet"))


@pytest.mark.parametrize("backend", ["native", "ringwise", "dense"])
def test_tensors_of_monai_have_the_gradients_of_plain_ones(backend: str) -> None:
    from monai.data import MetaTensor

    if backend == "native" and native.missing() is not None:
        pytest.skip(str(native.missing()))
    layer, x = sre_triton.SREConv2d(4, 6, 5, padding=2), torch.randn(2, 4, 12, 12)
    gradients = []
    for images in (MetaTensor(x), x):
        with sre_triton.backend(backend):
            (gradient,) = torch.autograd.grad(layer(images).square().sum(), layer.weight)
        gradients.append(torch.as_tensor(gradient))
    assert torch.equal(gradients[0], gradients[1])


@pytest.mark.slow
def test_demo(tmp_path: Path) -> None:
    assert main(["demo", "--output", str(tmp_path)]) == 0
    networks = {row["network"]: row for row in json.loads((tmp_path / "comparison.json").read_text())["networks"]}
    assert networks["sre_unet"]["dice_std"] < networks["plain_unet"]["dice_std"] / 3
    assert networks["sre_unet"]["dice_mean"] > networks["plain_unet"]["dice_mean"]
    assert networks["sre_unet"]["parameters"] < networks["plain_unet"]["parameters"]
    assert (tmp_path / "fundus.png").stat().st_size > 0
    assert (tmp_path / "drawn.png").stat().st_size > 0
