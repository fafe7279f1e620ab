"""Ring geometry: the tables of the reference packages, anti-aliased shares, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sre_triton.geometry.rings import RingGeometry, default_num_rings, ring_geometry
from tests.reference import gmr_conv_package, ring_masks, share_in_ball, sre_conv_package

GOLDEN = json.loads((Path(__file__).parent / "golden" / "antialias_shares.json").read_text())["tables"]

# Shares are rounded to multiples of this, a ball's to the nearest one; a ring is a difference of two.
SHARE_UNIT = 2.0**-24

ANTIALIASED = (
    [(1, k) for k in (1, 3, 5, 9)] + [(2, k) for k in (1, 3, 5, 7, 9, 11, 15)] + [(3, k) for k in (1, 3, 5, 7)]
)


def cube(ndim: int, k: int) -> tuple[int, ...]:
    return (k,) * ndim


def grid_moves(ndim: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Every permutation of the axes with every set of flips: all symmetries of a square or cube."""
    axes = range(ndim)
    flips = itertools.chain.from_iterable(itertools.combinations(axes, n) for n in range(ndim + 1))
    return itertools.product(itertools.permutations(axes), flips)


def valid_num_rings(ndim: int, k: int, circular: bool) -> list[int]:
    """Ring counts for which the reference's rule leaves no ring empty."""
    candidates = range(1, distances(ndim, k) + 1)  # more rings than distances leave one empty
    return [n for n in candidates if ring_masks(cube(ndim, k), n, circular).any(axis=1).all()]


