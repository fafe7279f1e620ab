"""Invariants as functions: values and gradients against another computation, symmetry, every transform."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from sre_triton import add_invariants, differential_invariants, gradient_products
from sre_triton.backends.native.library import missing
from sre_triton.equivariance import grid_symmetries
from sre_triton.invariants import passes
from tests.invariants import reference
from tests.invariants.reference import KINDS

LINES = ("gradient", "anisotropy")
SETS = [KINDS, LINES, LINES[::-1], LINES[:1], LINES[1:], ("flow", "gradient")]
SIZES = [(17, 23), (1, 1), (40, 5), (7, 9, 8), (1, 4, 2)]
LAYOUTS = {2: torch.channels_last, 3: torch.channels_last_3d}


@pytest.fixture(params=["native", "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who computes: the kernel or PyTorch's operations."""
    if request.param == "native" and missing() is not None:
        pytest.skip(str(missing()))
    if request.param == "torch":
        monkeypatch.setattr(passes, "_is_native", lambda *_: False)
    return str(request.param)


def matrices(channels: int, features: int, maps: int, ndim: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    one = [1] * ndim
    shapes = [(features, channels, *one), (channels, maps * features, *one)]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def cases() -> Iterator[tuple[tuple[int, ...], tuple[str, ...], tuple[int, ...], bool]]:
    """Every size with every kind; scales and layouts in turn."""
    for i, size in enumerate(SIZES):
        for j, kinds in enumerate(SETS):
            yield size, kinds, ((1,), (2, 1), (3,))[(i + j) % 3], (i + j) % 2 == 0


@pytest.mark.parametrize(("size", "kinds", "dilations", "last"), list(cases()))
def test_values_and_gradients_are_those_of_the_reference(
    size: tuple[int, ...], kinds: tuple[str, ...], dilations: tuple[int, ...], last: bool, path: str
) -> None:
    z = torch.randn(2, 5, *size, dtype=torch.float64)
    if last:
        z = z.contiguous(memory_format=LAYOUTS[len(size)])
    z.requires_grad_()
    arguments = kinds, dilations
    expected = reference.invariants(z, *arguments, 1e-2)
    found = differential_invariants(z, *arguments)
    assert not last or found.is_contiguous(memory_format=LAYOUTS[len(size)])
    direction = torch.randn_like(expected)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    exact = torch.autograd.grad(expected, z, direction)
    torch.testing.assert_close(torch.autograd.grad(found, z, direction), exact, rtol=1e-10, atol=1e-10)

    inputs = [z, *matrices(5, 3, len(kinds) * len(dilations), len(size))]
    expected, found = reference.added(*inputs, *arguments, 1e-2), add_invariants(*inputs, *arguments)
    assert found.is_contiguous(memory_format=LAYOUTS[len(size)] if last else torch.contiguous_format)
    direction = torch.randn_like(expected)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-10)
    with torch.no_grad():
        assert torch.equal(add_invariants(*inputs, *arguments), found)
    exact = torch.autograd.grad(expected, inputs, direction)
    torch.testing.assert_close(torch.autograd.grad(found, inputs, direction), exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("last", [False, True])
def test_pieces_and_bands_meet_without_a_seam(last: bool, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "_PIECE", 512)
    z = torch.randn(2, 40, 90, 70)  # the kernel cuts this into several bands
    z = (z.contiguous(memory_format=torch.channels_last) if last else z).requires_grad_()
    inputs = [z, *matrices(40, 8, 2, 2, torch.float32)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    y, expected = add_invariants(*inputs), reference.added(*exact, LINES, (1,), 1e-2)
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-3)
    direction = torch.randn_like(y)
    found = torch.autograd.grad(y, inputs, direction)
    for one, other in zip(found, torch.autograd.grad(expected, exact, direction.double()), strict=True):
        assert (one - other).norm() < 1e-5 * other.norm()


@pytest.mark.parametrize("size", [(17, 17), (18, 31), (64, 5), (9, 9, 9), (6, 7, 8)])
def test_symmetric_at_every_size(size: tuple[int, ...], path: str) -> None:
    z, project, weight = torch.randn(1, 4, *size, dtype=torch.float64), *matrices(4, 2, 8, len(size))
    functions = [
        partial(differential_invariants, kinds=KINDS, dilations=(1, 2)),
        partial(add_invariants, project=project, weight=weight, kinds=KINDS, dilations=(1, 2)),
        lambda z: gradient_products(z, z.roll(1, 1)),
    ]
    for function in functions:
        upright = function(z)
        for move in grid_symmetries(len(size), "all"):
            torch.testing.assert_close(function(move(z)), move(upright), rtol=1e-12, atol=1e-12)


def test_maps_turn_bit_by_bit_on_the_plane() -> None:
    z = torch.randn(1, 3, 20, 33)
    upright = differential_invariants(z)
    for move in grid_symmetries(2, "all"):
        assert torch.equal(differential_invariants(move(z)), move(upright))


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("channels", "features"), [(12, 3), (40, 24)])
def test_the_native_kernel_turns_bit_by_bit_on_the_plane(channels: int, features: int, last: bool) -> None:
    layout = torch.channels_last if last else torch.contiguous_format
    z, (project, weight) = torch.randn(1, channels, 20, 33), matrices(channels, features, 8, 2, torch.float32)
    function = partial(add_invariants, project=project, weight=weight, kinds=KINDS, dilations=(1, 2))
    with torch.no_grad():
        upright = function(z.contiguous(memory_format=layout))
        for move in grid_symmetries(2, "all"):
            assert torch.equal(function(move(z).contiguous(memory_format=layout)), move(upright))


