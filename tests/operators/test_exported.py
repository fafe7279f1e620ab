"""Operators as an exported graph calls them: with parameters that require grad, straight from the dispatcher."""

from __future__ import annotations

import pytest
import torch

import sre_triton
from tests.oracle import BACKENDS


@pytest.mark.parametrize("layer", [sre_triton.SREConv2d, sre_triton.SREConvTranspose2d])
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_exported_layer_runs_on_every_backend(backend: str, layer: type[torch.nn.Module]) -> None:
    ring, x = layer(16, 16, 5), torch.randn(2, 16, 24, 24)
    with sre_triton.backend(backend):
        exported = torch.export.export(ring, (x,)).module()
        expected = ring(x)
    assert all(parameter.requires_grad for parameter in exported.parameters())
    torch.testing.assert_close(exported(x), expected, rtol=0, atol=0)
