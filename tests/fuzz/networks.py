"""Random networks with what people do to them: nested, shared, held in odd containers, hooked, spoiled, untraceable.

``draw(seed)`` is always the same network. Kernels are constant on rings, so that converting them changes no value.
"""

from __future__ import annotations

import collections
import functools
import itertools
import random
import types
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from sre_triton import GMRConv2d, SREConv2d, SREConvTranspose2d, expand_kernel
from sre_triton.geometry.rings import default_num_rings
from sre_triton.pooling import CenteredAvgPool2d, CenteredMaxPool2d

__all__ = ["Drawn", "draw"]


@dataclass
class Drawn:
    """A network and what is known of it.

    Attributes:
        spoiled: what was done to it that ``convert`` or ``fold`` may refuse; empty if neither may.
        calls: grows by one entry with every call of a layer that has a hook.
    """

    net: nn.Module
    x: Tensor
    spoiled: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)


# Parents ----------------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return x + y if x.shape == y.shape else y


class Iterated(nn.Module):
    """Goes through its layers one by one and looks at what each gives."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.f = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros((), dtype=x.dtype)
        for layer in self.f:
            x = layer(x)
            total = total + x.mean()
        return x + total


class Untraceable(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return y if y.sum() < 1e9 else -y


class ReachesIn(nn.Module):
    """Calls a part, and the first layer of it once more."""

    def __init__(self, body: nn.Sequential) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        first = self.body[0](x)
        return self.body(x) + first.mean() if first.sum() < 1e9 else first


class Entries(nn.Module):
    """Has another way in than ``forward``."""

    def __init__(self, body: nn.Sequential, channels: int) -> None:
        super().__init__()
        self.body, self.channels = body, channels

    def features(self, x: Tensor) -> Tensor:
        return self.body[0](x)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Twice(nn.Module):
    """The same layer on two ways."""

    def __init__(self, body: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.left, self.right, self.other = body, nn.Sequential(body), other

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.left(x)) + self.other(self.right(2 * x))


class Skips(nn.Module):
    """A convolution whose output goes to a normalisation and past it."""

    def __init__(self, conv: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y + self.norm(y)


class Reads(nn.Module):
    """Computes with the weight of a layer."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.conv.weight.square().mean()


