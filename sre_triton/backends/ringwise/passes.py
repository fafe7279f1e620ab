"""The passes of the ring-wise backend: ring sums first, then one matrix product over rings and channels.

Where the dense backend multiplies every tap by its copy of a ring weight, this one adds up the taps of a
ring and multiplies once::

    y = sum_ring W_ring (S_ring x)

Ring kernels are point-symmetric, so at stride 1 the ring sums of ``grad_y`` serve both gradients::

    grad_x = sum_ring W_ring^T (S_ring grad_y)        grad_W_ring = (S_ring grad_y)^T x

Ring sums exist for one block of positions at a time, see :mod:`sre_triton.backends.ringwise.ring_sums`. All of it is
plain PyTorch and runs on any device; it is tuned for CPUs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sre_triton.backends.base import Call
from sre_triton.backends.memory_format import contiguous, laid_out_like, new_activation
from sre_triton.backends.ringwise.blocks import Block
from sre_triton.backends.ringwise.ring_sums import ring_sums, sum_dtype
from sre_triton.geometry.conv import ConvSpec
from sre_triton.geometry.windows import Window, adjoint_window, forward_window

__all__ = ["backward", "forward", "refusal", "transpose", "weight_grad"]


def refusal(call: Call) -> str | None:
    return None


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Tensor:
    window = forward_window(spec, tuple(x.shape[2:]))
    y = new_activation(x, weight.shape[0], window.output_size)
    mixer = _Mixer(_ring_major(weight, window, spec.groups), bias, y)
    for block, sums in _sums(x, window, spec.groups):
        mixer.write(block, sums)
    return y


def transpose(x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec, output_padding: Sequence[int]) -> Tensor:
    window = adjoint_window(spec, tuple(x.shape[2:]), spec.transposed_size(x.shape[2:], output_padding))
    y = new_activation(x, weight.shape[1] * spec.groups, window.output_size)
    mixer = _Mixer(_ring_major(_swap(weight, spec.groups), window, spec.groups), bias, y)
    for block, sums in _sums(x, window, spec.groups):
        mixer.write(block, sums)
    return y


def weight_grad(x: Tensor, grad_y: Tensor, spec: ConvSpec) -> Tensor:
    window = forward_window(spec, tuple(x.shape[2:]))
    grad = _WeightGrad(grad_y, x.shape[1], window, spec)
    for block, sums in _sums(x, window, spec.groups):
        grad.add(block, sums)
    return grad.ring_weight()


def backward(grad_y: Tensor, x: Tensor, weight: Tensor, spec: ConvSpec) -> tuple[Tensor, Tensor]:
    input_size = tuple(x.shape[2:])
    if not spec.is_unit_stride:
        output_padding = spec.output_padding(input_size, grad_y.shape[2:])
        grad_x = laid_out_like(x, transpose(grad_y, weight, None, spec, output_padding))
        return grad_x, weight_grad(x, grad_y, spec)
    window = adjoint_window(spec, tuple(grad_y.shape[2:]), input_size)
    grad_x = new_activation(x, x.shape[1], input_size)
    mixer = _Mixer(_ring_major(_swap(weight, spec.groups), window, spec.groups), None, grad_x)
    grad = _WeightGrad(x, grad_y.shape[1], window, spec)
    for block, sums in _sums(grad_y, window, spec.groups):
        mixer.write(block, sums)
        grad.add(block, sums)
    return grad_x, contiguous(_swap(grad.ring_weight(), spec.groups))


class _Mixer:
    """Multiplies ring sums with ring weights and writes the products to ``y``."""

    def __init__(self, kernels: Tensor, bias: Tensor | None, y: Tensor) -> None:
        dtype = _product_dtype(y)
        self._kernels = kernels.to(dtype).unbind()
        self._bias = [None] * len(kernels) if bias is None else bias.to(dtype).chunk(len(kernels))
        self._y = _Rows(y)

    def write(self, block: Block, sums: Sequence[Tensor]) -> None:
        """``y[block] = sums @ kernels + bias``, group by group."""
        rows = self._y.matrix(block, sums[0])
        for left, right, bias, out in zip(sums, self._kernels, self._bias, _split(rows, sums), strict=True):
            if bias is None:
                torch.mm(left, right, out=out)
            else:
                torch.addmm(bias, left, right, out=out)
        self._y.store(rows, block)


class _WeightGrad:
    """Adds up ``thin^T sums`` over blocks: the gradient of ring weights from the channels that were
    summed over rings to those of ``thin``, the activation of the other side, which has no ring sums."""

    def __init__(self, thin: Tensor, summed_channels: int, window: Window, spec: ConvSpec) -> None:
        self._thin = _Rows(thin)
        self._window = window
        self._num_rings = spec.geometry.num_rings
        shape = (spec.groups, thin.shape[1] // spec.groups, len(window.rings) * (summed_channels // spec.groups))
        self._total = thin.new_zeros(shape, dtype=sum_dtype(thin.dtype))
        self._totals = self._total.unbind()

    def add(self, block: Block, sums: Sequence[Tensor]) -> None:
        rows = self._thin.load(block, sums[0])
        for total, left, right in zip(self._totals, _split(rows, sums), sums, strict=True):
            if total.dtype == right.dtype:
                total.addmm_(left.t(), right)
            else:
                total.add_(left.t() @ right)

    def ring_weight(self) -> Tensor:
        """The gradient as ``(thin channels, summed channels / groups, rings)``."""
        groups, outputs, columns = self._total.shape
        rings = len(self._window.rings)
        grad = self._thin.positions.new_zeros(groups * outputs, columns // rings, self._num_rings)
        grad[..., self._window.rings] = self._total.view(groups * outputs, rings, -1).transpose(1, 2).to(grad.dtype)
        return grad


class _Rows:
    """Blocks of an activation ``(N, C, *space)`` as matrices ``(P, C)``, of the type and order of their ring sums.

    Blocks whose memory is such a matrix are seen as they are. Others have a copy, overwritten by the next.
    """

    def __init__(self, activation: Tensor) -> None:
        self.positions = activation.movedim(1, -1)
        self._scratch: Tensor | None = None

    def matrix(self, block: Block, sums: Tensor) -> Tensor:
        """Memory for the rows of a block."""
        part = block.of(self.positions)
        rows = _as_matrix(part) if part.dtype == sums.dtype else None
        return self._copy(sums) if rows is None else rows

    def load(self, block: Block, sums: Tensor) -> Tensor:
        """The rows of a block."""
        rows, part = self.matrix(block, sums), block.of(self.positions)
        if rows.data_ptr() != part.data_ptr():
            rows.view(part.shape).copy_(part)
        return rows

    def store(self, rows: Tensor, block: Block) -> None:
        """Writes the rows of a block, unless they are written."""
        part = block.of(self.positions)
        if rows.data_ptr() != part.data_ptr():
            part.copy_(rows.view(part.shape))

    def _copy(self, sums: Tensor) -> Tensor:
        rows, channels = len(sums), self.positions.shape[-1]
        if self._scratch is None:  # the first block is the largest
            self._scratch = sums.new_empty(rows * channels)
        memory = self._scratch[: rows * channels]
        return memory.view(rows, channels) if sums.stride(1) == 1 else memory.view(channels, rows).t()


def _as_matrix(block: Tensor) -> Tensor | None:
    """``block (..., C)`` as a matrix ``(P, C)`` in the same memory, or None where strides forbid that."""
    try:
        return block.view(-1, block.shape[-1])
    except RuntimeError:
        return None


def _split(rows: Tensor, sums: Sequence[Tensor]) -> Sequence[Tensor]:
    """The channels of each group."""
    return (rows,) if len(sums) == 1 else rows.chunk(len(sums), dim=1)


def _sums(source: Tensor, window: Window, groups: int) -> Iterator[tuple[Block, Sequence[Tensor]]]:
    return ring_sums(source, window, groups, _product_dtype(source))


def _product_dtype(tensor: Tensor) -> torch.dtype:
    """Type of the matrix products' operands. CPUs have no fast float16 product; float32 is exact."""
    if tensor.dtype == torch.float16 and tensor.device.type == "cpu":
        return torch.float32
    return tensor.dtype


def _ring_major(weight: Tensor, window: Window, groups: int) -> Tensor:
    """Ring weights ``(out, in / groups, rings)`` as matrices ``(groups, rings * in / groups, out / groups)``."""
    rings = window.rings
    # A view wherever that is possible: to pick single rings takes longer than all the rest of a small map.
    picked = slice(len(rings)) if rings == tuple(range(len(rings))) else rings
    weight = weight[..., picked]
    return _grouped(weight, groups).transpose(2, 3).flatten(2).transpose(1, 2)


def _swap(weight: Tensor, groups: int) -> Tensor:
    """Ring weights with input and output channels exchanged within each group."""
    return _grouped(weight, groups).transpose(1, 2).flatten(0, 1)


def _grouped(weight: Tensor, groups: int) -> Tensor:
    out, *others = weight.shape
    return weight.reshape(groups, out // groups, *others)
