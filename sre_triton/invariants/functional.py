"""Invariants of derivatives as functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from sre_triton.docstrings import completed_by
from sre_triton.invariants import autograd, formulas
from sre_triton.invariants.formulas import KINDS, Spec

__all__ = ["add_invariants", "differential_invariants", "gradient_products", "invariant_spec"]


def differential_invariants(
    z: Tensor,
    kinds: Sequence[str] | str = ("gradient", "anisotropy"),
    dilations: Sequence[int] | int = 1,
    *,
    eps: float = 1e-2,
    ndim: int | None = None,
) -> Tensor:
    """Scalars of each channel's derivatives, which turn and flip with the map: what rings cannot see of its lines.

    Differences are centred, 3 pixels wide and replicate the border; under the 8 (in 3-D 48) symmetries of the grid the
    result is equivariant up to rounding at every size. README.md in this package has the derivation.

    Args:
        z: (N, C, H, W) or (N, C, D, H, W), any floating dtype and memory format; without N if ``ndim`` is given.
        kinds: any of

            - "gradient": length of the gradient,
            - "anisotropy": strength of lines; in 2-D the difference of the Hessian's eigenvalues
              ``sqrt((z_xx - z_yy)^2 + 4 z_xy^2)``, in 3-D the norm of the traceless Hessian,
            - "isophote": second derivative across the gradient (in 3-D the sum of both), times its square,
            - "flow": second derivative along the gradient, times its square.
        dilations: pixels from the centre to the outer taps of the differences, one per scale. Derivatives are per step
            of so many pixels.
        eps: rounds off the roots: ``sqrt(s + eps^2) - eps``, whose gradient is finite everywhere, and 0 where the map
            is constant.
        ndim: number of spatial dimensions, None for all but two.

    Returns:
        (N, scales * kinds * C, *space), first by scale, then by kind, then by channel, in the dtype and memory format
        of ``z``. Half types are computed in single precision. Derivatives beyond 2^40 (float64: 2^300) and results
        beyond the largest number of a half type are cut off there.

    Raises:
        ValueError: an argument is none of the above.
        TypeError: ``z`` is not of a floating type.

    Examples:
        >>> slope = torch.arange(6.0).expand(1, 1, 6, 6)  # rises by 1 per pixel from left to right
        >>> gradient = sre_triton.differential_invariants(slope, "gradient", eps=1e-6)
        >>> gradient[0, 0, 3]  # half as steep at the border, which is repeated
        tensor([0.5000, 1.0000, 1.0000, 1.0000, 1.0000, 0.5000])
    """
    ndim = z.dim() - 2 if ndim is None else ndim
    spec = invariant_spec(ndim, kinds, dilations, eps)
    return _batched(z, spec, lambda batch: autograd.maps(batch, spec))


@completed_by(differential_invariants, "Args")
def add_invariants(
    z: Tensor,
    project: Tensor,
    weight: Tensor,
    kinds: Sequence[str] | str = ("gradient", "anisotropy"),
    dilations: Sequence[int] | int = 1,
    *,
    eps: float = 1e-2,
    ndim: int | None = None,
) -> Tensor:
    """``z`` plus a mixture of the :func:`differential_invariants` of some features, mixtures of its channels: what
    :class:`sre_triton.AddInvariants2d` computes. ``kinds``, ``dilations`` and ``eps`` are those of the former.

    Args:
        z: (N, C, *space), or (C, *space) if ``ndim`` is given.
        project: (features, C, 1, ...), the weight of a convolution of one tap: which channels each feature is made of.
        weight: (C, scales * kinds * features, 1, ...), how their invariants are added to the channels.

    Returns:
        a tensor such as ``z``. Only the arguments are kept for the backward pass.

    Raises:
        ValueError: an argument is none of the above.
        TypeError: ``z`` is not of a floating type.
    """
    ndim = z.dim() - 2 if ndim is None else ndim
    spec = invariant_spec(ndim, kinds, dilations, eps)
    _check_map(z, spec)
    channels = z.shape[-1 - ndim]
    one = (1,) * ndim
    if project.dim() != ndim + 2 or project.shape[1:] != (channels, *one):
        shape = ", ".join(map(str, (channels, *one)))
        raise ValueError(f"project must be of shape (features, {shape}), got {tuple(project.shape)}")
    expected = (channels, spec.per_channel * project.shape[0], *one)
    if weight.shape != expected:
        raise ValueError(f"weight must be of shape {expected}, got {tuple(weight.shape)}")
    project, weight = project.to(z.dtype), weight.to(z.dtype)
    return _batched(z, spec, lambda batch: autograd.add(batch, project, weight, spec))


@completed_by(differential_invariants, "Args")
def gradient_products(
    z: Tensor, partner: Tensor, dilations: Sequence[int] | int = 1, *, ndim: int | None = None
) -> Tensor:
    """Scalar products of the gradients of two maps, channel by channel: which way one rises as seen from the other.
    ``dilations`` are those of :func:`differential_invariants`.

    Args:
        z: (N, C, *space), or (C, *space) if ``ndim`` is given.
        partner: a map like ``z``, of its shape and dtype.

    Returns:
        (N, scales * C, *space), or the same without N.

    Raises:
        ValueError: an argument is none of the above.
        TypeError: a map is not of a floating type.
    """
    ndim = z.dim() - 2 if ndim is None else ndim
    spec = invariant_spec(ndim, "gradient", dilations)
    if partner.shape != z.shape or partner.dtype != z.dtype:
        raise ValueError(
            f"partner must be of the shape and dtype of z, {tuple(z.shape)} and {z.dtype}, "
            f"got {tuple(partner.shape)} and {partner.dtype}"
        )
    _check_map(partner, spec)
    return _batched(z, spec, lambda batch: formulas.products(batch, partner.reshape(batch.shape), spec, z.dtype))


def invariant_spec(ndim: int, kinds: Sequence[str] | str, dilations: Sequence[int] | int, eps: float = 1e-2) -> Spec:
    """The arguments of :func:`differential_invariants` in one form.

    Raises:
        ValueError: one of them is none.
    """
    names = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    if not names or len(set(names)) != len(names) or any(name not in KINDS for name in names):
        known = ", ".join(map(repr, KINDS))
        raise ValueError(f"kinds must be some of {known}, each once, got {kinds!r}")
    scales = tuple(dilations) if isinstance(dilations, Sequence) else (dilations,)
    if not scales or any(isinstance(d, bool) or not isinstance(d, int) or d < 1 for d in scales):
        raise ValueError(f"dilations must be a positive int or several, got {dilations!r}")
    if ndim not in (2, 3):
        raise ValueError(f"z must be (N, C, *space) in 2 or 3 dimensions, got {ndim} spatial dimensions")
    if not eps > 0 or eps == float("inf"):
        raise ValueError(f"eps must be positive and finite, got {eps!r}")
    return Spec(ndim, names, scales, float(eps))


def _check_map(z: Tensor, spec: Spec) -> None:
    if not z.is_floating_point():
        raise TypeError(f"z must be of a floating dtype, got {z.dtype}")
    if z.dim() - spec.ndim not in (1, 2) or 0 in z.shape[-spec.ndim :]:
        raise ValueError(
            f"z must be (N, C, *space) or (C, *space) with {spec.ndim} spatial dimensions that are not empty, "
            f"got shape {tuple(z.shape)}"
        )


def _batched(z: Tensor, spec: Spec, function: Callable[[Tensor], Tensor]) -> Tensor:
    _check_map(z, spec)
    if z.dim() == spec.ndim + 1:
        return function(z.unsqueeze(0)).squeeze(0)
    return function(z)
