"""Folding to ordinary convolutions: the same function, and nothing of this package left."""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sre_triton
from sre_triton import convert, fold
from sre_triton.pooling import CenteredAvgPool2d, CenteredMaxPool2d, upsample_to
from tests.small_networks import ResidualNet

LAYERS: dict[str, Callable[[], nn.Module]] = {
    f"{kind}Conv{n}d": (lambda kind=kind, n=n: getattr(sre_triton, f"{kind}Conv{n}d")(4, 6, 5, 1, 2, 1, 2))
    for kind, n in itertools.product(("SRE", "GMR"), (1, 2, 3))
} | {
    "strided": lambda: sre_triton.SREConv2d(4, 6, 3, stride=2, padding="valid", dilation=2, bias=False),
    "antialiased": lambda: sre_triton.SREConv2d(4, 6, 7, padding="same", antialias=True, num_rings=3),
    "corners": lambda: sre_triton.SREConv2d(4, 6, 7, padding=3, circular=False),
    "reflecting": lambda: sre_triton.SREConv2d(4, 6, 5, padding=2, padding_mode="reflect"),
    "transposed": lambda: sre_triton.SREConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2),
    "reference": lambda: sre_triton.SRE_Conv2d(4, 6, 7, padding=3),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_becomes_the_ordinary_one_of_its_expanded_kernel(name: str) -> None:
    layer: Any = LAYERS[name]().double()
    folded: Any = fold(layer)
    way = "Transpose" if layer.transposed else ""
    assert type(folded) is getattr(nn, f"Conv{way}{layer.ndim}d")
    x = torch.randn(2, 4, *[9, 8, 7][: layer.ndim], dtype=torch.float64)
    torch.testing.assert_close(folded(x), layer(x), rtol=1e-12, atol=1e-12)
    assert folded.weight.is_contiguous()
    assert folded.weight.data_ptr() != layer.weight.data_ptr()


def test_a_network_keeps_its_function_and_its_names() -> None:
    model = convert(ResidualNet(), kernel_size=5).eval()
    folded = fold(model)
    assert folded.state_dict().keys() == model.state_dict().keys()
    assert isinstance(folded, ResidualNet)
    assert not any(type(m).__module__.startswith("sre_triton") for m in folded.modules())
    for size in (16, 23, 33):
        x = torch.randn(2, 3, size, size + 1)
        torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-5)
    model.train()
    assert fold(model).training


class DownAndUp(nn.Module):
    """A network that computes with this package's functions itself. Its class stands for one of the package's own."""

    __module__ = "sre_triton.anything"

    def __init__(self) -> None:
        super().__init__()
        self.conv = sre_triton.SREConv2d(2, 3, 5, padding=2)
        self.pools = nn.ModuleList([CenteredAvgPool2d(), nn.Sequential(CenteredMaxPool2d(3, reach=1))])

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        for pool in self.pools:
            y = pool(y)
        return upsample_to(y, x.shape[-2:], ndim=2)


def test_a_network_of_this_package_becomes_a_graph() -> None:
    model = nn.Sequential(DownAndUp(), nn.ReLU())
    folded = fold(model)
    assert isinstance(folded[0], torch.fx.GraphModule)
    assert b"sre_triton" not in pickle.dumps(folded)
    for size in ((12, 12), (11, 14), (9, 7)):
        x = torch.randn(2, 2, *size)
        torch.testing.assert_close(folded(x), model(x))


def test_it_loads_and_runs_where_this_package_is_not(tmp_path: Path) -> None:
    model = convert(ResidualNet(), kernel_size=5).eval()
    x = torch.randn(2, 3, 29, 34)
    torch.save((fold(model), x, model(x)), tmp_path / "model.pt")
    script = (
        "import sys, torch; sys.modules['sre_triton'] = None; "
        "model, x, y = torch.load(sys.argv[1], weights_only=False); "
        "torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-5); "
        "print(tuple(model(x[..., 1:]).shape), any(m.startswith('sre_triton.') for m in sys.modules))"
    )
    root = Path(__file__).parents[2]
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(tmp_path / "model.pt")],
        capture_output=True,
        text=True,
        cwd=root,
    )
    assert out.stdout.strip() == "(2, 5) False", out.stderr


def test_batch_normalisation_is_fused_where_it_follows_a_convolution() -> None:
    model = convert(ResidualNet()).eval()
    folded = fold(model, fuse_batchnorm=True)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    x = torch.randn(2, 3, 23, 30)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="needs the model in eval mode"):
        fold(model.train(), fuse_batchnorm=True)


