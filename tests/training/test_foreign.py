"""A checkpoint may be somebody else's: it says how a network is built, and chooses no file, download or class."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sre_triton
from sre_triton.training.options import SegmentOptions
from sre_triton.training.runs.restore import load_network
from sre_triton.training.tasks.networks import MONAI_NETWORKS, segmenter
from tests.training.conftest import TINY, TINY_UNET, Command, MakeSet
from tests.training.photographs import write_pairs

Change = Callable[[dict[str, Any]], None]


def changed(checkpoint: Path, to: Path, change: Change) -> Path:
    """Another checkpoint, whose description was changed."""
    content = torch.load(checkpoint, weights_only=True)
    change(content["sre_triton"])
    to.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, to)
    return to


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_images_are_not_looked_for_where_a_checkpoint_says(
    home: Path, make_set: MakeSet, sre: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    make_set("octmnist", classes=4, counts=(12, 6, 6))
    assert sre("train", *TINY, "--med-mnist", "octmnist", "--epochs", "1") == 0
    run = tmp_path / "logs" / "task" / "octmnist-sre_resnet18-seed1"
    monkeypatch.setattr("torch.hub.download_url_to_file", lambda *_, **__: pytest.fail("it began to download"))

    def elsewhere(about: dict[str, Any]) -> None:
        about["options"] |= {"data_root": str(tmp_path / "theirs"), "download": True, "base_log_dir": "/theirs"}

    alone = changed(run / "best.ckpt", tmp_path / "alone" / "best.ckpt", elsewhere)
    capsys.readouterr()
    assert sre("evaluate", alone) == 2
    assert f"{home / '.medmnist' / 'octmnist.npz'} is missing" in capsys.readouterr().err
    assert not (tmp_path / "theirs").exists()
    assert sre("evaluate", alone, "--data-root", tmp_path / "data", "--step-degrees", "180") == 0
    # In the run's own folder its config.json says where.
    assert sre("evaluate", changed(run / "best.ckpt", run / "best.ckpt", elsewhere), "--step-degrees", "180") == 0


def test_own_images_have_to_be_named_for_a_lone_checkpoint(
    sre: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pairs(tmp_path / "one", [str(number) for number in range(5)])
    arguments = ["segment", *TINY_UNET, "--data", tmp_path / "one", "--crop-size", "16", "--epochs", "1"]
    assert sre(*arguments) == 0
    run = tmp_path / "logs" / "task" / "one-sre_unet-seed1"
    alone = tmp_path / "alone" / "best.ckpt"
    alone.parent.mkdir()
    shutil.copy(run / "best.ckpt", alone)
    assert sre("evaluate", alone) == 2
    assert f"--data is needed: {alone} comes without the images" in capsys.readouterr().err
    assert sre("evaluate", alone, "--data", tmp_path / "one", "--step-degrees", "180") == 0
    assert sre("evaluate", run, "--step-degrees", "180") == 0


def test_a_lone_classifier_of_own_images_keeps_their_side(sre: Command, tmp_path: Path) -> None:
    for number in range(10):
        write_pairs(tmp_path / "two" / "ab"[number % 2], [str(number)], image="{}.png", mask="../../masks/{}.png")
    assert sre("train", *TINY, "--data", tmp_path / "two", "--image-size", "24", "--epochs", "1") == 0
    run = tmp_path / "logs" / "task" / "two-sre_resnet18-seed1"
    alone = tmp_path / "alone.ckpt"
    shutil.copy(run / "best.ckpt", alone)
    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    one, other = sre_triton.load(run), sre_triton.load(alone)
    assert one.options.data is other.options.data is None
    assert one.options.image_size == other.options.image_size == 24
    np.testing.assert_array_equal(one.probabilities(picture), other.probabilities(picture))


@pytest.fixture
def unet(sre: Command, tmp_path: Path) -> Path:
    assert sre("segment", *TINY_UNET, "--epochs", "1") == 0
    return tmp_path / "logs" / "task" / "vessels-sre_unet-seed1" / "best.ckpt"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "monai:PatchDiscriminator", "model_args": '{"channels": 4}'}, "expected monai: and one of"),
        ({"model_type": "monai:torch"}, "expected monai: and one of"),
        (
            {"model_args": '{"features": [8, 8], "sre_conv_size": 3, "file": "/x"}'},
            "unexpected keyword",
        ),
        ({"model_args": "{"}, "must be a JSON object"),
    ],
)
def test_classes_outside_the_list_are_not_built(
    change: dict[str, Any], message: str, unet: Path, sre: Command, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("it ran something"))
    alone = changed(unet, tmp_path / "alone.ckpt", lambda about: about["options"].update(change))
    capsys.readouterr()
    assert sre("evaluate", alone) == 2
    error = capsys.readouterr().err
    assert str(alone) in error
    assert message in error
    assert error.count("\n") == 1


def test_a_task_that_is_none_is_named(unet: Path, tmp_path: Path) -> None:
    alone = changed(unet, tmp_path / "alone.ckpt", lambda about: about.update(task="os.system"))
    with pytest.raises(ValueError, match=r"is of the task 'os.system': expected one of classification, segmentation"):
        load_network(alone)


def test_an_old_checkpoint_stays_valid_when_an_option_goes(unet: Path, tmp_path: Path) -> None:
    alone = changed(unet, tmp_path / "alone.ckpt", lambda about: about["options"].update(sharpen=3))
    with pytest.warns(UserWarning, match=r"alone.ckpt: .*options that are left out here: --sharpen 3"):
        network, _, _ = load_network(alone)
    state = torch.load(unet, weights_only=True)["state_dict"]
    assert all(torch.equal(value, state[f"network.{name}"]) for name, value in network.state_dict().items())


def test_weights_of_monai_are_not_fetched_for_a_checkpoint() -> None:
    from sre_triton.training.tasks.segmentation import SegmentationTask

    given = SegmentOptions(model_type="monai:FlexibleUNet", model_args='{"backbone": "resnet18", "pretrained": true}')
    restored = SegmentationTask.as_restored(given)
    assert json.loads(restored.model_args) == {"backbone": "resnet18", "pretrained": False}


ARGUMENTS: dict[str, dict[str, Any]] = {
    "AttentionUnet": {"channels": [4, 8], "strides": [2]},
    "DynUNet": {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [4, 8, 8]},
    "FlexibleUNet": {"backbone": "resnet18"},
    "SegResNet": {"init_filters": 8},
    "UNet": {"channels": [4, 8], "strides": [2]},
    "UNETR": {"img_size": [64, 64]},
    "VNet": {"in_channels": 1},
    "BasicUNet": {"features": [4, 4, 4, 4, 4, 4]},
    "MedNeXt": {"init_filters": 4},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MONAI_NETWORKS)
def test_networks_of_monai_answer_with_a_map(name: str) -> None:
    arguments = ARGUMENTS.get(name, {})
    options = SegmentOptions(model_type=f"monai:{name}", model_args=json.dumps(arguments))
    try:
        network = segmenter(options).eval()
    except ValueError as error:
        if "needs a package" in str(error) or "this version of MONAI" in str(error):
            pytest.skip(str(error))
        raise
    try:
        with torch.no_grad():
            answer = network(torch.zeros(1, arguments.get("in_channels", 3), 64, 64))
    except ImportError as error:
        pytest.skip(str(error).partition("\n")[0])
    assert answer.shape == (1, 2, 64, 64)
