"""The dense path where PyTorch's own convolutions are wrong or slow."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sre_triton.backends import dense
from sre_triton.geometry.conv import ConvArgs, ConvSpec
from tests.oracle import Case

# Of these PyTorch 2.13 sums uninitialised memory into bfloat16 weight gradients on CPUs, some with one layout alone.
WRONG_CASES = (
    Case(in_channels=8, out_channels=8, groups=8, size=(20, 40), dilation=2, padding=2),
    Case(in_channels=8, out_channels=8, groups=8, size=(20, 40), kernel_size=5, dilation=2),
    Case(in_channels=32, out_channels=64, groups=16, size=(20, 40), dilation=(2, 1), padding=2),
    Case(in_channels=16, out_channels=8, groups=8, size=(9, 33), dilation=2, padding=2),
    Case(in_channels=8, out_channels=8, groups=2, size=(14, 64), kernel_size=5, dilation=3, padding=12),
    Case(ndim=3, in_channels=9, out_channels=1, size=(6, 14, 40), kernel_size=5, dilation=(1, 3, 2), padding=(4, 0, 8)),
    Case(ndim=3, in_channels=2, out_channels=32, size=(2, 14, 5), kernel_size=5, dilation=(1, 3, 2), padding=(4, 0, 8)),
    Case(ndim=3, in_channels=8, out_channels=16, size=(2, 14, 5), kernel_size=5, padding=2),
)  # fmt: skip

# Padded more than half the kernel, which PyTorch is slow at.
FULL_CASES = (
    Case(in_channels=8, out_channels=16, size=(9, 8), kernel_size=5, padding=4),
    Case(in_channels=8, out_channels=16, size=(9, 8), kernel_size=5, padding=(3, 1), stride=2, groups=2),
    Case(in_channels=8, out_channels=8, size=(9, 8), kernel_size=5, padding=(2, 6), dilation=2),
    Case(ndim=3, in_channels=8, out_channels=16, size=(5, 6, 7), padding=(2, 1, 2)),
    Case(ndim=3, in_channels=8, out_channels=16, size=(5, 6, 7), padding=2, stride=2, groups=4),
)


def spec_of(case: Case) -> ConvSpec:
    return ConvArgs(*case.operator_args, "dense").spec(case.rings)


def gradients(case: Case, dtype: torch.dtype, channels_last: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Of input and weight, by the dense path in this dtype and by PyTorch in float64 of the same numbers."""
    x, weight, _ = (t.to(dtype) for t in case.tensors())
    spec = spec_of(case)
    y = dense.forward(x.double(), weight.double(), None, spec)
    grad_y = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    wide_x, wide_weight = x.double().requires_grad_(), weight.double().requires_grad_()
    exact = torch.autograd.grad(case.dense(wide_x, wide_weight), (wide_x, wide_weight), grad_y.double())
    if channels_last:
        x, grad_y = case.channels_last(x), case.channels_last(grad_y)
    ours = [*dense.backward(grad_y, x, weight, spec), dense.weight_grad(x, grad_y, spec)]
    return ours, [*exact, exact[1]]


def assert_gradients_close(case: Case, dtype: torch.dtype, channels_last: bool) -> None:
    for got, want in zip(*gradients(case, dtype, channels_last), strict=True):
        assert got.dtype == dtype
        # 16-bit sums are formed wide and rounded once, kernels before they are collapsed.
        error = (got.double() - want).abs().max() / want.abs().max()
        assert error <= (4 if dtype.itemsize == 2 else 32) * torch.finfo(dtype).eps


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("case", WRONG_CASES, ids=str)
def test_bfloat16_gradients_are_those_of_the_numbers_given(case: Case, channels_last: bool) -> None:
    for batch in (1, 2):
        assert_gradients_close(replace(case, batch=batch), torch.bfloat16, channels_last)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", FULL_CASES, ids=str)
def test_gradients_with_full_padding(case: Case, dtype: torch.dtype, channels_last: bool) -> None:
    assert_gradients_close(case, dtype, channels_last)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        Case(in_channels=64, out_channels=64, size=(28, 28), kernel_size=9, padding=8),
        Case(ndim=3, in_channels=16, out_channels=16, size=(16, 16, 16), padding=2),
    ],
    ids=str,
)
def test_full_padding_costs_what_it_multiplies(case: Case) -> None:
    """Of a channels_last image PyTorch takes 700 times as long as with half the padding, or 11 times."""

    def seconds_per_output(case: Case) -> float:
        x, weight, _ = (t.bfloat16() for t in case.tensors())
        x, grad_y = case.channels_last(x), case.channels_last(case.dense(x, weight))
        runs = []
        for _ in range(5):
            start = time.perf_counter()
            dense.weight_grad(x, grad_y, spec_of(case))
            runs.append(time.perf_counter() - start)
        return min(runs) / grad_y.numel()

    half = replace(case, padding=case.kernel_size // 2)
    assert seconds_per_output(case) < 4 * seconds_per_output(half)
