"""The report of a network: its layers, its parameters, and where it loses its symmetry."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sre_triton
from sre_triton import convert, report
from sre_triton.conversion.breaks import generators
from sre_triton.conversion.report import SymmetryReport
from tests.small_networks import ResidualNet


def symmetry_of(model: nn.Module, *size: int, **options: Any) -> SymmetryReport:
    channels: Any = next(m.in_channels for m in model.modules() if hasattr(m, "in_channels"))
    symmetry = report(model, torch.randn(2, channels, *size), **options).symmetry
    assert symmetry is not None
    return symmetry


def test_layers_and_parameters_before_and_after() -> None:
    model = ResidualNet()
    converted = convert(model)
    for network in (converted, copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
        found = report(network)
        assert [layer.name for layer in found.swapped] == [
            "stem", "pool", "blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1", "blocks.1.conv2",
            "blocks.1.shortcut.0",
        ]  # fmt: skip
        assert found.left == ()
        assert found.parameters_before == sum(p.numel() for p in model.parameters())
        assert found.parameters_after == sum(p.numel() for p in converted.parameters())
    stem = found.swapped[0]
    assert stem.before == str(model.stem)
    assert "SREConv2d(3, 8, kernel_size=(7, 7)" in stem.after
    assert "centred pooling in front of it" in stem.note
    assert found.symmetry is None


def test_the_share_of_a_kernel_that_is_constant_on_rings() -> None:
    layer = nn.Conv2d(1, 1, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 1, 1], [1, 5, 1], [1, 1, 1]]))  # rings 5 and 10 / 8
    share = (25 + 8 * 1.25**2) / (25 + 9 + 7)
    assert f"rings hold {share:.0%} of its kernel's square" in report(convert(layer)).swapped[0].note


def test_a_shared_layer_counts_once_and_a_ring_layer_is_one() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    model = convert(nn.Sequential(conv, conv, sre_triton.SREConv2d(4, 4, 3)))
    found = report(model)
    assert [(layer.name, layer.action) for layer in found.layers] == [("0", "swapped"), ("2", "ring")]
    assert found.parameters_before - found.parameters_after == 16 * 7


def test_printed() -> None:
    model = convert(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 2)))
    lines = str(report(model, torch.randn(1, 1, 9, 9))).splitlines()
    assert lines[0].startswith(
        "swapped  0  Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1)) -> SREConv2d"
    )
    assert lines[1].startswith("left     1  Conv2d(2, 2, kernel_size=(2, 2), stride=(1, 1)): even kernel 2")
    assert lines[2] == "1 layers swapped, 1 left; parameters 38 -> 24 (63%)"
    assert lines[3].startswith("not symmetric under 'all': relative error ")
    assert lines[4] == "  first broken by 1: Conv2d with an even kernel (2, 2)"


@pytest.mark.parametrize("size", [(24, 24), (23, 30), (33, 17)])
def test_a_converted_network_is_symmetric(size: tuple[int, int]) -> None:
    symmetry = symmetry_of(convert(ResidualNet()), *size)
    assert symmetry.symmetric
    assert symmetry.first_break is None
    assert max(error for error in symmetry.errors.values() if error is not None) < 1e-12
    assert len(symmetry.errors) > 20


def test_the_mode_and_the_statistics_are_as_before() -> None:
    model = convert(ResidualNet()).train()
    model.norm.eval()  # type: ignore[union-attr]
    state = copy.deepcopy(model.state_dict())
    symmetry_of(model, 16, 16)
    torch.testing.assert_close(model.state_dict(), state)
    assert model.training
    assert not model.norm.training  # type: ignore[union-attr]
    assert not any(m._forward_hooks for m in model.modules())


class Padded(nn.Module):
    """Pads one side, in its own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = sre_triton.SREConv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.pad(self.conv(x), (0, 1, 0, 1)))


class Tokens(nn.Module):
    """Turns a map into a row of tokens, with or without positions."""

    def __init__(self, positions: bool) -> None:
        super().__init__()
        self.project = nn.Conv2d(2, 4, 1)
        if positions:
            self.pos_embed = nn.Parameter(torch.randn(1, 64, 4))
        self.norm = nn.LayerNorm(4)
        self.mlp = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.project(x).flatten(2).transpose(1, 2)
        if hasattr(self, "pos_embed"):
            tokens = tokens + self.pos_embed
        return self.mlp(self.norm(tokens)).mean(1)