@pytest.mark.parametrize("size", [(4, 5), (2, 2, 3)])
def test_derivatives_of_both_orders(size: tuple[int, ...]) -> None:
    z = torch.randn(1, 2, *size, dtype=torch.float64, requires_grad=True)
    inputs = (z, *matrices(2, 1, 4, len(size)))
    function = partial(add_invariants, kinds=KINDS)
    assert gradcheck(function, inputs, fast_mode=True)
    assert gradgradcheck(function, inputs, fast_mode=True)
    assert gradgradcheck(partial(differential_invariants, kinds=KINDS), z, fast_mode=True)
    assert gradcheck(lambda z: gradient_products(z, z.roll(1, 1)), z, fast_mode=True)


def test_a_constant_map_has_no_invariants_and_a_finite_gradient(path: str) -> None:
    z = torch.full((1, 2, 6, 7), 3.0, requires_grad=True)
    inputs = [z, *matrices(2, 2, 4, 2, torch.float32)]
    assert differential_invariants(z, KINDS).abs().max() < 1e-6
    gradients = torch.autograd.grad(add_invariants(*inputs, KINDS).sum(), inputs)
    assert all(gradient.isfinite().all() for gradient in gradients)
    torch.testing.assert_close(gradients[0], torch.ones_like(z), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_large_values_stay_finite(dtype: torch.dtype, path: str) -> None:
    largest = torch.finfo(dtype).max
    z = (torch.randn(1, 4, 12, 13).sign() * largest / 4).to(dtype).requires_grad_()
    y = differential_invariants(z, KINDS)
    assert y.dtype == dtype
    assert y.isfinite().all()
    y = differential_invariants(z)  # gradients of products are larger than what they multiply
    (gradient,) = torch.autograd.grad(y, z, torch.ones_like(y))
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_as_exact_as_they_can_be(dtype: torch.dtype, path: str) -> None:
    inputs = [torch.randn(2, 8, 11, 14), *matrices(8, 3, 2, 2, torch.float32)]
    inputs = [x.detach().to(dtype).requires_grad_() for x in inputs]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    y, expected = add_invariants(*inputs), reference.added(*exact, LINES, (1,), 1e-2)
    unit = torch.finfo(dtype).eps
    assert y.dtype == dtype
    assert (y - expected).norm() < unit * expected.norm()
    direction = torch.randn_like(y)
    gradients = torch.autograd.grad(y, inputs, direction)
    for one, other in zip(gradients, torch.autograd.grad(expected, exact, direction.double()), strict=True):
        assert one.dtype == dtype
        assert (one - other).norm() < 2 * unit * other.norm()


def test_no_images_and_no_channels(path: str) -> None:
    for batch, channels in ((0, 3), (2, 0)):
        z = torch.zeros(batch, channels, 5, 6, requires_grad=True)
        assert differential_invariants(z).shape == (batch, 2 * channels, 5, 6)
        inputs = [z, *matrices(channels, 2, 2, 2, torch.float32)]
        y = add_invariants(*inputs)
        assert y.shape == z.shape
        assert [g.shape for g in torch.autograd.grad(y.sum(), inputs)] == [x.shape for x in inputs]


def test_without_a_batch_dimension() -> None:
    z, (project, weight) = torch.randn(3, 5, 6), matrices(3, 2, 2, 2, torch.float32)
    assert torch.equal(differential_invariants(z, ndim=2), differential_invariants(z[None])[0])
    assert torch.equal(add_invariants(z, project, weight, ndim=2), add_invariants(z[None], project, weight)[0])


def test_only_what_needs_a_gradient_gets_one(path: str) -> None:
    z, (project, weight) = torch.randn(1, 3, 6, 5), matrices(3, 2, 2, 2, torch.float32)
    alone = torch.autograd.grad(add_invariants(z, project.detach(), weight).sum(), weight)
    torch.testing.assert_close(alone[0], torch.autograd.grad(add_invariants(z, project, weight).sum(), weight)[0])


def test_transforms_of_functions() -> None:
    # In float64: what divides by a small gradient magnifies rounding, of which two ways to the same have their own.
    z, (project, weight) = torch.randn(3, 2, 4, 6, 5, dtype=torch.float64), matrices(4, 2, 2, 2)
    project, weight = project.detach(), weight.detach()
    many = torch.vmap(lambda z: add_invariants(z, project, weight))(z)
    torch.testing.assert_close(many, torch.stack([add_invariants(one, project, weight) for one in z]))

    def loss(z: Tensor) -> Tensor:
        return add_invariants(z, project, weight).square().sum()

    x = z[0].clone().requires_grad_()
    torch.testing.assert_close(torch.func.grad(loss)(x.detach()), torch.autograd.grad(loss(x), x)[0])
    _, tangent = torch.func.jvp(loss, (x.detach(),), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, torch.autograd.grad(loss(x), x)[0].sum(), rtol=1e-4, atol=1e-2)
    y = add_invariants(x, project, weight)
    directions = torch.randn(3, *y.shape, dtype=y.dtype)
    (batched,) = torch.autograd.grad(y, x, directions, is_grads_batched=True, retain_graph=True)
    for direction, found in zip(directions, batched, strict=True):
        torch.testing.assert_close(found, torch.autograd.grad(y, x, direction, retain_graph=True)[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kinds": ("gradient", "curl")}, r"kinds must be some of .*'flow', each once, got \('gradient', 'curl'\)"),
        ({"kinds": ()}, "kinds must be"),
        ({"kinds": ("flow", "flow")}, "each once"),
        ({"dilations": (1, 0)}, r"dilations must be a positive int or several, got \(1, 0\)"),
        ({"dilations": 1.0}, "dilations must be a positive int or several, got 1.0"),
        ({"eps": 0.0}, "eps must be positive and finite, got 0.0"),
        ({"ndim": 1}, "got 1 spatial dimensions"),
        ({"ndim": 3}, r"3 spatial dimensions that are not empty, got shape \(2, 3, 4, 5\)|got shape"),
    ],
)
def test_errors_name_the_argument(arguments: dict[str, object], message: str) -> None:
    z = torch.zeros(2, 3, 4, 5) if arguments.get("ndim") != 3 else torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match=message):
        differential_invariants(z, **arguments)  # type: ignore[arg-type]


