"""Networks that the package brings along: their files, how they are found, and that they do what their cards say."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sre_triton
from sre_triton.cli import main
from sre_triton.training.runs import pretrained
from sre_triton.training.runs.restore import load_network
from tests.training.conftest import TINY_UNET, Command
from tests.training.photographs import write_pairs

ROOT = Path(__file__).parents[2]
NAMES = [row["name"] for row in pretrained.pretrained_table()]
CARD = {"parameters": 1, "data": "drawn", "licence": "none", "scores": {"dice": 0.5}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    logs = tmp_path_factory.mktemp("logs")
    options = ["--epochs", "1", "--normalise", "field", "--tune-threshold", "--log-interval", "7", "--overlap", "0.25"]
    with torch.backends.__allow_nonbracketed_mutation():
        assert main(["segment", *TINY_UNET, *options, "--base-log-dir", str(logs)]) == 0
    return logs / "task" / "vessels-sre_unet-seed1"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def folder(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of pretrained networks, where `drawn` is the network of ``run``."""
    network, about, options = load_network(run)
    (tmp_path / "shipped").mkdir()
    pretrained.write_pretrained(tmp_path / "shipped" / "drawn.safetensors", network, about, options, CARD)
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path / "shipped")
    return tmp_path / "shipped"


def picture() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (40, 36, 3)).astype(np.uint8)


