"""Forward and gradients of the Triton path against float64 dense convolution."""

from __future__ import annotations

import pytest
import torch

from sre_triton.backends.memory_format import layout_of
from sre_triton.backends.triton import devices, launch
from sre_triton.backends.triton.launch import backward, forward, fused_forward, transpose, weight_grad
from sre_triton.backends.triton.tiles import Tile
from sre_triton.geometry.conv import conv_spec
from tests.backends.triton.cases import Layer, assert_accurate, dense_backward, dense_forward

F16 = torch.float16

LAYERS = [
    Layer(),
    Layer(kernel_size=5),
    Layer(kernel_size=7, size=(6, 9), batch=1),
    Layer(kernel_size=9, size=(5, 10), batch=1),
    Layer(kernel_size=11, size=(5, 6), batch=1, c_in=3, c_out=2),
    Layer(kernel_size=1, size=(4, 5)),
    Layer(kernel_size=5, padding=0),
    Layer(kernel_size=3, padding=3),  # beyond "same": the adjoint crops
    Layer(kernel_size=3, stride=2),
    Layer(kernel_size=5, stride=3, size=(8, 10)),
    Layer(kernel_size=3, stride=5, padding=0, size=(12, 9)),  # some phases of the adjoint have no tap
    Layer(kernel_size=5, dilation=2),
    Layer(kernel_size=3, dilation=3, stride=2, size=(12, 13)),
    Layer(kernel_size=3, dilation=2, stride=2),
    Layer(c_in=32, c_out=48, groups=2, size=(5, 6), batch=1),
    Layer(c_in=6, c_out=6, groups=6, kernel_size=5),
    Layer(c_in=6, c_out=9, groups=3, stride=2),
    Layer(c_in=4, c_out=8, groups=4, dilation=2),
    Layer(size=(17,)),
    Layer(size=(19,), kernel_size=5, stride=2, dilation=2, channels_last=False),
    Layer(size=(3, 4, 5), batch=1),
    Layer(size=(3, 5, 4), stride=2, batch=1),
    Layer(size=(4, 3, 4), c_in=4, c_out=4, groups=4, batch=1),
    Layer(kernel_size=5, antialias=True),
    Layer(kernel_size=3, antialias=True, stride=2),
    Layer(size=(3, 4, 4), antialias=True, batch=1),
    Layer(kernel_size=5, circular=False),
    Layer(kernel_size=7, rings=2, size=(6, 9), batch=1),
    Layer(channels_last=False),
    Layer(c_in=1, c_out=1),
    Layer(c_in=1, c_out=3, size=(1, 1)),
    Layer(c_in=40, c_out=20, size=(4, 5), batch=1),
    Layer(dtype=F16, c_in=16, c_out=16),
    Layer(dtype=F16, kernel_size=5, c_in=24, c_out=20),
    Layer(dtype=F16, kernel_size=9, c_in=16, c_out=16, size=(6, 10), batch=1),
    Layer(dtype=F16, kernel_size=5, stride=2, c_in=16, c_out=16),
    Layer(dtype=F16, kernel_size=5, dilation=2, c_in=16, c_out=16),
    Layer(dtype=F16, kernel_size=5, c_in=16, c_out=16, groups=16),
    Layer(dtype=F16, kernel_size=5, antialias=True, c_in=16, c_out=16),
    Layer(dtype=F16, size=(3, 4, 5), c_in=16, c_out=8, batch=1),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_forward(layer: Layer, device: torch.device) -> None:
    x, weight, bias, _ = layer.tensors(device)
    y = forward(x, weight, bias, layer.spec)
    assert_accurate(y, *dense_forward(layer, x, weight, bias))
    assert y.is_contiguous(memory_format=layout_of(x))


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_backward(layer: Layer, device: torch.device) -> None:
    x, weight, _, grad_y = layer.tensors(device)
    for result, expected in zip(
        backward(grad_y, x, weight, layer.spec), dense_backward(layer, grad_y, x, weight), strict=True
    ):
        assert_accurate(result, *expected)


@pytest.mark.parametrize("layer", [layer for layer in LAYERS if layer.dtype == F16], ids=str)
def test_separate_gradients_agree_with_backward(layer: Layer, device: torch.device) -> None:
    x, weight, _, grad_y = layer.tensors(device)
    grad_x, grad_w = dense_backward(layer, grad_y, x, weight)
    padding = layer.spec.output_padding(x.shape[2:], grad_y.shape[2:])
    assert_accurate(transpose(grad_y, weight, None, layer.spec, padding), *grad_x)
    assert_accurate(weight_grad(x, grad_y, layer.spec), *grad_w)


def test_transpose_adds_bias_in_every_phase(device: torch.device) -> None:
    layer = Layer(kernel_size=3, stride=4, padding=0, size=(9, 9))
    _, weight, _, grad_y = layer.tensors(device)
    bias = torch.arange(1.0, layer.c_in + 1, device=device)
    without = transpose(grad_y, weight, None, layer.spec, (2, 3))
    assert torch.allclose(transpose(grad_y, weight, bias, layer.spec, (2, 3)), without + bias[:, None, None])


@pytest.mark.parametrize("groups", [1, 4], ids=["product", "narrow"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_epilogue(groups: int, channels_last: bool, device: torch.device) -> None:
    layer = Layer(c_in=4, c_out=8, groups=groups, channels_last=channels_last)
    x, weight, bias, residual = layer.tensors(device)
    total = dense_forward(layer, x, weight, bias)[0] + residual.double()
    for activation, expected in (
        (None, total),
        ("relu", total.relu()),
        ("leaky_relu", torch.nn.functional.leaky_relu(total, 0.2)),
    ):
        y = fused_forward(
            x, weight, bias, layer.spec, activation=activation, negative_slope=0.2, residual=residual
        )  # fmt: skip
        assert_accurate(y, expected, expected)


def test_relu_keeps_nan(device: torch.device) -> None:
    layer = Layer(kernel_size=1)
    x, weight, _, _ = layer.tensors(device)
    x[0, 0, 0, 0] = float("nan")
    assert fused_forward(x, weight, None, layer.spec, activation="relu")[0, :, 0, 0].isnan().all()


@pytest.mark.parametrize("sums", ["packed", "mixed", "float32"])
def test_rounding_of_ring_sums(sums: str, device: torch.device) -> None:
    """Packed sums stay within three times the rounding error of a dense convolution, the others within two."""
    layer = Layer(kernel_size=9, size=(8, 16), batch=1, c_in=32, c_out=32, dtype=F16)
    x, weight, _, _ = layer.tensors(device)
    y = fused_forward(x, weight, None, layer.spec, tile=Tile(4, 16, 32, 32, 4, sums))
    truth, rounded = dense_forward(layer, x, weight, None)
    ratio = (y.double() - truth).norm() / (rounded.double() - truth).norm()
    assert ratio < {"packed": 3.0, "mixed": 2.0, "float32": 1.6}[sums]


def test_two_kernels(device: torch.device) -> None:
    layer = Layer(kernel_size=5, c_in=16, c_out=24, size=(9, 8), batch=3, dtype=F16)
    for channels_last in (True, False):
        x, weight, bias, _ = Layer(**{**layer.__dict__, "channels_last": channels_last}).tensors(device)
        for b in (bias, None):
            y = launch.two_kernel_forward(x, weight, b, layer.spec)
            assert_accurate(y, *dense_forward(layer, x, weight, b))
            assert y.is_contiguous(memory_format=layout_of(x))


def test_many_chunks_and_splits_give_one_gradient(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer(kernel_size=3, dilation=2, c_in=16, c_out=16, size=(9, 6))
    x, weight, _, grad_y = layer.tensors(device)
    limits = devices.limits_of("interpreter")
    tiny = type(limits)("interpreter", 4, limits.shared_bytes, 2**12)
    monkeypatch.setattr(devices, "device_limits", lambda _: tiny)
    first = weight_grad(x, grad_y, layer.spec)
    assert_accurate(first, *dense_backward(layer, grad_y, x, weight)[1])
    assert torch.equal(first, weight_grad(x, grad_y, layer.spec))


def test_gradients_are_deterministic(device: torch.device) -> None:
    layer = Layer(kernel_size=5, c_in=16, c_out=16, dtype=F16)
    x, weight, _, grad_y = layer.tensors(device)
    previous = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        first = backward(grad_y, x, weight, layer.spec)
        for a, b in zip(first, backward(grad_y, x, weight, layer.spec), strict=True):
            assert torch.equal(a, b)
    finally:
        torch.use_deterministic_algorithms(previous)


@pytest.mark.parametrize("shape", [(0, 5, 7, 11), (2, 5, 1, 1)])
def test_empty_and_single_pixels(shape: tuple[int, ...], device: torch.device) -> None:
    spec = conv_spec(2, 3, 2, True, False, (1, 1), (1, 1), (1, 1), 1)
    x, weight = torch.ones(shape, device=device), torch.ones(7, 5, 2, device=device)
    y = forward(x, weight, None, spec)
    assert y.shape == (shape[0], 7, *shape[2:])
    grad_x, grad_w = backward(torch.ones_like(y), x, weight, spec)
    assert grad_x.shape == x.shape
    assert grad_w.isfinite().all()


@pytest.mark.exhaustive
@pytest.mark.parametrize("kernel_size", [3, 5, 7, 9, 11])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("dtype", [torch.float32, F16], ids=["float32", "float16"])
def test_exhaustively(
    kernel_size: int, stride: int, dilation: int, groups: int, dtype: torch.dtype, device: torch.device
) -> None:
    layer = Layer(kernel_size, (9, 13), 1, 16, 24, stride, None, dilation, groups, dtype=dtype)
    x, weight, bias, grad_y = layer.tensors(device)
    assert_accurate(forward(x, weight, bias, layer.spec), *dense_forward(layer, x, weight, bias))
    expected = dense_backward(layer, grad_y, x, weight)
    for result, values in zip(backward(grad_y, x, weight, layer.spec), expected, strict=True):
        assert_accurate(result, *values)