def test_errors_of_matrices_and_partners() -> None:
    z, (project, weight) = torch.zeros(1, 3, 4, 5), matrices(3, 2, 2, 2, torch.float32)
    with pytest.raises(TypeError, match=r"z must be of a floating dtype, got torch.int64"):
        differential_invariants(z.long())
    with pytest.raises(ValueError, match=r"project must be of shape \(features, 3, 1, 1\), got \(3, 4, 1, 1\)"):
        add_invariants(z, weight, weight)
    with pytest.raises(ValueError, match=r"weight must be of shape \(3, 4, 1, 1\), got \(2, 3, 1, 1\)"):
        add_invariants(z, project, project)
    with pytest.raises(ValueError, match="partner must be of the shape and dtype of z"):
        gradient_products(z, z[:, :1])
    with pytest.raises(ValueError, match="not empty"):
        differential_invariants(torch.zeros(1, 3, 0, 5))


def test_the_kernel_checks_what_it_is_given() -> None:
    if missing() is not None:
        pytest.skip(str(missing()))
    z, project, weight = torch.zeros(1, 3, 4, 5), torch.zeros(2, 3), torch.zeros(3, 4)
    kernel = torch.ops.sre_triton_native.add_invariants
    kernel(z, project, weight, [0, 1], [1], 1e-2, torch.empty_like(z))
    for wrong in (
        (z, project, weight, [0, 7], [1], 1e-2, z.clone()),
        (z, project, weight, [0, 1], [0], 1e-2, z.clone()),
        (z, project, weight, [0], [1], 1e-2, z.clone()),
        (z, project, weight.t(), [0, 1], [1], 1e-2, z.clone()),
        (z, weight, weight, [0, 1], [1], 1e-2, z.clone()),
        (z, project, weight, [0, 1], [1], 1e-2, torch.empty(1, 3, 4, 4)),
        (z, project, weight, [], [1], 1e-2, z.clone()),
    ):
        with pytest.raises(ValueError, match="must"):
            kernel(*wrong)
    with pytest.raises(TypeError, match="of the type of z"):
        kernel(z, project, weight, [0, 1], [1], 1e-2, z.double())