class Shy(nn.Module):
    """Its forward cannot be traced, and one of its normalisations must not be fused: the map before it is used too."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4))
        self.conv = nn.ConvTranspose2d(4, 4, 2, 2)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.inner(x))
        if y.sum() > 1e9:
            y = -y
        return y + self.norm(y)


def test_what_cannot_be_traced_is_fused_in_parts() -> None:
    model = Shy().eval()
    for norm in (model.inner[1], model.norm):
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
        nn.init.normal_(norm.running_mean)
    folded: Any = fold(model, fuse_batchnorm=True)
    assert isinstance(folded.inner[1], nn.Identity)
    assert isinstance(folded.norm, nn.BatchNorm2d)
    x = torch.randn(1, 2, 9, 9)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("what", ["hook", "shared", "used twice", "transposed"])
def test_what_may_be_fused(what: str) -> None:
    conv = nn.ConvTranspose2d(2, 4, 2, 2) if what == "transposed" else nn.Conv2d(2, 4, 3)
    model: Any = nn.Sequential(conv, nn.BatchNorm2d(4)).eval()
    nn.init.normal_(model[1].running_mean)
    if what == "hook":
        model[0].register_forward_hook(lambda m, args, out: None)
    if what == "shared":
        model = nn.ModuleDict({"a": model, "b": nn.Sequential(conv)}).eval()
        run = [lambda m, x: m["a"](x), lambda m, x: m["b"](x)]
    else:
        run = [lambda m, x: m(x)]
    if what == "used twice":
        model = nn.Sequential(model, nn.Conv2d(4, 2, 1), model).eval()
    folded = fold(model, fuse_batchnorm=True)
    fused = not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert fused == (what == "transposed")
    x = torch.randn(1, 2, 9, 9)
    for call in run:
        torch.testing.assert_close(call(folded, x), call(model, x), rtol=1e-4, atol=1e-5)


def test_hooks_are_kept_and_what_would_be_lost_is_refused() -> None:
    seen: list[str] = []
    model = nn.Sequential(CenteredAvgPool2d(), sre_triton.SREConv2d(2, 3, 3))
    for module in model:
        module.register_forward_hook(lambda m, args, out: seen.append(type(m).__name__))
    fold(model)(torch.randn(1, 2, 9, 9))
    assert seen == ["CenteredAvgPool2d", "Conv2d"]
    nn.utils.parametrizations.weight_norm(model[1])
    with pytest.raises(ValueError, match=r"'1', .* is parametrized"):
        fold(model)
    hooked = sre_triton.SREConv2d(2, 3, 3)
    hooked.register_state_dict_post_hook(lambda *args: None)
    with pytest.raises(ValueError, match="has hooks on its state dict"):
        fold(hooked)


class Untraceable(nn.Module):
    __module__ = "sre_triton.anything"

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_module_of_this_package_that_cannot_be_traced_is_named() -> None:
    with pytest.raises(TypeError, match=r"'0', Untraceable, cannot be folded: torch\.fx cannot trace its forward"):
        fold(nn.Sequential(Untraceable()))


def test_torchscript_and_export(tmp_path: Path) -> None:
    model = convert(ResidualNet()).eval()
    folded = fold(model, fuse_batchnorm=True)
    x = torch.randn(2, 3, 23, 30)
    expected = model(x)
    torch.jit.trace(folded, x).save(str(tmp_path / "model.ts"))
    torch.testing.assert_close(torch.jit.load(str(tmp_path / "model.ts"))(x), expected, rtol=1e-4, atol=1e-5)
    torch.export.save(torch.export.export(folded, (x,)), tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(loaded(x), expected, rtol=1e-4, atol=1e-5)


def test_one_exported_program_for_every_size() -> None:
    model = convert(ResidualNet()).eval()
    folded = fold(model, fuse_batchnorm=True, any_size=True)
    sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(folded, (torch.randn(2, 3, 24, 30),), dynamic_shapes=(sizes,)).module()
    for size in ((23, 30), (32, 33), (41, 27)):
        x = torch.randn(3, 3, *size)
        torch.testing.assert_close(program(x), model(x), rtol=1e-4, atol=1e-5)


def test_compiles_with_dynamic_shapes() -> None:
    torch._dynamo.reset()
    folded = fold(convert(ResidualNet()).eval())
    compiled = torch.compile(folded, fullgraph=True, dynamic=True, backend="eager")
    with torch.no_grad():
        for size in ((23, 30), (32, 33), (40, 26)):
            x = torch.randn(2, 3, *size)
            torch.testing.assert_close(compiled(x), folded(x))