class ChannelsLast(nn.Module):
    """A normalisation over channels, as ConvNeXt's blocks have it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = sre_triton.SREConv2d(2, 4, 3, padding=1)
        self.norm = nn.LayerNorm(4)
        self.last = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def test_the_module_that_breaks_the_symmetry_is_named_with_the_reason() -> None:
    ring = sre_triton.SREConv2d(2, 4, 3, padding=1)
    cases: list[tuple[nn.Module, int, str, str]] = [
        (nn.Sequential(ring, nn.MaxPool2d(3, 2, 1)), 8, "1", r"off-centre windows: MaxPool2d.* edge of \(8, 8\)"),
        (nn.Sequential(ring, nn.ReLU(inplace=True), nn.AvgPool2d(2)), 9, "2", "off-centre windows: AvgPool2d"),
        (nn.Sequential(ring, nn.ConvTranspose2d(4, 1, 2, 2)), 8, "1", "ConvTranspose2d with an even kernel"),
        (nn.Sequential(ring, nn.Conv2d(4, 1, 3)), 8, "1", "Conv2d whose kernel .* is not symmetric"),
        (nn.Sequential(sre_triton.SREConv2d(2, 4, 3, 2, 1), nn.Flatten()), 8, "0", r"stride \(2, 2\) leaves pixels"),
        (nn.Sequential(ring, nn.Upsample(13)), 8, "1", "Upsample is not symmetric"),
        (nn.Sequential(ring, nn.Flatten(), nn.Linear(256, 3)), 8, "1", "Flatten is not symmetric"),
        (Padded(), 8, "", r"Padded\.forward, between its layers"),
        (nn.Sequential(Padded(), nn.Conv2d(4, 4, 2)), 8, "0", r"Padded\.forward, between its layers"),
        (Tokens(positions=True), 8, "", r"Tokens with a positional embedding \(pos_embed\)"),
        (ChannelsLast(), 8, "last", "is not symmetric"),
    ]
    for model, size, name, reason in cases:
        symmetry = symmetry_of(model, size, size)
        assert not symmetry.symmetric
        assert symmetry.first_break == name, symmetry
        with pytest.raises(AssertionError, match=reason):
            raise AssertionError(symmetry.breaks[0][1])


def test_what_is_symmetric_is_not_blamed() -> None:
    ring = sre_triton.SREConv2d(2, 4, 3, padding=1)
    assert symmetry_of(nn.Sequential(ring, nn.MaxPool2d(3, 2, 1)), 9, 9).symmetric
    # A map in a row is one still, but as a network's output it counts as a vector.
    row = symmetry_of(nn.Sequential(ring, nn.AdaptiveAvgPool2d(3), nn.Flatten(2)), 8, 8)
    assert row.breaks == (("", "no one module: errors of many add up, or the output is neither a map nor a vector"),)
    tokens = symmetry_of(Tokens(positions=False), 8, 8)
    assert tokens.symmetric
    assert tokens.errors["norm"] is not None
    assert tokens.errors["norm"] < 1e-12


def test_every_symmetry_is_made_of_the_generators() -> None:
    for ndim in (1, 2, 3):
        for group in ("all", "rotations", "flips"):
            wanted = sre_triton.equivariance.grid_symmetries(ndim, group)
            x = torch.arange(4.0**ndim).reshape([4] * ndim)
            reached = {tuple(x.flatten().tolist())}
            frontier = [x]
            while frontier:
                y = frontier.pop()
                for g in generators(ndim, group):
                    key = tuple(g(y).flatten().tolist())
                    if key not in reached:
                        reached.add(key)
                        frontier.append(g(y))
            assert reached == {tuple(x.flatten().tolist())} | {tuple(g(x).flatten().tolist()) for g in wanted}


def test_a_sample_or_a_group_that_is_none() -> None:
    model = nn.Conv2d(1, 1, 3)
    with pytest.raises(ValueError, match="group must be one of"):
        report(model, torch.randn(1, 1, 8, 8), group="turns")
    with pytest.raises(ValueError, match=r"sample must be .*got shape \(8, 8\)"):
        report(model, torch.randn(8, 8))
    with pytest.raises(TypeError, match="sample must be a tensor, got tuple"):
        report(model, (torch.randn(1, 1, 8, 8),))  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
def test_a_scripted_part_is_measured_with_the_whole() -> None:
    found = symmetry_of(nn.Sequential(sre_triton.SREConv2d(3, 2, 3), torch.jit.script(nn.Conv2d(2, 2, 3))), 16, 16)
    assert not found.symmetric
    assert found.first_break == ""


class InSingle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.float())


def test_a_network_that_does_not_run_in_float64_is_told_so() -> None:
    with pytest.raises(RuntimeError, match=r"cannot run on the sample in float64, .*equivariance_error measures"):
        symmetry_of(InSingle(), 8, 8)


class Spectral(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft2(x)


def test_complex_maps_between_modules_count() -> None:
    found = report(nn.Sequential(Spectral(), nn.Flatten()), torch.randn(2, 1, 16, 16)).symmetry
    assert found is not None
    assert found.first_break == "0"


@pytest.mark.parametrize(
    "look",
    [
        report,
        convert,
        sre_triton.fold,
        sre_triton.explain,
        sre_triton.balance_weights,
        lambda net: sre_triton.balance_steps(torch.optim.SGD([torch.zeros(1)], 1.0), net),
    ],
)
def test_what_is_no_network_is_refused(look: Any) -> None:
    with pytest.raises(TypeError, match=r"^mod(el|ule) must be a torch.nn.Module, got dict$"):
        look({})
    with pytest.raises(TypeError, match=r"^mod(el|ule) must be a torch.nn.Module, got the class Conv2d$"):
        look(nn.Conv2d)
