"""What becomes of one layer when a network is made symmetric: the ring convolution or the centred pooling that
takes its place, or the reason why it is left alone. :mod:`sre_triton.conversion.convert` does this to whole networks.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sre_triton import layers, pooling
from sre_triton.conversion import behaviour
from sre_triton.conversion.padding import RepeatedPad
from sre_triton.functional import expand_kernel, project_kernel
from sre_triton.layers import RingConvNd
from sre_triton.private_api import ntuple

__all__ = [
    "ConvertedFrom",
    "Swapper",
    "is_convolution",
    "is_pooling",
    "leaves_pixels_over",
    "refuse_what_would_be_lost",
    "what_would_be_lost",
    "why_left",
]

_RING_CONVOLUTIONS: dict[type[nn.Module], type[RingConvNd]] = {
    getattr(nn, f"Conv{way}{n}d"): getattr(layers, f"SREConv{way}{n}d") for way in ("", "Transpose") for n in (1, 2, 3)
}
_CENTERED_POOLS: dict[type[nn.Module], type[nn.Module]] = {
    getattr(nn, f"{kind}Pool{n}d"): getattr(pooling, f"Centered{kind}Pool{n}d")
    for kind in ("Avg", "Max")
    for n in (1, 2, 3)
}
_AVERAGE = {1: pooling.CenteredAvgPool1d, 2: pooling.CenteredAvgPool2d, 3: pooling.CenteredAvgPool3d}


class ConvertedFrom(NamedTuple):
    """What stood in the place of a module, which carries this as ``converted_from``."""

    layer: str
    weights: int  # elements of the weight, 0 for a pooling layer
    note: str  # how it was changed


def is_convolution(module: nn.Module) -> bool:
    """Whether it is one of PyTorch's convolutions or a subclass of one."""
    return isinstance(module, tuple(_RING_CONVOLUTIONS))


def is_pooling(module: nn.Module) -> bool:
    """Whether it is one of PyTorch's max and average poolings or a subclass of one."""
    return isinstance(module, tuple(_CENTERED_POOLS))


def leaves_pixels_over(module: Any, size: tuple[int, ...]) -> bool:
    """Whether the windows of a convolution or pooling layer do not lie symmetrically on an image of this size."""
    if is_pooling(module):
        axes = zip(size, _pool_reach(module, ceil_mode=False), _per_axis(module, "stride"), strict=True)
    elif module.transposed:
        return any(module.output_padding)
    else:
        axes = zip(size, _reach(module), module.stride, strict=True)
    return any((n - reach - 1) % stride for n, reach, stride in axes)


def why_left(module: nn.Module, *, strides: str = "pool", kernel_size: int | None = None) -> str | None:
    """Why :func:`sre_triton.convert` with these arguments leaves a convolution or pooling layer alone; None if
    it does not."""
    changed = behaviour.changes_of_class(module, _base(module))
    if changed is not None:
        return changed
    if is_pooling(module):
        return _why_pooling_is_left(module, strides)
    return _why_convolution_is_left(module, strides, kernel_size)


def what_would_be_lost(module: nn.Module) -> str | None:
    """What a convolution or pooling layer has that keeps :func:`sre_triton.convert` from replacing it, in words; None
    if nothing."""
    lost = behaviour.what_would_be_lost(module, _base(module))
    if lost is None and (hooked := behaviour.gradient_hooks(module)) is not None:
        return f"has hooks on the gradient of its {hooked}, which will be another parameter"
    if lost is None and is_convolution(module) and not _padding_follows(module):
        return "has had its padding or padding_mode changed after it was made, which it only follows in part"
    return lost


def refuse_what_would_be_lost(module: nn.Module, name: str, reader: str | None) -> None:
    """Raises ValueError if there is something, or if there is a ``reader``, a method that computes with the weight."""
    if (lost := what_would_be_lost(module)) is not None:
        raise _refusal(module, name, lost)
    if is_convolution(module) and reader is not None:
        raise _refusal(module, name, f"has a weight that {reader} reads, where it will have another shape")


def _base(module: nn.Module) -> type[nn.Module]:
    base = behaviour.known_class(module, _RING_CONVOLUTIONS.keys() | _CENTERED_POOLS.keys())
    assert base is not None
    return base


def _padding_follows(conv: Any) -> bool:
    """Whether the padding that a padding mode uses is that of the layer's arguments."""
    pixels = [p for p in reversed(_pixels(conv)) for _ in range(2)]
    return conv.padding_mode == "zeros" or list(conv._reversed_padding_repeated_twice) == pixels


