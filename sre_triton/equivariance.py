"""How far a network is from commuting with rotations and reflections, measured on a given input.

For an output that is a map, ``f(g x)`` is compared with ``g f(x)``; for one without spatial dimensions
(logits, features) with ``f(x)``. A map is (N, C, *space), or in two and three dimensions (N, *space) of the input's
size, as the classes of pixels are. Quarter turns and flips only move pixels, so what is measured is the
network alone. Other angles interpolate, and the error of the interpolation is part of the figure.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sre_triton.docstrings import completed_by
from sre_triton.observing import unchanged

__all__ = [
    "GridSymmetry",
    "assert_equivariant",
    "equivariance_error",
    "equivariance_errors",
    "grid_symmetries",
    "rotation",
]

Group = str | float | Sequence[float]

_GROUPS = ("rotations", "flips", "all")
_SPLINE_ORDER = {"bilinear": 1, "spline": 3}
_TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
_NAMES_2D: dict[tuple[tuple[int, ...], tuple[int, ...]], str] = {
    ((0, 1), (1,)): "flip left-right",
    ((0, 1), (0,)): "flip up-down",
    ((0, 1), (0, 1)): "rotate 180",
    ((1, 0), ()): "transpose",
    ((1, 0), (0,)): "rotate 90",
    ((1, 0), (1,)): "rotate 270",
    ((1, 0), (0, 1)): "anti-transpose",
}


@dataclass(frozen=True)
class GridSymmetry:
    """A rotation or reflection that moves every pixel of a grid onto a pixel.

    Args:
        axes: which spatial axis of the input becomes each axis of the result.
        flipped: axes of the result that then run backwards.
    """

    axes: tuple[int, ...]
    flipped: tuple[int, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """Acts on the last dimensions of ``x``, as many as this symmetry has axes."""
        lead = x.dim() - len(self.axes)
        turned = x.permute(*range(lead), *(lead + a for a in self.axes))
        return turned.flip([lead + a for a in self.flipped]) if self.flipped else turned

    def __str__(self) -> str:
        name = _NAMES_2D.get((self.axes, self.flipped))
        return name or f"axes {self.axes}, flipped {self.flipped}"

    @property
    def is_rotation(self) -> bool:
        """Whether it keeps handedness: an even permutation with an even number of flips, or both odd."""
        inversions = sum(a > b for a, b in itertools.combinations(self.axes, 2))
        return (inversions + len(self.flipped)) % 2 == 0


def grid_symmetries(ndim: int, group: str = "all") -> tuple[GridSymmetry, ...]:
    """The symmetries of a grid of ``ndim`` dimensions but the identity.

    Args:
        ndim: 1 to 3.
        group: ``"rotations"`` (quarter turns: 3 in 2-D, 23 in 3-D), ``"flips"`` (of every set of axes: the
            symmetries that a non-square image has too) or ``"all"`` (7 in 2-D, 47 in 3-D).

    Raises:
        ValueError: ``group`` is none of these.
    """
    if group not in _GROUPS:
        raise ValueError(f"group must be one of {', '.join(map(repr, _GROUPS))} or angles in degrees, got {group!r}")
    axes = tuple(range(ndim))
    subsets = [s for n in range(ndim + 1) for s in itertools.combinations(axes, n)]
    everything = [GridSymmetry(p, s) for p in itertools.permutations(axes) for s in subsets][1:]
    keep = {
        "all": lambda g: True,
        "rotations": lambda g: g.is_rotation,
        "flips": lambda g: g.axes == axes,
    }[group]
    return tuple(filter(keep, everything))


def equivariance_error(module: Callable[[Tensor], Any], input: Tensor, group: Group = "all", **options: Any) -> float:
    """Largest relative error over a group of rotations and reflections: 0 is perfect, 1 is unrelated.

    The relative error of one transformation ``g`` is ``|f(g x) - g f(x)| / |f(x)|`` with root mean square
    norms, in float64.

    Args:
        module: a network or any function of one tensor, in the mode (usually ``eval``) in which its
            output for an image does not depend on other calls. It is left as it was: buffers and random
            numbers that its calls change are restored.
        input: (N, C, *space) in 1 to 3 dimensions.
        group: ``"rotations"``, ``"flips"``, ``"all"`` (see :func:`grid_symmetries`), or one or more
            angles in degrees. In 3-D, angles turn about each axis.
        options: for angles ``interpolation``, "spline" (cubic, the default) or "bilinear", and ``margin``, how many
            pixels inside the inscribed disc (ball) of the output to stop comparing, by default 0.

    Returns:
        The error, a share of the output: 1e-6 is rounding in float32.

    Raises:
        ValueError: an argument is none of the above.
        TypeError: ``input`` is no tensor, or an option is unknown.
        ImportError: angles were asked for and SciPy is not installed.

    Examples:
        >>> image = torch.randn(1, 3, 33, 33)
        >>> sre_triton.equivariance_error(sre_triton.SREConv2d(3, 4, 5, padding=2), image) < 1e-5
        True
        >>> sre_triton.equivariance_error(nn.Conv2d(3, 4, 5, padding=2), image) > 0.5
        True
    """
    return _worst(equivariance_errors(module, input, group, **options).values())


def equivariance_errors(
    module: Callable[[Tensor], Any],
    input: Tensor,
    group: Group = "all",
    *,
    interpolation: str = "spline",
    margin: float = 0.0,
) -> dict[str, float]:
    """Relative error for each element of a group, by name; see :func:`equivariance_error`.

    Args:
        interpolation: for angles, ``"bilinear"`` or ``"spline"`` (cubic; its own error is far smaller).
        margin: for angles, how many pixels inside the inscribed disc (ball) of the output to stop
            comparing: outside the disc an image turns out of its frame, and kernels reach across its
            edge.
    """
    if not isinstance(input, Tensor):
        raise TypeError(f"input must be a tensor, got {type(input).__name__}")
    if not 3 <= input.dim() <= 5:
        raise ValueError(f"input must be (N, C, *space) in 1 to 3 dimensions, got shape {tuple(input.shape)}")
    if not input.is_floating_point():
        raise ValueError(f"input must be of a floating dtype, got {input.dtype}")
    _check_interpolation(interpolation)
    ndim = input.dim() - 2
    if not isinstance(group, str):
        transforms: Iterable[tuple[str, Any]] = _rotations(group, ndim, interpolation)
    else:
        transforms = ((str(g), g) for g in grid_symmetries(ndim, group))
    errors = {}
    with unchanged(module, input), torch.no_grad():
        reference = _outputs(module, input)
        if not reference:
            raise ValueError("module must return a tensor, or a list, tuple or dict that holds some")
        for name, transform in transforms:
            moved = _outputs(module, transform(input))
            errors[name] = _worst(
                _relative(a, b, transform, ndim, None if isinstance(group, str) else margin)
                for a, b in zip(moved, reference, strict=True)
            )
    if not errors:
        raise ValueError(f"group {group!r} holds no transformation of a {ndim}-D input, so nothing was measured")
    return errors


@completed_by(equivariance_error, "Args", "Raises")
def assert_equivariant(
    module: Callable[[Tensor], Any],
    input: Tensor,
    group: Group = "all",
    *,
    tolerance: float | None = None,
    **options: Any,
) -> None:
    """Raises an error, naming the worst transformation, if :func:`equivariance_error` exceeds ``tolerance``.

    Args:
        tolerance: largest relative error allowed; None for one that rounding in the input's dtype
            explains (1e-11 in float64, 1e-4 in float32, 2e-2 in float16, 5e-2 in bfloat16).

    Raises:
        AssertionError: the error is larger.

    Examples:
        >>> image = torch.randn(1, 3, 33, 33)
        >>> sre_triton.assert_equivariant(sre_triton.SREConv2d(3, 4, 5, padding=2), image)
        >>> sre_triton.assert_equivariant(nn.Conv2d(3, 4, 5, padding=2), image)
        Traceback (most recent call last):
        AssertionError: not equivariant: relative error ... under '...' exceeds 0.0001 (7 of 7 transformations fail)
    """
    errors = equivariance_errors(module, input, group, **options)
    allowed = _TOLERANCE[input.dtype] if tolerance is None else tolerance
    failed = {name: error for name, error in errors.items() if not error <= allowed}
    if failed:
        worst = max(failed, key=lambda name: _rank(failed[name]))
        raise AssertionError(
            f"not equivariant: relative error {failed[worst]:.3g} under '{worst}' exceeds {allowed:.3g} "
            f"({len(failed)} of {len(errors)} transformations fail)"
        )


def _rank(error: float) -> float:
    """Orders errors; a NaN counts as the largest."""
    return math.inf if math.isnan(error) else error


def _worst(errors: Iterable[float]) -> float:
    return max(errors, key=_rank)


def _outputs(module: Callable[[Tensor], Any], input: Tensor) -> list[Tensor]:
    """What a module returns, maps without channels as maps of one."""
    space = input.shape[2:]
    return [t.unsqueeze(1) if len(space) > 1 and t.shape[1:] == space else t for t in _tensors(module(input))]


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from _tensors(value)


def _relative(moved: Tensor, reference: Tensor, transform: Any, ndim: int, margin: float | None) -> float:
    is_map = reference.dim() == ndim + 2
    moved, expected = _wide(moved), _wide(reference)
    if is_map:
        expected = transform(expected)
        if margin is not None:
            inside = _inscribed_ball(expected, ndim, margin)
            moved, expected = moved[..., inside], expected[..., inside]
    if moved.shape != expected.shape:
        return math.inf
    scale = expected.norm().item()
    difference = (moved - expected).norm().item()
    return difference / scale if scale else (0.0 if difference == 0 else math.inf)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.complex128 if x.is_complex() else torch.float64)


def _inscribed_ball(x: Tensor, ndim: int, margin: float) -> Tensor:
    space = x.shape[-ndim:]
    radius = min(space) / 2 - margin
    squares = torch.zeros(space, device=x.device)
    for axis, n in enumerate(space):
        shape = [n if a == axis else 1 for a in range(ndim)]
        squares = squares + (torch.arange(n, device=x.device) - (n - 1) / 2).square().view(shape)
    return squares <= radius**2


def rotation(
    angle: float, axes: tuple[int, int] = (-2, -1), interpolation: str = "spline"
) -> Callable[[Tensor], Tensor]:
    """A function that turns tensors about the centre of their grid, keeping the size; zeros come in from outside.

    Args:
        angle: in degrees.
        axes: the two axes that span the plane of rotation.
        interpolation: "bilinear" or "spline" (cubic).

    Raises:
        ValueError: ``interpolation`` is neither.
        ImportError: SciPy is not installed.
    """
    _check_interpolation(interpolation)
    try:
        from scipy import ndimage
    except ImportError as error:
        raise ImportError("turning by an angle needs SciPy: pip install 'sre-triton[equivariance]'") from error
    order = _SPLINE_ORDER[interpolation]

    def rotate(x: Tensor) -> Tensor:
        turned = ndimage.rotate(_wide(x).cpu().numpy(), angle, axes=axes, reshape=False, order=order)
        return torch.from_numpy(turned).to(x)

    return rotate


def _check_interpolation(interpolation: str) -> None:
    if interpolation not in _SPLINE_ORDER:
        raise ValueError(f"interpolation must be {' or '.join(map(repr, _SPLINE_ORDER))}, got {interpolation!r}")


def _rotations(
    angles: float | Sequence[float], ndim: int, interpolation: str
) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    if ndim == 1:
        raise ValueError("a 1-D input has no angles to be turned by; use group='flips'")
    for angle in [angles] if isinstance(angles, (int, float)) else angles:
        for plane in itertools.combinations(range(ndim), 2):
            name = f"{angle:g} degrees" + (f" in axes {plane[0]}, {plane[1]}" if ndim == 3 else "")
            yield name, rotation(float(angle), (plane[0] - ndim, plane[1] - ndim), interpolation)
