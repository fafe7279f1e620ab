"""What networks are made of: which convolution, in how many dimensions, how normalised and pooled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sre_triton import pooling
from sre_triton.gmr import GMRConv2d, GMRConv3d
from sre_triton.invariants.formulas import KINDS
from sre_triton.invariants.layers import AddInvariants2d, AddInvariants3d
from sre_triton.layers import SREConv2d, SREConv3d
from sre_triton.operators.arguments import integer

__all__ = [
    "CONVOLUTIONS",
    "Invariants",
    "InvariantsOption",
    "Parts",
    "checkpointed",
    "invariants_of",
    "per_stage",
    "positive",
]

# Kind of convolution and number of dimensions. "plain" makes the ordinary twin of a ring network.
CONVOLUTIONS: dict[str, dict[int, Callable[..., nn.Module]]] = {
    "sre": {2: SREConv2d, 3: SREConv3d},
    "gmr": {2: GMRConv2d, 3: GMRConv3d},
    "plain": {2: nn.Conv2d, 3: nn.Conv3d},
}
_NORMS: dict[int, Callable[..., nn.Module]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_AVG_POOLS: dict[int, Callable[..., nn.Module]] = {2: pooling.CenteredAvgPool2d, 3: pooling.CenteredAvgPool3d}
_MAX_POOLS: dict[int, Callable[..., nn.Module]] = {2: pooling.CenteredMaxPool2d, 3: pooling.CenteredMaxPool3d}
_INVARIANTS: dict[int, Callable[..., nn.Module]] = {2: AddInvariants2d, 3: AddInvariants3d}
_POOLINGS = ("centered", "reference")

T = TypeVar("T")


class Invariants(NamedTuple):
    """Where a network adds differential invariants, and which.

    Args:
        levels: at how many resolutions (of a ResNet: stages), counted from the finest.
        convolutions: after how many of the convolutions that stand together there, counted from the first.
        kinds, dilations, features: of the layers, see :class:`sre_triton.AddInvariants2d`.
    """

    levels: int = 2
    convolutions: int = 1
    kinds: Sequence[str] = ("gradient", "anisotropy")
    dilations: Sequence[int] = (1,)
    features: int | None = None


InvariantsOption = bool | str | Mapping[str, Any]


def invariants_of(option: InvariantsOption) -> Invariants | None:
    """What a network's option ``invariants`` means: True for the defaults of :class:`Invariants`, a kind by name for
    these defaults of that kind alone, or a mapping of those that differ.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(option, bool):
        return Invariants() if option else None
    known = Invariants._fields
    if isinstance(option, str) and option in KINDS:
        return Invariants(kinds=(option,))
    if not isinstance(option, Mapping) or any(key not in known for key in option):
        raise ValueError(
            f"invariants must be a bool, one of {', '.join(KINDS)}, or a mapping with keys of {', '.join(known)}, "
            f"got {option!r}"
        )
    found = Invariants(**option)
    for name in ("levels", "convolutions"):
        value = getattr(found, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} of invariants must be a positive int, got {value!r}")
    return found


