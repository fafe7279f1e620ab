"""Whatever leads to a replaced layer leads to its successor afterwards, or the call is refused and names it."""

from __future__ import annotations

import collections
import copy
import dataclasses
import functools
import itertools
import types
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sre_triton import SREConv2d, convert, fold, report
from tests.conversion.reachability import still_reachable


@dataclasses.dataclass
class Stage:
    layer: Any
    name: str = "stage"


@dataclasses.dataclass(frozen=True)
class FrozenStage:
    layer: Any


class Slots:
    __slots__ = ("layer",)

    def __init__(self, layer: Any) -> None:
        self.layer = layer


class Plain:
    def __init__(self, layer: Any) -> None:
        self.inner = {"layer": [layer]}


Pair = collections.namedtuple("Pair", "layer scale")


class ListOfMine(list[Any]):
    """A list with an attribute."""


def _list_of_mine(layer: nn.Module) -> ListOfMine:
    mine = ListOfMine([layer])
    mine.first = layer  # type: ignore[attr-defined]
    return mine


def _array(layer: nn.Module) -> Any:
    array = np.empty(1, dtype=object)
    array[0] = layer
    return array


# How a network may hold its layer, and how its forward finds that again.
HOLDERS: dict[str, tuple[Callable[[nn.Module], Any], Callable[[Any], Callable[[Tensor], Tensor]]]] = {
    "list": (lambda m: [m], lambda h: h[0]),
    "tuple": (lambda m: (m, (m,)), lambda h: h[1][0]),
    "dict": (lambda m: {"a": {"b": m}}, lambda h: h["a"]["b"]),
    "key": (lambda m: {m: "name", "x": 1}, lambda h: next(iter(h))),
    "tuple in a key": (lambda m: {(m, 1): "name"}, lambda h: next(iter(h))[0]),
    "OrderedDict": (lambda m: collections.OrderedDict(conv=m), lambda h: h["conv"]),
    "defaultdict": (lambda m: collections.defaultdict(list, conv=[m]), lambda h: h["conv"][0]),
    "UserDict": (lambda m: collections.UserDict(conv=m), lambda h: h["conv"]),
    "UserList": (lambda m: collections.UserList([m]), lambda h: h[0]),
    "ChainMap": (lambda m: collections.ChainMap({}, {"conv": m}), lambda h: h["conv"]),
    "deque": (lambda m: collections.deque([m]), lambda h: h[0]),
    "set": (lambda m: {m}, lambda h: next(iter(h))),
    "frozenset": (lambda m: frozenset([m]), lambda h: next(iter(h))),
    "namedtuple": (lambda m: Pair(m, 2), lambda h: h.layer),
    "dataclass": (Stage, lambda h: h.layer),
    "frozen dataclass": (FrozenStage, lambda h: h.layer),
    "slots": (Slots, lambda h: h.layer),
    "object": (Plain, lambda h: h.inner["layer"][0]),
    "SimpleNamespace": (lambda m: types.SimpleNamespace(layer=m), lambda h: h.layer),
    "subclass of list": (_list_of_mine, lambda h: h.first),
    "array of objects": (_array, lambda h: h[0]),
    "partial": (lambda m: functools.partial(m), lambda h: h),
    "partial's argument": (lambda m: functools.partial(lambda f, x: f(x), m), lambda h: h),
    "bound method": (lambda m: m.forward, lambda h: h),
    "call": (lambda m: m.__call__, lambda h: h),
    "parent's bound method": (lambda m: nn.Sequential(m).forward, lambda h: h),
    "cycle": (lambda m: itertools.cycle([m]), next),
}
# These a copy would share with the original, so a copy is refused.
IN_PLACE: dict[str, tuple[Callable[[nn.Module], Any], Callable[[Any], Callable[[Tensor], Tensor]]]] = {
    "weak set": (lambda m: weakref.WeakSet([m]), lambda h: next(iter(h))),
    "weak keys": (lambda m: weakref.WeakKeyDictionary({m: 1}), lambda h: next(iter(h))),
    "weak reference": (lambda m: weakref.ref(m), lambda h: h()),
    "proxy": (lambda m: [weakref.proxy(m)], lambda h: h[0]),
}
_KEPT: list[Any] = []


def _closure(layer: nn.Module) -> Any:
    return lambda x: layer(x)


def _default(layer: nn.Module) -> Any:
    return lambda x, f=layer: f(x)


def _keyword_default(layer: nn.Module) -> Any:
    return lambda x, *, f=layer: f(x)


def _closure_and_attribute(layer: nn.Module) -> Any:
    call = layer.forward

    @functools.wraps(call)
    def wrapped(x: Tensor) -> Tensor:
        return call(x)

    return wrapped


