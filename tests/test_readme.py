"""README's Python examples run, one after the other as a reader would type them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

import sre_triton
from tests.reference_networks import reference_network
from tests.small_networks import ResidualNet

README = Path(__file__).parent.parent / "README.md"


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"num_classes": 9, "sre_conv_size": [9, 9, 5, 5], "skip_first_maxpool": True}
    trained = reference_network("sre_resnet18", **options)
    torch.save({"state_dict": trained.state_dict(), "optimizer": None, "cur_ep": 3}, "best.pth")
    document = Sybil([PythonCodeBlockParser()]).parse(README)
    document.namespace["model"] = model = ResidualNet().train()
    examples = list(document.examples())
    assert len(examples) >= 4
    for example in examples:
        example.evaluate()
    # They did what the text around them says.
    names = document.namespace
    assert names["features"].shape == (2, 64, 64, 64)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in names["fast"].modules())
    assert names["model"] is not model
    assert not any(isinstance(module, sre_triton.SREConv2d) for module in names["plain"].modules())
    names["model"].eval()
    torch.testing.assert_close(names["plain"](names["image"]), names["model"](names["image"]), rtol=1e-4, atol=1e-4)
