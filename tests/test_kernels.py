"""Ring weights to dense kernels and back: ``expand_kernel`` and ``project_kernel``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import sre_triton
from sre_triton import functional as S
from tests.oracle import expand, ring_table
from tests.test_functional import EXACT

GEOMETRIES = (
    (1, 7, None, True, False),
    (2, 1, None, True, False),
    (2, 5, None, True, False),
    (2, 9, 3, True, False),
    (2, 5, None, False, False),
    (2, 5, None, True, True),
    (3, 5, None, True, True),
    (3, 3, None, False, False),
)
geometries = pytest.mark.parametrize(("ndim", "k", "num_rings", "circular", "antialias"), GEOMETRIES)


def rings_of(ndim: int, k: int, num_rings: int | None, circular: bool, antialias: bool) -> int:
    return sre_triton.ring_geometry((k,) * ndim, num_rings, circular, antialias).num_rings


@geometries
def test_expand_kernel_spreads_each_weight_over_its_ring(
    ndim: int, k: int, num_rings: int | None, circular: bool, antialias: bool
) -> None:
    rings = rings_of(ndim, k, num_rings, circular, antialias)
    weight = torch.randn(3, 2, rings, dtype=torch.float64)
    expected = expand(weight, ring_table(k, ndim, rings, circular, antialias), k, ndim)
    kernel = S.expand_kernel(weight, (k,) * ndim, circular, antialias)
    assert kernel.shape == (3, 2, *(k,) * ndim)
    torch.testing.assert_close(kernel, expected, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_expanding_hard_rings_rounds_nothing(dtype: torch.dtype) -> None:
    weight = torch.randn(3, 2, 5).to(dtype)
    kernel = S.expand_kernel(weight, (9, 9))
    assert kernel.dtype == dtype
    table = torch.from_numpy(ring_table(9, 2, 5, True, False))
    assert torch.equal(kernel.double(), (weight.double() @ table).unflatten(2, (9, 9)))


@geometries
def test_projecting_an_expanded_kernel_gives_the_weights_back(
    ndim: int, k: int, num_rings: int | None, circular: bool, antialias: bool
) -> None:
    weight = torch.randn(3, 2, rings_of(ndim, k, num_rings, circular, antialias), dtype=torch.float64)
    kernel = S.expand_kernel(weight, (k,) * ndim, circular, antialias)
    torch.testing.assert_close(S.project_kernel(kernel, num_rings, circular, antialias), weight, **EXACT)


@geometries
def test_project_kernel_is_the_least_squares_solution(
    ndim: int, k: int, num_rings: int | None, circular: bool, antialias: bool
) -> None:
    kernel = torch.randn(3, 2, *(k,) * ndim, dtype=torch.float64)
    weight = S.project_kernel(kernel, num_rings, circular, antialias)
    table = ring_table(k, ndim, weight.shape[2], circular, antialias)
    solution = np.linalg.lstsq(table.T, kernel.reshape(6, -1).numpy().T, rcond=None)[0].T
    torch.testing.assert_close(weight, torch.from_numpy(solution).reshape(weight.shape), **EXACT)


@pytest.mark.parametrize("circular", [True, False])
def test_project_kernel_is_the_mean_over_each_hard_ring(circular: bool) -> None:
    kernel = torch.randn(3, 2, 5, 5, dtype=torch.float64)
    weight = S.project_kernel(kernel, circular=circular)
    table = ring_table(5, 2, weight.shape[2], circular, False)
    for ring, taps in enumerate(table.astype(bool)):
        torch.testing.assert_close(weight[..., ring], kernel.flatten(2)[..., taps].mean(-1), **EXACT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_project_kernel_rounds_once(dtype: torch.dtype) -> None:
    kernel = (torch.randn(4, 4, 11, 11) + 3).to(dtype)
    weight = S.project_kernel(kernel)
    assert weight.dtype == dtype
    assert torch.equal(weight, S.project_kernel(kernel.double()).to(dtype))


@geometries
def test_expand_and_project_are_differentiable(
    ndim: int, k: int, num_rings: int | None, circular: bool, antialias: bool
) -> None:
    rings = rings_of(ndim, k, num_rings, circular, antialias)
    weight = torch.randn(1, 2, rings, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(1, 2, *(k,) * ndim, dtype=torch.float64, requires_grad=True)
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda w: S.expand_kernel(w, (k,) * ndim, circular, antialias), weight, fast_mode=True)
        assert check(lambda d: S.project_kernel(d, num_rings, circular, antialias), kernel, fast_mode=True)


def test_expand_kernel_takes_any_sequence_of_sizes() -> None:
    weight = torch.randn(3, 2, 2)
    for size in ([3, 3], torch.Size([3, 3]), np.array([3, 3])):
        assert torch.equal(S.expand_kernel(weight, size), S.expand_kernel(weight, (3, 3)))


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "kernel_size must be a tuple .* got the int 3", lambda: S.expand_kernel(torch.ones(1, 1, 2), 3)),
        (TypeError, r"kernel_size.*\(3, 3\.5\)", lambda: S.expand_kernel(torch.ones(1, 1, 2), (3, 3.5))),
        (TypeError, "weight.*torch.int64", lambda: S.expand_kernel(torch.ones(1, 1, 2, dtype=torch.int64), (3, 3))),
        (ValueError, r"weight must be .* got shape \(1, 2\)", lambda: S.expand_kernel(torch.ones(1, 2), (3, 3))),
        (ValueError, "odd.*use 3 or 5", lambda: S.expand_kernel(torch.ones(1, 1, 2), (4, 4))),
        (ValueError, "same in every dimension", lambda: S.expand_kernel(torch.ones(1, 1, 2), (3, 5))),
        (ValueError, "1 to 3 entries", lambda: S.expand_kernel(torch.ones(1, 1, 2), (3, 3, 3, 3))),
        (ValueError, "num_rings=9.*use fewer rings", lambda: S.expand_kernel(torch.ones(1, 1, 9), (3, 3))),
        (ValueError, "needs circular=True", lambda: S.expand_kernel(torch.ones(1, 1, 3), (3, 3), False, True)),
        (ValueError, r"dense must be .* got \(3, 3\)", lambda: S.project_kernel(torch.ones(3, 3))),
        (TypeError, "dense.*torch.int64", lambda: S.project_kernel(torch.ones(1, 1, 3, 3, dtype=torch.int64))),
        (ValueError, "same in every dimension", lambda: S.project_kernel(torch.ones(1, 1, 3, 5))),
        (ValueError, "num_rings must be at least 1", lambda: S.project_kernel(torch.ones(1, 1, 3, 3), 0)),
    ],
)
def test_kernel_functions_say_what_is_wrong(error: type[Exception], message: str, call: Callable[[], Tensor]) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_expanding_into_another_dtype_rounds_once(dtype: torch.dtype, antialias: bool) -> None:
    weight = torch.randn(3, 4, 3, requires_grad=True)
    kernel = sre_triton.expand_kernel(weight, (5, 5), antialias=antialias, dtype=dtype)
    wide = sre_triton.expand_kernel(weight.detach().double(), (5, 5), antialias=antialias)
    assert kernel.dtype == dtype
    torch.testing.assert_close(kernel.double(), wide.to(dtype).double(), rtol=torch.finfo(dtype).eps, atol=1e-6)
    grad = torch.randn(3, 4, 5, 5).to(dtype)
    (result,) = torch.autograd.grad(kernel, weight, grad)
    assert result.dtype == torch.float32
    leaf = weight.detach().double().requires_grad_()
    expected = torch.autograd.grad(sre_triton.expand_kernel(leaf, (5, 5), antialias=antialias), leaf, grad.double())[0]
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_kernel_of_integers_is_refused() -> None:
    with pytest.raises(TypeError, match=r"dtype must be a floating dtype or None, got torch\.int32"):
        sre_triton.expand_kernel(torch.randn(3, 4, 3), (5, 5), dtype=torch.int32)
