"""What ``torch.utils.flop_counter.FlopCounterMode`` counts for the operators.

As in PyTorch's own formulas a multiply-add is two operations, and whatever is done once per element (biases,
activations, residuals) is none. Counted is the arithmetic of the backend that the call takes:

- dense: as ``F.convNd`` of the same kernel, every tap of the cube, those outside of the rings too. Expanding the rings
  does not grow with the image and is left out.
- ring-wise, native and Triton: a multiply-add per ring and pair of channels, and one operation per addition of ring
  sums, as the shared schedule of :mod:`sre_triton.geometry.schedule` has them; shares of anti-aliased rings are
  multiplied at one more each. At stride 1 both gradients share their ring sums.

PyTorch's module imports Triton where there is one, so that formulas are registered once somebody imports it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from sre_triton.backends.base import Call, Kind
from sre_triton.backends.triton.rules import may_share_ring_sums
from sre_triton.geometry.conv import ConvArgs
from sre_triton.geometry.rings import RingGeometry, ring_geometry
from sre_triton.operators import operators as _ops
from sre_triton.planning.cpu_cost import ring_sums
from sre_triton.planning.plan import plan_call

__all__ = ["count", "register_formulas"]

_COUNTER = "torch.utils.flop_counter"


def count(call: Call, request: str) -> int:
    """Floating-point operations of a call under a request, which need not be met on this machine."""
    if not (call.in_channels and call.out_channels):
        return 0
    backend = plan_call(call, request).backend if request == "auto" else request
    return _dense(call) if backend == "dense" else _ringwise(call, backend)


def _dense(call: Call) -> int:
    passes = 2 if call.kind == "backward" else 1
    pairs = call.out_channels * (call.in_channels // call.spec.groups)
    return 2 * passes * call.pixels * math.prod(call.spec.geometry.kernel_size) * pairs


def _ringwise(call: Call, backend: str) -> int:
    if call.kind == "backward" and not _shares_ring_sums(call, backend):
        kinds: tuple[Kind, ...] = ("transpose", "weight_grad")
        return sum(_ringwise(call._replace(kind=kind), backend) for kind in kinds)
    sums = ring_sums(call)
    products = 2 * sums.products * sums.rings * (sums.mixed // call.spec.groups)
    return sums.positions * sums.summed * (sums.operations + products)


def _shares_ring_sums(call: Call, backend: str) -> bool:
    spec = call.spec
    if backend != "triton":
        return spec.is_unit_stride
    per_group = call.in_channels // spec.groups, call.out_channels // spec.groups
    return may_share_ring_sums(spec.is_unit_stride, spec.groups, *per_group, call.dtype)


# The operators' formulas take what the operators take -----------------------------------------------


def _args(values: Sequence[Any]) -> ConvArgs:
    stride, padding, dilation, *rest = values
    return ConvArgs(tuple(stride), tuple(padding), tuple(dilation), *rest)


def _count(
    kind: Kind, x: Tensor, channels: tuple[int, int], size: Sequence[int], num_rings: int, args: ConvArgs
) -> int:
    spec = args.spec(num_rings)
    return count(Call(kind, spec, x.shape[0], *channels, tuple(size), x.dtype, x.device), args.backend)


def _ring_conv(x: Tensor, weight: Tensor, bias: Any, *values: Any, out_val: Any = None) -> int:
    return _count("forward", x, (x.shape[1], weight.shape[0]), x.shape[2:], weight.shape[2], _args(values))


def _ring_conv_act(
    x: Tensor, weight: Tensor, bias: Any, residual: Any, activation: str, slope: float, *values: Any,
    out_val: Any = None,
) -> int:  # fmt: skip
    return _ring_conv(x, weight, bias, *values)


def _ring_conv_transpose(
    x: Tensor, weight: Tensor, bias: Any, output_padding: Sequence[int], *values: Any, out_val: Any = None
) -> int:
    args, (out_channels, in_channels, num_rings) = _args(values), weight.shape
    size = args.spec(num_rings).transposed_size(x.shape[2:], output_padding)
    return _count("transpose", x, (in_channels * args.groups, out_channels), size, num_rings, args)


def _ring_conv_weight_grad(x: Tensor, grad_y: Tensor, num_rings: int, *values: Any, out_val: Any = None) -> int:
    return _count("weight_grad", x, (x.shape[1], grad_y.shape[1]), x.shape[2:], num_rings, _args(values))


def _ring_conv_backward(x: Tensor, grad_y: Tensor, weight: Tensor, *values: Any, out_val: Any = None) -> int:
    return _count("backward", x, (x.shape[1], grad_y.shape[1]), x.shape[2:], weight.shape[2], _args(values))


def _expand_kernel(
    weight: Tensor, kernel_size: Sequence[int], circular: bool, antialias: bool, dtype: Any = None, *,
    out_val: Any = None,
) -> int:  # fmt: skip
    """Hard rings are copied, shares multiplied and added."""
    geometry = ring_geometry(tuple(kernel_size), weight.shape[2], circular, antialias)
    return 2 * weight.shape[0] * weight.shape[1] * _shares(geometry) if antialias else 0


def _collapse_kernel(
    dense: Tensor, num_rings: int, circular: bool, antialias: bool, dtype: Any = None, *, out_val: Any = None
) -> int:
    """Taps of hard rings are added, others weighed, too."""
    geometry = ring_geometry(tuple(dense.shape[2:]), num_rings, circular, antialias)
    return (2 if antialias else 1) * dense.shape[0] * dense.shape[1] * _shares(geometry)


def _shares(geometry: RingGeometry) -> int:
    return int(np.count_nonzero(geometry.weights))


_FORMULAS: dict[_ops.Operator, Callable[..., int]] = {
    _ops.ring_conv: _ring_conv,
    _ops.ring_conv_act: _ring_conv_act,
    _ops.ring_conv_transpose: _ring_conv_transpose,
    _ops.ring_conv_weight_grad: _ring_conv_weight_grad,
    _ops.ring_conv_backward: _ring_conv_backward,
    _ops.expand_kernel: _expand_kernel,
    _ops.collapse_kernel: _collapse_kernel,
}


# Registration ---------------------------------------------------------------------------------------


def register_formulas() -> None:
    """Makes the formulas known to PyTorch's counter, at once if it has been imported, else when it is."""
    if _COUNTER in sys.modules:
        _register(sys.modules[_COUNTER])
    else:
        sys.meta_path.insert(0, _AfterImport())


def _register(counter: ModuleType) -> None:
    for operator, formula in _FORMULAS.items():
        counter.register_flop_formula(operator.overload._overloadpacket, get_raw=True)(formula)


class _AfterImport(MetaPathFinder):
    """Registers the formulas when the counter's module has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_register(module: ModuleType) -> None:
                run(module)
                _register(module)

            spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec
