"""Ring convolutions as functions, with the arguments and errors of ``torch.nn.functional.convNd``."""

from sre_triton.functional.calls import ring_conv, ring_conv_transpose
from sre_triton.functional.convolutions import (
    sre_conv1d,
    sre_conv2d,
    sre_conv3d,
    sre_conv_act,
    sre_conv_transpose1d,
    sre_conv_transpose2d,
    sre_conv_transpose3d,
)
from sre_triton.functional.kernels import expand_kernel, project_kernel
from sre_triton.operators.flops import register_formulas

__all__ = [
    "expand_kernel",
    "project_kernel",
    "ring_conv",
    "ring_conv_transpose",
    "sre_conv1d",
    "sre_conv2d",
    "sre_conv3d",
    "sre_conv_act",
    "sre_conv_transpose1d",
    "sre_conv_transpose2d",
    "sre_conv_transpose3d",
]


register_formulas()
