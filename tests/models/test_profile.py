"""What networks cost, and the command that lists it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

import sre_triton
from sre_triton.cli import main
from sre_triton.models import get_model, list_models
from sre_triton.models.profile import Arithmetic, count_work, profiles, table


def work(network: nn.Module, *shape: int) -> Arithmetic:
    return count_work(network.to("meta"), torch.empty(shape, device="meta"))


def test_a_layer_by_hand() -> None:
    # 9x9: 5 rings, of which 69 of 81 taps carry weight.
    assert work(sre_triton.SREConv2d(3, 4, 9, padding=4), 2, 3, 10, 12) == (
        2 * 120 * 3 * 4 * 81,
        2 * 120 * 3 * 4 * 5,
        2 * 120 * 3 * (69 - 5),
    )
    grouped = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    assert work(grouped, 4, 9, 9) == (25 * 4 * 6 // 2 * 9, 25 * 4 * 6 // 2 * 9, 0)  # unbatched
    up = sre_triton.SREConvTranspose2d(4, 6, 3, stride=2)
    assert work(up, 1, 4, 5, 5)[:2] == (25 * 4 * 6 * 9, 25 * 4 * 6 * 2)
    assert work(nn.Linear(5, 7), 3, 5) == (105, 105, 0)
    assert work(nn.ReLU(), 3, 5) == (0, 0, 0)


def test_published_figures() -> None:
    small = {"skip_first_maxpool": True, "num_classes": 9, "device": "meta"}
    dense, ringwise, _ = work(get_model("sre_resnet18", sre_conv_size=[9, 9, 5, 5], **small), 1, 3, 32, 32)
    assert (round(1e-9 * dense, 2), round(1e-9 * ringwise, 2)) == (3.29, 0.25)
    assert round(1e-9 * work(get_model("resnet18", **small), 1, 3, 32, 32).dense, 2) == 0.56
    dense, ringwise, _ = work(get_model("sre_unet", device="meta"), 1, 3, 256, 256)
    assert (round(1e-9 * dense), round(1e-9 * ringwise, 1)) == (37, 2.3)


def test_counting_computes_nothing_and_leaves_no_hooks() -> None:
    network = get_model("sre_r3d_18", inplanes=4, device="meta").train()
    work(network, 2, 3, 6, 6, 6)
    assert network.training
    assert not any(m._forward_hooks for m in network.modules())


def test_profiles_of_some(capsys: pytest.CaptureFixture[str]) -> None:
    names: list[str] = []
    rows = profiles("?re_resnet18", on_start=names.append)
    assert names == [row.name for row in rows] == ["sre_resnet18"]
    assert rows[0].parameters == sum(
        p.numel() for p in get_model("sre_resnet18", sre_conv_size=[9, 9, 5, 5]).parameters()
    )
    assert 0.1 < rows[0].ms_per_image < 1e5
    assert rows[0].gmac_ringwise < rows[0].gmac_dense / 8


def test_the_command_s_table(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    assert main(["models", "--no-time", "--filter", "*_resnet18"]) == 0
    out = capsys.readouterr().out
    assert {name for name in list_models() if name in out} >= {"sre_resnet18", "gmr_resnet18"}
    assert "4,504,488" in out
    assert "sre_unet" not in out


def test_the_command_s_json() -> None:
    command = [sys.executable, "-m", "sre_triton", "models", "--json", "--no-time", "--filter", "gmr_unet"]
    (row,) = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert row["name"] == "gmr_unet"
    assert row["input_shape"] == [3, 256, 256]
    assert row["ms_per_image"] is None


def test_a_pattern_without_match(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--filter", "vgg*"]) == 2
    assert "no network's name matches 'vgg*'; there are gmr_r3d_18" in capsys.readouterr().err


def test_a_table_without_rich(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for module in ("rich", "rich.box", "rich.console", "rich.progress", "rich.table"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError):
        table([])
    assert main(["models"]) == 2
    assert "pip install 'sre-triton[models]'" in capsys.readouterr().err
    assert main(["models", "--json", "--no-time", "--filter", "resnet18"]) == 0