def distances(ndim: int, k: int) -> int:
    """Distances from the centre that a kernel's taps can have."""
    squares = [n * n for n in range(k // 2 + 1)]
    return len({sum(offset) for offset in itertools.product(squares, repeat=ndim)})


# The reference's tables -------------------------------------------------------------------------------

CIRCULAR_TAPS = {
    (2, 1): (1,),
    (2, 3): (1, 8),
    (2, 5): (1, 8, 12),
    (2, 7): (1, 8, 12, 16),
    (2, 9): (1, 8, 12, 16, 32),
    (2, 11): (1, 8, 12, 24, 24, 28),
    (3, 1): (1,),
    (3, 3): (1, 18),
    (3, 5): (1, 18, 62),
    (3, 7): (1, 26, 54, 98),
    (1, 1): (1,),
    (1, 3): (1, 2),
    (1, 5): (1, 2, 2),
    (1, 7): (1, 2, 2, 2),
    (1, 9): (1, 2, 2, 2, 2),
}
KEPT = {(2, 1): 1, (2, 3): 9, (2, 5): 21, (2, 7): 37, (2, 9): 69, (2, 11): 97, (3, 3): 19, (3, 5): 81, (3, 7): 179}
DROPPED = {(2, 1): [], (2, 3): [], (2, 5): [2.83], (2, 7): [3.61, 4.24], (2, 9): [5.0, 5.66], (3, 3): [1.73]}
NON_CIRCULAR_TAPS = {3: (1, 4, 4), 5: (1, 8, 12, 4), 7: (5, 8, 24, 8, 4), 9: (5, 16, 16, 32, 8, 4)}


@pytest.mark.parametrize(("ndim", "k"), CIRCULAR_TAPS)
def test_taps_per_ring(ndim: int, k: int) -> None:
    geometry = ring_geometry(cube(ndim, k))
    assert geometry.tap_counts == CIRCULAR_TAPS[ndim, k]
    assert geometry.num_rings == k // 2 + 1


@pytest.mark.parametrize(("ndim", "k"), KEPT)
def test_taps_kept(ndim: int, k: int) -> None:
    geometry = ring_geometry(cube(ndim, k))
    assert (int(geometry.weights.sum()), geometry.num_taps) == (KEPT[ndim, k], k**ndim)


def dropped_distances(geometry: RingGeometry) -> list[float]:
    lost = geometry.weights.sum(axis=0) == 0
    return sorted({round(math.hypot(*offset), 2) for offset, gone in zip(geometry.offsets, lost, strict=True) if gone})


@pytest.mark.parametrize(("ndim", "k"), DROPPED)
def test_distances_dropped(ndim: int, k: int) -> None:
    assert dropped_distances(ring_geometry(cube(ndim, k))) == DROPPED[ndim, k]


def test_distances_dropped_of_the_largest_kernel_in_the_table() -> None:
    dropped = dropped_distances(ring_geometry((11, 11)))
    assert (dropped[0], dropped[-1]) == (5.66, 7.07)


@pytest.mark.parametrize("k", NON_CIRCULAR_TAPS)
def test_non_circular_taps_per_ring(k: int) -> None:
    geometry = ring_geometry((k, k), circular=False)
    assert geometry.tap_counts == NON_CIRCULAR_TAPS[k]
    assert geometry.num_rings == k // 2 + 2
    corners = {offset for offset, last in zip(geometry.offsets, geometry.weights[-1], strict=True) if last}
    assert corners == set(itertools.product((-(k // 2), k // 2), repeat=2))


@pytest.mark.parametrize("circular", [True, False])
def test_a_single_tap_has_one_ring(circular: bool) -> None:
    assert default_num_rings(1, circular) == 1
    assert ring_geometry((1, 1), circular=circular).weights.tolist() == [[1.0]]


@pytest.mark.parametrize("circular", [True, False])
@pytest.mark.parametrize("k", range(1, 16, 2))
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_default_number_of_rings_leaves_none_empty(ndim: int, k: int, circular: bool) -> None:
    geometry = ring_geometry(cube(ndim, k), circular=circular)
    assert geometry.num_rings == default_num_rings(k, circular, ndim)
    assert min(geometry.tap_counts) > 0


@pytest.mark.parametrize("circular", [True, False])
@pytest.mark.parametrize("k", range(1, 16, 2))
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_map_is_that_of_the_distance_transform(ndim: int, k: int, circular: bool) -> None:
    counts = valid_num_rings(ndim, k, circular)
    assert counts[0] == 1
    for num_rings in counts:
        geometry = ring_geometry(cube(ndim, k), num_rings, circular)
        np.testing.assert_array_equal(geometry.weights, ring_masks(cube(ndim, k), num_rings, circular))


@pytest.mark.parametrize("circular", [True, False])
@pytest.mark.parametrize("k", range(1, 16, 2))
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_ring_counts_that_leave_a_ring_empty_are_refused(ndim: int, k: int, circular: bool) -> None:
    counts = range(1, distances(ndim, k) + 3)
    for num_rings in sorted(set(counts) - set(valid_num_rings(ndim, k, circular))):
        with pytest.raises(ValueError, match=r"hold no tap|more rings than taps"):
            ring_geometry(cube(ndim, k), num_rings, circular)


@pytest.mark.parametrize("num_rings", [None, 2])
@pytest.mark.parametrize("k", [3, 5, 7, 9, 11])
@pytest.mark.parametrize("ndim", [2, 3])
def test_map_is_the_buffer_of_the_installed_sre_conv(ndim: int, k: int, num_rings: int | None) -> None:
    layer = getattr(sre_conv_package(), f"SRE_Conv{ndim}d")(2, 3, k, sre_k=num_rings)
    geometry = ring_geometry(cube(ndim, k), num_rings)
    np.testing.assert_array_equal(geometry.weights, layer.weight_index_mat[0, 0].numpy())


@pytest.mark.parametrize("num_rings", [None, 3])
@pytest.mark.parametrize("circular", [True, False])
@pytest.mark.parametrize("k", [3, 5, 7, 9, 11])
@pytest.mark.parametrize("ndim", [2, 3])
def test_map_is_the_buffer_of_the_installed_gmr_conv(ndim: int, k: int, circular: bool, num_rings: int | None) -> None:
    if num_rings not in (None, *valid_num_rings(ndim, k, circular)):
        num_rings = 2
    layer = getattr(gmr_conv_package(), f"GMR_Conv{ndim}d")(2, 3, k, num_rings=num_rings, force_circular=circular)
    geometry = ring_geometry(cube(ndim, k), num_rings, circular)
    np.testing.assert_array_equal(geometry.weights, layer.weight_index_mat[0, 0].numpy())


# Anti-aliased rings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("table", GOLDEN, ids=lambda t: f"{t['ndim']}d k={t['kernel_size']} rings={t['num_rings']}")
def test_shares_are_those_of_the_golden_table(table: dict[str, Any]) -> None:
    geometry = ring_geometry(cube(table["ndim"], table["kernel_size"]), table["num_rings"], antialias=True)
    orbits = [" ".join(map(str, sorted(map(abs, offset)))) for offset in geometry.offsets]
    assert set(orbits) == set(table["shares"])
    expected = np.array([table["shares"][orbit] for orbit in orbits]).T
    # Half a unit of rounding at either edge of a ring, and 1e-9 of the table's own.
    np.testing.assert_allclose(geometry.weights, expected, rtol=0, atol=SHARE_UNIT + 1e-9)


@pytest.mark.parametrize(
    ("kernel_size", "offset"),
    [
        ((9, 9), (0, 1)),
        ((9, 9), (-3, 2)),
        ((9, 9), (4, -4)),
        ((15, 15), (5, 5)),
        ((7, 7, 7), (0, 0, 1)),
        ((7, 7, 7), (-1, 2, 3)),
    ],
)
def test_shares_are_those_of_adaptive_quadrature(kernel_size: tuple[int, ...], offset: tuple[int, ...]) -> None:
    geometry = ring_geometry(kernel_size, antialias=True)
    balls = [share_in_ball(offset, edge) if edge else 0.0 for edge in geometry.edges]
    shares = geometry.weights[:, geometry.offsets.index(offset)]
    np.testing.assert_allclose(shares, np.diff(balls), rtol=0, atol=SHARE_UNIT + 1e-9)


@pytest.mark.parametrize(("ndim", "k"), [(d, k) for d, k in ANTIALIASED if k > 1])
def test_shares_of_a_ring_sum_to_its_measure(ndim: int, k: int) -> None:
    geometry = ring_geometry(cube(ndim, k), antialias=True)
    unit_ball = {1: 2.0, 2: math.pi, 3: 4 / 3 * math.pi}[ndim]
    measures = unit_ball * np.diff(np.array(geometry.edges) ** ndim)
    np.testing.assert_allclose(geometry.weights.sum(axis=1), measures, rtol=0, atol=geometry.num_taps * SHARE_UNIT)


@pytest.mark.parametrize(("ndim", "k"), ANTIALIASED)
def test_shares_are_never_negative_nor_more_than_a_pixel(ndim: int, k: int) -> None:
    weights = ring_geometry(cube(ndim, k), antialias=True).weights
    for precision in (np.float64, np.float32):
        table = weights.astype(precision)
        assert table.min() >= 0
        assert table.sum(axis=0, dtype=precision).max() <= 1
        np.testing.assert_array_equal(table, weights)  # exact in float32 too


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_a_single_tap_weighs_one_when_anti_aliased(ndim: int) -> None:
    assert ring_geometry(cube(ndim, 1), antialias=True).weights.tolist() == [[1.0]]


@pytest.mark.parametrize(("k", "kept"), [(5, 25), (9, 77)])
def test_taps_with_weight_when_anti_aliased(k: int, kept: int) -> None:
    assert np.count_nonzero(ring_geometry((k, k), antialias=True).weights.any(axis=0)) == kept


def test_taps_inside_the_kernel_are_shared_out_whole() -> None:
    geometry = ring_geometry((9, 9), antialias=True)
    inside = [math.hypot(abs(y) + 0.5, abs(x) + 0.5) <= 4.5 for y, x in geometry.offsets]
    assert sum(inside) == 45
    np.testing.assert_array_equal(geometry.weights.sum(axis=0)[inside], 1.0)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("ndim", "k"), ANTIALIASED)
def test_symmetric_to_the_last_bit(ndim: int, k: int, antialias: bool) -> None:
    geometry = ring_geometry(cube(ndim, k), antialias=antialias)
    kernels = geometry.weights.reshape(-1, *geometry.kernel_size)
    for axes, flips in grid_moves(ndim):
        moved = np.flip(kernels.transpose(0, *(1 + a for a in axes)), [1 + a for a in flips])
        np.testing.assert_array_equal(moved, kernels)


# The object -------------------------------------------------------------------------------------------


def test_same_arguments_give_the_same_object() -> None:
    geometry = ring_geometry((9, 9))
    assert ring_geometry((9, 9), 5) == geometry
    assert hash(ring_geometry((9, 9), 5)) == hash(geometry)
    assert ring_geometry((9, 9)) is geometry
    assert ring_geometry((9, 9), None, True, False) is ring_geometry(kernel_size=(9, 9), antialias=False)
    others = [
        ring_geometry((9, 9), 4),
        ring_geometry((9, 9), 5, False),
        ring_geometry((9, 9), antialias=True),
        ring_geometry((9,)),
    ]
    assert len({geometry, *others}) == 5


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ring_geometry((3, 3)).num_rings = 3  # type: ignore[misc]


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("copied", [pickle.loads, copy.deepcopy, copy.copy], ids=["pickle", "deepcopy", "copy"])
def test_copies_are_equal_and_as_immutable(copied: Any, antialias: bool) -> None:
    geometry = ring_geometry((5, 5), antialias=antialias)
    _ = geometry.weights
    twin = copied(pickle.dumps(geometry) if copied is pickle.loads else geometry)
    assert twin == geometry
    assert hash(twin) == hash(geometry)
    with pytest.raises(ValueError, match="read-only"):
        twin.weights[0, 0] = 2.0


def test_offsets_are_in_the_order_of_the_dense_kernel() -> None:
    geometry = ring_geometry((3, 3))
    assert geometry.ndim == 2
    assert geometry.offsets[:4] == ((-1, -1), (-1, 0), (-1, 1), (0, -1))


def test_edges_divide_the_radius_evenly() -> None:
    assert ring_geometry((9, 9)).edges == pytest.approx([0, 0.9, 1.8, 2.7, 3.6, 4.5], abs=1e-15)
    assert ring_geometry((5, 5, 5), 3, circular=False).edges == pytest.approx(
        [0, math.sqrt(3), math.sqrt(12)], abs=1e-15
    )


def test_integers_of_numpy_are_integers() -> None:
    assert ring_geometry((np.int64(5), np.int64(5)), np.int32(2)) is ring_geometry((5, 5), 2)


# What is refused --------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[tuple[Any, ...], type[Exception], str]] = {
    "even": (((4, 4),), ValueError, r"kernel_size must be odd .*got \(4, 4\); use 3 or 5"),
    "two": (((2,),), ValueError, r"kernel_size must be odd .*got \(2,\); use 1 or 3"),
    "not cubic": (((3, 7),), ValueError, r"same in every dimension .*got \(3, 7\); use \(7, 7\)"),
    "not cubic 3-D": (((3, 7, 7),), ValueError, r"got \(3, 7, 7\); use \(7, 7, 7\)"),
    "zero": (((0, 0),), ValueError, r"kernel_size must be positive, got \(0, 0\)"),
    "negative": (((-3, -3),), ValueError, r"kernel_size must be positive, got \(-3, -3\)"),
    "no dimension": (((),), ValueError, r"kernel_size must have 1 to 3 entries, got \(\)"),
    "four dimensions": (((3, 3, 3, 3),), ValueError, "kernel_size must have 1 to 3 entries"),
    "int": ((3,), TypeError, "kernel_size must be a tuple of ints, one per spatial dimension, got 3"),
    "string": (("33",), TypeError, "kernel_size must be a tuple of ints.*got '33'"),
    "list": (([3, 3],), TypeError, r"kernel_size must be a tuple of ints.*got \[3, 3\]"),
    "floats": (((3.0, 3.0),), TypeError, r"kernel_size must be a tuple of ints.*got \(3.0, 3.0\)"),
    "bools": (((True, True),), TypeError, r"kernel_size must be a tuple of ints.*got \(True, True\)"),
    "rings as float": (((3, 3), 2.0), TypeError, "num_rings must be an int, got 2.0"),
    "rings as bool": (((3, 3), True), TypeError, "num_rings must be an int, got True"),
    "rings as string": (((3, 3), "2"), TypeError, "num_rings must be an int, got '2'"),
    "no rings": (((3, 3), 0), ValueError, "num_rings must be at least 1, got 0"),
    "negative rings": (((3, 3), -1), ValueError, "num_rings must be at least 1, got -1"),
    "empty ring": (((9, 9), 10), ValueError, r"num_rings=10 .*hold no tap; use fewer rings \(the default .* is 5\)"),
    "more rings than taps": (((3, 3), 10), ValueError, "more rings than taps; use fewer rings"),
    "empty non-circular ring": (
        ((3, 3), 5, False),
        ValueError,
        r"hold no tap; use fewer rings \(the default .* is 3\)",
    ),
    "dependent": (((3, 3), 4, True, True), ValueError, r"linearly dependent; use fewer rings \(the default .* is 2\)"),
    "dependent 1-D": (((5,), 4, True, True), ValueError, "linearly dependent; use fewer rings"),
    "non-circular anti-aliased": (((3, 3), None, False, True), ValueError, "antialias=True needs circular=True"),
    "circular as int": (((3, 3), 2, 1), TypeError, "circular must be a bool, got 1"),
    "antialias as string": (((3, 3), 2, True, "yes"), TypeError, "antialias must be a bool, got 'yes'"),
}


@pytest.mark.parametrize("make", [ring_geometry, RingGeometry])
@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_message_that_says_what_to_do(case: str, make: Any) -> None:
    arguments, kind, message = REFUSED[case]
    if make is RingGeometry and (len(arguments) < 2 or arguments[1] is None):
        arguments = (arguments[0], 2, *arguments[2:])
    # Whatever is refused must be refused although an equal key (3.0 == 3, True == 1) has been cached.
    for valid in ((3, 3), (1, 1)):
        assert ring_geometry(valid).kernel_size == valid
    with pytest.raises(kind, match=message):
        make(*arguments)


@pytest.mark.parametrize(("ndim", "k", "most"), [(1, 9, 5), (2, 3, 3), (2, 7, 9), (3, 5, 8), (3, 7, 11)])
def test_anti_aliased_rings_may_be_many_while_they_are_independent(ndim: int, k: int, most: int) -> None:
    """The last of these is nearly dependent: its smallest singular value is down to 1e-5."""
    assert ring_geometry(cube(ndim, k), most, antialias=True).num_rings == most
    for num_rings in (most + 1, most + 2):
        with pytest.raises(ValueError, match="linearly dependent"):
            ring_geometry(cube(ndim, k), num_rings, antialias=True)


@given(st.integers(1, 3), st.integers(1, 15), st.integers(1, 20), st.booleans(), st.booleans())
@example(3, 7, 9, False, False)  # more rings than k + 1
def test_every_geometry_is_sound_or_refused(ndim: int, k: int, num_rings: int, circular: bool, antialias: bool) -> None:
    size = cube(ndim, min(k, 7) if ndim == 3 else k)
    possible = size[0] % 2 == 1 and (circular or not antialias)
    if possible and not antialias:
        possible = num_rings in valid_num_rings(ndim, size[0], circular)
    try:
        geometry = ring_geometry(size, num_rings, circular, antialias)
    except ValueError:
        # Anti-aliased rings are never fewer than the default where they are dependent.
        assert not possible or (antialias and num_rings > default_num_rings(size[0], circular, ndim))
    else:
        assert possible
        assert geometry.weights.shape == (num_rings, size[0] ** ndim)
        assert np.linalg.matrix_rank(geometry.weights) == num_rings
