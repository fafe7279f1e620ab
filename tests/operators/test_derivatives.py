"""Derivatives of the operators themselves, as exported and traced graphs call them, and batched gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sre_triton
from sre_triton.geometry.conv import ConvArgs
from sre_triton.operators import operators as _ops
from tests.oracle import BACKENDS, Case

backends = pytest.mark.parametrize("backend", BACKENDS)

CASES = (
    Case(ndim=1, in_channels=2, out_channels=2, size=(6,), stride=2, padding=1),
    Case(in_channels=2, out_channels=4, size=(5, 4), padding=1, groups=2),
    Case(ndim=3, in_channels=1, out_channels=2, size=(3, 3, 2), padding=1),
)
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def operator_calls(case: Case, backend: str) -> dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]]:
    """Each operator as a function of the tensors that it is differentiable in."""
    x, weight, bias = case.tensors()
    args = ConvArgs(*case.operator_args, backend)
    y = case.dense(x, weight)
    grad_y = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
    extra = args.spec(case.rings).output_padding(x.shape[2:], y.shape[2:])
    into = torch.linspace(-1, 1, case.in_channels, dtype=x.dtype)
    kernel_size = (case.kernel_size,) * case.ndim
    ops = {name: getattr(_ops, name).overload for name in _ops.__all__ if name != "Operator"}
    return {
        "conv": (lambda x, w, b: ops["ring_conv"](x, w, b, *args), (x, weight, bias)),
        "act": (
            lambda x, w, b, r: ops["ring_conv_act"](x, w, b, r, "leaky_relu", 0.3, *args), (x, weight, bias, grad_y),
        ),
        "transpose": (lambda g, w, b: ops["ring_conv_transpose"](g, w, b, extra, *args), (grad_y, weight, into)),
        "weight_grad": (lambda x, g: ops["ring_conv_weight_grad"](x, g, case.rings, *args), (x, grad_y)),
        "backward": (lambda x, g, w: ops["ring_conv_backward"](x, g, w, *args), (x, grad_y, weight)),
        "expand": (lambda w: ops["expand_kernel"](w, kernel_size, True, False), (weight,)),
        "collapse": (
            lambda k: ops["collapse_kernel"](k, case.rings, True, False), (weight.new_ones(2, 1, *kernel_size),),
        ),
    }  # fmt: skip


NAMES = ("conv", "act", "transpose", "weight_grad", "backward", "expand", "collapse")


@backends
@pytest.mark.parametrize("name", NAMES)
@every_case
def test_operators_differentiate(case: Case, name: str, backend: str) -> None:
    call, tensors = operator_calls(case, backend)[name]
    leaves = [t.requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)


@pytest.mark.parametrize("name", NAMES)
def test_opcheck_with_gradients(name: str) -> None:
    case = CASES[1]
    x, weight, bias = case.leaves()
    args = (*case.operator_args, "auto")
    grad_y = torch.randn(case.dense(x, weight).shape, dtype=x.dtype).requires_grad_()
    arguments = {
        "conv": (x, weight, bias, *args),
        "act": (x, weight, bias, grad_y, "relu", 0.0, *args),
        "transpose": (grad_y, weight, None, (0, 0), *args),
        "weight_grad": (x, grad_y, case.rings, *args),
        "backward": (x, grad_y, weight, *args),
        "expand": (weight, (3, 3), True, False),
        "collapse": (torch.randn(2, 3, 3, 3, requires_grad=True), 2, True, False),
    }
    operator = {
        "conv": _ops.ring_conv, "act": _ops.ring_conv_act, "transpose": _ops.ring_conv_transpose,
        "weight_grad": _ops.ring_conv_weight_grad, "backward": _ops.ring_conv_backward,
        "expand": _ops.expand_kernel, "collapse": _ops.collapse_kernel,
    }[name]  # fmt: skip
    results = operator.overload(*arguments[name])
    # opcheck compares the gradients that there are, and passes operators that have none.
    leaves = [a for a in arguments[name] if isinstance(a, Tensor)]
    total = sum(y.sum() for y in (results if isinstance(results, tuple) else (results,)))
    assert all(g.count_nonzero() > 0 for g in torch.autograd.grad(total, leaves))
    torch.library.opcheck(operator.overload, arguments[name])


def net() -> nn.Sequential:
    return nn.Sequential(
        sre_triton.SREConv2d(2, 4, 5, padding=2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        sre_triton.GMRConv2d(4, 4, 3, stride=2, padding=1),
        sre_triton.SREConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=1),
    )


def test_an_exported_network_trains_as_the_network_itself() -> None:
    ours = net().double()
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    exported = torch.export.export(copy.deepcopy(ours), (x,)).module()
    for module in (ours, exported):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            module(x).square().mean().backward()
            assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
            optimizer.step()
    after = dict(exported.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(after[name], parameter, rtol=1e-10, atol=1e-12)


def test_transforms_of_an_operator_are_refused_and_those_of_functions_named() -> None:
    call, (x, weight, bias) = operator_calls(CASES[1], "auto")["conv"]
    with pytest.raises(RuntimeError, match=r"sre_triton\.functional"):
        torch.func.grad(lambda x: call(x, weight, bias).sum())(x)
    with pytest.raises(RuntimeError, match="forward mode"):
        torch.func.jvp(lambda x: call(x, weight, bias), (x,), (x,))


@pytest.mark.parametrize("grad_mode", [True, False])
@pytest.mark.parametrize("kind", ["function", "layer", "operator"])
def test_forward_mode_goes_around_convolutions_of_constants(kind: str, grad_mode: bool) -> None:
    layer, constant, point = Case().layer(), Case().tensors()[0].float(), torch.randn(3)
    weight, bias = layer.weight.detach(), layer.bias.detach()
    call = {
        "function": lambda: sre_triton.sre_conv2d(constant, weight, bias, kernel_size=3),
        "layer": lambda: layer(constant),
        "operator": lambda: torch.ops.sre_triton.ring_conv(
            constant, weight, bias, [1, 1], [0, 0], [1, 1], 1, 3, True, False, "auto"
        ),
    }[kind]

    def function(t: Tensor) -> Tensor:
        return t.square().sum() + call().sum()

    with torch.set_grad_enabled(grad_mode):
        torch.testing.assert_close(torch.func.jacfwd(function)(point), 2 * point)
        value, tangent = torch.func.jvp(function, (point,), (point,))
        torch.testing.assert_close(value, point.square().sum() + call().sum())
        torch.testing.assert_close(tangent, 2 * point.square().sum())


# Batched gradients --------------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("create_graph", [False, True])
def test_batched_gradients_are_those_of_a_loop(create_graph: bool, transposed: bool, backend: str) -> None:
    case = Case(padding=1, transposed=transposed)
    leaves = case.leaves()
    with sre_triton.backend(backend):
        y = case.ring(*leaves)
        cotangents = torch.randn(3, *y.shape, dtype=y.dtype)
        batched = torch.autograd.grad(
            y, leaves, cotangents, is_grads_batched=True, retain_graph=True, create_graph=create_graph
        )
        singles = [torch.autograd.grad(y, leaves, c, retain_graph=True) for c in cotangents]
    for got, want in zip(batched, zip(*singles, strict=True), strict=True):
        torch.testing.assert_close(got, torch.stack(want))
        assert got.requires_grad == create_graph or got.dim() == 2


@backends
@every_case
def test_gradcheck_of_batched_gradients(case: Case, backend: str) -> None:
    with sre_triton.backend(backend):
        assert torch.autograd.gradcheck(case.ring, case.leaves(), check_batched_grad=True, fast_mode=True)
        assert torch.autograd.gradgradcheck(case.ring, case.leaves(), check_batched_grad=True, fast_mode=True)


@backends
def test_vectorised_jacobian_and_hessian(backend: str) -> None:
    layer = sre_triton.SREConv2d(2, 3, 3, padding=1, dtype=torch.float64)
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    functional = torch.autograd.functional
    with sre_triton.backend(backend):
        torch.testing.assert_close(functional.jacobian(layer, x, vectorize=True), functional.jacobian(layer, x))

        def loss(x: Tensor) -> Tensor:
            return layer(x).pow(3).sum()

        torch.testing.assert_close(functional.hessian(loss, x, vectorize=True), functional.hessian(loss, x))


# No channels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize(("inputs", "outputs"), [(0, 4), (4, 0), (0, 0)])
@pytest.mark.parametrize("kind", ["SREConv1d", "SREConv2d", "SREConv3d", "SREConvTranspose2d", "GMRConv2d"])
def test_a_layer_without_channels_gives_its_bias(kind: str, inputs: int, outputs: int, backend: str) -> None:
    layer = getattr(sre_triton, kind)(inputs, outputs, 3, padding=1)
    x = torch.randn(2, inputs, *[5] * layer.ndim, requires_grad=True)
    with sre_triton.backend(backend):
        y = layer(x)
        y.sum().backward()
        with torch.no_grad():
            assert torch.equal(layer(x), y)
    assert y.shape == (2, outputs, *[5] * layer.ndim)
    assert torch.equal(y, layer.bias.view(-1, *[1] * layer.ndim).expand_as(y))
    assert x.grad.count_nonzero() == layer.weight.grad.count_nonzero() == 0
    assert (layer.bias.grad == 2 * 5**layer.ndim).all()
