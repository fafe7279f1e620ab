"""What a layer does beside what its class does: kept, left alone and reported, or refused, by one rule."""

from __future__ import annotations

import random
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import sre_triton
from sre_triton import SREConv2d, convert, fold, report
from sre_triton.conversion.padding import RepeatedPad
from sre_triton.models import sre_resnet18
from sre_triton.pooling import CenteredAvgPool2d


def subclass(base: type[Any], **members: Any) -> type[Any]:
    return types.new_class("Mine", (base,), exec_body=lambda namespace: namespace.update(members))


def _call(self: Any, *args: Any) -> Tensor:
    return 2 * nn.Module.__call__(self, *args)


def _gain(self: Any) -> float:
    return 2.0


# Members of a subclass that make it another layer.
MEMBERS: dict[str, dict[str, Any]] = {
    "forward": {"forward": lambda self, input: 2 * input},
    "__call__": {"__call__": _call},
    "_call_impl": {"_call_impl": _call},
    "_conv_forward": {"_conv_forward": lambda self, x, w, b: x},
    "get_extra_state": {"get_extra_state": lambda self: 1, "set_extra_state": lambda self, state: None},
    "gain": {"gain": _gain},
    "_apply": {"_apply": lambda self, fn, recurse=True: self},
    "threshold": {"threshold": property(_gain)},
    "stride": {"stride": (2, 2)},
    "__getattr__": {"__getattr__": lambda self, name: nn.Module.__getattr__(self, name)},
}


@pytest.mark.parametrize("name", MEMBERS)
def test_a_subclass_with_members_of_its_own_is_left_or_refused(name: str) -> None:
    net = nn.Sequential(nn.Conv2d(2, 2, 3), subclass(nn.Conv2d, **MEMBERS[name])(2, 2, 3))
    converted = convert(net)
    assert type(converted[1]) is type(net[1])
    assert type(converted[0]) is SREConv2d
    (left,) = report(converted).left
    shown = "get_extra_state" if name == "get_extra_state" else name
    assert left.note == f"Mine has a {shown} of its own"
    rings = nn.Sequential(subclass(SREConv2d, **MEMBERS[name])(2, 2, 3))
    with pytest.raises(ValueError, match=f"'0', Mine, Mine has a {shown} of its own, which folding would lose"):
        fold(rings)


@pytest.mark.parametrize("pool", [nn.MaxPool2d, nn.AvgPool2d])
def test_a_pooling_with_members_of_its_own_is_left(pool: Any) -> None:
    net = nn.Sequential(subclass(pool, __call__=_call)(2))
    x = torch.randn(1, 2, 6, 6)
    assert torch.equal(convert(net)(x), net(x))


def test_a_mixin_counts_and_a_constructor_does_not() -> None:
    class Mixin:
        def gain(self) -> float:
            return 2.0

    class Mixed(nn.Conv2d, Mixin):
        pass

    class Three(nn.Conv2d):
        """Only a constructor and a printed form."""

        def __init__(self, channels: int) -> None:
            super().__init__(channels, channels, 3, padding=1)
            self.tag = "three"

        def extra_repr(self) -> str:
            return "three"

    net = nn.Sequential(Mixed(2, 2, 3), Three(2))
    converted: Any = convert(net)
    assert type(converted[0]) is Mixed
    assert type(converted[1]) is SREConv2d
    assert converted[1].tag == "three"


# What is refused on either side, by what it is made of.

REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "forward": (lambda c: setattr(c, "forward", lambda x: x), "has had its forward replaced"),
    "bound forward": (
        lambda c: setattr(c, "forward", types.MethodType(lambda self, x: x, c)),
        "has had its forward replaced",
    ),
    "_call_impl": (lambda c: setattr(c, "_call_impl", lambda x: x), "has had its _call_impl replaced"),
    "train": (lambda c: setattr(c, "train", lambda mode=True: c), "has had its train replaced"),
    "compiled": (lambda c: c.compile(backend="eager"), "has had its _compiled_call_impl replaced"),
    "parameter": (lambda c: setattr(c, "gain", nn.Parameter(torch.ones(1))), "has parameters, buffers or modules that"),
    "buffer": (lambda c: c.register_buffer("gain", torch.ones(1)), "has parameters, buffers or modules that"),
    "module": (lambda c: setattr(c, "after", nn.ReLU()), "has parameters, buffers or modules that"),
    "parametrized": (nn.utils.parametrizations.weight_norm, "is parametrized"),
    "old weight norm": (nn.utils.weight_norm, "does not hold its weight as a parameter"),
    "spectral norm": (nn.utils.spectral_norm, "does not hold its weight as a parameter"),
    "pruned": (
        lambda c: prune.l1_unstructured(c, "weight", 0.5),
        "does not hold its weight as a parameter",
    ),
    "state dict hook": (lambda c: c.register_state_dict_post_hook(lambda *a: None), "has hooks on its state dict"),
    "weight read by a hook": (
        lambda c: c.register_forward_hook(lambda m, args, out: out * m.weight.mean()),
        "has a hook that reads 'weight'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_neither_could_keep_is_refused_by_name(name: str) -> None:
    spoil, message = REFUSED[name]
    for change, layer in ((convert, nn.Conv2d(2, 2, 3)), (fold, SREConv2d(2, 2, 3))):
        net = nn.Sequential(nn.ReLU(), layer)
        spoil(net[1])
        with pytest.raises(ValueError, match=rf"'1', .*{message}"):
            change(net)  # type: ignore[operator]


def test_what_a_hook_reads_has_to_be_there() -> None:
    ring = nn.Sequential(SREConv2d(2, 2, 3))
    ring[0].register_forward_hook(lambda m, args, out: out * m.num_rings)
    with pytest.raises(ValueError, match="'0', SREConv2d, has a hook that reads 'num_rings', which Conv2d has not"):
        fold(ring)
    strided = nn.Sequential(nn.Conv2d(2, 2, 3, 2, 1))
    strided[0].register_forward_pre_hook(lambda m, args: args[0] * m.out_channels)
    with pytest.raises(ValueError, match="has a hook that reads 'out_channels', which Sequential has not"):
        convert(strided)


@pytest.mark.parametrize("change", [convert, fold])
def test_attributes_of_layers_and_weights_go_with_them(change: Any) -> None:
    layer: Any = nn.Conv2d(2, 2, 3) if change is convert else SREConv2d(2, 2, 3)
    layer.scale = 2.0
    layer.register_forward_hook(lambda m, args, out: out * m.scale)
    layer.weight._no_weight_decay = True
    layer.bias.lr_mult = 0.1
    linear: Any = nn.Linear(2, 2)
    linear.weight.lr_mult = 3
    net = nn.Sequential(layer, linear)
    after: Any = change(net)
    assert after[0].scale == 2
    assert after[0].weight._no_weight_decay
    assert after[0].bias.lr_mult == 0.1
    assert after[1].weight.lr_mult == 3
    x = torch.randn(1, 2, 4, 4)
    bare = after[0]
    expected = 2 * type(bare).forward(bare, x)
    assert torch.equal(bare(x), expected)


def test_a_reset_keeps_attributes() -> None:
    layer: Any = nn.Conv2d(2, 2, 3)
    layer.weight.lr_mult, layer.bias.lr_mult = 2, 3
    after: Any = convert(layer, weights="reset")
    assert (after.weight.lr_mult, after.bias.lr_mult) == (2, 3)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_gradient_hooks_of_a_weight(register: str, inplace: bool) -> None:
    net = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 1), nn.Flatten(), nn.Linear(2, 1))
    seen: list[str] = []
    for i in (1, 3):
        getattr(net[i].weight, register)(lambda g, i=i: seen.append(str(i)))
    converted = convert(net, inplace=inplace)
    converted(torch.randn(1, 2, 3, 3)).sum().backward()
    assert sorted(seen) == ["1", "3"]
    getattr(net[0].weight, register)(lambda g: None)
    if not inplace:
        with pytest.raises(ValueError, match=r"'0', .*has hooks on the gradient of its weight"):
            convert(net)


