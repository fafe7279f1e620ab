"""Layers compute what the installed SRE_Conv 1.0.2 and GMR_Conv 1.0.3 compute, from their checkpoints."""

from __future__ import annotations

import inspect
import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sre_triton
from tests.oracle import BACKENDS
from tests.reference import gmr_conv_package, ring_masks, sre_conv_package

PADDING_MODES = ["zeros", "reflect", "replicate", "circular"]

# 80 in 2-D and 40 in 3-D.
SEEDS = [(ndim, seed) for ndim, count in ((2, 80), (3, 40)) for seed in range(count)]


@dataclass
class Configuration:
    """A layer's arguments and an input that suits them."""

    arguments: dict[str, Any]
    rings: int
    circular: bool
    input: Tensor

    def __repr__(self) -> str:
        return f"{self.arguments}, rings={self.rings}, circular={self.circular}, input {tuple(self.input.shape)}"


def configuration(ndim: int, seed: int, circular: bool) -> Configuration:
    """Random arguments over everything that the reference's dense path supports."""
    rng = random.Random(f"{ndim} {seed}")
    k = rng.choice([3, 5, 7, 9, 11])
    groups = rng.randint(1, 4)
    stride = tuple(rng.randint(1, 3) for _ in range(ndim))
    dilation = tuple(rng.randint(1, 2) for _ in range(ndim))
    reach = [d * (k - 1) for d in dilation]
    padding: Any = tuple(rng.randint(0, r // 2 + 1) for r in reach)
    # Reflection and wrapping need an input longer than the padding.
    size = [max(r + 1 - 2 * p + s * rng.randint(0, 3) + rng.randint(0, s - 1), p + 1, 1)
            for r, p, s in zip(reach, padding, stride, strict=True)]  # fmt: skip
    if rng.random() < 0.15:
        padding, stride = "same", (1,) * ndim
        size = [max(n, r // 2 + 1) for n, r in zip(size, reach, strict=True)]
    counts = [n for n in range(1, k // 2 + 3) if ring_masks((k,) * ndim, n, circular).any(axis=1).all()]
    arguments = {
        "in_channels": groups * rng.randint(1, 3),
        "out_channels": groups * rng.randint(1, 3),
        "kernel_size": k,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "bias": rng.random() < 0.7,
        "padding_mode": PADDING_MODES[seed % 4],
    }
    batch = rng.randint(1, 2)
    x = torch.randn(batch, arguments["in_channels"], *size, generator=torch.Generator().manual_seed(seed))
    return Configuration(arguments, max(counts) if rng.random() < 0.5 else rng.choice(counts[1:]), circular, x)


def test_configurations_cover_all_options() -> None:
    chosen = [configuration(ndim, seed, True).arguments for ndim, seed in SEEDS]
    assert len(chosen) == 120
    flat = {key: {str(value) for c in chosen for value in (c[key] if isinstance(c[key], tuple) else (c[key],))}
            for key in ("kernel_size", "stride", "dilation", "groups", "padding_mode", "bias")}  # fmt: skip
    assert flat == {
        "kernel_size": {"3", "5", "7", "9", "11"},
        "stride": {"1", "2", "3"},
        "dilation": {"1", "2"},
        "groups": {"1", "2", "3", "4"},
        "padding_mode": set(PADDING_MODES),
        "bias": {"True", "False"},
    }
    assert any(c["padding"] == "same" for c in chosen)


def relative_error(value: Tensor, expected: Tensor) -> float:
    return ((value - expected).abs().max() / expected.abs().max()).item()


def output_and_gradients(module: nn.Module, input: Tensor) -> dict[str, Tensor]:
    x = input.clone().requires_grad_()
    module.zero_grad()
    y = module(x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)))
    return {"output": y, "input": x.grad, **{name: p.grad for name, p in module.named_parameters()}}


def assert_agree(layer: nn.Module, peer: nn.Module, case: Configuration) -> None:
    """Output and every gradient agree to 3e-5 on each path, starting from the peer's checkpoint."""
    layer.load_state_dict(peer.state_dict(), strict=True)
    expected = output_and_gradients(peer, case.input)
    for backend in BACKENDS:
        with sre_triton.backend(backend):
            got = output_and_gradients(layer, case.input)
        assert set(got) == set(expected)
        for name in expected:
            assert got[name].shape == expected[name].shape, name
            assert relative_error(got[name], expected[name]) < 3e-5, (backend, name, case)


@pytest.mark.parametrize(("ndim", "seed"), SEEDS)
def test_sre_conv(ndim: int, seed: int) -> None:
    case = configuration(ndim, seed, circular=True)
    peer = getattr(sre_conv_package(), f"SRE_Conv{ndim}d")(**case.arguments, sre_k=case.rings)
    layer = getattr(sre_triton, f"SREConv{ndim}d")(**case.arguments, num_rings=case.rings)
    assert_agree(layer, peer, case)


@pytest.mark.parametrize(("ndim", "seed"), SEEDS)
def test_gmr_conv(ndim: int, seed: int) -> None:
    case = configuration(ndim, seed, circular=seed % 3 != 0)
    case.rings = max(case.rings, 2)  # the reference divides by rings - 1
    options = {"num_rings": case.rings, "force_circular": case.circular}
    peer = getattr(gmr_conv_package(), f"GMR_Conv{ndim}d")(**case.arguments, **options)
    peer.dw_fwd = False  # its fast path ignores padding_mode and crashes with groups
    nn.init.uniform_(peer.log_sigmas, -1.5, 1)
    layer = getattr(sre_triton, f"GMRConv{ndim}d")(**case.arguments, num_rings=case.rings, circular=case.circular)
    assert_agree(layer, peer, case)


def test_gmr_conv_s_own_fast_path() -> None:
    """What its users ran: the default arguments, in eval mode too."""
    peer = gmr_conv_package().GMR_Conv2d(3, 4, 7, padding=3).eval()
    layer = sre_triton.GMRConv2d(3, 4, 7, padding=3)
    layer.load_state_dict(peer.state_dict())
    x = torch.randn(2, 3, 16, 16)
    assert relative_error(layer(x), peer(x)) < 3e-5


# Their names and argument order -----------------------------------------------------------------------

NAMES = [
    *("SRE_Conv1d", "SRE_Conv2d", "SRE_Conv3d", "SRE_ConvTranspose2d"),
    *("GMR_Conv1d", "GMR_Conv2d", "GMR_Conv3d"),
]


def arguments_of(layer: type) -> list[tuple[str, Any]]:
    parameters = inspect.signature(layer).parameters.values()
    return [(p.name, p.default) for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]


@pytest.mark.parametrize("name", NAMES)
def test_compat_arguments_are_those_of_the_reference(name: str) -> None:
    package = sre_conv_package() if name.startswith("SRE") else gmr_conv_package()
    assert arguments_of(getattr(sre_triton, name)) == arguments_of(getattr(package, name))
    assert getattr(sre_triton, name) is getattr(sre_triton.compat, name)


@pytest.mark.parametrize("ndim", [2, 3])
def test_compat_arguments_by_position(ndim: int) -> None:
    sre = (4, 6, 5, 2, 2, 1, False, 2, False, "reflect", 2, True)
    gmr = (4, 6, 5, 2, 2, 1, False, 2, False, "reflect", 3, False, True, False, True, False, False, 2.0)
    for name, package, positional in (("SRE", sre_conv_package(), sre), ("GMR", gmr_conv_package(), gmr)):
        peer = getattr(package, f"{name}_Conv{ndim}d")(*positional)
        peer.dw_fwd = False
        layer = getattr(sre_triton, f"{name}_Conv{ndim}d")(*positional)
        assert {n for n, _ in layer.named_parameters()} == {n for n, _ in peer.named_parameters()}
        case = Configuration({}, 0, True, torch.randn(1, 4, *[9] * ndim))
        assert_agree(layer, peer, case)


def test_compat_names_the_rings_as_the_reference_does() -> None:
    assert sre_triton.SRE_Conv2d(3, 4, 9, sre_k=4).sre_k == 4
    assert sre_triton.SRE_ConvTranspose2d(3, 4, 9).sre_k == 5
    assert sre_triton.GMR_Conv2d(3, 4, 9, num_rings=4).num_rings == 4


def test_compat_transposed_layer_is_a_transposed_convolution() -> None:
    layer = sre_triton.SRE_ConvTranspose2d(4, 6, 3, 2, 1, 1, 2, False, dtype=torch.float64)
    twin = nn.ConvTranspose2d(4, 6, 3, 2, 1, 0, 2, False, 1, dtype=torch.float64)
    with torch.no_grad():
        twin.weight.copy_(sre_triton.expand_kernel(layer.weight, (3, 3)))
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(x), twin(x), rtol=0, atol=1e-13)
    torch.testing.assert_close(layer(x, [10, 10]), twin(x, [10, 10]), rtol=0, atol=1e-13)


def test_compat_marks_widths_for_the_optimiser() -> None:
    assert sre_triton.GMR_Conv2d(3, 4, 5, sigma_no_weight_decay=True).log_sigmas._no_weight_decay is True
    assert not hasattr(sre_triton.GMR_Conv2d(3, 4, 5).log_sigmas, "_no_weight_decay")


def test_layer_lines_of_the_original_usage_example() -> None:
    scope: dict[str, Any] = {}
    lines = """
import torch
from sre_triton import SRE_Conv2d
x = torch.randn(2, 3, 32, 32)
sre_conv = SRE_Conv2d(3, 16, 3)
conv_out = sre_conv(x)
"""
    exec(lines, scope)
    assert scope["conv_out"].shape == (2, 16, 30, 30)
