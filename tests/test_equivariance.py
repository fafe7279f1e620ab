"""Measuring equivariance: what is exact is found exact, and what is broken is found and named."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage import data
from torch import Tensor, nn

import sre_triton
from sre_triton import assert_equivariant, equivariance_error
from sre_triton.equivariance import GridSymmetry, equivariance_errors, grid_symmetries

# Largest relative error, in float64, of a function that is exactly equivariant.
EXACT = 1e-12


def labelled(ndim: int, size: int = 3) -> Tensor:
    """A grid whose entries are all different, so that it tells transformations apart."""
    return torch.arange(float(size**ndim)).reshape([size] * ndim)


def smooth_image(size: int = 64, batch: int = 1) -> Tensor:
    noise = np.random.default_rng(0).normal(size=(batch, 1, size, size))
    return torch.from_numpy(ndimage.gaussian_filter(noise, (0, 0, 3, 3)))


# The groups -------------------------------------------------------------------------------------------

COUNTS = {
    (1, "all"): 1, (2, "all"): 7, (3, "all"): 47,
    (2, "rotations"): 3, (3, "rotations"): 23, (1, "rotations"): 0,
    (1, "flips"): 1, (2, "flips"): 3, (3, "flips"): 7,
}  # fmt: skip


def actions(ndim: int, group: str) -> list[tuple[float, ...]]:
    """What each element, and the identity, makes of a labelled grid."""
    grid = labelled(ndim)
    return [tuple(g(grid).flatten().tolist()) for g in (lambda x: x, *grid_symmetries(ndim, group))]


@pytest.mark.parametrize(("ndim", "group"), COUNTS)
def test_every_transformation_but_the_identity_once(ndim: int, group: str) -> None:
    assert len(grid_symmetries(ndim, group)) == COUNTS[ndim, group]
    assert len(set(actions(ndim, group))) == COUNTS[ndim, group] + 1


@pytest.mark.parametrize(("ndim", "group"), COUNTS)
def test_closed_under_composition(ndim: int, group: str) -> None:
    grid, known = labelled(ndim), set(actions(ndim, group))
    for first, second in itertools.product(grid_symmetries(ndim, group), repeat=2):
        assert tuple(second(first(grid)).flatten().tolist()) in known


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_rotations_are_those_that_keep_handedness(ndim: int) -> None:
    def determinant(g: GridSymmetry) -> float:
        # Pull coordinate functions back: a linear map of coordinates centred at 0.
        axes = torch.meshgrid(*[torch.tensor([-1.0, 0.0, 1.0])] * ndim, indexing="ij")
        columns = [torch.stack([(g(a) * b).sum() for b in axes]) for a in axes]
        return torch.linalg.det(torch.stack(columns) / (2 * 3 ** (ndim - 1))).item()

    for g in grid_symmetries(ndim):
        assert determinant(g) == pytest.approx(1 if g.is_rotation else -1)
    assert set(grid_symmetries(ndim, "rotations")) == {g for g in grid_symmetries(ndim) if g.is_rotation}


def test_names_say_what_happens() -> None:
    named = {str(g): g for g in grid_symmetries(2)}
    x = labelled(2)
    assert {name: g(x).tolist() for name, g in named.items()} == {
        "rotate 90": torch.rot90(x, 1).tolist(),
        "rotate 180": torch.rot90(x, 2).tolist(),
        "rotate 270": torch.rot90(x, 3).tolist(),
        "flip left-right": x.fliplr().tolist(),
        "flip up-down": x.flipud().tolist(),
        "transpose": x.T.tolist(),
        "anti-transpose": torch.rot90(x, 2).T.tolist(),
    }
    assert len({str(g) for g in grid_symmetries(3)}) == 47


def test_acts_on_the_last_dimensions() -> None:
    x = torch.randn(2, 3, 4, 5)
    for g in grid_symmetries(2):
        torch.testing.assert_close(g(x)[1, 2], g(x[1, 2]), rtol=0, atol=0)


# What is exact ----------------------------------------------------------------------------------------

LAYERS = [*(f"SREConv{n}d" for n in (1, 2, 3)), *(f"GMRConv{n}d" for n in (1, 2, 3))]


@pytest.mark.parametrize("backend", ["auto", "ringwise"])
@pytest.mark.parametrize(
    "options",
    [{}, {"antialias": True}, {"circular": False}, {"dilation": 2, "groups": 2}, {"padding_mode": "reflect"}],
    ids=str,
)
@pytest.mark.parametrize("name", LAYERS)
def test_padded_layers_are_exact(name: str, options: dict[str, Any], backend: str) -> None:
    ndim = int(name[-2])
    k = 5 if ndim < 3 else 3
    layer = getattr(sre_triton, name)(2, 2, k, padding="same", dtype=torch.float64, **options)
    x = torch.randn(1, 2, *[k + 1] * ndim, dtype=torch.float64)
    with sre_triton.backend(backend):
        errors = equivariance_errors(layer, x)
    assert len(errors) == COUNTS[ndim, "all"]
    assert max(errors.values()) < EXACT


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_transposed_layers_are_exact(ndim: int, antialias: bool) -> None:
    layer = getattr(sre_triton, f"SREConvTranspose{ndim}d")(2, 2, 3, 2, 1, antialias=antialias, dtype=torch.float64)
    assert equivariance_error(layer, torch.randn(1, 2, *[4] * ndim, dtype=torch.float64)) < EXACT


@pytest.mark.parametrize("antialias", [False, True])
def test_default_tolerance_suits_each_dtype(antialias: bool) -> None:
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        layer = sre_triton.SREConv2d(16, 16, 9, padding=4, antialias=antialias, dtype=dtype)
        assert_equivariant(layer, torch.randn(1, 16, 16, 16, dtype=dtype))


def test_images_that_are_not_square() -> None:
    layer = sre_triton.SREConv2d(2, 2, 5, padding=2, dtype=torch.float64)
    assert equivariance_error(layer, torch.randn(1, 2, 6, 9, dtype=torch.float64)) < EXACT


def test_measuring_leaves_no_gradient() -> None:
    layer = sre_triton.SREConv2d(2, 2, 5, padding=2)
    x = torch.randn(1, 2, 6, 6, requires_grad=True)
    equivariance_error(layer, x)
    assert layer.weight.grad is None
    assert x.grad is None


# Outputs ----------------------------------------------------------------------------------------------


def ring_map() -> nn.Module:
    return sre_triton.SREConv2d(2, 3, 5, padding=2, dtype=torch.float64)


X = torch.randn(2, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_invariant_outputs_are_compared_as_they_are() -> None:
    pooled = nn.Sequential(ring_map(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert equivariance_error(pooled, X) < EXACT
    corner = nn.Sequential(ring_map(), nn.Flatten(2), nn.Flatten(1))
    assert equivariance_error(corner, X) > 0.1


def test_maps_without_channels_turn_with_the_image() -> None:
    mapped = ring_map()
    wide = torch.randn(2, 2, 8, 11, dtype=torch.float64)
    for x in (X, wide):
        for group in ("all", (180,)):
            assert equivariance_error(lambda x: mapped(x).argmax(1), x, group, margin=1) < EXACT
            assert equivariance_error(lambda x: mapped(x)[:, 0], x, group, margin=1) < EXACT
    assert equivariance_error(lambda x: mapped(x)[:, 0].flip(1).cumsum(1), X) > 0.1


def test_both_parts_of_complex_numbers_count() -> None:
    mapped, plain = ring_map(), nn.Conv2d(2, 3, 3, padding=1, dtype=torch.float64)
    for group in ("all", (90,)):
        assert equivariance_error(lambda x: torch.complex(mapped(x), mapped(x)), X, group) < EXACT
        assert equivariance_error(lambda x: torch.complex(mapped(x), plain(x)), X, group) > 0.1


@pytest.mark.parametrize(
    "pack",
    [
        lambda good, bad: {"good": good, "bad": bad},
        lambda good, bad: (good, bad),
        lambda good, bad: [bad, {"inner": (good, None, 3)}],
    ],
)
def test_the_worst_of_several_outputs_counts(pack: Callable[[Tensor, Tensor], Any]) -> None:
    layer = ring_map()
    assert equivariance_error(lambda x: pack(layer(x), layer(x).mean((2, 3))), X) < EXACT
    assert equivariance_error(lambda x: pack(layer(x), x[:, 0, 0]), X) > 0.1


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_infinity_are_not_fine(bad: float, order: int) -> None:
    def module(x: Tensor) -> tuple[Tensor, ...]:
        return (x, x * bad)[::order]

    assert math.isnan(equivariance_error(module, X))
    with pytest.raises(AssertionError, match="relative error nan under"):
        assert_equivariant(module, X, tolerance=math.inf)


def test_one_nan_is_not_fine() -> None:
    layer = ring_map()

    def module(x: Tensor) -> Tensor:
        y = layer(x).clone()
        y[0, 0, 0, 0] = math.nan
        return y

    assert math.isnan(equivariance_error(module, X))


def test_an_output_of_zeros_is_equivariant_and_one_that_appears_is_not() -> None:
    assert equivariance_error(torch.zeros_like, X) == 0
    assert equivariance_error(lambda x: torch.zeros_like(x) if torch.equal(x, X) else x, X) == math.inf


def test_an_output_that_changes_its_shape_is_not_fine() -> None:
    assert equivariance_error(nn.MaxPool2d((2, 1)), X, "rotations") == math.inf


# What is broken ---------------------------------------------------------------------------------------


def test_a_plain_convolution_is_caught() -> None:
    plain = nn.Conv2d(2, 2, 3, padding=1, dtype=torch.float64)
    errors = equivariance_errors(plain, X)
    assert min(errors.values()) > 0.1
    worst = max(errors, key=errors.__getitem__)
    message = rf"relative error {errors[worst]:.3g} under '{worst}' exceeds 1e-11 \(7 of 7 transformations fail\)"
    with pytest.raises(AssertionError, match=message):
        assert_equivariant(plain, X)


def test_only_the_broken_transformations_are_counted() -> None:
    row = nn.Conv2d(1, 1, 3, padding=1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        row.weight.copy_(torch.tensor([[0.0, 0, 0], [1, 2, 1], [0, 0, 0]]))
    x = X[:, :1]
    assert equivariance_error(row, x, "flips") < EXACT
    with pytest.raises(AssertionError, match=r"under 'rotate (90|270)'.* \(2 of 3 transformations fail\)"):
        assert_equivariant(row, x, "rotations")


def test_a_stride_that_misses_the_last_pixel_is_caught() -> None:
    strided = sre_triton.SREConv2d(2, 2, 3, stride=2, padding=1, dtype=torch.float64)
    assert_equivariant(strided, X[..., :7, :7])
    with pytest.raises(AssertionError, match=r"under '(rotate|flip|anti-transpose)"):
        assert_equivariant(strided, X)


def test_a_tolerance_of_one_s_own() -> None:
    plain = nn.Conv2d(2, 2, 3, padding=1, dtype=torch.float64)
    error = equivariance_error(plain, X)
    assert_equivariant(plain, X, tolerance=error)
    with pytest.raises(AssertionError):
        assert_equivariant(plain, X, tolerance=error * 0.999)


# Angles -----------------------------------------------------------------------------------------------


def test_angles_are_named() -> None:
    layer = sre_triton.SREConv2d(1, 1, 5, padding=2, dtype=torch.float64)
    assert list(equivariance_errors(layer, smooth_image(), [30, 45.5])) == ["30 degrees", "45.5 degrees"]
    assert list(equivariance_errors(layer, smooth_image(), 30)) == ["30 degrees"]
    assert equivariance_error(layer, smooth_image(), [30, 45], margin=6) == max(
        equivariance_error(layer, smooth_image(), angle, margin=6) for angle in (30, 45)
    )


def test_angles_in_3d_turn_about_every_axis() -> None:
    layer = sre_triton.SREConv3d(1, 1, 3, padding=1, antialias=True, dtype=torch.float64)
    noise = np.random.default_rng(0).normal(size=(1, 1, 20, 20, 20))
    x = torch.from_numpy(ndimage.gaussian_filter(noise, (0, 0, 2, 2, 2)))
    errors = equivariance_errors(layer, x, 40, margin=4)
    assert set(errors) == {f"40 degrees in axes {a}" for a in ("0, 1", "0, 2", "1, 2")}
    assert max(errors.values()) < 0.05
    # A running sum along the last axis commutes with turns that leave this axis alone.
    skewed = equivariance_errors(lambda x: x.cumsum(-1), x, 40, margin=4)
    assert skewed["40 degrees in axes 0, 1"] < 0.05 < 0.2 < min(
        skewed["40 degrees in axes 0, 2"], skewed["40 degrees in axes 1, 2"]
    )  # fmt: skip


def test_quarter_turns_as_angles_agree_with_exact_ones() -> None:
    layer = sre_triton.SREConv2d(1, 1, 5, padding=2, dtype=torch.float64)
    for interpolation in ("bilinear", "spline"):
        assert equivariance_error(layer, smooth_image(), [0, 90, 180, 270], interpolation=interpolation) < 1e-10
    plain = nn.Conv2d(1, 1, 5, padding=2, dtype=torch.float64)
    by_angle = equivariance_error(plain, smooth_image(), 180, margin=-100)  # the whole square
    expected = equivariance_errors(plain, smooth_image(), "rotations")["rotate 180"]
    assert by_angle == pytest.approx(expected, rel=1e-9)


def test_the_interpolation_is_part_of_the_figure() -> None:
    errors = {
        interpolation: equivariance_error(nn.Identity(), smooth_image(), 45, interpolation=interpolation, margin=4)
        for interpolation in ("bilinear", "spline")
    }
    # The identity commutes with every rotation: both sides interpolate alike.
    assert errors == {"bilinear": 0, "spline": 0}
    layer = sre_triton.SREConv2d(1, 1, 5, padding=2, antialias=True, dtype=torch.float64)
    nn.init.ones_(layer.weight)
    spline = equivariance_error(layer, smooth_image(), 45, margin=4)
    assert spline == equivariance_error(layer, smooth_image(), 45, interpolation="spline", margin=4)
    assert spline < 0.5 * equivariance_error(layer, smooth_image(), 45, interpolation="bilinear", margin=4)


def test_margin_keeps_the_frame_out_of_the_figure() -> None:
    layer = sre_triton.SREConv2d(1, 1, 9, padding=4, antialias=True, dtype=torch.float64)
    framed = smooth_image() + 1
    assert equivariance_error(layer, framed, 45, margin=8) < 0.01 < 0.05 < equivariance_error(layer, framed, 45)


def test_invariant_outputs_under_angles() -> None:
    disc = (torch.linspace(-1, 1, 64).square() + torch.linspace(-1, 1, 64).square()[:, None]) < 0.25
    assert equivariance_error(lambda x: (x * disc).sum((2, 3)), smooth_image() + 1, 45) < 0.01


def test_a_plain_convolution_is_caught_under_angles() -> None:
    torch.manual_seed(1)
    plain = nn.Conv2d(1, 1, 5, padding=2, bias=False, dtype=torch.float64)
    with pytest.raises(AssertionError, match=r"under '180 degrees' exceeds 0.05"):
        assert_equivariant(plain, smooth_image(), [0, 180], tolerance=0.05, margin=4)


def test_anti_aliased_rings_turn_four_times_better_on_the_fundus_photograph() -> None:
    """One random linear 9x9 layer, turned by 45 degrees with cubic splines, mean of six seeds."""
    grey = data.retina().mean(axis=2)
    # 1411 pixels to 352 by means over 4x4 blocks, for speed, and then the smoothing by two pixels.
    blocks = grey[:1408, :1408].reshape(352, 4, 352, 4).mean(axis=(1, 3))
    photograph = torch.from_numpy(ndimage.gaussian_filter(blocks, 2))[None, None]

    def mean_error(antialias: bool) -> float:
        errors = []
        for seed in range(6):
            torch.manual_seed(seed)
            layer = sre_triton.SREConv2d(1, 1, 9, padding=4, bias=False, antialias=antialias, dtype=torch.float64)
            # Kernels reach 4.5 pixels across the edge of the disc, and splines a few more.
            errors.append(equivariance_error(layer, photograph, 45, interpolation="spline", margin=8))
        return sum(errors) / len(errors)

    hard, smooth = mean_error(antialias=False), mean_error(antialias=True)
    assert smooth <= 0.25 * hard
    assert hard < 0.01


# Mistakes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"group": "turns"}, ValueError, "group must be one of 'rotations', 'flips', 'all' .*got 'turns'"),
        ({"group": []}, ValueError, r"group \[\] holds no transformation of a 2-D input"),
        ({"group": ["a"]}, (TypeError, ValueError), "."),
        ({"group": 45, "interpolation": "nearest"}, ValueError, "'bilinear' or 'spline', got 'nearest'"),
        ({"input": torch.ones(8, 8)}, ValueError, r"input must be \(N, C, \*space\) .*got shape \(8, 8\)"),
        ({"input": torch.ones(1, 1, 2, 2, 2, 2)}, ValueError, "input must be .*got shape"),
        ({"input": torch.ones(1, 1, 8), "group": 45}, ValueError, "1-D input has no angles.*'flips'"),
        ({"input": torch.ones(1, 1, 8), "group": "rotations"}, ValueError, "holds no transformation of a 1-D input"),
        ({"input": torch.ones(1, 1, 8, 8, dtype=torch.int64)}, ValueError, "floating dtype, got torch.int64"),
        ({"module": lambda x: None}, ValueError, "module must return a tensor"),
        ({"module": lambda x: {"a": "b"}}, ValueError, "module must return a tensor"),
        ({"input": (X,)}, TypeError, "input must be a tensor, got tuple"),
        ({"unknown": 1}, TypeError, "unknown"),
    ],
)
@pytest.mark.parametrize("measure", [equivariance_error, equivariance_errors, assert_equivariant])
def test_mistakes(measure: Callable[..., Any], arguments: dict[str, Any], kind: Any, message: str) -> None:
    with pytest.raises(kind, match=message):
        measure(**{"module": nn.Identity(), "input": X, **arguments})


def test_scipy_is_needed_for_angles_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "scipy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "scipy", None)
    assert equivariance_error(nn.Identity(), X) == 0
    with pytest.raises(ImportError, match=r"turning by an angle needs SciPy: pip install 'sre-triton\[equivariance\]'"):
        equivariance_error(nn.Identity(), X, 45)
