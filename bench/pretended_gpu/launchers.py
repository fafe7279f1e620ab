"""The Triton backend's launchers, replaced by the dense backend or made faulty."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.pretended_gpu.faults import Fault, with_faults

__all__ = ["install"]


def install(dense: bool, faults: list[Fault]) -> None:
    """Replace the public functions of :mod:`sre_triton.backends.triton`.

    Args:
        dense: compute with the dense backend instead of Triton.
        faults: what goes wrong.
    """
    if not dense and not faults:
        return
    from sre_triton.backends import triton as package
    from sre_triton.backends.triton import launch

    replacements = _dense_launchers() if dense else {}
    # Callers go through the package; the benchmark, which forces tiles, goes to the launchers themselves.
    for module in (package, launch):
        for name in package.__all__:
            if not name.endswith("refusal"):
                launcher = replacements.get(name, getattr(module, name))
                setattr(module, name, with_faults(name, launcher, faults))


def _dense_launchers() -> dict[str, Callable[..., Any]]:
    from sre_triton.backends import dense

    def fused_forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, spec: Any, *, activation: str | None = None,
        negative_slope: float = 0.01, residual: Tensor | None = None, tile: Any = None,
    ) -> Tensor:  # fmt: skip
        y = dense.forward(x, weight, bias, spec)
        y = y if residual is None else y + residual
        if activation is None:
            return y
        return torch.nn.functional.leaky_relu(y, 0.0 if activation == "relu" else negative_slope)

    def transpose(*args: Any, tile: Any = None) -> Tensor:
        return dense.transpose(*args)

    return {
        "forward": lambda *args: dense.forward(*args),
        "fused_forward": fused_forward,
        "transpose": transpose,
        "weight_grad": lambda *args: dense.weight_grad(*args),
        "backward": lambda *args: dense.backward(*args),
        "expand": _expand,
        "collapse": _collapse,
        "invariants_forward": _invariants_forward,
        "invariants_backward": _invariants_backward,
    }


def _table(geometry: Any, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(geometry.weights.copy()).to(dtype)


def _expand(weight: Tensor, geometry: Any, dtype: torch.dtype | None = None) -> Tensor:
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    kernel = weight.to(wide) @ _table(geometry, wide)
    return kernel.to(dtype or weight.dtype).view(*weight.shape[:2], *geometry.kernel_size)


def _collapse(kernel: Tensor, geometry: Any, dtype: torch.dtype | None = None) -> Tensor:
    wide = torch.float64 if kernel.dtype == torch.float64 else torch.float32
    return (kernel.to(wide).flatten(2) @ _table(geometry, wide).t()).to(dtype or kernel.dtype)


def _invariants_forward(z: Tensor, kinds: tuple[int, ...], dilations: tuple[int, ...], eps: float) -> Tensor:
    from sre_triton.invariants import formulas

    names = tuple(formulas.KINDS[kind] for kind in kinds)
    return formulas.maps(z, formulas.Spec(z.dim() - 2, names, dilations, eps), z.dtype)


def _invariants_backward(grad_y: Tensor, z: Tensor, *arguments: Any) -> Tensor:
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        return torch.autograd.grad(_invariants_forward(z, *arguments), z, grad_y)[0]
