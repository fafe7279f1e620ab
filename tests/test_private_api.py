"""What is assumed of PyTorch beyond its promises, and that all still works, more slowly, where it is gone."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import Function, forward_ad

import sre_triton
from sre_triton import private_api

PACKAGE = Path(sre_triton.__file__).parent
NAMES = {
    "autocast_is_enabled": "_is_any_autocast_enabled",
    "transforms_are_active": "_are_functorch_transforms_active",
    "dispatch_modes": "_len_torch_dispatch_stack",
    "any_requires_grad": "_any_requires_grad",
}


def test_private_names_are_used_in_one_file() -> None:
    private = re.compile(r"torch\._C\b|forward_ad\._|super\(Function|\b_ntuple\b")
    found = {
        str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if private.search(path.read_text())
    }  # fmt: skip
    assert found == {"private_api.py"}


# What is assumed --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_pytorch_has_it(name: str) -> None:
    """Else the substitute is in use, and small layers are slower than they need be."""
    assert getattr(private_api, name) is getattr(torch._C, NAMES[name])


def test_it_tells_of_autocast() -> None:
    assert not private_api.autocast_is_enabled()
    assert not private_api._some_autocast_is_enabled()
    with torch.autocast("cpu"):
        assert private_api.autocast_is_enabled()
        assert private_api._some_autocast_is_enabled()
        with torch.autocast("cpu", enabled=False):
            assert not private_api.autocast_is_enabled()
            assert not private_api._some_autocast_is_enabled()


@pytest.mark.parametrize("kind", ["cpu", "cuda", "xpu", "mps", "meta", "vulkan"])
def test_it_knows_which_devices_have_autocast(kind: str) -> None:
    assert private_api.has_autocast(kind) == torch.amp.is_autocast_available(kind)


def test_it_tells_of_transforms_and_of_forward_mode() -> None:
    seen: list[tuple[bool, bool]] = []

    def look(x: torch.Tensor) -> torch.Tensor:
        seen.append((private_api.transforms_are_active(), private_api.derivative_may_hide()))
        return x.sum()

    x = torch.ones(2, 3)
    look(x)
    torch.vmap(look)(x)
    torch.func.grad(look)(x)
    with forward_ad.dual_level():
        look(x)
    look(x)
    assert seen == [(False, False), (True, True), (True, True), (False, True), (False, False)]


def test_it_tells_of_batched_gradients() -> None:
    x = torch.ones(2, requires_grad=True)
    seen = []
    y = x * 2
    y.register_hook(lambda grad: seen.append(private_api.batches_gradients()))
    assert not private_api.batches_gradients()
    torch.autograd.grad(y, x, torch.ones(3, 2), is_grads_batched=True, retain_graph=True)
    torch.autograd.grad(y, x, torch.ones(2))
    assert seen == [True, False]


def test_below_autograd_nothing_is_recorded() -> None:
    x = torch.ones(2, requires_grad=True)
    with private_api.below_autograd():
        assert (x * 2).grad_fn is None


def test_it_counts_dispatch_modes() -> None:
    assert private_api.dispatch_modes() == 0
    with FakeTensorMode():
        assert private_api.dispatch_modes() == 1
    assert private_api.dispatch_modes() == 0


class Cube(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


def test_the_bare_apply_is_apply() -> None:
    assert private_api._has_bare_apply
    x = torch.randn(4, dtype=torch.float64, requires_grad=True)
    y = private_api.apply_function(Cube, x)
    (grad,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close((y, grad), (x**3, 3 * x**2))
    per_sample = torch.vmap(torch.func.grad(lambda x: private_api.apply_function(Cube, x)))(x.detach())
    torch.testing.assert_close(per_sample, grad)


def test_below_autocast_nothing_is_cast() -> None:
    a = torch.randn(3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        with private_api.below_autocast("cpu")():
            assert (a @ a).dtype == torch.float32
        assert (a @ a).dtype == torch.bfloat16


@pytest.mark.parametrize("layer", [sre_triton.SREConv2d(2, 3, 3), sre_triton.GMRConv2d(2, 3, 3)], ids=["SRE", "GMR"])
def test_the_compiler_meets_no_question_about_autocast_devices(
    layer: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could not trace the public one before PyTorch 2.12, nor the function of `torch._C` behind it."""

    def refuse(kind: str) -> bool:
        raise AssertionError(f"is_autocast_available({kind!r}) was asked")

    monkeypatch.setattr(torch.amp, "is_autocast_available", refuse)
    x = torch.randn(1, 2, 6, 6)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), layer(x))


# When it is gone --------------------------------------------------------------------------------------


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    """Gives the package a copy of the module that was imported while these names were missing."""

    def reload(*gone: tuple[object, str]) -> ModuleType:
        with monkeypatch.context() as removed:
            for owner, name in gone:
                removed.delattr(owner, name)
            spec = importlib.util.spec_from_file_location("private_api_copy", private_api.__file__)
            assert spec is not None
            assert spec.loader is not None
            copy = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(copy)
        ours = {id(value): name for name, value in vars(private_api).items() if name in private_api.__all__}
        for name, module in list(sys.modules.items()):
            if name.startswith("sre_triton."):
                for attribute, value in list(vars(module).items()):
                    if id(value) in ours:
                        monkeypatch.setattr(module, attribute, getattr(copy, ours[id(value)]))
        return copy

    return reload


def passes() -> tuple[torch.Tensor, ...]:
    """A layer's results: plain, with gradients, under autocast and vmap."""
    torch.manual_seed(0)
    layer, x = sre_triton.SREConv2d(2, 3, 3, padding=1), torch.randn(4, 2, 5, 5)
    with torch.no_grad():
        plain = layer(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = layer(x)
    assert cast.dtype == torch.bfloat16
    leaf = x.clone().requires_grad_()
    layer(leaf).square().sum().backward()
    assert leaf.grad is not None
    assert layer.weight.grad is not None
    mapped = torch.vmap(layer)(x)
    torch.testing.assert_close(mapped, plain, rtol=1e-5, atol=1e-5)
    return plain, cast, leaf.grad, layer.weight.grad


@pytest.mark.parametrize("name", NAMES)
def test_without_it_results_are_the_same(name: str, without: Callable[..., ModuleType]) -> None:
    expected = passes()
    copy = without((torch._C, NAMES[name]))
    assert getattr(copy, name) is getattr(private_api, name) is not getattr(torch._C, NAMES[name])
    torch.testing.assert_close(passes(), expected, rtol=0, atol=0)


def test_without_the_forward_level_the_functions_are_always_taken(
    without: Callable[..., ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = passes()
    monkeypatch.delattr(forward_ad, "_current_level")
    assert private_api.derivative_may_hide()
    layer, x = sre_triton.SREConv2d(2, 3, 3), torch.randn(1, 2, 5, 5)
    with torch.no_grad():
        assert torch.isfinite(layer(x)).all()
    monkeypatch.undo()
    torch.testing.assert_close(passes(), expected, rtol=0, atol=0)


def test_without_the_bare_apply_the_public_one_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = passes()
    monkeypatch.setattr(private_api, "_has_bare_apply", False)
    torch.testing.assert_close(passes(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["DispatchKeySet", "DispatchKey", "_ExcludeDispatchKeyGuard"])
def test_without_the_guard_autocast_is_switched_off_publicly(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as removed:
        removed.delattr(torch._C, name)
        context = private_api.below_autocast("cpu")
    a = torch.randn(3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with context():
            assert (a @ a).dtype == torch.float32
        assert (a @ a).dtype == torch.bfloat16
