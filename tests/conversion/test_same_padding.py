"""Convolutions padded by the word "same" keep their function, dilated and reflected too."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sre_triton import SREConv2d, convert


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "circular", "replicate"])
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("kernel_size", [None, 5])
def test_same_padding(kernel_size: int | None, dilation: int, padding_mode: str) -> None:
    conv = nn.Conv2d(2, 3, 3, padding="same", dilation=dilation, padding_mode=padding_mode)
    with torch.no_grad():  # a kernel that rings can hold: the corners share a value with the edges
        conv.weight.copy_(torch.randn(3, 2, 1, 1))
        conv.weight[:, :, 1, 1] = torch.randn(3, 2)
    model = nn.Sequential(conv).eval()
    x = torch.randn(1, 2, 17, 18)
    converted = convert(model, kernel_size=kernel_size)
    assert any(isinstance(module, SREConv2d) for module in converted.modules())
    torch.testing.assert_close(converted(x), model(x), rtol=1e-4, atol=1e-5)
