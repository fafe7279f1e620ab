"""Convolution, residual and activation as one function."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

import sre_triton
from sre_triton import sre_conv2d, sre_conv_act
from sre_triton.operators import operators as _ops
from sre_triton.operators.arguments import conv_args
from tests.oracle import BACKENDS

ACTIVATIONS = {None: lambda y: y, "relu": F.relu, "leaky_relu": lambda y: F.leaky_relu(y, 0.2)}


def operands(size: tuple[int, ...] = (7, 6)) -> tuple[torch.Tensor, ...]:
    x, weight, bias = torch.randn(2, 4, *size), torch.randn(6, 4, 2), torch.randn(6)
    return x, weight, bias, torch.randn(2, 6, *size)


def call(x: Any, weight: Any, bias: Any, residual: Any, activation: str | None = "leaky_relu") -> torch.Tensor:
    return sre_conv_act(
        x, weight, bias, padding=1, kernel_size=3, residual=residual, activation=activation, negative_slope=0.2
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_it_is_the_composition(
    backend: str, activation: str | None, has_residual: bool, layout: torch.memory_format
) -> None:
    x, weight, bias, residual = operands()
    x, kept = x.to(memory_format=layout), residual.clone()
    expected = sre_conv2d(x, weight, bias, padding=1, kernel_size=3) + (residual if has_residual else 0)
    with sre_triton.backend(backend):
        y = call(x, weight, bias, residual if has_residual else None, activation)
    torch.testing.assert_close(y, ACTIVATIONS[activation](expected))
    assert y.is_contiguous(memory_format=layout)
    assert torch.equal(residual, kept)


@pytest.mark.parametrize("size", [(9,), (4, 5, 6)])
def test_other_dimensions(size: tuple[int, ...]) -> None:
    x, weight, bias, residual = operands(size)
    conv = {1: sre_triton.sre_conv1d, 3: sre_triton.sre_conv3d}[len(size)]
    expected = F.leaky_relu(conv(x, weight, bias, padding=1, kernel_size=3) + residual, 0.2)
    torch.testing.assert_close(call(x, weight, bias, residual), expected)


def test_gradients_reach_every_tensor() -> None:
    leaves = [tensor.double().requires_grad_() for tensor in operands()]
    assert torch.autograd.gradcheck(call, leaves)
    for leaf in leaves:
        others = [tensor if tensor is leaf else tensor.detach() for tensor in leaves]
        assert torch.autograd.grad(call(*others).sum(), leaf)[0].isfinite().all()


@pytest.mark.parametrize("has_residual", [False, True])
def test_opcheck(has_residual: bool) -> None:
    x, weight, bias, residual = operands()
    args = conv_args(2, 1, 1, 1, 1, 3, True, False, "auto")
    torch.library.opcheck(
        _ops.ring_conv_act.overload, (x, weight, bias, residual if has_residual else None, "relu", 0.0, *args)
    )  # fmt: skip


def test_a_compiled_graph_holds_one_node() -> None:
    seen: list[str] = []

    def backend(graph: Any, _: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    tensors = operands()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(call, backend=backend, fullgraph=True)(*tensors), call(*tensors))
    assert [name for name in seen if "ring_conv" in name] == ["sre_triton.ring_conv_act.default"]


@pytest.mark.parametrize("batched", [(0, None, None, None), (0, None, None, 0), (0, 0, 0, 0), (None, None, None, 0)])
def test_vmap(batched: tuple[int | None, ...]) -> None:
    args = conv_args(2, 1, 1, 1, 1, 3, True, False, "auto")

    def operator(*tensors: torch.Tensor) -> torch.Tensor:
        return _ops.ring_conv_act.overload(*tensors, "leaky_relu", 0.2, *args)

    stacks = [torch.stack([tensor, 2 * tensor, -tensor]) for tensor in operands()]
    tensors = [stack if dim == 0 else stack[0] for stack, dim in zip(stacks, batched, strict=True)]
    for function in (call, operator):
        result = torch.func.vmap(function, in_dims=batched)(*tensors)
        for i in range(3):
            one = [t[i] if dim == 0 else t for t, dim in zip(tensors, batched, strict=True)]
            torch.testing.assert_close(result[i], call(*one))


def test_autocast() -> None:
    x, weight, bias, residual = operands()
    with torch.autocast("cpu", torch.bfloat16):
        y = call(x, weight, bias, residual)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), call(x, weight, bias, residual), rtol=0.05, atol=0.1)


def test_refusals() -> None:
    x, weight, bias, residual = operands()
    with pytest.raises(ValueError, match="activation must be None, 'relu' or 'leaky_relu', got 'gelu'"):
        call(x, weight, bias, residual, "gelu")
    with pytest.raises(RuntimeError, match=r"residual must be like the output, \(2, 6, 7, 6\)"):
        call(x, weight, bias, residual[:1])
    with pytest.raises(RuntimeError, match="residual must be like the output"):
        call(x, weight, bias, residual.double())
    with pytest.raises(RuntimeError, match=r"input must be \(N, in, \*space\)"):
        call(x[0, 0], weight, bias, None)
