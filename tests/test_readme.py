"""README's Python examples run, one after the other as a reader would type them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

import sre_triton
from sre_triton.cli import main
from tests.reference_networks import reference_network
from tests.small_networks import ResidualNet
from tests.training.conftest import TINY

README = Path(__file__).parent.parent / "README.md"


def _train_a_run(folder: Path) -> np.ndarray:
    """A run where README says that runs are, and a picture for it."""
    pytest.importorskip("lightning")
    for kind, level in (("dark", 40), ("light", 200)):
        (folder / "set" / kind).mkdir(parents=True)
        for n in range(5):
            pixels = np.full((16, 16, 3), level + n, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "set" / kind / f"{n}.png")
    options = ["--image-size", "16", *TINY, "--epochs", "1", "--base-log-dir", str(folder / "logs")]
    with torch.backends.__allow_nonbracketed_mutation():  # PyTorch's test utilities forbid what a trainer does
        assert main(["train", "--data", str(folder / "set"), *options]) == 0
    (run,) = (folder / "logs" / "task").iterdir()
    run.rename(run.with_name("RUN"))
    return pixels


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"num_classes": 9, "sre_conv_size": [9, 9, 5, 5], "skip_first_maxpool": True}
    trained = reference_network("sre_resnet18", **options)
    torch.save({"state_dict": trained.state_dict(), "optimizer": None, "cur_ep": 3}, "best.pth")
    picture = _train_a_run(tmp_path)
    document = Sybil([PythonCodeBlockParser()]).parse(README)
    document.namespace["model"] = model = ResidualNet().train()
    document.namespace["picture"] = picture
    examples = list(document.examples())
    assert len(examples) >= 5
    for example in examples:
        example.evaluate()
    # They did what the text around them says.
    names = document.namespace
    assert names["features"].shape == (2, 64, 64, 64)
    assert 0.003 < sre_triton.equivariance_error(names["layer"], names["smooth"], (15, 45)) < 0.008  # "about 0.005"
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in names["fast"].modules())
    assert names["model"] is not model
    assert not any(isinstance(module, sre_triton.SREConv2d) for module in names["plain"].modules())
    assert names["answer"] in ("dark", "light")
    names["model"].eval()
    torch.testing.assert_close(names["plain"](names["image"]), names["model"](names["image"]), rtol=1e-4, atol=1e-4)