class _Holds(nn.Module):
    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.layers = nn.Sequential(conv)


class _ReadsTheWeight(_Holds):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv(x), self.conv.weight.square().sum()


class _ReadsTheWeightByNumber(_Holds):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv(x), self.layers[0].weight.square().sum()


class _AsksForTheDtype(_Holds):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.to(self.conv.weight.dtype))


@pytest.mark.parametrize("kind", [_ReadsTheWeight, _ReadsTheWeightByNumber])
def test_a_weight_that_the_network_computes_with_is_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match=rf"'0\.conv', Conv2d, has a weight that {kind.__name__}\.forward reads"):
        convert(nn.Sequential(kind(nn.Conv2d(2, 2, 3))))
    with pytest.raises(ValueError, match=rf"'conv', SREConv2d, has ring weights that {kind.__name__}\.forward reads"):
        fold(kind(SREConv2d(2, 2, 3)))


def test_a_weight_may_be_asked_for_its_dtype() -> None:
    assert type(convert(_AsksForTheDtype(nn.Conv2d(2, 2, 3))).conv) is SREConv2d
    assert type(fold(_AsksForTheDtype(SREConv2d(2, 2, 3))).conv) is nn.Conv2d


class _Features(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = sre_resnet18(inplanes=4, num_classes=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.net.forward_features(x)


def test_a_method_that_a_graph_will_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'net', ResNet, has a method forward_features, of which _Features\.forward"):
        fold(_Features().eval())


def test_hooks_within_a_network_of_this_package_run_at_every_call() -> None:
    net = sre_resnet18(inplanes=4, num_classes=2).eval()
    seen: list[tuple[int, ...]] = []
    net.layer2[0].register_forward_hook(lambda m, args, out: seen.append(tuple(out.shape)))
    folded = fold(net)
    assert seen == []
    x = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(folded(x), net(x), rtol=1e-4, atol=1e-5)
    assert len(seen) == 2
    assert seen[0] == seen[1]


def test_attributes_of_a_pooling_are_there_for_its_hooks() -> None:
    net = nn.Sequential(CenteredAvgPool2d(2))
    net[0].register_forward_hook(lambda m, args, out: out * m.stride)
    x = torch.randn(1, 2, 6, 6)
    assert torch.equal(fold(net)(x), net(x))
    net[0].forward = lambda x: x
    with pytest.raises(ValueError, match="'0', CenteredAvgPool2d, has had its forward replaced"):
        fold(net)


def test_shared_rings_and_weights_are_shared_still() -> None:
    a, b = SREConv2d(2, 2, 5), SREConv2d(2, 2, 5, padding=1)
    b.weight = a.weight
    folded: Any = fold(nn.ModuleList([a, b, a]))
    assert folded[0] is folded[2]
    assert folded[0].weight is folded[1].weight


def test_a_layer_that_cannot_be_copied_is_named() -> None:
    net = nn.Sequential(nn.Conv2d(2, 2, 3), nn.utils.weight_norm(nn.Linear(2, 2)))
    for change in (convert, fold, lambda m: report(m, torch.randn(1, 2, 5, 5))):
        with pytest.raises(ValueError, match="'1', Linear, holds a computed tensor, 'weight'"):
            change(net)
    net = nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU())
    seen: dict[str, Any] = {}
    seen["first"] = [seen]
    net[1].seen = seen  # type: ignore[assignment]
    net[0].register_forward_hook(lambda m, args, out: seen.update(last=[out]))
    net(torch.randn(1, 2, 5, 5))
    with pytest.raises(ValueError, match="'1', ReLU, holds a computed tensor, 'seen'"):
        convert(net)


def test_complex_layers() -> None:
    with pytest.raises(TypeError, match=r"dtype must be a floating dtype or None, got torch\.complex64"):
        SREConv2d(2, 2, 3, dtype=torch.complex64)
    net = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3, dtype=torch.complex64))
    converted = convert(net)
    assert type(converted[0]) is SREConv2d
    assert type(converted[1]) is nn.Conv2d
    assert report(converted).left[0].note == "its weight is of torch.complex64: ring kernels are of floating dtypes"


