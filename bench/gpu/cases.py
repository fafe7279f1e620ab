"""What the GPU benchmark runs: layers that are checked, rows of the table, whole networks."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.gpu.timing import FULL, Pace
from sre_triton.geometry.conv import ConvSpec, conv_spec
from sre_triton.geometry.rings import default_num_rings

__all__ = ["PASSES", "Case", "Layer", "Network", "Workload", "cases", "full", "quick"]

PASSES = ("forward", "grad_x", "grad_w", "step")
"""What a row times; a step is the forward pass and both gradients."""

_FIRST_SIZES, _LATER_SIZES = (9, 5, 3), (7, 11)
# (channels, size) of the stages of ResNets at 224, 64 and 32 pixels and of U-Nets at 256 and 512.
_FIRST_STAGES = ((64, 56), (128, 28), (256, 14), (512, 7))
_LATER_STAGES = (
    *((64, 128), (128, 64)),
    *((64, 64), (128, 32), (256, 16), (512, 8)),
    *((64, 32), (128, 16), (256, 8), (512, 4)),
)
_ELEMENTS = 2**25  # of the input: enough work for every multiprocessor
_FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}


@dataclass(frozen=True)
class Layer:
    """One ring convolution and the shape of its input; channels are (in, out)."""

    kernel_size: int
    dtype: torch.dtype = torch.bfloat16
    size: tuple[int, ...] = (19, 37)
    channels: tuple[int, int] = (40, 72)
    batch: int = 3
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    antialias: bool = False
    bias: bool = False
    padding: int | None = None

    def __str__(self) -> str:
        fields = self.__dataclass_fields__
        values = {name: getattr(self, name) for name in fields}
        shown = {name: v for name, v in values.items() if name == "dtype" or v != fields[name].default}
        return " ".join(f"{name}={v}" for name, v in shown.items()).replace("torch.", "").replace(", ", ",")

    @property
    def spec(self) -> ConvSpec:
        k, n = self.kernel_size, len(self.size)
        padding = self.dilation * (k // 2) if self.padding is None else self.padding
        strides, paddings, dilations = (self.stride,) * n, (padding,) * n, (self.dilation,) * n
        rings = default_num_rings(k)
        return conv_spec(n, k, rings, True, self.antialias, strides, paddings, dilations, self.groups)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """x, ring weight and grad_y: random, channels innermost."""
        (c_in, c_out), spec = self.channels, self.spec
        options: dict[str, Any] = {"device": "cuda", "dtype": self.dtype}
        layout = _FORMATS[len(self.size)]
        x = torch.randn(self.batch, c_in, *self.size, **options).to(memory_format=layout)
        weight = torch.randn(c_out, c_in // self.groups, spec.geometry.num_rings, **options)
        grad_y = torch.randn(self.batch, c_out, *spec.output_size(self.size), **options).to(memory_format=layout)
        return x, weight, grad_y


@dataclass(frozen=True)
class Case:
    """One row of the table for each pass: as many channels out as in, stride 1."""

    kernel_size: int
    channels: int
    size: int
    ndim: int = 2
    elements: int = _ELEMENTS

    def __str__(self) -> str:
        return f"k={self.kernel_size} {self.channels}x{'x'.join([str(self.size)] * self.ndim)} batch={self.batch}"

    @property
    def batch(self) -> int:
        return max(1, min(512, self.elements // (self.channels * self.size**self.ndim)))

    @property
    def layer(self) -> Layer:
        return Layer(self.kernel_size, size=(self.size,) * self.ndim, channels=(self.channels,) * 2, batch=self.batch)

    @property
    def pixels(self) -> int:
        return self.batch * self.size**self.ndim

    def dense_flop(self, which: str) -> float:
        """Of the dense convolution: a multiplication and an addition for each tap of the kernel."""
        return 2 * self.pixels * self.channels**2 * self.kernel_size**self.ndim * (3 if which == "step" else 1)

    def floor(self, which: str, bandwidth: float, flops: float) -> float:
        """Least seconds that this GPU needs: one pass over the tensors, or the product over rings."""
        traffic = 2 * self.pixels * self.channels * 2 / bandwidth
        product = 2 * self.pixels * self.channels**2 * default_num_rings(self.kernel_size) / flops
        return max(traffic, product) * (3 if which == "step" else 1)


@dataclass(frozen=True)
class Network:
    """A whole network: how it is built and the shape of its input, channels and batch left out."""

    name: str
    build: Callable[[], nn.Module]
    batch: int
    size: int

    def __str__(self) -> str:
        return f"{self.name} batch={self.batch} size={self.size}"

    def input(self, device: str) -> Tensor:
        shape = (self.batch, 3, self.size, self.size)
        return torch.randn(shape, device=device).to(memory_format=torch.channels_last)

    def layers(self) -> list[Layer]:
        """Its distinct ring convolutions, found without a GPU and without arithmetic."""
        from sre_triton.layers import RingConvNd

        found: dict[Layer, None] = {}

        def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            assert isinstance(module, RingConvNd)
            (x,) = inputs
            assert isinstance(module.padding, tuple)
            layer = Layer(
                module.kernel_size[0], torch.bfloat16, tuple(x.shape[2:]), (x.shape[1], output.shape[1]), len(x),
                module.stride[0], module.dilation[0], module.groups, module.antialias, module.bias is not None,
                module.padding[0],
            )  # fmt: skip
            found[layer] = None

        model = self.build().to("meta")
        for module in model.modules():
            if isinstance(module, RingConvNd):
                module.register_forward_hook(note)
        model(self.input("meta"))
        return list(found)


@dataclass(frozen=True)
class Workload:
    """Everything that one run does. The table comes in groups, most telling first; tiles are checked for ``tiled``."""

    checks: tuple[Layer, ...]
    tiled: tuple[Layer, ...]
    first: tuple[Case, ...]
    second: tuple[Case, ...]
    third: tuple[Case, ...]
    networks: tuple[Network, ...]
    ceiling: int = 8192
    """Rows of the product that shows what the GPU can do."""
    pace: Pace = FULL
    is_quick: bool = False

    @property
    def cases(self) -> tuple[Case, ...]:
        return (*self.first, *self.second, *self.third)

    @property
    def with_gmr(self) -> tuple[Case, ...]:
        """The four cases on which the composition that GMR_Conv uses is timed too."""
        return self.first[:4]


def cases() -> tuple[Case, ...]:
    """Every row of the full table at its batch, in the order in which it runs."""
    return full().cases


def full() -> Workload:
    half, brain = torch.float16, torch.bfloat16
    return Workload(
        checks=_checks(),
        tiled=tuple(Layer(k, dtype, channels=(128, 128)) for dtype in (brain, half) for k in (9, 5, 3)),
        first=_table(_FIRST_SIZES, _FIRST_STAGES),
        second=_table(_LATER_SIZES, _FIRST_STAGES),
        third=(
            *_table(_FIRST_SIZES, _LATER_STAGES),
            *_table(_LATER_SIZES, _LATER_STAGES),
            *(Case(k, 64, 32, ndim=3) for k in (3, 5)),
        ),
        networks=(
            *(Network("sre_resnet18", _resnet, batch, 32) for batch in (128, 512)),
            Network("SREUNet", _unet, 8, 256),
            Network("SREUNet with invariants", _unet_with_invariants, 8, 256),
        ),
    )


def quick() -> Workload:
    """A sample on tiny inputs: whether everything runs to its end here, and nothing about speed."""
    stages = ((16, 12), (32, 7))
    small = partial(Layer, size=(9, 11), channels=(16, 24), batch=2)
    return Workload(
        checks=tuple(small(k) for k in (9, 5, 3)),
        tiled=(small(3),),
        first=_table(_FIRST_SIZES, stages, elements=2**12),
        second=_table((7,), stages[:1], elements=2**12),
        third=(Case(3, 16, 5, ndim=3, elements=2**12),),
        networks=(Network("sre_resnet18", _small_resnet, 2, 16),),
        ceiling=256,
        pace=Pace(rounds=2, warm=0.001),
        is_quick=True,
    )


def _table(sizes: tuple[int, ...], stages: tuple[tuple[int, int], ...], elements: int = _ELEMENTS) -> tuple[Case, ...]:
    return tuple(Case(k, *stage, elements=elements) for k, stage in itertools.product(sizes, stages))


def _checks() -> tuple[Layer, ...]:
    """Every kernel and dtype; the variations in bfloat16, which no interpreter can check."""
    half, brain, single = torch.float16, torch.bfloat16, torch.float32
    found = [Layer(k, dtype) for dtype in (brain, half, single) for k in (9, 3, 5)]
    found += [Layer(5, dtype, channels=(64, 64), groups=64) for dtype in (brain, half)]
    found += [Layer(3, channels=(64, 32), groups=2), Layer(5, stride=2), Layer(5, dilation=2)]
    found += [Layer(3, stride=2, dilation=3), Layer(5, antialias=True), Layer(5, half, antialias=True)]
    found += [Layer(3, size=(5, 9, 11)), Layer(5, size=(301,)), Layer(7), Layer(11)]
    found += [Layer(9, channels=(256, 256), size=(14, 14)), Layer(5, channels=(3, 64))]
    return tuple(found)


def _resnet() -> nn.Module:
    from sre_triton.models import sre_resnet18

    return sre_resnet18(sre_conv_size=[9, 9, 5, 5], num_classes=9)


def _unet() -> nn.Module:
    from sre_triton.models import SREUNet

    return SREUNet()


def _unet_with_invariants() -> nn.Module:
    from sre_triton.models import SREUNet

    return SREUNet(invariants=True)


def _small_resnet() -> nn.Module:
    from sre_triton.models import sre_resnet18

    return sre_resnet18(sre_conv_size=3, num_classes=9, inplanes=8)