@dataclass(frozen=True)
class Parts:
    """Makes the layers of one network.

    Args:
        conv: "sre", "gmr" or "plain".
        ndim: 2 or 3.
        pooling: "centered", symmetric at every size, or "reference", that of the reference packages.
        antialias: of ring convolutions.
        norm_layer: makes a normalisation of so many channels; None for batch normalisation.
        invariants: where and how invariants are added; None for nowhere.
        device, dtype: of all parameters.

    Raises:
        ValueError: an argument is none of the above.
        TypeError: ``norm_layer`` makes nothing.
    """

    conv: str
    ndim: int
    pooling: str = "centered"
    antialias: bool = False
    norm_layer: Callable[[int], nn.Module] | None = None
    invariants: Invariants | None = None
    device: torch.device | str | None = None
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.conv not in CONVOLUTIONS:
            raise ValueError(f"conv must be one of {', '.join(map(repr, CONVOLUTIONS))}, got {self.conv!r}")
        if self.ndim not in _NORMS:
            raise ValueError(f"a network has 2 or 3 spatial dimensions, got {self.ndim}")
        if self.pooling not in _POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(map(repr, _POOLINGS))}, got {self.pooling!r}")
        if self.norm_layer is not None and not callable(self.norm_layer):
            raise TypeError(
                f"norm_layer must make a normalisation of so many channels, or be None, got {self.norm_layer!r}"
            )
        if self.invariants is not None and self.conv == "plain":
            raise ValueError("invariants are for ring networks; a plain convolution sees lines without them")
        if self.antialias and self.conv == "plain":
            raise ValueError("antialias=True is for ring convolutions; a plain convolution has no rings")

    def convolution(
        self,
        in_channels: int,
        out_channels: int,
        size: int,
        *,
        num_rings: int | None = None,
        groups: int = 1,
        bias: bool = False,
    ) -> nn.Module:
        """A convolution of stride 1 that keeps the size."""
        if not isinstance(size, int) or size < 1 or size % 2 == 0:
            raise ValueError(f"the size of a convolution must be odd and positive, got {size!r}")
        options: dict[str, Any] = {"padding": size // 2, "groups": groups, "bias": bias}
        if self.conv != "plain":
            options |= {"num_rings": num_rings, "antialias": self.antialias}
        elif num_rings is not None:
            raise ValueError(f"num_rings={num_rings} is for ring convolutions; a plain convolution has no rings")
        make = CONVOLUTIONS[self.conv][self.ndim]
        return make(in_channels, out_channels, size, **options, device=self.device, dtype=self.dtype)

    def pointwise(self, in_channels: int, out_channels: int, *, bias: bool = False) -> nn.Module:
        """An ordinary convolution of a single tap, which has nothing to be shared."""
        make = CONVOLUTIONS["plain"][self.ndim]
        return make(in_channels, out_channels, 1, bias=bias, device=self.device, dtype=self.dtype)

    def norm(self, channels: int) -> nn.Module:
        """Normalisation of so many channels."""
        if self.norm_layer is None:
            return _NORMS[self.ndim](channels, device=self.device, dtype=self.dtype)
        return self.norm_layer(channels).to(device=self.device, dtype=self.dtype)

    def add_invariants(self, channels: int, level: int, convolution: int = 0) -> nn.Module | None:
        """What adds invariants after a convolution, counted from 0 among those that stand together, at a resolution,
        counted from 0, the finest; None where nothing does."""
        options = self.invariants
        if options is None or level >= options.levels or convolution >= options.convolutions:
            return None
        return _INVARIANTS[self.ndim](
            channels, options.kinds, options.dilations, features=options.features, device=self.device, dtype=self.dtype
        )

    def avg_pool(self, stride: int) -> nn.Module:
        """Averaging to ``1 / stride`` of the size; nothing at stride 1."""
        if stride == 1:
            return nn.Identity()
        if self.pooling == "reference":
            return (nn.AvgPool2d, nn.AvgPool3d)[self.ndim - 2](stride, stride)
        return _AVG_POOLS[self.ndim](stride)

    def max_pool(self, stride: int, reference: tuple[int, int, int] | None = None) -> nn.Module:
        """Maxima at ``1 / stride`` of the size.

        Args:
            reference: window, stride and padding in the reference, None for ``(stride, stride, 0)``.
        """
        if self.pooling == "reference":
            return (nn.MaxPool2d, nn.MaxPool3d)[self.ndim - 2](*(reference or (stride, stride, 0)))
        return _MAX_POOLS[self.ndim](stride)


def positive(value: int, name: str) -> int:
    """A positive int.

    Raises:
        TypeError: ``value`` is no int; ``name`` says of what.
        ValueError: it is not positive.
    """
    number = integer(value, name)
    if number < 1:
        raise ValueError(f"{name} must be positive, got {value}")
    return number


def per_stage(value: T | Sequence[T], stages: int, name: str) -> tuple[T, ...]:
    """One value per stage from one for all, or from one for each.

    Raises:
        ValueError: there are neither one nor ``stages`` values; ``name`` says of what.
    """
    values: tuple[T, ...] = tuple(value) if isinstance(value, Sequence) else (value,)  # type: ignore[assignment]
    if len(values) == 1:
        values *= stages
    if len(values) != stages:
        raise ValueError(f"{name} must be one value or {stages}, got {value!r}")
    return values


def checkpointed(module: nn.Module, *inputs: Tensor) -> Tensor:
    """``module(*inputs)``, whose intermediate maps are computed again in the backward pass instead of kept.

    Running statistics see every batch once, as without checkpointing.
    """
    if torch.compiler.is_compiling():  # which takes the module for a function without side effects
        return checkpoint(module, *inputs, use_reentrant=False)
    return checkpoint(module, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), _held(module)))


@contextmanager
def _held(module: nn.Module) -> Iterator[None]:
    """Running statistics of ``module`` stay as they are, whatever runs meanwhile."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        # Not track_running_stats=False: it would change what is saved for the backward pass.
        norm.momentum = 0.0
        norm.num_batches_tracked = None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches
