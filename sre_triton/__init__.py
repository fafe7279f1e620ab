"""Ring convolutions for PyTorch: equivariant to rotation and reflection, at a fraction of the dense price.

``SREConv2d`` replaces ``nn.Conv2d``; its weights are shared on concentric rings, so it is computed as ring
sums and one small matrix product. Importing this package touches no GPU and imports no Triton.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sre_triton import functional, models
from sre_triton.backends.native import build as build_native
from sre_triton.balance import balance_steps, balance_weights
from sre_triton.compat import (
    GMR_Conv1d,
    GMR_Conv2d,
    GMR_Conv3d,
    SRE_Conv1d,
    SRE_Conv2d,
    SRE_Conv3d,
    SRE_ConvTranspose2d,
)
from sre_triton.conversion.convert import convert
from sre_triton.conversion.fold import fold
from sre_triton.conversion.report import report
from sre_triton.diagnosis.selfcheck import selfcheck
from sre_triton.equivariance import assert_equivariant, equivariance_error
from sre_triton.explanation import explain
from sre_triton.functional import (
    expand_kernel,
    project_kernel,
    sre_conv1d,
    sre_conv2d,
    sre_conv3d,
    sre_conv_act,
    sre_conv_transpose1d,
    sre_conv_transpose2d,
    sre_conv_transpose3d,
)
from sre_triton.geometry.rings import RingGeometry, ring_geometry
from sre_triton.gmr import GMRConv1d, GMRConv2d, GMRConv3d
from sre_triton.invariants.functional import add_invariants, differential_invariants, gradient_products
from sre_triton.invariants.layers import (
    AddInvariants2d,
    AddInvariants3d,
    DifferentialInvariants2d,
    DifferentialInvariants3d,
)
from sre_triton.layers import (
    SREConv1d,
    SREConv2d,
    SREConv3d,
    SREConvTranspose1d,
    SREConvTranspose2d,
    SREConvTranspose3d,
)
from sre_triton.models import (
    GMRUNet,
    SREUNet,
    gmr_r3d_18,
    gmr_resnet18,
    gmr_resnet34,
    gmr_resnet50,
    sre_r3d_18,
    sre_r3d_34,
    sre_resnet18,
    sre_resnet34,
    sre_resnet50,
    sre_resnet101,
)
from sre_triton.planning.request import backend
from sre_triton.planning.tune import tune
from sre_triton.pooling import (
    CenteredAvgPool1d,
    CenteredAvgPool2d,
    CenteredAvgPool3d,
    CenteredMaxPool1d,
    CenteredMaxPool2d,
    CenteredMaxPool3d,
    centered_avg_pool,
    centered_max_pool,
)

if TYPE_CHECKING:
    from sre_triton.training.runs.predictor import Predictor

__version__ = "0.1.0"

__all__ = [
    "AddInvariants2d",
    "AddInvariants3d",
    "CenteredAvgPool1d",
    "CenteredAvgPool2d",
    "CenteredAvgPool3d",
    "CenteredMaxPool1d",
    "CenteredMaxPool2d",
    "CenteredMaxPool3d",
    "DifferentialInvariants2d",
    "DifferentialInvariants3d",
    "GMRConv1d",
    "GMRConv2d",
    "GMRConv3d",
    "GMRUNet",
    "GMR_Conv1d",
    "GMR_Conv2d",
    "GMR_Conv3d",
    "RingGeometry",
    "SREConv1d",
    "SREConv2d",
    "SREConv3d",
    "SREConvTranspose1d",
    "SREConvTranspose2d",
    "SREConvTranspose3d",
    "SREUNet",
    "SRE_Conv1d",
    "SRE_Conv2d",
    "SRE_Conv3d",
    "SRE_ConvTranspose2d",
    "add_invariants",
    "assert_equivariant",
    "backend",
    "balance_steps",
    "balance_weights",
    "build_native",
    "centered_avg_pool",
    "centered_max_pool",
    "convert",
    "differential_invariants",
    "equivariance_error",
    "expand_kernel",
    "explain",
    "export",
    "fold",
    "functional",
    "gmr_r3d_18",
    "gmr_resnet18",
    "gmr_resnet34",
    "gmr_resnet50",
    "gradient_products",
    "load",
    "models",
    "project_kernel",
    "report",
    "ring_geometry",
    "selfcheck",
    "sre_conv1d",
    "sre_conv2d",
    "sre_conv3d",
    "sre_conv_act",
    "sre_conv_transpose1d",
    "sre_conv_transpose2d",
    "sre_conv_transpose3d",
    "sre_r3d_18",
    "sre_r3d_34",
    "sre_resnet18",
    "sre_resnet34",
    "sre_resnet50",
    "sre_resnet101",
    "tune",
]


def load(run: str | Path, *, device: str | torch.device = "cpu") -> Predictor:
    """The network of a training by ``sre-triton train`` or ``segment``, with its preprocessing and its classes.

    ``sre_triton.load("logs/task/RUN").predict(image)`` answers for an array, a PIL image or a tensor;
    ``sre_triton.load("vessels")`` finds the vessels in fundus photographs without any training.

    Args:
        run: a run folder, whose best checkpoint is taken, a checkpoint, or a pretrained network (`sre-triton models
            --pretrained` lists them).
        device: where the network computes.

    Returns:
        The network and what it takes to ask it about pictures: ``predict``, ``probabilities``, ``classes``,
        ``threshold`` and ``network``, the module itself.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: it is damaged, not of this package, or of a network for volumes.
        ImportError: the extra ``sre-triton[train]`` is not installed.
    """
    from sre_triton.training.runs.predictor import load

    return load(run, device=device)


def export(run: str | Path, path: str | Path | None = None, *, format: str = "onnx", device: str = "cpu") -> Path:
    """Writes the network of a training as a file that runs without this package; ``sre-triton export`` does the same.

    The network is folded and recorded with its preprocessing for every batch and image size (of "aoti" in steps of up
    to 16 pixels); the file is checked in the format's own runtime at two sizes. It takes float32 images (N, C, *space)
    in 0 to 1 and gives probabilities. Classes, threshold and all that one must know stand as JSON in its metadata,
    under the name ``sre_triton``.

    Args:
        run: a run folder, whose best checkpoint is taken, a checkpoint, or a pretrained network.
        path: of the file; None for ``network`` with the format's ending in the run folder, or for the name of a
            pretrained network in the present one.
        format: "onnx" (``.onnx``), "torchscript" (``.pt``), "pt2" (``.pt2``) or "aoti" (``.aoti.pt2``).
        device: "cpu" or "cuda", where the file will run; ONNX runs anywhere.

    Returns:
        The path of the file.

    Raises:
        FileNotFoundError: there is no checkpoint, or no folder to write to.
        ValueError: an argument is none of these; the network cannot be exported, or the file's answers differ from
            the network's: then nothing is left of it.
        ImportError: the extra ``sre-triton[train]``, or for ONNX ``sre-triton[onnx]``, is not installed.
    """
    from sre_triton.training.options import ExportOptions
    from sre_triton.training.runs.deployment.export import export

    options = ExportOptions(format=format, output=None if path is None else Path(path), device=device)
    return export(Path(run), options).path