def _why_convolution_is_left(conv: Any, strides: str, kernel_size: int | None) -> str | None:
    size, strided = conv.kernel_size, max(conv.stride) > 1
    # As it is held: to evaluate the weight of a parametrized layer may change it, as a spectral norm's power step does.
    for held in conv.parameters():
        if not held.is_floating_point():
            return f"its weight is of {held.dtype}: ring kernels are of floating dtypes"
    if any(k % 2 == 0 for k in size):
        return f"even kernel {_brief(size)}: it has no centre tap"
    if _single_tap(conv) and not (strided and strides == "pool" and not conv.transposed):
        return "a single tap is symmetric already" + (", its stride is not" if strided else "")
    if conv.transposed and strided:
        return f"strided transposed convolution (stride {_brief(conv.stride)})"
    if len(set(size)) > 1 and (kernel_size is None or kernel_size < max(size)):
        return f"kernel {_brief(size)} is not the same in every dimension; kernel_size={max(size) | 1} would embed it"
    if strided and strides == "pool" and min(_reach(conv)) < 0:
        return f"strided, and padded by more than half of its kernel (padding {_brief(conv.padding)})"
    return None


def _why_pooling_is_left(pool: Any, strides: str) -> str | None:
    if max(_per_axis(pool, "stride")) == 1:
        return "at stride 1 every window is centred"
    if strides == "keep":
        return "strides='keep'; its windows are off-centre where they leave pixels over"
    if getattr(pool, "return_indices", False):
        return "returns the indices of its maxima"
    if getattr(pool, "divisor_override", None) is not None:
        return f"divides by divisor_override={pool.divisor_override}"
    if min(_pool_reach(pool, pool.ceil_mode)) < 0:
        return "padded by more than half of its window"
    return None


