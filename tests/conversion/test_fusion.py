"""A batch normalisation is folded into a convolution where that is proven to change nothing, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from sre_triton import SREConv2d, SREConvTranspose2d, fold
from sre_triton.conversion.fusion import fuse_batch_norms
from sre_triton.models import SREUNet, fold_batch_norm, sre_resnet18
from tests.models.networks import as_if_trained


def pair() -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)


def ready(net: nn.Module) -> nn.Module:
    return as_if_trained(net).double().eval()


class _Pair(nn.Module):
    """A convolution and a normalisation, called in that order."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = pair()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class _Iterated(nn.Module):
    """A Sequential that its parent goes through layer by layer, so that every output is seen."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Sequential(*pair(), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        seen = []
        for layer in self.f:
            x = layer(x)
            seen.append(x)
        if x.sum() > 1e9:  # it cannot be traced
            x = -x
        return torch.cat(seen, 1)


class _Indexed(_Iterated):
    def forward(self, x: Tensor) -> Tensor:
        y = self.f[0](x)
        return y + self.f(x) if x.sum() < 1e9 else y


class _Sliced(_Iterated):
    def forward(self, x: Tensor) -> Tensor:
        stem = self.f[:1]
        return stem(x) + self.f(x) if x.sum() < 1e9 else x


class _ReachesIn(nn.Module):
    """Uses a layer of a part that is traced by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.part = _Pair()

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            return x
        return self.part(x) + self.part.conv(x)


class _ReachesInByName(_ReachesIn):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            return x
        return self.part(x) + self.get_submodule("part.conv")(x)


class _ReachesInByChildren(_ReachesIn):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            return x
        (part,) = self.children()
        return self.part(x) + part.conv(x)


class _HelperReachesIn(_ReachesIn):
    def _stem(self, x: Tensor) -> Tensor:
        return self.part.conv(x)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            return x
        return self.part(x) + self._stem(x)


class _ReadsParameter(_Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) * self.conv.weight.sum()


class _ReadsStatistics(_Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) * self.norm.running_mean.sum()


class _UsedTwice(_Pair):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y + self.norm(y)


class _CalledTwice(_Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.conv(x)))


class _KeepsOutput(_Pair):
    def forward(self, x: Tensor) -> Tensor:
        self.kept = [self.conv(x)]
        return self.norm(self.kept[0])


class _HeldElsewhere(_Pair):
    def __init__(self) -> None:
        super().__init__()
        self.taps = {"stem": self.conv}

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            return x
        return self.norm(self.conv(x)) + self.taps["stem"](x)


class _PartHeldElsewhere(nn.Module):
    """Uses the convolution of a part, which it reaches by a list that holds the part itself."""

    def __init__(self) -> None:
        super().__init__()
        self.part = _Pair()
        self.parts = [self.part]

    def forward(self, x: Tensor) -> Tensor:
        first = next(iter(self.parts))
        return self.part(x) + first.conv(x) if x.sum() < 1e9 else x


