"""Invariants as autograd Functions: each saves its input (and weight) alone and computes the rest again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from sre_triton.invariants import formulas, passes
from sre_triton.invariants.formulas import Spec
from sre_triton.private_api import (
    any_requires_grad,
    apply_function,
    batches_gradients,
    derivative_may_hide,
    dispatch_modes,
)

__all__ = ["add", "maps"]


def maps(z: Tensor, spec: Spec) -> Tensor:
    """:func:`formulas.maps`, by the fastest way that gives what is asked for."""
    if _is_watched(z):
        return formulas.maps(z, spec, z.dtype)
    if torch.is_grad_enabled() and z.requires_grad:
        y: Tensor = apply_function(_Maps, z, spec)
        return y
    return passes.maps_forward(z, spec)


def add(z: Tensor, project: Tensor, weight: Tensor, spec: Spec) -> Tensor:
    """:func:`formulas.add`, by the fastest way that gives what is asked for."""
    if _is_watched(z, project, weight):
        return formulas.add(z, project, weight, spec, z.dtype)
    if torch.is_grad_enabled() and any_requires_grad(z, project, weight):
        y: Tensor = apply_function(_Add, z, project, weight, spec)
        return y
    return passes.add_forward(z, project, weight, spec)


def _is_watched(*tensors: Tensor) -> bool:
    """Whether somebody follows single operations: a compiler, a tracer, a transform, a derivative in forward mode."""
    return (
        torch.compiler.is_compiling()
        or derivative_may_hide()
        or dispatch_modes() > 0
        or torch.jit.is_tracing()
        or any(type(t) not in (Tensor, torch.nn.Parameter) or t.is_meta for t in tensors)
    )


def _again(function: Callable[..., Tensor], grad_y: Tensor, needed: tuple[bool, ...], *inputs: Tensor) -> list[Any]:
    """Gradients by PyTorch's own derivatives, which can be differentiated and batched."""
    with torch.enable_grad():
        y = function(*inputs)
    wanted = [x for x, need in zip(inputs, needed, strict=True) if need]
    found = iter(torch.autograd.grad(y, wanted, grad_y, create_graph=torch.is_grad_enabled()))
    return [next(found) if need else None for need in needed]


class _Maps(Function):
    @staticmethod
    def forward(z: Tensor, spec: Spec) -> Tensor:
        return passes.maps_forward(z, spec)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        z, ctx.spec = inputs
        ctx.save_for_backward(z)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        (z,) = ctx.saved_tensors
        if torch.is_grad_enabled() or batches_gradients():
            return *_again(partial(_plain_maps, ctx.spec), grad_y, (True,), z), None
        return passes.maps_backward(grad_y, z, ctx.spec), None


class _Add(Function):
    @staticmethod
    def forward(z: Tensor, project: Tensor, weight: Tensor, spec: Spec) -> Tensor:
        return passes.add_forward(z, project, weight, spec)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.spec = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        z, project, weight = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled() or batches_gradients():
            return *_again(partial(_plain_add, ctx.spec), grad_y, needed, z, project, weight), None
        grads = passes.add_backward(grad_y, z, project, weight, ctx.spec)
        return *(grad if need else None for grad, need in zip(grads, needed, strict=True)), None


def _plain_add(spec: Spec, z: Tensor, project: Tensor, weight: Tensor) -> Tensor:
    return formulas.add(z, project, weight, spec, z.dtype)


def _plain_maps(spec: Spec, z: Tensor) -> Tensor:
    return formulas.maps(z, spec, z.dtype)
