"""A small network of ring layers, one training step of it, and the comparison of two such steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import sre_triton

__all__ = ["assert_steps_agree", "small_net", "step"]


def small_net() -> nn.Sequential:
    """A layer of every kind that takes images, with something between them."""
    return nn.Sequential(
        sre_triton.SREConv2d(3, 16, 5, padding="same", padding_mode="reflect"),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        sre_triton.SREConv2d(16, 16, 3, stride=2, padding=1, groups=2, antialias=True),
        sre_triton.GMRConv2d(16, 8, 3, padding=1),
        nn.ReLU(),
        sre_triton.SREConvTranspose2d(8, 4, 3, stride=2, padding=1, output_padding=1),
    )


def step(net: Callable[..., Tensor], module: nn.Module, x: Tensor) -> list[Tensor]:
    """Output and all gradients of one training step."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    module.zero_grad()
    y = net(x)
    y.float().square().mean().backward()
    return [y.detach(), x.grad, *[p.grad.clone() for p in module.parameters()]]


def assert_steps_agree(got: list[Tensor], want: list[Tensor], **tolerance: float) -> None:
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, **tolerance)
        assert a.dtype == b.dtype
        assert a.stride() == b.stride()