def _nested_closure(layer: nn.Module) -> Any:
    holder = {"f": layer}
    return functools.partial(lambda x: holder["f"](x))


class _KeepsItself:
    """Copies of it are itself."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __deepcopy__(self, memo: Any) -> _KeepsItself:
        return self


# Nothing else can be put into these.
FIXED: dict[str, Callable[[nn.Module], Any]] = {
    "closure": _closure,
    "closure and attribute": _closure_and_attribute,
    "default": _default,
    "keyword default": _keyword_default,
    "method of a tuple": lambda m: (m,).__getitem__,
    "another method": lambda m: m._conv_forward if hasattr(m, "_conv_forward") else m._conv_args,
    "weight": lambda m: {"w": m.weight},
    "weak method": lambda m: weakref.WeakMethod(m.forward),
    "optimizer": lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
    "generator": lambda m: (f for f in [m]),
    "compiled": lambda m: torch.compile(m, backend="eager"),
}


class Net(nn.Module):
    """Registers a layer, and computes with what it finds by another way."""

    def __init__(self, layer: nn.Module, hold: Callable[[nn.Module], Any], get: Any) -> None:
        super().__init__()
        self.conv = layer
        self.held = hold(layer)
        self.get = get

    def forward(self, x: Tensor) -> Tensor:
        return self.get(self.held)(x)


def layer_of(change: Any) -> nn.Module:
    return nn.Conv2d(2, 2, 3, padding=1) if change is convert else SREConv2d(2, 2, 3, padding=1)


def assert_replaced(before: Net, after: Net, change: Any) -> None:
    assert type(after.conv) is (SREConv2d if change is convert else nn.Conv2d)
    assert still_reachable(before, after) == []
    x = torch.randn(1, 2, 5, 5)
    with torch.no_grad():
        after.conv.weight.mul_(2)  # what is found moves with what is registered
    assert torch.equal(after(x), after.conv(x))


@pytest.mark.parametrize("change", [convert, fold])
@pytest.mark.parametrize("name", HOLDERS)
def test_every_way_to_a_layer_leads_to_its_successor(name: str, change: Any) -> None:
    net = Net(layer_of(change), *HOLDERS[name])
    if name == "cycle" and change is fold:
        pytest.skip("the same walk")
    assert_replaced(net, change(net), change)


@pytest.mark.parametrize("name", HOLDERS | IN_PLACE)
def test_in_place_too(name: str) -> None:
    net = Net(layer_of(convert), *(HOLDERS | IN_PLACE)[name])
    old = copy.copy(net)  # holds the layers as they were
    old._modules = dict(net._modules)
    assert convert(net, inplace=True) is net
    assert_replaced(old, net, convert)


@pytest.mark.parametrize("name", [*FIXED, *IN_PLACE])
def test_what_a_copy_shares_with_the_network_is_refused_by_name(name: str) -> None:
    for change in (convert, fold):
        net = Net(layer_of(change), FIXED.get(name) or IN_PLACE[name][0], None)
        with pytest.raises(ValueError, match=r"held.* holds .*conv.* cannot be made to hold|cannot be copied"):
            change(net)
        assert type(net.conv) is type(layer_of(change))


@pytest.mark.parametrize("name", FIXED)
def test_what_cannot_be_changed_is_refused_by_name_and_nothing_is_changed(name: str) -> None:
    net = Net(layer_of(convert), FIXED[name], None)
    before = dict(net._modules)
    with pytest.raises(ValueError, match=r"held.* holds .*conv.* cannot be made to hold"):
        convert(net, inplace=True)
    assert net._modules == before


@pytest.mark.parametrize("inplace", [False, True])
def test_hooks_that_hold_a_layer(inplace: bool) -> None:
    net = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3), nn.ReLU())
    other = net[1]
    net[2].register_forward_hook(lambda m, args, out: out + other.weight.sum())
    with pytest.raises(ValueError, match=r"2\._forward_hooks.*other.* holds|<lambda>.*holds '1"):
        convert(net, inplace=inplace)
    # The network itself is not replaced; a copy would go on with the hook of the original, though.
    net = nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU())
    seen: list[Any] = []
    net[1].register_forward_hook(lambda m, args, out: seen.append(type(net[0])))
    if inplace:
        convert(net, inplace=True)(torch.randn(1, 2, 5, 5))
        assert seen == [SREConv2d]
    else:
        with pytest.raises(ValueError, match=r"holds .the network that was copied"):
            convert(net)


class _Recorder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3)
        self.seen: list[type[nn.Module]] = []
        self.conv.register_forward_hook(self.record)

    def record(self, module: nn.Module, args: Any, output: Any) -> None:
        self.seen.append(type(self.conv))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def test_a_hook_that_is_a_method_of_the_network_goes_with_its_copy() -> None:
    net = _Recorder()
    converted = convert(net)
    converted(torch.randn(1, 2, 5, 5))
    assert converted.seen == [SREConv2d]
    assert net.seen == []


def test_a_copy_leads_nowhere_into_the_original_even_where_nothing_is_replaced() -> None:
    for change in (convert, fold):
        net = Net(nn.Conv2d(2, 2, 1), _closure, None)
        with pytest.raises(ValueError, match="holds 'conv of the network that was copied', Conv2d, and cannot"):
            change(net)
    assert convert(net, inplace=True) is net


def test_an_object_that_copies_to_itself_is_refused() -> None:
    net = Net(layer_of(convert), _KeepsItself, None)
    with pytest.raises(ValueError, match=r"held\.layer|held.*holds 'conv of the network that was copied'"):
        convert(net)


_GLOBAL = nn.Conv2d(2, 2, 3, padding=1)


class _UsesAGlobalName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = _GLOBAL

    def forward(self, x: Tensor) -> Tensor:
        return _GLOBAL(x)


class _UsesItsClass(nn.Module):
    layers: list[nn.Module] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[0](x)


def test_a_global_name_and_an_attribute_of_a_class() -> None:
    for inplace in (False, True):
        with pytest.raises(ValueError, match=r"_UsesAGlobalName.forward.* holds .*conv"):
            convert(_UsesAGlobalName(), inplace=inplace)
    net = _UsesItsClass()
    net.conv = nn.Conv2d(2, 2, 3)
    net.layers.append(net.conv)
    try:
        with pytest.raises(ValueError, match="holds 'conv of the network that was copied'"):
            convert(net)
        convert(net, inplace=True)
        assert net.layers[0] is net.conv
    finally:
        _UsesItsClass.layers.clear()


class _UsesAnAttribute(nn.Module):
    """Its forward says ``_GLOBAL_TOO``, but of itself."""

    def __init__(self) -> None:
        super().__init__()
        self._GLOBAL_TOO = nn.Conv2d(2, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self._GLOBAL_TOO(x)


def test_an_attribute_named_like_a_global_variable() -> None:
    """As in a notebook, where a network is kept as ``net`` and calls its ``self.net``."""
    global _GLOBAL_TOO
    for _GLOBAL_TOO in (net := _UsesAnAttribute(), net._GLOBAL_TOO):
        ring = convert(net)
        assert isinstance(ring._GLOBAL_TOO, SREConv2d)
        assert isinstance(fold(ring)._GLOBAL_TOO, nn.Conv2d)
    _GLOBAL_TOO = ring
    assert report(ring, torch.rand(1, 2, 5, 5)).symmetry is not None
    del _GLOBAL_TOO


class _CallsItself(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return _WHOLE[0].conv(x)


_WHOLE: list[Any] = []


def test_a_refusal_names_the_network_itself() -> None:
    net = _CallsItself()
    _WHOLE.append(net)
    try:
        with pytest.raises(ValueError, match=r"^\(_CallsItself.forward\)._WHOLE holds 'the network that was copied',"):
            convert(net)
    finally:
        _WHOLE.clear()


@pytest.mark.parametrize("view", [lambda w: w.data, lambda w: w.detach().view(-1)[3:], lambda w: w.detach()[0]])
def test_memory_of_a_replaced_weight(view: Callable[[Tensor], Tensor]) -> None:
    net = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 1))
    net.flat = [view(net[0].weight)]  # type: ignore[assignment]
    with pytest.raises(ValueError, match="flat holds a view of 'weight of 0' and cannot be made to hold"):
        convert(net, inplace=True)
    net.flat = [net[0].bias.detach(), net[1].weight.detach()]  # type: ignore[assignment]
    convert(net, inplace=True)


def test_parts_of_one_memory_that_are_not_replaced_may_be_held() -> None:
    net = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Linear(4, 2))
    flat = torch.randn(36 + 8)
    net[0].weight = nn.Parameter(flat[:36].view(2, 2, 3, 3))
    net.flat = [flat[36:]]  # type: ignore[assignment]
    convert(net, inplace=True)
    net = nn.Sequential(nn.Conv2d(2, 2, 3))
    net[0].weight = nn.Parameter(flat[:36].view(2, 2, 3, 3))
    net.flat = [flat]  # type: ignore[assignment]
    with pytest.raises(ValueError, match="flat holds a view"):
        convert(net, inplace=True)