class _Backwards(nn.Module):
    """Layers that stand side by side in a list, and are called the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.ModuleList(pair())

    def forward(self, x: Tensor) -> Tensor:
        return self.f[0](self.f[1](x)) if x.sum() < 1e9 else x


UNPROVEN: list[type[nn.Module]] = [
    _Iterated, _Indexed, _Sliced, _ReachesIn, _ReachesInByName, _ReachesInByChildren, _HelperReachesIn,
    _ReadsParameter, _ReadsStatistics, _UsedTwice, _CalledTwice, _KeepsOutput, _HeldElsewhere,
    _PartHeldElsewhere, _Backwards,
]  # fmt: skip


@pytest.mark.parametrize("kind", UNPROVEN)
def test_what_is_used_elsewhere_too_is_not_fused(kind: Any) -> None:
    for net in (ready(kind()), ready(nn.Sequential(kind(), nn.ReLU()))):
        folded = fold(net, fuse_batchnorm=True)
        x = torch.randn(1, 2, 6, 6, dtype=torch.float64)
        torch.testing.assert_close(folded(x), net(x), rtol=1e-11, atol=1e-11)
        assert any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())


class _OtherEntry(_Pair):
    def features(self, x: Tensor) -> Tensor:
        return self.conv(x)


class _OtherEntryWithin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = _Pair()

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x)

    def features(self, x: Tensor) -> Tensor:
        return self.part.conv(x)


class _OtherEntryByNumber(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(*pair())

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x)

    def features(self, x: Tensor) -> Tensor:
        return self.part[0](x)


class _OtherEntryByGetattr(_OtherEntryWithin):
    def features(self, x: Tensor, name: str = "part") -> Tensor:
        return getattr(self, name).conv(x)


class _OtherEntryByProperty(_OtherEntryWithin):
    @property
    def stem(self) -> nn.Module:
        return self.part.conv

    def features(self, x: Tensor) -> Tensor:
        return self.stem(x)


class _SequentialWithEntry(nn.Sequential):
    def features(self, x: Tensor) -> Tensor:
        return self[0](x)


@pytest.mark.parametrize(
    "make",
    [
        _OtherEntry, _OtherEntryWithin, _OtherEntryByNumber, _OtherEntryByGetattr, _OtherEntryByProperty,
        lambda: _SequentialWithEntry(*pair()),
    ],
)  # fmt: skip
def test_other_methods_than_forward_go_on_as_they_were(make: Callable[[], Any]) -> None:
    net: Any = ready(make())
    folded: Any = fold(net, fuse_batchnorm=True)
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(folded.features(x), net.features(x), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(folded(x), net(x), rtol=1e-11, atol=1e-11)


class _Harmless(nn.Module):
    """What must not stand in the way: methods that take no input, that call whole parts, and helpers of forward."""

    def __init__(self) -> None:
        super().__init__()
        self.part = _Pair()
        self.stem = nn.Sequential(*pair())

    def init_weights(self, gain: float = 1.0) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.weight, gain)

    def _features(self, x: Tensor) -> Tensor:
        return self.stem(x)

    def features(self, x: Tensor) -> Tensor:
        return self.part(self.stem(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.part(self._features(x))


class _HarmlessUntraceable(_Harmless):
    def forward(self, x: Tensor) -> Tensor:
        y = self.part(self.stem(x))
        return y if y.sum() < 1e9 else -y


class _Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([_Pair(), _Pair()])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if x.sum() < 1e9 else -x


class _Untraceable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() < 1e9 else -x


PROVEN: dict[str, Callable[[], nn.Module]] = {
    "pair": _Pair,
    "sequential": lambda: nn.Sequential(*pair()),
    "nested": lambda: nn.Sequential(_Pair(), nn.Sequential(*pair(), nn.ReLU())),
    "beside what cannot be traced": lambda: nn.Sequential(*pair(), _Untraceable(), _Pair()),
    "harmless methods": _Harmless,
    "harmless methods, not traced": _HarmlessUntraceable,
    "blocks, not traced": _Blocks,
    "ring": lambda: nn.Sequential(SREConv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(2, 4, 2, 2), nn.BatchNorm2d(4)),
    "transposed in groups": lambda: nn.Sequential(nn.ConvTranspose2d(2, 4, 3, groups=2, bias=False), nn.BatchNorm2d(4)),
    "transposed, one channel": lambda: nn.Sequential(nn.ConvTranspose2d(2, 2, 3, groups=2), nn.BatchNorm2d(2)),
    "transposed rings": lambda: nn.Sequential(SREConvTranspose2d(2, 4, 3, groups=2), nn.BatchNorm2d(4)),
}


@pytest.mark.parametrize("name", PROVEN)
def test_what_is_proven_is_fused(name: str) -> None:
    net = ready(PROVEN[name]())
    state = {key: value.clone() for key, value in net.state_dict().items()}
    folded = fold(net, fuse_batchnorm=True)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(folded(x), net(x), rtol=1e-11, atol=1e-11)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def _statistics_of_the_batch(net: Any) -> None:
    net[1].train()


SPOILED: dict[str, Callable[[Any], Any]] = {
    "parametrized": lambda n: parametrizations.weight_norm(n[0]),
    "spectral": lambda n: parametrizations.spectral_norm(n[0]),
    "old weight norm": lambda n: nn.utils.weight_norm(n[0]),
    "pruned": lambda n: prune.l1_unstructured(n[0], "weight", 0.5),
    "hook": lambda n: n[0].register_forward_hook(lambda m, args, out: out + 1),
    "hook before": lambda n: n[1].register_forward_pre_hook(lambda m, args: args[0] + 1),
    "own forward": lambda n: setattr(n[0], "forward", lambda x: 2 * nn.Conv2d.forward(n[0], x)),
    "own forward of the norm": lambda n: setattr(n[1], "forward", lambda x: 2 * x),
    "training": _statistics_of_the_batch,
}


@pytest.mark.parametrize("name", SPOILED)
def test_layers_that_do_more_are_not_fused(name: str) -> None:
    net: Any = ready(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)))
    SPOILED[name](net)
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    with torch.no_grad():  # a normalised or pruned weight is then one that can be copied
        net(x)
        fuse_batch_norms(net)
    assert isinstance(net[1], nn.BatchNorm2d)


def test_fuse_leaves_what_was_changed_after_the_network_was_built() -> None:
    for spoil in (
        lambda c: prune.l1_unstructured(c, "weight", 0.5),
        lambda c: parametrizations.weight_norm(c),
        lambda c: c.register_forward_hook(lambda m, args, out: out + 1),
    ):
        for net, name in (
            (sre_resnet18(inplanes=4, num_classes=2), "layer1.0.conv1"),
            (SREUNet(features=(4, 4)), "conv_0.conv_0.conv"),
        ):
            as_if_trained(net).double().eval()
            spoil(net.get_submodule(name))
            x = torch.randn(1, 3, 12, 12, dtype=torch.float64)
            with torch.no_grad():  # a pruned weight is then one that can be copied
                expected = net(x)
                fused = net.fuse()
                torch.testing.assert_close(fused(x), expected, rtol=1e-10, atol=1e-10)
            assert sum(isinstance(m, nn.BatchNorm2d) for m in fused.modules()) == 1


class _Deeper(SREUNet):
    def stem(self, x: Tensor) -> Tensor:
        return self.conv_0.conv_0.conv(x)


def test_fuse_of_a_subclass_with_another_entry() -> None:
    net = as_if_trained(_Deeper(features=(4, 4))).double().eval()
    fused = net.fuse()
    x = torch.randn(1, 3, 12, 12, dtype=torch.float64)
    assert torch.equal(fused.stem(x), net.stem(x))
    torch.testing.assert_close(fused(x), net(x), rtol=1e-10, atol=1e-10)


def test_a_tied_weight_is_folded_for_one_layer_alone() -> None:
    a, b = nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3)
    b.weight = a.weight
    net = ready(nn.Sequential(a, nn.BatchNorm2d(2), b))
    folded = fold(net, fuse_batchnorm=True)
    x = torch.randn(1, 2, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(folded(x), net(x), rtol=1e-11, atol=1e-11)
    before = b.weight.clone()
    fold_batch_norm(a, net[1])
    assert torch.equal(b.weight, before)


def test_tracing_leaves_nothing_behind() -> None:
    class Counts(_Pair):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))
            self.history: list[Any] = []

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.history.append(x)
            noise = torch.rand(1)
            return super().forward(x) + 0 * noise

    net = ready(Counts())
    torch.manual_seed(3)
    folded: Any = fold(net, fuse_batchnorm=True)
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), after)
    assert folded.calls.item() == 0
    assert folded.history == []
    assert net.history == []  # type: ignore[comparison-overlap]
