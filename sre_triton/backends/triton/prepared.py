"""What a launch needs, worked out once: a kernel call but for its tensors, and the store of such calls.

The first call of a convolution on tensors of some shape works out the layouts, the tile, the grid and the arguments,
and compiles. What came out is kept under everything that it depends on, so that later calls allocate their
results and start their kernels.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sre_triton.backends.triton import devices
from sre_triton.backends.triton.layout import device_of
from sre_triton.backends.triton.taps import Taps, conv_taps, row_step
from sre_triton.backends.triton.tiles import Problem, Tile
from sre_triton.geometry.conv import ConvSpec
from sre_triton.private_api import CompiledLaunch

__all__ = ["Kept", "Launch", "as_started", "forward_problem", "kernel_problem", "options_of_sums", "precision"]

_DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
DTYPES = tuple(_DTYPES)

_ALIGNMENT = 16  # bytes; Triton compiles one kernel for addresses that are multiples of it, and one for others


class Launch:
    """One kernel call but for its tensors.

    Args:
        kernel: a ``triton.jit`` function; its tensors come first, then numbers, then constants.
        device: where its tensors are.
        grid: of programs.
        sizes: the numbers, in order.
        options: constants by name, and the compiler's options.
    """

    __slots__ = ("_compiled", "_device", "_index", "_tail", "grid", "kernel", "options", "sizes")

    def __init__(
        self, kernel: Any, device: torch.device, grid: tuple[int, ...], sizes: Sequence[int], options: dict[str, Any]
    ) -> None:
        self.kernel, self.sizes, self.options = kernel, tuple(sizes), options
        self.grid = (*grid, 1, 1)[:3]
        self._device = device
        self._index = device.index if device.type == "cuda" else None
        self._compiled: CompiledLaunch | None = None
        self._tail: tuple[Any, ...] = ()

    def __call__(self, *tensors: Tensor | None) -> Any:
        """Start the kernel on the current stream. Returns what was compiled if Triton was asked, else None."""
        if self._index is not None and torch.cuda.current_device() == self._index:
            return self._start(tensors)
        with device_of(self._device):
            return self._start(tensors)

    def compiled(self, *tensors: Tensor | None) -> Any:
        """Compile without starting; None in the interpreter."""
        with device_of(self._device):
            return self.kernel.run(*tensors, *self.sizes, grid=self.grid, warmup=True, **self.options)

    def _start(self, tensors: tuple[Tensor | None, ...]) -> Any:
        compiled = self._compiled
        if compiled is not None and compiled.is_allowed():
            addresses = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
            if are_aligned(addresses):
                compiled(self.grid, self._index, (*addresses, *self._tail))  # type: ignore[arg-type]
                return None
        result = self.kernel.run(*tensors, *self.sizes, grid=self.grid, warmup=False, **self.options)
        if (
            compiled is None
            and self._index is not None
            and are_aligned([t.data_ptr() for t in tensors if t is not None])
        ):
            constants = self.kernel.arg_names[len(tensors) + len(self.sizes) :]
            self._tail = (*self.sizes, *(self.options[name] for name in constants))
            self._compiled = CompiledLaunch.of(self.kernel, result)
        return result


def are_aligned(addresses: Sequence[int | None]) -> bool:
    """Whether all tensors are aligned, as the kernels that are kept here need it. Triton has others for the rest."""
    for address in addresses:  # noqa: SIM110 - a generator takes twice as long
        if address is not None and address % _ALIGNMENT:
            return False
    return True


def as_started(launch: Launch, tensors: Sequence[Tensor | None], warmup: bool) -> Any:
    """Start or only compile: what :func:`sre_triton.backends.triton.tuning.choose` does with a launch."""
    return launch.compiled(*tensors) if warmup else launch(*tensors)


class Kept:
    """A bounded store of what was worked out; the oldest entries go first.

    Args:
        limit: entries that are kept.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: dict[Hashable, Any] = {}
        self._lock = threading.Lock()
        self.get: Callable[[Hashable], Any] = self._entries.get

    def keep(self, key: Hashable, entry: Any) -> None:
        with self._lock:
            while len(self._entries) >= self._limit:
                del self._entries[next(iter(self._entries))]
            self._entries[key] = entry

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)


# What kernels take ------------------------------------------------------------------------------------


def options_of_sums(
    taps: Taps, stride: tuple[int, ...], tile: Tile, dtype: torch.dtype, **more: Any
) -> dict[str, Any]:  # fmt: skip
    """Constants and options of every kernel that forms ring sums, and ``more`` of them."""
    native = _DTYPES[dtype]
    return {
        "TAPS": taps, "STRIDE_Z": stride[0], "STRIDE_Y": stride[1], "STRIDE_X": stride[2],
        "R": tile.rows, "BM": tile.columns,
        "ROW_DTYPE": tl.float32 if tile.sums == "float32" else native,
        "SUM_DTYPE": native if tile.sums == "packed" else tl.float32,
        "num_warps": tile.warps, "num_stages": tile.stages, **more,
    }  # fmt: skip


def precision(dtype: torch.dtype) -> str:
    """What PyTorch's own convolutions would do with float32."""
    if dtype != torch.float32:
        return "ieee"
    for switch in (torch.backends.cudnn.conv, torch.backends.cudnn, torch.backends):  # type: ignore[attr-defined]
        if switch.fp32_precision != "none":
            return "tf32" if switch.fp32_precision == "tf32" else "ieee"
    return "ieee"


def row_tiles(height: int, tile: Tile, taps: Taps, stride: int) -> int:
    """Tiles of rows; with a dilation `row_step` of them interleave and come together."""
    step = row_step(taps, stride)
    return triton.cdiv(height, tile.rows * step) * step


def stride_of(spec: ConvSpec) -> tuple[int, ...]:
    """Along depth, height and width."""
    return (1,) * (3 - spec.ndim) + spec.stride


def forward_problem(x: Tensor, weight: Tensor, spec: ConvSpec) -> Problem:
    """The forward convolution as the tile heuristics see it."""
    c_out, c_in = weight.shape[0] // spec.groups, weight.shape[1]
    shape = (x.shape[0], *(1,) * (3 - spec.ndim), *spec.output_size(x.shape[2:]))
    return kernel_problem(x, conv_taps(spec).taps, stride_of(spec), spec.groups, c_in, c_out, shape)


def kernel_problem(
    x: Tensor, taps: Taps, stride: tuple[int, ...], groups: int, c_in: int, c_out: int, out_shape: Sequence[int]
) -> Problem:
    """One launch as the heuristics see it; ``out_shape`` begins with images, depth, height and width."""
    return Problem(
        taps=taps,
        stride=stride,
        dtype=x.dtype,
        groups=groups,
        c_in=c_in,
        c_out=c_out,
        batch=out_shape[0] * out_shape[1],
        height=out_shape[2],
        width=out_shape[3],
        device=devices.device_limits(x.device),
    )
