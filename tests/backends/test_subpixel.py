"""The adjoint of a strided convolution as one of the coarse map."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sre_triton.backends import dense, subpixel
from sre_triton.backends.memory_format import layout_of
from sre_triton.geometry.conv import ConvArgs, ConvSpec
from tests.oracle import Case

CASES = [
    Case(ndim=ndim, in_channels=3, out_channels=5, size=size[:ndim], kernel_size=k, stride=stride, padding=padding)
    for ndim, size, k, stride, padding in (
        (1, (9,), 3, 2, 1), (1, (10,), 5, 3, 2),
        (2, (9, 12), 3, 2, 1), (2, (12, 9), 5, 2, 2), (2, (11, 8), 7, 2, 0), (2, (8, 8), 3, 2, 2),
        (2, (10, 13), 5, (2, 3), (1, 2)), (2, (9, 9), 1, 2, 0), (2, (9, 12), 3, 1, 1),
        (3, (5, 6, 7), 3, 2, 1),
    )
]  # fmt: skip
STEM = Case(in_channels=3, out_channels=32, size=(64, 65), kernel_size=5, stride=2, padding=2, batch=3)


def spec_of(case: Case) -> ConvSpec:
    return ConvArgs(*case.operator_args, "dense").spec(case.rings)


def coarse(case: Case, spec: ConvSpec) -> tuple[Tensor, Tensor, Tensor]:
    """What the adjoint takes: a coarse map, ring weights and a bias."""
    x, weight, _ = case.tensors()
    generator = torch.Generator().manual_seed(1)
    y = torch.randn(case.batch, case.out_channels, *spec.output_size(x.shape[2:]), generator=generator)
    return y.double(), weight.double(), torch.randn(case.in_channels, generator=generator).double()


def truth(x: Tensor, kernel: Tensor, bias: Tensor, spec: ConvSpec, extra: tuple[int, ...]) -> Tensor:
    convolve = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[spec.ndim - 1]
    return convolve(x, kernel, bias, spec.stride, spec.padding, extra)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_the_transposed_convolution(case: Case) -> None:
    spec = spec_of(case)
    x, weight, bias = coarse(case, spec)
    kernel = dense.expand(weight, spec.geometry)
    least = spec.transposed_size(x.shape[2:], (0,) * case.ndim)
    for extra in range(1 + min(*spec.padding, *(s - 1 for s in spec.stride))):
        size = tuple(n + extra for n in least)
        y = subpixel.transpose(x, kernel, bias, spec, size)
        torch.testing.assert_close(y, truth(x, kernel, bias, spec, (extra,) * case.ndim), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_dense_backend_goes_this_way_at_stems(
    dtype: torch.dtype, channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(STEM)
    x, weight, bias = (t.to(dtype) for t in coarse(STEM, spec))
    if channels_last:
        x = STEM.channels_last(x)
    extra = spec.output_padding(STEM.size, x.shape[2:])
    exact = truth(x.double(), dense.expand(weight.double(), spec.geometry), bias.double(), spec, extra)
    image = torch.zeros(STEM.input_shape).to(x)
    for bias_or_none, want in ((bias, exact), (None, exact - bias.double()[:, None, None])):
        y = dense.transpose(x, weight, bias_or_none, spec, extra)
        error = (y.double() - want).abs().max() / want.abs().max()
        assert (y.dtype, layout_of(y)) == (dtype, layout_of(x))
        assert error <= 4 * torch.finfo(dtype).eps
    assert dense.backward(x, image, weight, spec)[0].equal(y)
    monkeypatch.setattr(subpixel, "transpose", None)
    with pytest.raises(TypeError):
        dense.transpose(x, weight, bias, spec, extra)


@pytest.mark.parametrize(
    "case",
    [
        replace(STEM, batch=1),
        replace(STEM, in_channels=8),
        replace(STEM, stride=1),
        replace(STEM, dilation=2),
        replace(STEM, groups=3, out_channels=33),
        replace(STEM, padding=0, size=(64, 64)),
    ],
    ids=str,
)
def test_others_are_pytorchs_own(case: Case) -> None:
    spec = spec_of(case)
    x = torch.empty(case.batch, case.out_channels, *spec.output_size(case.size))
    assert subpixel.is_worthwhile(torch.empty(3, 32, 32, 33), 3, spec_of(STEM), STEM.size)
    assert not subpixel.is_worthwhile(x, case.in_channels, spec, case.size)
    assert not subpixel.is_worthwhile(x.double(), case.in_channels, spec_of(STEM), case.size)