class Keeps(nn.Module):
    """Keeps what it computes as an attribute."""

    def __init__(self, conv: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm

    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.conv(x).detach()
        return self.norm(self.conv(x)) + self.kept.mean()


class Counts(nn.Module):
    """Changes a buffer and a list at every call, and asks for the dtype of a weight."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.history: list[int] = []
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.history.append(1)
        weight = getattr(self.conv, "weight", x)
        return self.conv(x.to(weight.dtype))


class Holder(nn.Module):
    """Registers a layer, and finds it by another way."""

    def __init__(self, layer: nn.Module, hold: Callable[[nn.Module], Any], get: Callable[[Any], Any]) -> None:
        super().__init__()
        self.layer = layer
        self.held = hold(layer)
        self.get = get

    def forward(self, x: Tensor) -> Tensor:
        return self.get(self.held)(x)


Pair = collections.namedtuple("Pair", "layer scale")


@dataclass(frozen=True)
class Stage:
    layer: Any


class Slots:
    __slots__ = ("layer",)

    def __init__(self, layer: Any) -> None:
        self.layer = layer


FOLLOWED: list[tuple[Callable[[nn.Module], Any], Callable[[Any], Any]]] = [
    (lambda m: [m], lambda h: h[0]),
    (lambda m: ((m,), 1), lambda h: h[0][0]),
    (lambda m: {"a": [m]}, lambda h: h["a"][0]),
    (lambda m: {m: 1}, lambda h: next(iter(h))),
    (lambda m: collections.OrderedDict(a=m), lambda h: h["a"]),
    (lambda m: collections.defaultdict(list, a=[m]), lambda h: h["a"][0]),
    (lambda m: collections.UserDict(a=m), lambda h: h["a"]),
    (lambda m: collections.deque([m]), lambda h: h[0]),
    (lambda m: {m}, lambda h: next(iter(h))),
    (lambda m: frozenset([m]), lambda h: next(iter(h))),
    (lambda m: Pair(m, 2), lambda h: h.layer),
    (Stage, lambda h: h.layer),
    (Slots, lambda h: h.layer),
    (lambda m: types.SimpleNamespace(layer=m), lambda h: h.layer),
    (functools.partial, lambda h: h),
    (lambda m: m.forward, lambda h: h),
    (lambda m: m.__call__, lambda h: h),
]
FIXED: list[tuple[Callable[[nn.Module], Any], Callable[[Any], Any]]] = [
    (lambda m: lambda x: m(x), lambda h: h),
    (lambda m: lambda x, f=m: f(x), lambda h: h),
    (weakref.ref, lambda h: h()),
    (lambda m: [weakref.proxy(m)], lambda h: h[0]),
    (lambda m: (m, list(m.parameters())), lambda h: h[0]),
]


# Layers -----------------------------------------------------------------------------------------------


class Doubled(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Called(nn.Conv2d):
    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return 2 * super().__call__(*args, **kwargs)


class Gain(SREConv2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Tagged(nn.Conv2d):
    """Nothing of its own but a constructor."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tag = "tagged"


def _scale(module: Any, args: Any, output: Tensor) -> Tensor:
    return output * getattr(module, "scale", 1.5)


class _Artist:
    """Draws a network, with numbers of one generator alone."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.spoiled: list[str] = []
        self.calls: list[str] = []
        self.wild = rng.random() < 0.5  # whether anything is done to it that may be refused

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def spoil(self, what: str) -> bool:
        """Whether to do something that may be refused."""
        if self.wild and self.chance(0.12):
            self.spoiled.append(what)
            return True
        return False

    def conv(self, i: int, o: int) -> nn.Module:
        r = self.rng
        groups = r.choice([1, 1, 1, 2]) if i % 2 == 0 and o % 2 == 0 else 1
        k, bias = r.choice([1, 3, 3, 3, 5]), self.chance(0.6)
        kind = r.choice(["conv", "conv", "conv", "conv", "ring", "mixed ring", "transposed", "ring transposed", "even"])
        if kind == "even":
            return self.touched(nn.Conv2d(i, o, 2, padding=1, bias=bias))
        if kind == "transposed":
            size, stride = r.choice([(3, 1), (2, 2)])
            layer = nn.ConvTranspose2d(i, o, size, stride, size // 2 * (stride == 1), groups=groups, bias=bias)
            return self.touched(layer)
        if kind == "ring transposed":
            return self.touched(SREConvTranspose2d(i, o, 3, r.choice([1, 2]), 1, groups=groups, bias=bias))
        dilation, stride = r.choice([1, 1, 1, 2]), r.choice([1, 1, 1, 2])
        padding: Any = r.choice([k // 2 * dilation, k // 2, 0, *(["same"] if stride == 1 else [])])
        mode = r.choice(["zeros", "zeros", "reflect", "replicate", "circular"])
        options = {"groups": groups, "bias": bias, "padding_mode": mode}
        if kind != "conv":
            cls: Any = SREConv2d if kind == "ring" else GMRConv2d
            if kind == "ring" and self.spoil("subclass of a ring layer"):
                cls = Gain
            antialias = self.chance(0.3)
            return self.touched(cls(i, o, k, stride, padding, dilation, **options, antialias=antialias))
        cls = nn.Conv2d
        if self.chance(0.15):
            cls = r.choice([Doubled, Called, Tagged])
        return self.touched(cls(i, o, k, stride, padding, dilation, **options))

    def touched(self, layer: Any) -> nn.Module:
        """The layer after somebody has done something to it."""
        size = layer.kernel_size
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)) and size[0] % 2:
            rings = torch.randn(*layer.weight.shape[:2], default_num_rings(size[0])) * 0.5
            with torch.no_grad():
                layer.weight.copy_(expand_kernel(rings, size))
        if self.chance(0.1):
            layer.scale = 0.5
        if self.chance(0.1):
            layer.register_forward_hook(_scale)
        if self.chance(0.1):
            calls = self.calls
            layer.register_forward_pre_hook(lambda m, args: calls.append("called"))
        if self.chance(0.1):
            layer.weight.requires_grad_(False)
        if self.chance(0.1):
            layer.weight.lr_mult = 2.0
        if self.spoil("layer"):
            self.rng.choice(
                [
                    lambda: parametrizations.weight_norm(layer),
                    lambda: prune.l1_unstructured(layer, "weight", 0.3),
                    lambda: nn.utils.weight_norm(layer),
                    lambda: setattr(layer, "forward", lambda x: 2 * type(layer).forward(layer, x)),
                    lambda: layer.register_parameter("extra", nn.Parameter(torch.ones(1))),
                    lambda: layer.register_state_dict_post_hook(lambda *args: None),
                    lambda: layer.register_forward_hook(lambda m, args, out: out * m.weight.mean()),
                    lambda: layer.register_forward_hook(lambda m, args, out: out * len(m.kernel_size)),
                    lambda: layer.weight.requires_grad_().register_hook(lambda g: 2 * g),
                ]
            )()
        return layer

    def norm(self, channels: int) -> nn.Module:
        r = self.rng
        norm: Any = nn.BatchNorm2d(channels, affine=self.chance(0.8), track_running_stats=self.chance(0.9))
        if norm.running_mean is not None:
            nn.init.normal_(norm.running_mean, 0, 0.3)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
        if norm.weight is not None:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.3)
        if self.chance(0.05):
            norm.register_forward_hook(_scale)
        return norm if self.chance(0.9) else r.choice([nn.Identity(), nn.GroupNorm(1, channels)])

    def small(self, channels: int) -> nn.Module:
        r = self.rng
        return r.choice(
            [
                lambda: nn.ReLU(inplace=self.chance(0.5)),
                nn.Identity,
                lambda: nn.MaxPool2d(2, ceil_mode=self.chance(0.5)),
                lambda: nn.MaxPool2d(3, 2, 1),
                lambda: nn.AvgPool2d(2),
                CenteredAvgPool2d,
                CenteredMaxPool2d,
                nn.SiLU,
            ]
        )()

    def block(self, i: int, o: int) -> nn.Sequential:
        layers = [self.conv(i, o)]
        if self.chance(0.8):
            layers.append(self.norm(o))
        if self.chance(0.5):
            layers.append(self.small(o))
        return nn.Sequential(*layers)

    def part(self, i: int, o: int, depth: int) -> nn.Module:
        r = self.rng
        kind = r.choice(
            [
                "block", "block", "sequence", "sequence", "residual", "iterated", "untraceable", "reaches in",
                "entries", "twice", "skips", "reads", "keeps", "counts", "held", "held", "fixed",
            ]
        )  # fmt: skip
        if kind == "sequence" and depth > 0:
            middle = r.choice([2, 4])
            return nn.Sequential(self.part(i, middle, depth - 1), self.part(middle, o, depth - 1))
        if kind == "residual":
            return Residual(self.part(i, o, depth - 1) if depth > 0 else self.block(i, o))
        if kind == "iterated":
            return Iterated(*self.block(i, o))
        if kind == "untraceable":
            return Untraceable(self.part(i, o, depth - 1) if depth > 0 else self.block(i, o))
        if kind == "reaches in":
            return ReachesIn(self.block(i, o))
        if kind == "entries":
            return Entries(self.block(i, o), i)
        if kind == "twice":
            return Twice(self.conv(i, o), self.norm(o))
        if kind == "skips":
            return Skips(self.conv(i, o), self.norm(o))
        if kind == "reads" and self.spoil("weight that is read"):
            return Reads(self.conv(i, o))
        if kind == "keeps":
            return Keeps(self.conv(i, o), self.norm(o))
        if kind == "counts":
            return Counts(self.conv(i, o))
        if kind == "held":
            return Holder(self.conv(i, o), *r.choice(FOLLOWED))
        if kind == "fixed" and self.spoil("reference that cannot be changed"):
            return Holder(self.conv(i, o), *r.choice(FIXED))
        return self.block(i, o)


def draw(seed: int) -> Drawn:
    """A network of 2-D layers in float64, in train or eval mode, and an input on which it runs."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    while True:
        artist = _Artist(rng)
        channels = [rng.choice([2, 4]) for _ in range(rng.choice([2, 3, 3, 4]))]
        parts = [artist.part(i, o, 2) for i, o in itertools.pairwise(channels)]
        if artist.chance(0.2):  # the same part again
            parts += [p for p in parts[:1] if channels[-1] == channels[0]]
        net = nn.Sequential(*parts)
        if artist.chance(0.3):
            layers = [m for m in net.modules() if type(m) is nn.Conv2d]
            first = next((m for m in layers if m.kernel_size == (3, 3)), None)
            for other in layers if first is not None and "weight" in first._parameters else ():
                same = other.weight.shape == first.weight.shape and "weight" in other._parameters
                if same and other is not first:
                    other.weight = first.weight
                    artist.spoiled.append("tied weights")
        if artist.chance(0.2):
            net = nn.Sequential(collections.OrderedDict(stem=net, head=nn.Sequential(nn.AdaptiveAvgPool2d(2))))
        net = net.double()
        net.train(artist.chance(0.3))
        size = rng.randint(6, 13)
        x = torch.randn(2, channels[0], size, size + rng.choice([0, 0, 3]), dtype=torch.float64)
        try:
            with torch.no_grad():
                y = net(x)
        except (RuntimeError, ValueError):  # too small a map, or one pixel to be normalised
            continue
        if y.numel() and torch.isfinite(y).all() and y.abs().max() < 1e6:
            artist.calls.clear()
            return Drawn(net, x, artist.spoiled, artist.calls)
