"""The kernels of differential invariants, against the reference in float64."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from sre_triton import add_invariants
from sre_triton.backends.triton import devices, launch
from sre_triton.equivariance import grid_symmetries
from sre_triton.invariants import passes
from tests.invariants import reference
from tests.invariants.reference import KINDS

LAYOUTS = {2: torch.channels_last, 3: torch.channels_last_3d}
LINES = ("gradient", "anisotropy")
CASES = [
    ((7, 9), KINDS, (1,), False),
    ((1, 1), KINDS, (2, 1), True),
    ((5, 40), LINES, (2, 1), True),
    ((2, 3), ("flow", "gradient"), (3,), False),
    ((4, 5, 6), KINDS, (1,), True),
    ((1, 4, 2), LINES, (1,), False),
    pytest.param((3, 2, 4), KINDS, (2, 1), False, marks=pytest.mark.exhaustive),
]


def numbers(kinds: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(KINDS.index(kind) for kind in kinds)


def random(*shape: int, last: bool, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    z = torch.randn(shape, device=device).to(dtype)
    return z.contiguous(memory_format=LAYOUTS[len(shape) - 2]) if last else z


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("size", "kinds", "dilations", "last"), CASES)
def test_values_and_gradients_are_those_of_the_reference(
    size: tuple[int, ...],
    kinds: tuple[str, ...],
    dilations: tuple[int, ...],
    last: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    z = random(2, 3, *size, last=last, device=device, dtype=dtype)
    exact = z.double().requires_grad_()
    expected = reference.invariants(exact, kinds, dilations, 1e-2)
    y = launch.invariants_forward(z, numbers(kinds), dilations, 1e-2)
    assert y.dtype == dtype
    assert y.shape == expected.shape
    assert y.is_contiguous(memory_format=LAYOUTS[len(size)] if last else torch.contiguous_format)
    direction = torch.randn_like(y)
    (true_grad,) = torch.autograd.grad(expected, exact, direction.double())
    grad = launch.invariants_backward(direction, z, numbers(kinds), dilations, 1e-2)
    assert grad.dtype == dtype
    assert grad.shape == z.shape
    unit = 4e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
    assert (y - expected).norm() <= unit * expected.norm().clamp(min=1)
    assert (grad - true_grad).norm() <= unit * true_grad.norm().clamp(min=1)


@pytest.mark.parametrize("size", [(8, 5), (3, 4, 5)])
def test_a_layer_is_computed_with_them(
    size: tuple[int, ...], device: torch.device, launched: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        passes, "_is_triton", lambda z, spec: launch.invariants_refusal(z, (0, 1), spec.dilations) is None
    )
    monkeypatch.setattr(passes, "_is_native", lambda *_: False)
    one = [1] * len(size)
    inputs = [
        tensor.requires_grad_()
        for tensor in (
            random(3, 4, *size, last=True, device=device),
            torch.randn(2, 4, *one, device=device),
            torch.randn(4, 4, *one, device=device),
        )
    ]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    y, expected = add_invariants(*inputs), reference.added(*exact, LINES, (1,), 1e-2)
    direction = torch.randn_like(y)
    grads = torch.autograd.grad(y, inputs, direction)
    names = {each.kernel.fn.__name__ for each in launched}
    assert names == {"invariants_kernel", "invariants_cotangents_kernel", "invariants_adjoint_kernel"}
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)
    for one_grad, other in zip(grads, torch.autograd.grad(expected, exact, direction.double()), strict=True):
        assert (one_grad - other).norm() < 1e-5 * other.norm()


def test_images_that_the_cache_does_not_hold_together_give_the_same_bits(
    device: torch.device, launched: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    z = random(5, 3, 6, 7, last=True, device=device)
    arguments = torch.randn(5, 6, 6, 7, device=device), z, (0, 1), (1,), 1e-2
    image = 3 * 6 * 7 * 5 * 4  # five derivatives in float32
    limits, found = devices.device_limits(device), []
    for images, launches in ((5, 2), (2, 6)):
        cache = dataclasses.replace(limits, l2_bytes=2 * images * image + 1)  # half of it for anything else
        monkeypatch.setattr(devices, "device_limits", lambda _, cache=cache: cache)
        launch.forget()
        launched.clear()
        found.append(launch.invariants_backward(*arguments))
        assert len(launched) == launches
    assert torch.equal(*found)


@pytest.mark.parametrize("last", [False, True])
def test_maps_turn_bit_by_bit_on_the_plane(last: bool, device: torch.device) -> None:
    z = random(1, 2, 6, 9, last=last, device=device)
    upright = launch.invariants_forward(z, (0, 1, 2, 3), (1, 2), 1e-2)
    for move in grid_symmetries(2, "all"):
        assert torch.equal(launch.invariants_forward(move(z), (0, 1, 2, 3), (1, 2), 1e-2), move(upright))


def test_results_and_derivatives_are_cut_off_and_nan_is_not(device: torch.device) -> None:
    largest = torch.finfo(torch.float16).max
    z = (torch.randn(1, 2, 6, 7, device=device).sign() * largest / 4).half()
    y = launch.invariants_forward(z, (0, 1, 2, 3), (1,), 1e-2)
    assert y.isfinite().all()
    assert (y.abs() == largest).any()
    wide = torch.randn(1, 2, 6, 7, device=device) * 1e30
    assert launch.invariants_forward(wide, (0, 1, 2, 3), (1,), 1e-2).isfinite().all()
    grad = launch.invariants_backward(torch.ones(1, 8, 6, 7, device=device), wide, (0, 1, 2, 3), (1,), 1e-2)
    assert torch.equal(grad, torch.zeros_like(grad))
    wide[0, 0, 3, 3] = float("nan")
    assert launch.invariants_forward(wide, (0,), (1,), 1e-2)[0, 0, 2:5, 2:5].isnan().sum() == 8


def test_maps_that_lie_loosely(device: torch.device) -> None:
    z = torch.randn(2, 6, 8, 10, device=device)[:, ::2, 1:, ::2]
    dense = z.contiguous()
    assert torch.equal(
        launch.invariants_forward(z, (0, 1), (1,), 1e-2), launch.invariants_forward(dense, (0, 1), (1,), 1e-2)
    )
    grad = torch.randn(2, 12, 7, 5, device=device)[:, ::2]
    found = launch.invariants_backward(grad, z, (0, 1), (1,), 1e-2)
    assert torch.equal(found, launch.invariants_backward(grad.contiguous(), dense, (0, 1), (1,), 1e-2))


def test_refusals(device: torch.device) -> None:
    z = torch.empty(1, 1, 4, 4, device=device)
    assert launch.invariants_refusal(z, (0,), (1,)) is None
    assert "take float32" in str(launch.invariants_refusal(z.double(), (0,), (1,)))
    large = z.expand(1, 2**26, 4, 4)
    assert "2^31" in str(launch.invariants_refusal(large, (0, 1), (1,)))
