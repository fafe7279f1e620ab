"""The property that the networks exist for: turning or flipping the image changes the answer by rounding alone."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import nn

from sre_triton import equivariance_error
from sre_triton.models import entry, list_models
from tests.models.networks import RESNETS, RING_NETWORKS, UNETS, as_if_trained, image, small

RESNETS_2D = [name for name in RESNETS if entry(name).ndim == 2]
RESNETS_3D = [name for name in RESNETS if entry(name).ndim == 3]
# Parity at each of four halvings: 17 is odd, even, odd, odd; 24 even three times; and so on.
SAMPLE_2D = (17, 20, 23, 24, 30)
SIZES_2D = (*range(17, 65), 96, 128, 224)
SIZES_3D = (*range(9, 21), 28)
BOUNDS = {torch.float64: (1e-12, 1e-12), torch.float32: (1e-5, 1e-4)}


def check(network: nn.Module, name: str, sizes: Iterable[tuple[int, ...]], dtype: torch.dtype) -> None:
    """At initialisation and as if trained, under every symmetry that the grid has."""
    initial = network.to(dtype)
    trained = as_if_trained(copy.deepcopy(initial))
    for size in sizes:
        group = "all" if len(set(size)) == 1 else "flips"
        x = image(name, *size, dtype=dtype)
        for variant, bound in zip((initial, trained), BOUNDS[dtype], strict=True):
            error = equivariance_error(variant, x, group)
            assert error < bound, f"{name} at {size} in {dtype}: {error:.2g}"


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_every_parity_on_the_way_down(dtype: torch.dtype) -> None:
    sizes = [(n,) for n in SAMPLE_2D]
    check(small("sre_resnet18"), "sre_resnet18", sizes, dtype)
    check(small("gmr_resnet18", skip_first_maxpool=False), "gmr_resnet18", sizes, dtype)
    check(small("sre_r3d_18"), "sre_r3d_18", [(9,)], dtype)
    check(small("sre_unet"), "sre_unet", [(48,), (51,), (49, 62)], dtype)


@pytest.mark.parametrize("name", RING_NETWORKS)
def test_every_network(name: str) -> None:
    size = 17 if entry(name).ndim == 2 else 7
    check(small(name), name, [(size,)], torch.float32)


@pytest.mark.parametrize("options", [{"antialias": True}, {"stem_stride": 2}, {"global_pool": "max"}], ids=str)
def test_options_keep_the_symmetry(options: dict[str, Any]) -> None:
    for size in (17, 20):
        check(small("sre_resnet18", **options), "sre_resnet18", [(size,)], torch.float64)


def test_non_square_images() -> None:
    check(small("sre_resnet18"), "sre_resnet18", [(19, 26)], torch.float64)
    check(small("gmr_r3d_18"), "gmr_r3d_18", [(9, 8, 11)], torch.float64)


@pytest.mark.parametrize("name", ["sre_resnet18", "sre_r3d_18", "sre_unet"])
def test_features_turn_with_the_image(name: str) -> None:
    network = small(name, dtype=torch.float64)
    maps = network if name == "sre_unet" else small(name, features_only=True, dtype=torch.float64)
    assert equivariance_error(maps, image(name, 11, dtype=torch.float64)) < 1e-12


def test_the_reference_s_pooling_is_what_breaks_the_symmetry() -> None:
    options: dict[str, Any] = {"pooling": "reference", "dtype": torch.float64}
    for name, size, symmetric in [
        ("sre_resnet18", 24, True),
        ("sre_resnet18", 28, False),
        ("sre_r3d_18", 8, True),
        ("sre_r3d_18", 9, False),
        ("sre_unet", 48, True),
        ("sre_unet", 51, False),
    ]:
        error = equivariance_error(small(name, **options), image(name, size, dtype=torch.float64), "rotations")
        assert (error < 1e-12) is symmetric, (name, size, error)
    # The stem's own pooling breaks it at even sizes too.
    stem = small("sre_resnet18", skip_first_maxpool=False, **options)
    assert equivariance_error(stem, image("sre_resnet18", 32, dtype=torch.float64), "rotations") > 1e-4


def test_a_plain_twin_has_no_such_symmetry() -> None:
    for name in ("resnet18", "r3d_18"):
        assert name in list_models()
        assert equivariance_error(small(name), image(name, 16), "rotations") > 1e-3


# The whole range --------------------------------------------------------------------------------------


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("skip", [True, False], ids=["without stem pooling", "with stem pooling"])
@pytest.mark.parametrize("name", RESNETS_2D)
def test_every_size_in_2d(name: str, skip: bool, dtype: torch.dtype) -> None:
    check(small(name, skip_first_maxpool=skip), name, [(n,) for n in SIZES_2D], dtype)


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_every_size_at_full_width(dtype: torch.dtype) -> None:
    network = entry("sre_resnet18").build(sre_conv_size=[9, 9, 5, 5]).eval()
    check(network, "sre_resnet18", [(n,) for n in SIZES_2D], dtype)


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("name", RESNETS_3D)
def test_every_size_in_3d(name: str, dtype: torch.dtype) -> None:
    check(small(name), name, [(n,) for n in SIZES_3D], dtype)


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("name", UNETS)
def test_every_size_of_the_unets(name: str, dtype: torch.dtype) -> None:
    if entry(name).ndim == 2:
        sizes: list[tuple[int, ...]] = [(n,) for n in range(48, 81)] + [(n, 128 - n) for n in range(48, 80)]
    else:
        sizes = [(n,) for n in (*SIZES_3D, 48)] + [(9, 12, n) for n in range(8, 17)]
    check(small(name), name, sizes, dtype)