def test_padding_that_a_layer_follows_in_part_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"))
    net[0].padding = (2, 2)
    with pytest.raises(ValueError, match="'0', Conv2d, has had its padding or padding_mode changed"):
        convert(net)


@pytest.mark.parametrize("mode", ["reflect", "circular"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_a_repeated_pad_is_that_of_pytorch_and_goes_on(mode: str, ndim: int) -> None:
    x = torch.randn(2, 3, *[5, 4, 6][:ndim], dtype=torch.float64)
    for widths in ((1, 2, 3), (3, 3, 3), (0, 1, 0)):
        pad = widths[:ndim]
        expected = nn.functional.pad(x, [p for p in reversed(pad) for _ in range(2)], mode=mode)
        assert torch.equal(RepeatedPad(pad, mode)(x), expected)
        assert torch.equal(RepeatedPad(pad, mode)(x[0]), expected[0])
    for size in (1, 2, 3):
        small = torch.randn(1, 1, *[size] * ndim)
        wide = np.pad(
            small.numpy(), [(0, 0), (0, 0), *[(7, 7)] * ndim], mode="reflect" if mode == "reflect" else "wrap"
        )
        assert np.array_equal(RepeatedPad((7,) * ndim, mode)(small).numpy(), wide)
    with pytest.raises(ValueError, match="mode must be 'reflect' or 'circular', got 'zeros'"):
        RepeatedPad((1,), "zeros")


def _random_strided(rng: Any) -> tuple[nn.Module, Tensor, dict[str, Any]]:
    ndim = rng.choice([1, 2, 2, 3])
    k, d = rng.choice([1, 3, 5, 7]), rng.choice([1, 1, 2])
    mode = rng.choice(["reflect", "circular", "replicate", "zeros"])
    padding = rng.choice(["valid", *range(d * (k - 1) // 2 + 1)])
    conv = getattr(nn, f"Conv{ndim}d")(2, 2, k, rng.choice([1, 2, 3]), padding, d, padding_mode=mode).double()
    size = [rng.randint(1, 12) for _ in range(ndim)]
    return conv, torch.randn(1, 2, *size, dtype=torch.float64), {"kernel_size": rng.choice([None, None, 9])}


def test_strided_and_grown_layers_run_wherever_they_did() -> None:
    """Of 600 random layers and sizes every one that ran still runs, to the same size; folded, to the same values."""
    rng, ran = random.Random(0), 0
    for _ in range(600):
        conv, x, options = _random_strided(rng)
        try:
            expected = conv(x)
        except RuntimeError:
            continue
        ran += 1
        converted = convert(conv, **options)
        y = converted(x)
        assert y.shape == expected.shape, (conv, x.shape, options)
        if ran % 20 == 0:
            torch.testing.assert_close(fold(converted)(x), y, rtol=1e-10, atol=1e-12)
    assert ran > 300


def test_a_reference_network_pools_as_it_did_when_folded() -> None:
    net = sre_triton.models.SREUNet(pooling="reference", features=(4, 4, 8)).eval()
    folded = fold(net, fuse_batchnorm=True)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    for size in ((16, 16), (13, 18)):
        x = torch.randn(1, 3, *size)
        torch.testing.assert_close(folded(x), net(x), rtol=1e-4, atol=1e-5)
