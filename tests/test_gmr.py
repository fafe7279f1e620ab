"""Layers whose rings are Gaussian mixtures: the weights that they mix, and the widths that they learn."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sre_triton
from tests import reference
from tests.test_layers import image, ours


def mixing(log_sigmas: Tensor) -> Tensor:
    """``P[i, j]`` by loops, in float64; 2.5066 is the reference's square root of 2 pi."""
    rings = len(log_sigmas)
    p = torch.empty(rings, rings, dtype=torch.float64)
    for i, j in itertools.product(range(rings), repeat=2):
        sigma = min(max(math.exp(log_sigmas[i].item()), 1e-2), 2 * rings)
        p[i, j] = math.exp(-0.5 * ((j - i) / sigma) ** 2) / (2.5066 * sigma)
    return p


@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"circular": False}, {"antialias": True}], ids=str)
@pytest.mark.parametrize("k", [1, 3, 9])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_gmr_is_a_ring_layer_with_mixed_weights(ndim: int, k: int, options: dict[str, Any]) -> None:
    if k == 1 and not options.get("circular", True):
        options = {}
    k = min(k, 5) if ndim == 3 else k
    arguments = {"kernel_size": k, "padding": k // 2, **options}
    gmr = getattr(sre_triton, f"GMRConv{ndim}d")(4, 6, **arguments)
    plain = ours(f"Conv{ndim}d")(4, 6, **arguments, dtype=torch.float64)
    nn.init.uniform_(gmr.log_sigmas, -6, 4)  # past both clamps
    mixed = gmr.weight.detach().double() @ mixing(gmr.log_sigmas)
    scale = mixed.abs().max().item()
    torch.testing.assert_close(gmr.ring_weight().double(), mixed, rtol=0, atol=5e-7 * scale)
    with torch.no_grad():
        plain.weight.copy_(mixed)
        plain.bias.copy_(gmr.bias)
    x = image(f"Conv{ndim}d", 4)
    y = plain(x)
    torch.testing.assert_close(gmr.double()(x), y, rtol=0, atol=5e-7 * y.abs().max().item())


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("k", [3, 7])
def test_gmr_kernel_is_that_of_the_reference(ndim: int, k: int) -> None:
    peer = getattr(reference.gmr_conv_package(), f"GMR_Conv{ndim}d")(2, 3, k)
    layer = getattr(sre_triton, f"GMRConv{ndim}d")(2, 3, k)
    torch.testing.assert_close(layer.log_sigmas, peer.log_sigmas, rtol=0, atol=torch.finfo(torch.float32).eps)
    layer.load_state_dict(peer.state_dict())
    kernel = sre_triton.expand_kernel(layer.ring_weight(), layer.kernel_size)
    torch.testing.assert_close(kernel, peer._make_weight_matrix(peer.weight), rtol=0, atol=5e-7)


def test_gmr_widths_learn() -> None:
    layer = sre_triton.GMRConv2d(2, 3, 5, dtype=torch.float64)
    x = torch.randn(1, 2, 7, 7, dtype=torch.float64)

    def loss(log_sigmas: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"log_sigmas": log_sigmas, "weight": weight}, (x,)).square().sum()

    inputs = [p.detach().requires_grad_() for p in (layer.log_sigmas, layer.weight)]
    assert torch.autograd.gradcheck(loss, inputs)
    layer(x).square().sum().backward()
    assert layer.log_sigmas.grad.abs().min() > 0


def test_gmr_widths_can_be_fixed() -> None:
    layer = sre_triton.GMRConv2d(2, 3, 5, train_gaussian_sigma=False, gaussian_sigma_scale=2.0)
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    assert list(layer.state_dict()) == ["weight", "bias", "log_sigmas"]
    torch.testing.assert_close(layer.log_sigmas, torch.full((3,), math.log(5 / 4 / 2)))
    layer(torch.randn(1, 2, 7, 7)).sum().backward()
    assert layer.log_sigmas.grad is None


def test_gmr_reset_restores_the_widths() -> None:
    layer = sre_triton.GMRConv2d(2, 3, 5)
    initial = layer.log_sigmas.detach().clone()
    nn.init.zeros_(layer.log_sigmas)
    layer.reset_parameters()
    assert torch.equal(layer.log_sigmas, initial)


def test_gmr_refuses_a_scale_that_is_not_positive() -> None:
    with pytest.raises(ValueError, match="gaussian_sigma_scale must be positive, got 0"):
        sre_triton.GMRConv2d(2, 3, 5, gaussian_sigma_scale=0)
