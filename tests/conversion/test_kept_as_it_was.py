"""What folding must not touch: outputs that others read, and which parameters are frozen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sre_triton import GMRConv2d, SREConv2d, SREConvTranspose2d, fold
from sre_triton.models.unet import SREUNet


class TwoReaders(nn.Module):
    """Reads the convolution's output before and after its normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = SREConv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        nn.init.normal_(self.norm.running_mean)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y.relu() + self.norm(y)


def test_an_output_that_others_read_is_not_normalised_for_them() -> None:
    model = TwoReaders().eval()
    folded = fold(model, fuse_batchnorm=True)
    assert isinstance(folded.norm, nn.BatchNorm2d)
    x = torch.randn(1, 2, 9, 9)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frozen", [("weight",), ("bias",), ("weight", "bias"), ()], ids=str)
@pytest.mark.parametrize("layer", [SREConv2d, SREConvTranspose2d, GMRConv2d])
@pytest.mark.parametrize("norm", [False, True])
def test_frozen_parameters_stay_frozen(layer: type[nn.Module], norm: bool, frozen: tuple[str, ...]) -> None:
    model = nn.Sequential(layer(2, 4, 3), nn.BatchNorm2d(4)).eval()
    for name in frozen:
        getattr(model[0], name).requires_grad_(False)
    folded = fold(model, fuse_batchnorm=norm)
    assert isinstance(folded[1], nn.Identity if norm else nn.BatchNorm2d)
    for name, parameter in folded[0].named_parameters():
        assert parameter.requires_grad == (name not in frozen), name


def test_a_frozen_network_is_frozen_when_it_is_fused() -> None:
    network = SREUNet(features=[8, 8], sre_conv_size=3).eval().requires_grad_(False)
    fused = network.fuse()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert not any(parameter.requires_grad for parameter in fused.parameters())
