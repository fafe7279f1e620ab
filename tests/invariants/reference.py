"""Invariants in another way: explicit kernels, matrices and eigenvalues in float64, no code of the package."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

KINDS = ("gradient", "anisotropy", "isophote", "flow")


def _kernel(*axes: Sequence[float]) -> Tensor:
    """The outer product of one kernel per axis."""
    kernel = torch.ones((), dtype=torch.float64)
    for axis in axes:
        kernel = kernel[..., None] * torch.tensor(axis, dtype=torch.float64)
    return kernel


def _filtered(z: Tensor, kernel: Tensor, dilation: int) -> Tensor:
    ndim = kernel.dim()
    conv = (F.conv2d, F.conv3d)[ndim - 2]
    padded = F.pad(z, [dilation] * 2 * ndim, mode="replicate")
    weight = kernel.expand(z.shape[1], 1, *kernel.shape)
    filtered: Tensor = conv(padded, weight, dilation=dilation, groups=z.shape[1])
    return filtered


def gradient_and_hessian(z: Tensor, dilation: int) -> tuple[Tensor, Tensor]:
    """(N, C, *space, n) and (N, C, *space, n, n)."""
    ndim = z.dim() - 2
    one, slope, bend = (0.0, 1.0, 0.0), (-0.5, 0.0, 0.5), (1.0, -2.0, 1.0)
    first = []
    for a in range(ndim):
        kernel = _kernel(*(slope if i == a else one for i in range(ndim)))
        for b in range(ndim):
            if b != a:
                kernel = kernel + _kernel(*(slope if i == a else bend if i == b else one for i in range(ndim))) / 6
        first.append(_filtered(z, kernel, dilation))
    hessian = torch.empty(*z.shape, ndim, ndim, dtype=torch.float64)
    for a, b in itertools.product(range(ndim), repeat=2):
        axes = [bend if a == b == i else slope if i in (a, b) else one for i in range(ndim)]
        hessian[..., a, b] = _filtered(z, _kernel(*axes), dilation)
    return torch.stack(first, -1), hessian


def invariants(z: Tensor, kinds: Sequence[str], dilations: Sequence[int], eps: float) -> Tensor:
    """(N, scales * kinds * C, *space) of a map in float64."""
    ndim, found = z.dim() - 2, []
    for dilation in dilations:
        g, hessian = gradient_and_hessian(z, dilation)
        traceless = (
            hessian
            - torch.eye(ndim, dtype=torch.float64) * hessian.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
        )
        along = torch.einsum("...a,...ab,...b->...", g, hessian, g)
        if ndim == 2:
            eigenvalues = torch.linalg.eigvalsh(hessian)
            strength = eigenvalues[..., 1] - eigenvalues[..., 0]
        else:
            strength = torch.linalg.matrix_norm(traceless)
        values = {
            "gradient": (g.square().sum(-1) + eps**2).sqrt() - eps,
            "anisotropy": (strength.square() + eps**2).sqrt() - eps,
            "flow": along,
            "isophote": g.square().sum(-1) * hessian.diagonal(dim1=-2, dim2=-1).sum(-1) - along,
        }
        found += [values[kind] for kind in kinds]
    return torch.cat(found, 1)


def added(
    z: Tensor, project: Tensor, weight: Tensor, kinds: Sequence[str], dilations: Sequence[int], eps: float
) -> Tensor:
    """``z`` plus the mixed invariants of mixed channels."""
    features = torch.einsum("fc,nc...->nf...", project.flatten(1), z)
    maps = invariants(features, kinds, dilations, eps)
    return z + torch.einsum("cm,nm...->nc...", weight.flatten(1), maps)