def test_a_network_answers_by_its_name_as_in_its_run(
    run: Path, folder: Path, sre: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = sre_triton.load(run), sre_triton.load("drawn")
    assert ours.threshold == theirs.threshold is not None
    assert ours.options.normalise == "field"
    assert ours.options.overlap == 0.25
    assert np.array_equal(ours.probabilities(picture()), theirs.probabilities(picture()))
    monkeypatch.setattr(torch, "load", None)  # no pickle is read
    Image.fromarray(picture()).save(tmp_path / "one.png")
    assert sre("predict", "drawn", tmp_path / "one.png", "--output", tmp_path / "answers") == 0
    with Image.open(tmp_path / "answers" / "one_mask.png") as mask:
        assert np.array_equal(np.asarray(mask), theirs.predict(picture()))


def test_the_description_holds_nothing_of_the_machine(run: Path, folder: Path, tmp_path: Path) -> None:
    text = (folder / "drawn.json").read_text()
    assert str(tmp_path.parent) not in text
    options = json.loads(text)["sre_triton"]["options"]
    assert (options["log_interval"], options["base_log_dir"], options["data"]) == (200, "logs", None)


def test_it_is_the_beginning_of_another_training(folder: Path, sre: Command) -> None:
    assert sre("segment", *TINY_UNET, "--epochs", "1", "--load-model", "drawn", "--dry-run") == 0


def test_it_is_evaluated_on_images_that_are_given(
    folder: Path, sre: Command, capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sre("evaluate", "drawn") == 2
    assert "--data is needed: drawn comes without the images that it was trained on" in capsys.readouterr().err
    write_pairs(tmp_path / "own", ["1", "2"])
    assert sre("evaluate", "drawn", "--data", tmp_path / "own", "--split", "all", "--step-degrees", "180") == 0
    result = json.loads((tmp_path / "drawn-evaluation-all-own" / "evaluation.json").read_text())
    assert next(iter(result.values()))["n"] == 2


def test_they_are_listed(folder: Path, sre: Command, capsys: Any) -> None:
    assert sre("models", "--pretrained", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["network"], row["data"]) == ("drawn", "sre_unet", "drawn")
    assert sre("models", "--pretrained") == 0
    assert "drawn" in capsys.readouterr().out


def test_what_is_wrong_is_one_clear_line(
    run: Path, folder: Path, sre: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def error(name: str) -> str:
        assert sre("predict", name, tmp_path, "--output", tmp_path / "answers") == 2
        text: str = capsys.readouterr().err
        assert text.count("\n") == 1
        return text

    assert "drwan is missing: expected a checkpoint, a run folder or a pretrained network" in error("drwan")
    monkeypatch.chdir(run.parent)
    run.rename(run.parent / "drawn")
    assert "drawn is a pretrained network and a run folder here" in error("drawn")
    monkeypatch.chdir(folder)
    weights = folder / "drawn.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert "drawn.safetensors is not a whole safetensors file" in error("drawn")


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_network_is_small_described_and_symmetric(name: str) -> None:
    files = [pretrained.FOLDER / f"{name}{suffix}" for suffix in (".safetensors", ".json", ".md")]
    assert files[0].stat().st_size <= 1.2 * 2**20
    card = files[2].read_text(encoding="utf-8")
    content = json.loads(files[1].read_text(encoding="utf-8"))
    assert content["card"]["licence"] in card
    assert all(f"{value:g}".lstrip("0") in card for value in content["card"]["scores"].values())
    assert '": "/' not in files[1].read_text(encoding="utf-8")  # no place on the machine that trained it
    model = sre_triton.load(name)
    assert sum(p.numel() for p in model.network.parameters()) == content["card"]["parameters"] <= 275_000
    x = torch.rand(1, 3, 33, 48, generator=torch.Generator().manual_seed(0))
    for turned in (x.rot90(1, (2, 3)), x.flip(3)):
        back = model.network(turned)
        back = back.flip(3) if turned.shape == x.shape else back.rot90(-1, (2, 3))
        torch.testing.assert_close(back, model.network(x), atol=1e-4, rtol=1e-4)


@pytest.mark.skipif("vessels" not in NAMES, reason="not there yet")
def test_vessels_finds_the_vessels_of_a_photograph() -> None:
    """scikit-image's photograph has no mask: what is found is held against a filter that finds dark lines."""
    from skimage.data import retina
    from skimage.filters import sato
    from skimage.transform import resize

    # As wide as its card asks for.
    photograph = resize(retina(), (800, 800), anti_aliasing=True).astype(np.float32)[267:533, 200:467]
    model = sre_triton.load("vessels")
    found = model.predict(photograph) > 0
    ridges = sato(photograph[..., 1], sigmas=[2.0, 3.3], black_ridges=True)
    assert 0.05 < found.mean() < 0.2
    assert ridges[found].mean() > 3 * ridges[~found].mean()


DATA = os.environ.get("SRE_TRITON_TEST_DATA")


@pytest.mark.slow
@pytest.mark.skipif(not DATA or "vessels" not in NAMES, reason="SRE_TRITON_TEST_DATA names no folder with chase_db1")
def test_vessels_scores_on_photographs_that_it_was_not_trained_on() -> None:
    from sre_triton.training.data.masks import read_field, read_mask
    from sre_triton.training.data.pictures import read_picture
    from sre_triton.training.tasks.segmentation_scores import segmentation_scores

    model, dice = sre_triton.load("vessels"), []
    for eye in ("11L", "14R"):
        image = read_picture(Path(DATA or "", "chase_db1", f"Image_{eye}.jpg"), None)
        truth = torch.from_numpy(read_mask(Path(DATA or "", "chase_db1", f"Image_{eye}_1stHO.png")) > 0)
        field = torch.from_numpy(read_field(Path(DATA or "", "chase_db1_fov", f"mask_{eye}.png"))[0] > 0)
        probabilities = torch.from_numpy(model.probabilities(torch.from_numpy(image)))
        dice.append(segmentation_scores(probabilities[:, field], truth[field], model.threshold)["dice"])
    assert min(dice) > 0.70
    assert sum(dice) / 2 > 0.75


def test_the_wheel_has_their_files() -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="hatchling comes with the extra test")
    names = {file.distribution_path for file in wheel.WheelBuilder(str(ROOT)).recurse_included_files()}
    assert "sre_triton/gmr.py" in names
    for name in NAMES:
        assert {f"sre_triton/pretrained/{name}{suffix}" for suffix in (".safetensors", ".json", ".md")} <= names