@dataclass
class Swapper:
    """Makes the modules that take the places of others, with one set of :func:`sre_triton.convert`'s arguments.

    One object serves a whole network, so that parameters which layers share stay shared.
    """

    kernel_size: int | None
    num_rings: int | None
    weights: str
    strides: str
    circular: bool
    antialias: bool
    _parameters: dict[tuple[Any, ...], nn.Parameter] = field(default_factory=dict)

    def __call__(self, module: Any, name: str) -> nn.Module:
        """The module that takes the place of ``module``, for which :func:`why_left` returned None.

        Raises:
            ValueError: ``module``, called ``name`` in messages, has attributes or hooks that its successor cannot
                carry, or the arguments describe no ring kernel for it.
        """
        if is_pooling(module):
            new, notes = self._centered(module), ["centred at every size"]
        elif max(module.stride) > 1 and self.strides == "pool":
            new, notes = self._behind_pooling(module, name)
        else:
            new, notes = self._ring_conv(module, name, module.stride, module.padding)
        if (lost := behaviour.carry(module, new, behaviour.added_attributes(module, _base(module)))) is not None:
            raise _refusal(module, name, lost)
        weights = module.weight.numel() if is_convolution(module) else 0
        new.converted_from = ConvertedFrom(str(module), weights, ", ".join(notes))  # type: ignore[assignment]
        return new

    def _centered(self, pool: Any) -> nn.Module:
        return _CENTERED_POOLS[_base(pool)](
            _brief(_per_axis(pool, "stride")), **_unless_zero(reach=_pool_reach(pool, pool.ceil_mode))
        )

    def _behind_pooling(self, conv: Any, name: str) -> tuple[nn.Module, list[str]]:
        """The convolution at stride 1 after a pooling of its stride."""
        reach, ones = _reach(conv), (1,) * len(conv.stride)
        pool = _AVERAGE[len(ones)](_brief(conv.stride), **_unless_zero(reach=reach))
        notes = ["centred pooling in front of it"]
        if _single_tap(conv):
            return nn.Sequential(pool, _unstrided(conv)), notes
        # The pooling leaves `reach` pixels out of its sizes; with half of them at either end the sizes are kept.
        padding = tuple(p + r // 2 for p, r in zip(_pixels(conv), reach, strict=True))
        ring, more = self._ring_conv(conv, name, ones, padding)
        return nn.Sequential(pool, *(ring if isinstance(ring, nn.Sequential) else [ring])), notes + more

    def _ring_conv(
        self, conv: Any, name: str, stride: tuple[int, ...], padding: tuple[int, ...] | str
    ) -> tuple[nn.Module, list[str]]:
        """The ring convolution, after a padding where its own would be wider than small maps allow."""
        size = self.kernel_size or conv.kernel_size[0]
        growth = [(size - k) // 2 for k in conv.kernel_size]
        notes = []
        if any(growth):
            verb = "embedded in" if max(growth) > 0 else "cropped to"
            notes.append(f"kernel {_brief(conv.kernel_size)} {verb} {size}")
            if padding != "same" or conv.padding_mode != "zeros":
                pixels = _pixels(conv) if isinstance(padding, str) else padding
                padding = tuple(p + d * g for p, d, g in zip(pixels, conv.dilation, growth, strict=True))
                if min(padding) < 0:
                    raise ValueError(
                        f"kernel_size={self.kernel_size} is too small for {name!r}, {conv}: without its outer taps it "
                        "would return another size; exclude it with filter_fn"
                    )
        mode, front = conv.padding_mode, []
        if mode in ("reflect", "circular") and (any(growth) or stride != conv.stride):
            assert not isinstance(padding, str)
            if any(padding):
                front.append(RepeatedPad(padding, mode))
            padding, mode = (0,) * len(padding), "zeros"
        options: dict[str, Any] = {"output_padding": conv.output_padding} if conv.transposed else {}
        try:
            # On no device, since what it draws is replaced unless it is to be reset.
            new = _RING_CONVOLUTIONS[_base(conv)](
                conv.in_channels, conv.out_channels, size, stride=stride, padding=padding, dilation=conv.dilation,
                groups=conv.groups, bias=conv.bias is not None, padding_mode=mode,
                device=conv.weight.device if self.weights == "reset" else "meta", dtype=conv.weight.dtype,
                num_rings=self.num_rings, circular=self.circular, antialias=self.antialias, **options,
            )  # fmt: skip
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name!r}, {conv}: {error}") from error
        bias = new.bias
        if self.weights == "project":
            rings, share = _projected(conv.weight, growth, new)
            notes.append(f"rings hold {share:.0%} of its kernel's square" if share is not None else "projected")
            new.weight, bias = self._parameter(conv.weight, new, rings), conv.bias
        else:
            notes.append("drawn anew")
            new.weight = self._parameter(conv.weight, new, new.weight)
            bias = None if bias is None else self._parameter(conv.bias, None, bias)
        new.bias = bias
        return nn.Sequential(*front, new) if front else new, notes

    def _parameter(self, old: Tensor, ring: RingConvNd | None, value: Tensor) -> nn.Parameter:
        """``value`` as the parameter that stands for ``old``, the same one wherever ``old`` stood."""
        key = (id(old), ring and ring.geometry)
        if key not in self._parameters:
            self._parameters[key] = behaviour.as_parameter(value, old)
        return self._parameters[key]


def _projected(dense: Tensor, growth: list[int], ring: RingConvNd) -> tuple[Tensor, float | None]:
    """The ring weights nearest to a dense kernel, and their kernel's share of its square sum (None if unknown)."""
    with torch.no_grad():
        embedded = F.pad(dense, [g for g in reversed(growth) for _ in range(2)])
        rings = project_kernel(embedded, ring.num_rings, ring.circular, ring.antialias)
        if dense.is_meta:
            return rings, None
        whole = dense.double().square().sum().item()
        kept = expand_kernel(rings.double(), ring.kernel_size, ring.circular, ring.antialias).square().sum().item()
        return rings, kept / whole if whole else 1.0


def _refusal(module: nn.Module, name: str, reason: str) -> ValueError:
    return ValueError(f"{name!r}, {type(module).__name__}, {reason}; exclude it with filter_fn, or remove that first")


def _unstrided(conv: Any) -> nn.Module:
    """The same convolution, of the same parameters, at stride 1 and without hooks of its own."""
    new: Any = copy.copy(conv)
    behaviour.drop_call_hooks(new)
    new.stride = (1,) * len(conv.stride)
    return new


def _pixels(conv: Any) -> tuple[int, ...]:
    """Padding at each end of each axis."""
    if conv.padding == "same":
        return tuple(d * (k - 1) // 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    return (0,) * len(conv.stride) if conv.padding == "valid" else conv.padding


def _reach(conv: Any) -> tuple[int, ...]:
    """By how many pixels each axis is too short for the output to have ``ceil(n / stride)`` of them."""
    taps = zip(conv.kernel_size, conv.dilation, _pixels(conv), strict=True)
    return tuple(d * (k - 1) - 2 * p for k, d, p in taps)


def _single_tap(conv: Any) -> bool:
    return max(conv.kernel_size) == 1


def _pool_reach(pool: Any, ceil_mode: bool) -> tuple[int, ...]:
    axes = zip(*(_per_axis(pool, name) for name in ("kernel_size", "dilation", "padding", "stride")), strict=True)
    reach = [(d * (k - 1) - 2 * p, p, s) for k, d, p, s in axes]
    if ceil_mode:  # the last window may stick out, but has to begin inside the image
        return tuple(max(r - (s - 1), -p) for r, p, s in reach)
    return tuple(r for r, _, _ in reach)


def _per_axis(pool: Any, name: str) -> tuple[int, ...]:
    ndim = next(int(b.__name__[-2]) for b in _CENTERED_POOLS if isinstance(pool, b))
    entries: tuple[int, ...] = tuple(ntuple(ndim)(getattr(pool, name, 1)))  # averages know no dilation
    return entries * (ndim // len(entries))


def _unless_zero(reach: tuple[int, ...]) -> dict[str, Any]:
    return {"reach": _brief(reach)} if any(reach) else {}


def _brief(entries: Any) -> Any:
    """One number for all axes if it is the same for all."""
    return entries[0] if isinstance(entries, tuple) and len(set(entries)) == 1 else entries
